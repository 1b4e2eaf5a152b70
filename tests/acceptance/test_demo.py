"""The demo, as anybody would start it: one process, an empty home, nothing prepared."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bss_sync.domain.change import Kind
from bss_sync.domain.permissions import REFUSED_OPERATIONS
from tests import servers
from tests.demo_process import demo_process, left_behind

pytestmark = pytest.mark.slow

PLAY_SECONDS_MAX = 240
"""Several times what it takes on two idle cores."""


MARKS = ("✓", "✗")


@dataclass(frozen=True, slots=True)
class Played:
    """One whole demo: what it printed, and what it left in its temporary folder."""

    code: int
    output: str
    errors: str
    left: list[Path]

    def lines(self, title: str) -> list[str]:
        """The lines below a chapter's heading."""
        _, heading, rest = self.output.partition(f" {title} ──")
        assert heading, f"there is no chapter {title!r}"
        return re.split(r"\n *\d+  .* ──", rest, maxsplit=1)[0].splitlines()[1:]

    def chapter(self, title: str) -> str:
        """What stands below a chapter's heading, spaces as one."""
        return " ".join(" ".join(self.lines(title)).split())

    def acts(self, title: str) -> dict[str, str]:
        """The acts of a chapter, ``✓ words → what was seen … ms``, with folded lines put together."""
        found: dict[str, str] = {}
        words, seen, arrow = "", "", 0
        for line in [*self.lines(title), ""]:
            if words and (not line.startswith("  ") or not line.strip()):
                found[" ".join(words.split())] = " ".join(seen.split())
                words = seen = ""
            if line[:1] in MARKS:
                arrow = line.index("→")
                words, seen = line[:arrow], line[arrow + 1 :]
            elif words:
                words, seen = f"{words} {line[:arrow]}", f"{seen} {line[arrow:]}"
        return found


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


def test_every_commercial_change_arrives_in_mirror_and_own_bss(played: Played) -> None:
    acts = played.acts("Every change follows")
    expected = {
        "upgrades X": "M365-BUS-PREM",
        "changes X's quantity": "25",
        "adds Teams Phone": "5 × TEAMS-PHONE",
        "Y's trial becomes a paid subscription": "Y enters",
        "removes Teams Phone": "tombstone",
        "suspends Z": "suspended",
        "resumes Z": "active",
        "renews X": "until",
        "Z cancels": "cancelled",
        "moves Y": "Y directly below Cloud Resell",
    }
    assert len(acts) == len(expected)
    for (words, seen), (act, shown) in zip(acts.items(), expected.items(), strict=True):
        assert words.startswith(f"✓ {act}")
        assert shown in seen
        assert re.search(r"\d+ / \d+ ms", seen), f"{words}: no times until mirror and own BSS"


def test_what_is_not_clouds_business_stays_out(played: Played) -> None:
    chapter = played.chapter("Cloud Resell sells, Cloud sees what concerns it")
    assert "not copied: trial" in chapter
    assert "not copied: product_not_in_catalogue" in chapter


def test_the_tree_of_a_past_day_differs_from_todays(played: Played) -> None:
    assert "├── Cloud Customer X" in played.output  # beside Y below Cloud Lite
    assert played.output.index("│   └── 25 × M365-BUS-PREM") < played.output.index("(now)")


def test_a_duplicate_a_forged_a_late_and_a_lost_message_do_no_harm(played: Played) -> None:
    title = "What the network does to messages"
    acts, chapter = played.acts(title), played.chapter(title)
    assert acts["✓ Y gets 12; the message is sent twice"].startswith("stored and applied once")
    assert acts["✗ somebody forges a deletion"] == "401: The sender could not be verified."
    assert acts["✓ the first one arrives after all"] == "still 30; 40 is entered for that week"
    assert "as it was known before the late message came 25" in chapter
    assert "as it is known now (what that week is billed by) 40" in chapter
    assert acts["✓ Cloud Resell's BSS is polled"] == "the lost change is found: 32 since 1 Oct"
    late = [line.split() for line in played.lines(title) if line.rstrip().endswith(" late")]
    assert [row[3:5] for row in late] == [["quantity", "40"], ["quantity", "32"]]


def test_every_forbidden_act_is_refused_by_name(played: Played) -> None:
    acts = played.acts("What is refused, always naming who can")
    assert all(words.startswith("✗") for words in acts)
    for kind, whose in (("subscription", "X's subscription"), ("account", "X")):
        for operation in (one.replace("_", " ") for one in REFUSED_OPERATIONS[Kind(kind)]):
            assert acts.pop(f"✗ {whose}: {operation}") == (
                f"403: {operation} is refused: this {kind} is mirrored from Cloud Resell, "
                "and only Cloud Resell can do it in its own BSS."
            )
    locked = "owned by Cloud Resell and locked here. Nothing was changed."
    assert list(acts.values()) == [
        f"409: quantity, end_date: {locked}",
        f"exit code 1: error: quantity: {locked}",
        "PostgreSQL: permission denied for table subscription",
    ]


def test_every_allowed_act_is_done(played: Played) -> None:
    acts = played.acts("What is allowed")
    for words in (
        "adds a contact",
        *(f"relates {one}" for one in ("an email", "a task", "an event", "a document", "a case")),
    ):
        assert acts[f"✓ {words} to X"].startswith("201: ")
    assert acts["✓ sees the hierarchy"] == "below Cloud Resell: Cloud Customer Y, Cloud End-Customer Z, Cloud Lite"


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
