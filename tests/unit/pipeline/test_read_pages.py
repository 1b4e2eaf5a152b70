"""A listing is read to its end, and one that has none is left with words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice

import pytest

from bss_sync.domain.change import Kind
from bss_sync.domain.errors import InvalidMessage, RemoteRefused, RemoteUnreadable, Transient
from bss_sync.pipeline.read_pages import EMPTY_PAGES_MAX, answered, listed, name_of, pages_of
from bss_sync.ports.connector import Observation, Page


def _seen(*names: object) -> list[Observation]:
    return [Observation(Kind.ACCOUNT, str(name), 1, None) for name in names]


def _standing(_cursor: str | None) -> Page:
    return Page(_seen("a", "b"), "a1", more=True)


def _circling(cursor: str | None) -> Page:
    place = int(cursor or 0)
    return Page(_seen(place), str((place + 1) % 7), more=True)


def _promising(_cursor: str | None) -> Page:
    return Page(_seen("a"), None, more=True)


def _repeating() -> Callable[[str | None], Page]:
    fresh = count()
    return lambda _cursor: Page(_seen("a", "b", "c"), f"fresh-{next(fresh)}", more=True)


def _hollow() -> Callable[[str | None], Page]:
    fresh = count()
    return lambda _cursor: Page([], f"fresh-{next(fresh)}", more=True)


@pytest.mark.parametrize(
    "read",
    [_standing, _circling, _promising, _repeating(), _hollow()],
    ids=["the cursor stays", "cursors in a circle", "more without a cursor", "the same again", "nothing, for ever"],
)
def test_pages_that_do_not_lead_on_are_left_with_words(read: Callable[[str | None], Page]) -> None:
    with pytest.raises(Transient, match="does not advance"):
        # No more than so many are asked for, or the test itself would not end.
        list(islice(pages_of(read, None, each_once=True), EMPTY_PAGES_MAX + 100))


def test_a_feed_of_changes_may_tell_one_entity_again_and_again() -> None:
    pages = [Page(_seen("a"), str(number), more=number < 99) for number in range(100)]
    assert len(list(pages_of(lambda cursor: pages[0 if cursor is None else int(cursor) + 1], None))) == 100


@pytest.mark.parametrize("before", [0, 3, 1000])
@pytest.mark.parametrize("length", [1, 2, 7, 500])
def test_a_listing_that_goes_in_circles_by_itself_is_left(before: int, length: int) -> None:
    def endless() -> Iterator[Observation]:
        yield from _seen(*(f"first-{number}" for number in range(before)))
        while True:
            yield from _seen(*range(length))

    with pytest.raises(Transient, match="does not advance"):
        list(islice(listed(endless(), name_of), 10 * (before + length) + 20))


def test_a_listing_may_show_one_entity_twice_because_it_moved() -> None:
    honest = _seen(*range(50), 3, *range(50, 90), 3, 51, *range(90, 120))
    assert list(listed(honest, name_of)) == honest


def test_what_a_connector_stumbles_over_is_the_remotes_failure_and_names_no_value() -> None:
    with pytest.raises(RemoteUnreadable) as caught, answered():
        [one["id"] for one in [None, "canary"]]  # type: ignore[index]  # as a connector would
    assert "TypeError in test_read_pages.py:" in caught.value.detail
    assert "canary" not in caught.value.detail
    with pytest.raises(RemoteUnreadable), answered():
        raise RemoteRefused("no object", status=200)
    with pytest.raises(RemoteRefused), answered():
        raise RemoteRefused("no such record", status=404)
    with pytest.raises(InvalidMessage), answered():
        raise InvalidMessage("quantity is missing")
