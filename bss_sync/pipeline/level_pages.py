"""Pages that are known to be level are not read (docs/decisions/0037-level-pages-are-remembered.md).

    ask    the source answers; the bytes are summed up
    look   the bytes are those of a page that was level, under the same rules, and its stretch of the mirror is as it
           was then: it is level, and is passed over
    read   every other page; where it turns out to be level it is remembered

What is remembered never decides anything else: where it is lost, or anything differs, the page is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, Self, TypeVar

from bss_sync.domain.change import OrderKind
from bss_sync.domain.circles import Circle, Round
from bss_sync.pipeline.read_pages import EMPTY_PAGES_MAX, answered, leads_nowhere, name_of, read_ahead
from bss_sync.ports.connector import Answer, AnsweringSource, Observation, Page
from bss_sync.ports.level_pages import AnsweredPage, LevelPage
from bss_sync.ports.sources import OpenSource
from bss_sync.ports.streams import ConnectionRules


@dataclass(frozen=True, slots=True)
class Step:
    """One page of a listing.

    read    what it says; raises what its source does
    cursor  behind the page; None: it cannot be gone on there
    page    how it is known again; None: it is not to be remembered
    known   the same page, when it was level
    """

    read: Callable[[], Sequence[Observation]]
    cursor: str | None
    page: AnsweredPage | None = None
    known: LevelPage | None = None


def step_of(observations: Sequence[Observation], cursor: str | None = None) -> Step:
    """Of what was read already."""
    return Step(lambda: observations, cursor)


def steps_of(pages: Generator[Page]) -> Generator[Step]:
    """Of pages that were read already."""
    with closing(pages):
        for page in pages:
            yield step_of(page.observations, page.cursor)


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


class Reading:
    """Reads what a source answers, page by page; what leads nowhere is left."""

    def __init__(self, client: AnsweringSource, rules: bytes, known: Mapping[str, LevelPage]) -> None:
        self._client = client
        self._rules = rules
        self._known = known
        self._again, self._empty = Round(), 0

    def steps(self, cursor: str | None, *, ahead: bool) -> Generator[Step]:
        """Every page behind ``cursor``. Transient when they do not lead on, as ``pages_of`` has it.

        ahead  the next pages are asked for while one is compared
        """
        asked = self._ask(cursor)
        with closing(read_ahead(asked) if ahead else asked) as steps:
            yield from steps

    def _ask(self, cursor: str | None) -> Generator[Step]:
        circle = Circle()
        circle.closes(cursor)
        while True:
            with answered():
                answer = self._client.answer_page(cursor)
                known = self._known.get(cursor or "")
                if known is not None and known.page.answer != answer.digest:
                    known = None
                following = answer.following() if known is None else known.page.following
            page = AnsweredPage(cursor or "", self._rules, answer.digest, following)
            yield Step(partial(self._read, answer), following, page, known)
            if following is None:
                return
            if circle.closes(following):
                raise leads_nowhere("its cursor leads back, or to nothing")
            cursor = following

    def _read(self, answer: Answer) -> Sequence[Observation]:
        with answered():
            observations = answer.read()
        self._empty = 0 if observations else self._empty + 1
        if self._empty > EMPTY_PAGES_MAX:
            raise leads_nowhere("its cursor leads back, or to nothing")
        if any(self._again.closes(name_of(one)) for one in observations):
            raise leads_nowhere("the same entities come again and again")
        return observations


Prepared = TypeVar("Prepared")
Looked = TypeVar("Looked")


class Comparison(Protocol[Prepared, Looked]):
    """How one page is compared, in three parts."""

    def prepare(self, chunk: Sequence[Observation], page: AnsweredPage | None) -> Prepared:
        """What is to be compared, in canonical words."""
        ...

    def look(self, prepared: Prepared) -> Looked:
        """Let the mirror say what needs a look; in another thread."""
        ...

    def judge(self, prepared: Prepared, looked: Looked) -> None:
        """Look at it, name what differs, feed it."""
        ...

    def pass_over(self, known: LevelPage) -> bool:
        """Whether it is level still; then it counts as listed."""
        ...


class Comparing(Generic[Prepared, Looked]):
    """Compares pages, one after the other: while the mirror looks at one the next is read.

    Only for what is answered page by page; other chunks are compared at once. ``done`` is told of each page, in order.
    """

    def __init__(self, comparison: Comparison[Prepared, Looked], done: Callable[[Step], None]) -> None:
        self._comparison = comparison
        self._done = done
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compare")
        self._under_way: tuple[Step, Prepared, Future[Looked]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()

    def passes_over(self, step: Step) -> bool:
        """Whether the page is known to be level."""
        if step.known is None:
            return False
        self.finish()
        level = self._comparison.pass_over(step.known)
        if level:
            self._done(step)
        return level

    def take(self, step: Step, observations: Sequence[Observation]) -> None:
        """Compare a page that was read."""
        prepared = self._comparison.prepare(observations, step.page)
        self.finish()
        self._under_way = (step, prepared, self._pool.submit(self._comparison.look, prepared))
        if step.page is None:
            self.finish()

    def finish(self) -> None:
        """What is under way is done when this returns."""
        if self._under_way is not None:
            (step, prepared, looked), self._under_way = self._under_way, None
            self._comparison.judge(prepared, looked.result())
            self._done(step)
