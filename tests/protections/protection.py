"""What a protection is, and how it is taken out: one exact text of the source, and what stands there without it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Protection:
    """One protection of the line.

    name     what it protects, as docs/testing.md lists it
    file     where it is, from the root of the repository
    text     there exactly once: the protection
    without  what stands there when it is taken out; valid code, or the tests would fail for the wrong reason
    test     the test that fails without it, as pytest names it
    """

    name: str
    file: str
    text: str
    without: str
    test: str

    def occurrences(self) -> int:
        """How often the text is in its file."""
        return (ROOT / self.file).read_text().count(self.text)

    def take_out(self, root: Path) -> str:
        """Take it out of the copy below ``root``; returns the file as it was."""
        file = root / self.file
        before = file.read_text()
        assert before.count(self.text) == 1, f"{self.name}: not exactly once in {self.file}"
        file.write_text(before.replace(self.text, self.without))
        return before
