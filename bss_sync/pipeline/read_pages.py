"""Read a source page by page, the next one while this one is being worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

from bss_sync.ports.connector import Page

READ_AHEAD = 2
"""Pages that wait to be worked on: more would only cost memory."""
_PATIENCE_SECONDS = 0.5


def pages_of(read: Callable[[str | None], Page], cursor: str | None) -> Generator[Page]:
    """Every page behind ``cursor``, as they are asked for. What ``read`` raises is raised in its place."""
    more, at = True, cursor
    while more:
        page = read(at)
        yield page
        more = page.more and page.cursor is not None and page.cursor != at
        at = page.cursor


def read_ahead(pages: Iterator[Page]) -> Generator[Page]:
    """The same pages, read by a thread of their own, which ends with whoever stops asking."""
    waiting: queue.Queue[Page | BaseException | None] = queue.Queue(READ_AHEAD)
    stopped = threading.Event()

    def offer(item: Page | BaseException | None) -> None:
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
