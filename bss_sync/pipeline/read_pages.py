"""Read what a remote lists, to its end and never for ever: page by page, the next one while this one is worked on."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from bss_sync.domain.circles import Circle, Round
from bss_sync.domain.errors import BssSyncError, RemoteRefused, RemoteUnreadable, Transient
from bss_sync.ports.connector import Observation, Page

READ_AHEAD = 2
"""Pages that wait to be worked on: more would only cost memory."""
EMPTY_PAGES_MAX = 10_000
"""So many pages in a row without anything on them lead nowhere."""
_PATIENCE_SECONDS = 0.5
_END = object()

Item = TypeVar("Item")


@contextmanager
def answered() -> Iterator[None]:
    """A connector reads a remote's answer within: whatever it stumbles over there is the remote's failure, not ours.

    RemoteUnreadable for an answer of success that says nothing usable, and for an error that is not of our error tree:
    its words name a place in the code and no value.
    """
    try:
        yield
    except RemoteRefused as error:
        if 200 <= error.status < 300:
            raise RemoteUnreadable(error.detail) from error
        raise
    except BssSyncError:
        raise
    except Exception as error:
        raise RemoteUnreadable(f"The answer cannot be read: {what_failed(error)}.") from error


def what_failed(error: BaseException) -> str:
    """An error's kind and where it arose: nothing of what was worked on."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {place.filename.rpartition('/')[2]}:{place.lineno}"


def pages_of(read: Callable[[str | None], Page], cursor: str | None, *, each_once: bool = False) -> Generator[Page]:
    """Every page behind ``cursor``, as they are asked for. What ``read`` raises is raised in its place.

    Transient when the pages do not lead on: the cursor stays or comes again, or page after page is empty. With
    ``each_once`` also when the same is listed over and over, whatever the cursors say: a listing has each entity once,
    while a feed of changes may well have it often.
    """
    more, at, empty = True, cursor, 0
    circle, again = Circle(), Round()
    circle.closes(at)
    while more:
        with answered():
            page = read(at)
        yield page
        empty = 0 if page.observations else empty + 1
        more = page.more
        if not more:
            return
        if page.cursor is None or circle.closes(page.cursor) or empty > EMPTY_PAGES_MAX:
            raise leads_nowhere("its cursor leads back, or to nothing")
        if each_once and any(again.closes(name_of(one)) for one in page.observations):
            raise leads_nowhere("the same entities come again and again")
        at = page.cursor


def listed(items: Iterable[Item], name: Callable[[Item], Hashable]) -> Generator[Item]:
    """What a connector lists by itself. Transient when the same comes again and again; ``name`` tells what is one."""
    iterator, again = iter(items), Round()
    while True:
        with answered():
            item = next(iterator, _END)
        if item is _END:
            return
        if again.closes(name(item)):  # type: ignore[arg-type]  # the end is none of the items
            raise leads_nowhere("the same entities come again and again")
        yield item  # type: ignore[misc]  # the end is none of the items


def name_of(one: Observation) -> Hashable:
    """What is one entity."""
    return one.kind, one.source_id


def leads_nowhere(how: str) -> Transient:
    """A listing is left: it would be read for ever."""
    return Transient(f"The listing does not advance: {how}. It was left; what it lacks is not absent.")


def read_ahead(pages: Iterator[Item]) -> Generator[Item]:
    """The same pages, read by a thread of their own, which ends with whoever stops asking."""
    waiting: queue.Queue[Item | BaseException | None] = queue.Queue(READ_AHEAD)
    stopped = threading.Event()

    def offer(item: Item | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=_PATIENCE_SECONDS)
                return

    def run() -> None:
        try:
            for page in pages:
                offer(page)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  it is raised where the page is asked for
            offer(error)
        else:
            offer(None)

    thread = threading.Thread(target=run, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
