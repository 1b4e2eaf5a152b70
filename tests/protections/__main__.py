"""``python -m tests.protections``: take each protection out of a copy of the tree, and see whether its test notices.

Every test must pass with everything in place, and fail with its protection taken out. ``--only WORDS`` plays those
whose name has the words in it; ``--whole`` plays the whole file of each test and names all that notice.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.protections.protection import ROOT, Protection
from tests.protections.table import PROTECTIONS, as_markdown

PARTS = ("bss_sync", "connectors", "migrations", "config", "docs", "tests", "pyproject.toml", "README.md")
TEST_SECONDS = 300
ALL_SECONDS = 1800


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 when the absence of a protection is noticed by nobody."""
    parser = argparse.ArgumentParser(prog="python -m tests.protections", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="those whose name has these words in it")
    parser.add_argument("--part", type=int, nargs=2, default=(1, 1), metavar=("I", "N"), help="the I-th of N parts")
    parser.add_argument("--whole", action="store_true", help="play the whole file of each test")
    parser.add_argument("--table", action="store_true", help="print the table of docs/testing.md, and do nothing else")
    options = parser.parse_args(arguments)
    if options.table:
        _say("\n".join(as_markdown()))
        return 0
    part, parts = options.part
    chosen = [one for one in PROTECTIONS if options.only in one.name][part - 1 :: parts]
    with _copy() as copy:
        sound = _run(copy, sorted({one.test for one in chosen}), ALL_SECONDS)
        if sound.failed or not sound.passed or sound.broken:
            _say(f"with everything in place these fail already: {sound.failed or sound.broken}")
            return 1
        unnoticed = [one.name for one in chosen if not _is_noticed(copy, one, whole=options.whole)]
    _say(f"{len(chosen)} protections taken out, {len(chosen) - len(unnoticed)} noticed")
    for name in unnoticed:
        _say(f"NOTICED BY NOBODY: {name}")
    return 1 if unnoticed or not chosen else 0


def _is_noticed(copy: Path, protection: Protection, *, whole: bool) -> bool:
    started = time.monotonic()
    test = protection.test.partition("::")[0] if whole else protection.test
    before = protection.take_out(copy)
    try:
        outcome = _run(copy, [test] if whole else ["--exitfirst", test], TEST_SECONDS)
    finally:
        (copy / protection.file).write_text(before)
    noticed = bool(outcome.failed)
    words = "noticed" if noticed else f"NOT NOTICED ({outcome.broken or 'all passed'})"
    _say(f"{protection.name}: {words}, {time.monotonic() - started:.0f} s")
    if whole:
        _say(f"    {len(outcome.failed)} of {len(outcome.failed) + outcome.passed}: {outcome.failed}")
    return noticed


class Outcome:
    """What a run of tests came to. ``broken``: why nothing can be concluded from it."""

    def __init__(self, report: Path, said: str) -> None:
        self.failed: list[str] = []
        self.passed = 0
        self.broken = "" if report.exists() else said[-2000:]
        for case in ET.parse(report).iter("testcase") if report.exists() else ():  # noqa: S314  pytest's own
            if case.find("failure") is not None:
                self.failed.append(str(case.get("name")))
            elif case.find("error") is not None:
                # A fixture that breaks, or a module that cannot be imported, notices nothing.
                self.broken = f"{case.get('name')}: an error, not a failure"
            else:
                self.passed += 1


def _run(copy: Path, tests: Sequence[str], seconds: float) -> Outcome:
    report = copy / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(report, f"not done within {seconds} s")
    return Outcome(report, done.stdout + done.stderr)


@contextmanager
def _copy() -> Iterator[Path]:
    """The tree without what was made from it."""
    with tempfile.TemporaryDirectory(prefix="protections-") as folder:
        copy = Path(folder)
        # The tests' servers run as another account.
        copy.chmod(0o755)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, copy / part)
        yield copy


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
