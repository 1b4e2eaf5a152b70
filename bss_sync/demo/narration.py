"""How the demo speaks: chapters, one line per act, tables. Legible at 80 to 100 columns, with and without colours."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

WIDTH_MIN, WIDTH_MAX = 80, 100
TIMES_WIDTH = 14
MARK_DONE, MARK_REFUSED = "✓", "✗"


@dataclass
class Tally:
    """What is counted for the summary."""

    acts: int = 0
    refused: int = 0
    healed: int = 0
    not_run: list[str] = field(default_factory=list)
    mirror_milliseconds: list[float] = field(default_factory=list)


class Narrator:
    """Prints to standard output, at once: a chapter can be followed while it happens."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal without UTF-8 shows a question mark for an arrow, and the demo goes on.
            sys.stdout.reconfigure(errors="replace", line_buffering=True)
        self.tally = Tally()
        self._started = time.monotonic()
        self._chapter = 0
        self._console = Console(highlight=False, emoji=False, markup=False)
        wide = self._console.width if self._console.is_terminal else WIDTH_MAX
        self._console.width = max(WIDTH_MIN, min(wide, WIDTH_MAX))

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._started

    def chapter(self, title: str, *words: str) -> None:
        """Begin a chapter, with a few words about what it shows."""
        self._chapter += 1
        self._console.print()
        self._console.print(Rule(Text(f"{self._chapter:>2}  {title}", style="bold"), align="left", characters="─"))
        for line in words:
            self.say(line)
        self._console.print()

    def act(self, words: str, seen: str, *milliseconds: float) -> None:
        """One act that came out as it should: what was done, what was seen, how long that took."""
        self.tally.acts += 1
        self.tally.mirror_milliseconds += milliseconds[:1]
        self._line(Text(MARK_DONE, style="green"), words, Text(seen), milliseconds, share=0.44)

    def refusal(self, words: str, answer: str) -> None:
        """One forbidden act that was refused, as it should be."""
        self.tally.refused += 1
        self._line(Text(MARK_REFUSED, style="red"), words, Text(answer), (), share=0.30)

    def _line(self, mark: Text, words: str, seen: Text, milliseconds: Sequence[float], *, share: float) -> None:
        times = f"{' / '.join(f'{number:.0f}' for number in milliseconds)} ms" if milliseconds else ""
        # Beside words and answer there are the mark, the arrow, the times, and a space after each but the last.
        room = self._console.width - len("✓ → ") - 1 - (TIMES_WIDTH + 1 if times else 0)
        words_width = round((self._console.width - len("✓ → ")) * share)
        grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        grid.add_column(width=1)
        grid.add_column(width=words_width)
        grid.add_column(width=1, style="dim")
        grid.add_column(width=room - words_width)
        cells = [mark, Text(words), Text("→"), seen]
        if times:
            grid.add_column(width=TIMES_WIDTH, justify="right", style="dim")
            cells.append(Text(times))
        grid.add_row(*cells)
        self._console.print(grid)

    def say(self, words: str) -> None:
        """A remark, folded to the width."""
        self._console.print(Text(words, style="dim"))

    def quote(self, text: str) -> None:
        """Text as somebody else wrote it: an answer, or the output of a command; indented."""
        for line in text.rstrip().splitlines():
            self._console.print(Text("    " + line.rstrip()), soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table; a column whose name ends with # is aligned to the right."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name in columns:
            table.add_column(name.removesuffix("#"), justify="right" if name.endswith("#") else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._console.print(table)

    def gap(self) -> None:
        """An empty line."""
        self._console.print()

    def failure(self, *lines: str) -> None:
        """What was expected and what was seen."""
        self._console.print()
        for line in lines:
            self._console.print(Text(line, style="red"), soft_wrap=True)
