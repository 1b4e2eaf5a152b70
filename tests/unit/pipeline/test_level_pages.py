"""Answers are read page by page to their end, and a listing that has none is left with words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

import pytest

from bss_sync.domain.change import Kind
from bss_sync.domain.errors import InvalidMessage, Transient
from bss_sync.pipeline.level_pages import Comparing, Reading, Step, step_of
from bss_sync.pipeline.read_pages import EMPTY_PAGES_MAX
from bss_sync.ports.connector import Answer, Observation, Page
from bss_sync.ports.level_pages import AnsweredPage, LevelPage

RULES = b"rules"


def _seen(*names: object) -> list[Observation]:
    return [Observation(Kind.ACCOUNT, str(name), 1, None) for name in names]


@dataclass
class Answering:
    """A source that answers as a test says: cursor → names and the next cursor."""

    told: Callable[[str | None], tuple[Sequence[object], str | None]]

    def answer_page(self, cursor: str | None) -> Answer:
        names, following = self.told(cursor)
        return Answer(repr((names, following)).encode(), lambda: following, lambda: _seen(*names))

    def list_page(self, cursor: str | None) -> Page:
        raise AssertionError(f"its answers are asked for ({cursor})")


def _circling(cursor: str | None) -> tuple[Sequence[object], str]:
    place = int(cursor or 0)
    return [place], str((place + 1) % 7)


def _fresh(names: Sequence[object]) -> Callable[[str | None], tuple[Sequence[object], str]]:
    numbers = count()
    return lambda _cursor: (names, f"fresh-{next(numbers)}")


def _read(steps: Iterator[Step]) -> int:
    return sum(len(step.read()) for step in steps)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(
    ("told", "words"),
    [
        (lambda _cursor: (["a", "b"], "a1"), "leads back"),
        (_circling, "leads back"),
        (_fresh(["a", "b", "c"]), "come again"),
        (_fresh([]), "to nothing"),
    ],
    ids=["the cursor stays", "cursors in a circle", "the same again", "nothing, for ever"],
)
def test_answers_that_do_not_lead_on_are_left_with_words(
    told: Callable[[str | None], tuple[Sequence[object], str | None]], words: str, ahead: bool
) -> None:
    steps = Reading(Answering(told), RULES, {}).steps(None, ahead=ahead)
    with pytest.raises(Transient, match=f"does not advance.*{words}"):
        _read(islice(steps, EMPTY_PAGES_MAX + 100))
    steps.close()


def test_a_page_is_known_only_by_the_answer_that_it_gave() -> None:
    pages: dict[str | None, tuple[Sequence[object], str | None]] = {None: (["a"], "1"), "1": (["b"], None)}
    source = Answering(pages.__getitem__)
    known = LevelPage(AnsweredPage("", RULES, source.answer_page(None).digest, "1"), Kind.ACCOUNT, "a", "a", 1)
    first, second = Reading(source, RULES, {"": known}).steps(None, ahead=False)
    assert (first.known, first.cursor) == (known, "1")
    assert (second.known, second.cursor, second.page and second.page.cursor) == (None, None, "1")
    pages[None] = (["a", "a2"], "1")
    assert next(Reading(source, RULES, {"": known}).steps(None, ahead=False)).known is None


@dataclass
class Noted:
    """A comparison that notes what is asked of it."""

    fails: bool = False
    said: list[str] = field(default_factory=list)

    def prepare(self, chunk: Sequence[Observation], page: AnsweredPage | None) -> str:  # noqa: ARG002  the shape is asked for
        self.said.append(f"prepare {chunk[0].source_id}")
        return chunk[0].source_id

    def look(self, prepared: str) -> str:
        if self.fails:
            raise InvalidMessage(f"nobody knows {prepared}")
        return prepared

    def judge(self, prepared: str, looked: str) -> None:
        assert prepared == looked
        self.said.append(f"judge {prepared}")

    def pass_over(self, known: LevelPage) -> bool:
        self.said.append(f"look at {known.first}")
        return known.number > 0


def _step(name: str, number: int | None = None) -> Step:
    page = AnsweredPage(name, RULES, b"", None)
    known = None if number is None else LevelPage(page, Kind.ACCOUNT, name, name, number)
    return Step(lambda: _seen(name), name, page, known)


def test_pages_are_done_in_their_order_though_the_next_is_read_meanwhile() -> None:
    noted = Noted()
    with Comparing(noted, lambda step: noted.said.append(f"done {step.cursor}")) as comparing:
        for step in (_step("a"), _step("b"), _step("c", 0), _step("d", 1)):
            if not comparing.passes_over(step):
                comparing.take(step, step.read())
        comparing.finish()
    assert noted.said == [
        *("prepare a", "prepare b", "judge a", "done a", "judge b", "done b"),
        *("look at c", "prepare c", "judge c", "done c", "look at d", "done d"),
    ]


def test_what_cannot_be_gone_on_behind_is_compared_at_once() -> None:
    noted = Noted()
    with Comparing(noted, lambda _step: None) as comparing:
        comparing.take(step_of(_seen("a")), _seen("a"))
        assert noted.said == ["prepare a", "judge a"]


def test_what_fails_while_the_next_page_is_read_is_raised() -> None:
    with Comparing(Noted(fails=True), lambda _step: None) as comparing:
        comparing.take(_step("a"), _seen("a"))
        with pytest.raises(InvalidMessage, match="nobody knows a"):
            comparing.take(_step("b"), _seen("b"))
