"""Releases of the program for tests: the one before, taken from git, and a next one with one migration more.

Each is a folder with the program's own files; its processes run there and import nothing of the checkout.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bss_sync.adapters.sql.revision import revisions_in
from bss_sync.settings import PREFIX
from tests.command_line import Answer

PREVIOUS_RELEASE = "48b2132136954c77f19a54cc15070f35357e2eb7"
"""The commit that was released last (0.1.0). Whoever releases puts the new commit here."""

_ROOT = Path(__file__).parents[1]
_PARTS = ("bss_sync", "connectors", "migrations", "config")
_RUN = (
    "import runpy, bss_sync; print('code of', bss_sync.__file__, flush=True); "
    "runpy.run_module('bss_sync.cli.main', run_name='__main__', alter_sys=True)"
)
NEXT_REVISION = "9999_01_01_9999"
_MIGRATION = '''"""A migration of the next release."""
from alembic import op
revision = "{revision}"
down_revision = "{head}"
branch_labels = None
depends_on = None
{marks}

def upgrade() -> None:
{body}
'''


@dataclass(frozen=True)
class Release:
    """A program in a folder of its own."""

    folder: Path

    def program(self, *arguments: str) -> tuple[str, ...]:
        """Python's arguments for one command; its process says first whose code it is."""
        return ("-c", _RUN, *arguments)

    def runs_in(self, said: str) -> bool:
        """Whether a process that said this ran this release's code, and no other."""
        own = f"code of {self.folder / 'bss_sync' / '__init__.py'}"
        told = [line for line in said.splitlines() if line.startswith("code of ")]
        return bool(told) and set(told) == {own}

    def start(self, environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
        """One command, not waited for."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return subprocess.Popen(
            [sys.executable, *self.program(*arguments)],
            cwd=self.folder,
            env={**bare, **environment, "PYTHONPATH": str(self.folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, environment: Mapping[str, str], *arguments: str) -> Answer:
        """One command to its end; what it said of itself is checked and left out."""
        return self.ended(self.start(environment, *arguments))

    def ended(self, process: subprocess.Popen[str]) -> Answer:
        """What a command that was started came to."""
        with process:
            out, err = process.communicate(timeout=120)
        assert self.runs_in(out), f"not the code in {self.folder}: {out} {err}"
        return Answer(process.returncode, out.partition("\n")[2], err)


def why_no_previous_release() -> str | None:
    """Why the previous release cannot be had from this checkout; None when it can."""
    if _git("cat-file", "-e", f"{PREVIOUS_RELEASE}^{{commit}}") is None:
        return f"the previous release ({PREVIOUS_RELEASE[:7]}) is not in this checkout (git fetch --unshallow)"
    return None


def _git(*arguments: str) -> bytes | None:
    """What git says; None where there is no git, no repository or no such commit."""
    program = shutil.which("git")
    if program is None:
        return None
    done = subprocess.run([program, *arguments], cwd=_ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else None


def previous_release(folder: Path) -> Release:
    """The program that was released last, in ``folder``."""
    archive = _git("archive", "--format=tar", PREVIOUS_RELEASE, *_PARTS)
    assert archive is not None, "missing() has named it"
    program = shutil.which("tar")
    assert program is not None, "tar is needed"
    subprocess.run([program, "--extract", "--directory", str(folder)], input=archive, check=True)
    return Release(folder.resolve())


def this_release(folder: Path) -> Release:
    """The program as it stands here, in ``folder``."""
    for part in _PARTS:
        shutil.copytree(_ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return Release(folder.resolve())


def next_release(folder: Path, *statements: str, marks: str = "") -> Release:
    """The program as it stands here and one migration more: ``statements`` in one transaction."""
    release = this_release(folder)
    body = "\n".join(f"    op.execute({statement!r})" for statement in statements)
    _, head = revisions_in(folder / "migrations")
    text = _MIGRATION.format(revision=NEXT_REVISION, head=head, body=body, marks=marks)
    (folder / "migrations" / "versions" / f"{NEXT_REVISION}_next.py").write_text(text, encoding="utf-8")
    return release
