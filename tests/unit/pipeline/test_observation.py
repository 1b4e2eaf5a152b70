"""Observations become messages: repeated ones the same, asked-for ones new each time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from bss_sync.domain.change import Action, Change, Kind, OrderKind
from bss_sync.domain.errors import InvalidMessage
from bss_sync.pipeline.observation import change_of
from bss_sync.ports.connector import Observation
from bss_sync.ports.inbox import Origin

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SEEN = Observation(Kind.ACCOUNT, "x", 3, {"name": "X"})


def _change(
    seen: Observation, origin: Origin, order: OrderKind = OrderKind.SEQUENCE, known: int | None = None
) -> Change:
    return change_of(seen, origin=origin, order=order, now=NOW, known_version=known)


@pytest.mark.parametrize("origin", [Origin.POLL, Origin.BACKFILL, Origin.IMPORT])
def test_a_repeated_poll_makes_the_same_message(origin: Origin) -> None:
    first, second = _change(SEEN, origin), _change(SEEN, origin)
    assert (first.message_id, first.digest) == (second.message_id, second.digest)
    other = _change(Observation(Kind.ACCOUNT, "x", 3, {"name": "Y"}), origin)
    assert other.message_id != first.message_id, "it is for the version rule to say which one counts"


@pytest.mark.parametrize("origin", [Origin.FETCH, Origin.RECONCILE])
def test_each_answer_to_a_question_is_a_message_of_its_own(origin: Origin) -> None:
    assert _change(SEEN, origin).message_id != _change(SEEN, origin).message_id


def test_an_observed_state_has_no_version() -> None:
    seen = Observation(Kind.ACCOUNT, "x", None, {"name": "X"})
    change = _change(seen, Origin.POLL, OrderKind.OBSERVED)
    assert (change.version, change.order) == (None, OrderKind.OBSERVED)
    with pytest.raises(InvalidMessage):
        _change(seen, Origin.POLL)


def test_a_deletion_without_a_version_ends_at_the_version_that_we_know() -> None:
    gone = Observation(Kind.ACCOUNT, "x", None, None)
    change = _change(gone, Origin.RECONCILE, known=7)
    assert (change.version, change.action) == (7, Action.DELETED)
    with pytest.raises(InvalidMessage):
        _change(gone, Origin.RECONCILE)


def test_times_default_to_the_sources_change_time_and_then_to_now() -> None:
    earlier = datetime(2026, 1, 1, tzinfo=UTC)
    assert (_change(SEEN, Origin.POLL).sent_at, _change(SEEN, Origin.POLL).effective_at) == (NOW, NOW)
    change = _change(Observation(Kind.ACCOUNT, "x", 3, {}, changed_at=earlier), Origin.POLL)
    assert (change.sent_at, change.effective_at) == (earlier, earlier)
