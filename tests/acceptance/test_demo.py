"""The demo, as anybody would start it: one process, an empty home, nothing prepared."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from bss_sync.demo import stripe_shop
from bss_sync.demo.narration import Narrator
from bss_sync.demo.stage import NotAsPromised, Stage
from bss_sync.domain.permissions import REFUSED_OPERATIONS
from tests import servers

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]

PLAY_SECONDS_MAX = 240
"""Several times what it takes on two idle cores."""
CHAPTER_SECONDS_MAX = 90


@dataclass(frozen=True, slots=True)
class Played:
    """One whole demo: what it printed, and what it left in its temporary folder."""

    code: int
    output: str
    errors: str
    left: list[Path]

    def chapter(self, title: str) -> str:
        """What stands below a chapter's heading; spaces are as one, so that folded lines can be searched."""
        _, heading, rest = self.output.partition(f" {title} ──")
        assert heading, f"there is no chapter {title!r}"
        return " ".join(re.split(r"\n *\d+  .* ──", rest, maxsplit=1)[0].split())


@contextmanager
def demo_process(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A running demo in an environment that holds nothing of ours but one variable that it has to ignore."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "BSS_SYNC_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
    }
    with (temporary / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bss_sync.cli.main", "demo"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        try:
            yield process
        finally:
            # SIGTERM lets it end its own processes, whatever the test did.
            process.terminate()
            process.communicate(timeout=60)


def left_behind(temporary: Path) -> list[Path]:
    return [path for path in temporary.iterdir() if path.name.startswith("bss-sync-demo-")]


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read the output up to a line that contains ``words``."""
    assert process.stdout is not None
    deadline = time.monotonic() + CHAPTER_SECONDS_MAX
    for line in process.stdout:
        if words in line:
            return
        assert time.monotonic() < deadline, f"{words!r} was not printed in time"
    raise AssertionError(f"the demo ended before {words!r}")


@pytest.fixture(scope="module")
def played() -> Iterator[Played]:
    with servers.short_folder() as temporary:
        with demo_process(temporary) as process:
            output, _ = process.communicate(timeout=PLAY_SECONDS_MAX)
        errors = (temporary / "errors.txt").read_text()
        yield Played(process.returncode, output, errors, left_behind(temporary))


def test_it_exits_0_and_leaves_nothing_behind(played: Played) -> None:
    assert (played.code, played.errors) == (0, ""), played.output[-3_000:]
    assert played.left == []


def test_it_fits_100_columns_and_uses_no_colour_when_piped(played: Played) -> None:
    assert "\x1b" not in played.output
    quoted = [line for line in played.output.splitlines() if not line.startswith("    ")]
    assert max(map(len, quoted)) <= 100


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        ("upgrades X", "M365-BUS-PREM"),
        ("changes X's quantity", "25"),
        ("adds Teams Phone", "below X's subscription"),
        ("trial becomes a paid subscription", "Y enters"),
        ("removes Teams Phone", "tombstone"),
        ("suspends Z", "suspended"),
        ("resumes Z", "active"),
        ("renews X", "until"),
        ("Z cancels", "cancelled"),
        ("moves Y", "directly below Cloud Resell"),
    ],
)
def test_every_commercial_change_arrives_in_mirror_and_own_bss(played: Played, act: str, seen: str) -> None:
    chapter = played.chapter("Every change follows")
    assert re.search(rf"✓ [^✓]*{act}[^✓]*→ [^✓]*{seen}[^✓]*\d+ / \d+ ms", chapter), chapter


def test_what_is_not_clouds_business_stays_out(played: Played) -> None:
    chapter = played.chapter("Cloud Resell sells, Cloud sees what concerns it")
    assert "not copied: trial" in chapter
    assert "not copied: product_not_in_catalogue" in chapter


def test_the_tree_of_a_past_day_differs_from_todays(played: Played) -> None:
    assert "├── Cloud Customer X" in played.output  # beside Y below Cloud Lite
    assert played.output.index("│   └── 25 × M365-BUS-PREM") < played.output.index("(now)")


def test_a_duplicate_a_forged_a_late_and_a_lost_message_do_no_harm(played: Played) -> None:
    chapter = played.chapter("What the network does to messages")
    assert "the message is sent twice → stored and applied once" in chapter
    assert "401: The sender could not be verified" in chapter
    assert (
        "as it was known before the late message came 25 as it is known now (what that week is billed by) 40" in chapter
    )
    assert "the lost change is found: 32 since 1 Oct" in chapter
    assert chapter.count(" late ") + chapter.endswith(" late") >= 2


def test_every_forbidden_act_is_refused_by_name(played: Played) -> None:
    chapter = played.chapter("What is refused, always naming who can")
    for operations in REFUSED_OPERATIONS.values():
        for operation in operations:
            assert f"403: {operation.replace('_', ' ')} is refused" in chapter
    assert chapter.count("only Cloud Resell can do it in its own BSS.") == sum(map(len, REFUSED_OPERATIONS.values()))
    assert "409: quantity, end_date: owned by Cloud Resell and locked here. Nothing was changed." in chapter
    assert "exit code 1: error: quantity: owned by Cloud Resell" in chapter
    assert "PostgreSQL: permission denied for table subscription" in chapter


def test_every_allowed_act_is_done(played: Played) -> None:
    chapter = played.chapter("What is allowed")
    for words in ("contact", "email", "task", "event", "document", "case"):
        assert re.search(rf"✓ (adds|relates) an? {words} to X → 201", chapter)
    assert "sees the hierarchy → below Cloud Resell: Cloud Customer Y, Cloud End-Customer Z, Cloud Lite" in chapter


def test_edits_behind_the_back_are_put_back_and_recorded(played: Played) -> None:
    chapter = played.chapter("Behind the back")
    assert chapter.count("put back to") == 2
    assert re.search(r"subscription sub-x quantity 32 3 anna [0-9:.]+ repaired", chapter)
    assert "edited behind our back" in chapter


def test_stripe_arrives_by_webhook_and_by_polling(played: Played) -> None:
    chapter = played.chapter("The same line on input that nobody here wrote")
    assert "hook subscription notified applied" in chapter
    assert "30, found by polling" in chapter
    assert "cancelled (its own word: canceled)" in chapter


def test_the_end_is_proved(played: Played) -> None:
    chapter = played.chapter("The evidence")
    assert chapter.count("all equal") == 2
    assert "hash chains recomputed, all whole" in chapter
    summary = played.chapter("In short")
    assert "chapters that were not run 0" in summary
    assert f"acts that were refused, as they should be {played.output.count('✗')}" in summary


def test_a_demo_whose_reseller_dies_says_so_and_ends_everything() -> None:
    with servers.short_folder() as temporary, demo_process(temporary) as process:
        read_until(process, "The stage")
        read_until(process, "the admin imports the catalogue")
        children = psutil.Process(process.pid).children(recursive=True)
        reseller = next(one for one in children if one.cmdline()[-2:] == ["--role", "reseller"])
        reseller.kill()
        output, _ = process.communicate(timeout=CHAPTER_SECONDS_MAX)
        assert process.returncode == 1
        assert "NOT AS PROMISED" in output
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
        assert left_behind(temporary) == []


def test_a_demo_that_is_interrupted_ends_everything() -> None:
    with servers.short_folder() as temporary, demo_process(temporary) as process:
        read_until(process, "the admin imports the catalogue")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 3
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=CHAPTER_SECONDS_MAX)
        assert process.returncode == 130
        assert "nothing is left behind" in output
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
        assert left_behind(temporary) == []


def test_what_is_not_seen_in_time_is_named_with_what_was_seen() -> None:
    with Stage() as stage, pytest.raises(NotAsPromised) as raised:
        stage.eventually("the answer", 42, lambda: 41, seconds=0.05)
    assert (raised.value.what, raised.value.expected, str(raised.value.seen)[:2]) == ("the answer", 42, "41")


def test_a_chapter_that_cannot_be_run_is_named_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    missing = stripe_shop.missing_packages(("json", "no_such_package_anywhere"))
    assert missing == ["no_such_package_anywhere"]
    narrator = Narrator()
    stripe_shop.not_run(narrator, missing)
    assert "NOT RUN: the Stripe chapter needs no_such_package_anywhere" in capsys.readouterr().out
    assert len(narrator.tally.not_run) == 1
