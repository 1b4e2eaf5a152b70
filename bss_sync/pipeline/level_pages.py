"""Pages that are known to be level are not read (docs/decisions/0037-level-pages-are-remembered.md).

    ask    the source answers; the bytes are summed up
    look   the bytes are those of a page that was level, under the same rules, and its stretch of the mirror is as it
           was then: it is level, and is passed over
    read   every other page; where it turns out to be level it is remembered

What is remembered never decides anything else: where it is lost, or anything differs, the page is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from bss_sync.domain.change import OrderKind
from bss_sync.domain.circles import Circle, Round
from bss_sync.pipeline.read_pages import EMPTY_PAGES_MAX, answered, leads_nowhere, name_of, read_ahead
from bss_sync.ports.connector import Answer, AnsweringSource, Observation, Page
from bss_sync.ports.reconciliation import AnsweredPage, LevelPage, Listing
from bss_sync.ports.sources import OpenSource
from bss_sync.ports.streams import ConnectionRules


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be compared of one page.

    cursor       behind the page; None: it cannot be gone on there
    page         how the page is known again; None: it is not to be remembered
    passed_over  so many records of a level page, which are not to be compared
    """

    observations: Sequence[Observation]
    cursor: str | None
    page: AnsweredPage | None = None
    passed_over: int = 0


def steps(pages: Generator[Page]) -> Generator[Step]:
    """Of pages that were read already."""
    with closing(pages):
        for page in pages:
            yield Step(page.observations, page.cursor)


def rules_digest(source: OpenSource, rules: ConnectionRules, order: OrderKind) -> bytes:
    """SHA-256 of everything that a comparison goes by beside the page and the mirror, the program included."""
    told = (
        source.program().hex(),
        source.connection.connector,
        source.config.model_dump_json(),
        str(order),
        rules.instance_id,
        rules.accounts_at_once,
        sorted(rules.catalogue.codes.items()),
        sorted(rules.catalogue.mapped.items()),
        sorted(rules.value_maps.items()),
    )
    return hashlib.sha256(repr(told).encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class _Asked:
    """One answer. ``known``: the page that it was when it was level."""

    page: AnsweredPage
    answer: Answer
    known: LevelPage | None


def steps_of_answers(
    client: AnsweringSource, listing: Listing, rules: bytes, cursor: str | None, *, ahead: bool
) -> Generator[Step]:
    """Every page behind ``cursor``. Transient when they do not lead on, as ``pages_of`` has it.

    ahead  the next pages are asked for while one is compared
    """
    asked = _ask(client, listing.level_pages(rules), rules, cursor)
    again, empty = Round(), 0
    with closing(read_ahead(asked) if ahead else asked) as answers:
        for one in answers:
            if one.known is not None and listing.still_level(one.known):
                yield Step((), one.page.following, passed_over=one.known.number)
                continue
            with answered():
                observations = one.answer.read()
            empty = 0 if observations else empty + 1
            if empty > EMPTY_PAGES_MAX:
                raise leads_nowhere("its cursor leads back, or to nothing")
            yield Step(observations, one.page.following, one.page)
            if any(again.closes(name_of(each)) for each in observations):
                raise leads_nowhere("the same entities come again and again")


def _ask(
    client: AnsweringSource, known: Mapping[str, LevelPage], rules: bytes, cursor: str | None
) -> Generator[_Asked]:
    circle = Circle()
    circle.closes(cursor)
    while True:
        with answered():
            answer = client.answer_page(cursor)
            level = known.get(cursor or "")
            if level is not None and level.page.answer != answer.digest:
                level = None
            following = answer.following() if level is None else level.page.following
        yield _Asked(AnsweredPage(cursor or "", rules, answer.digest, following), answer, level)
        if following is None:
            return
        if circle.closes(following):
            raise leads_nowhere("its cursor leads back, or to nothing")
        cursor = following
