"""Where a message stands in the order of its entity."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bss_sync.domain.change import Action, MessageState, OrderKind
from bss_sync.pipeline.sequence import FOUND_ABSENT, Rank, end_digest, in_order, missing_versions, rank
from bss_sync.ports.inbox import Origin
from bss_sync.ports.streams import InboxMessage, Position

AT = datetime(2026, 3, 1, tzinfo=UTC)
KNOWN = Position(version=5, sent_at=AT, message_id="m5", seq=50, digest=b"known")


def _message(version: int | None, **other: object) -> InboxMessage:
    message = InboxMessage(
        id=UUID(int=abs(version or 0)),
        seq=60,
        message_id="m",
        origin=Origin.DOOR,
        action=Action.STATE,
        order=OrderKind.SEQUENCE,
        version=version,
        sent_at=AT,
        effective_at=AT,
        received_at=AT,
        body={},
        state=MessageState.PENDING,
    )
    return replace(message, **other)  # type: ignore[arg-type]  # each field as the test names it


@pytest.mark.parametrize(
    ("version", "digest", "expected"),
    [(6, b"x", Rank.NEWER), (4, b"x", Rank.LATE), (5, b"known", Rank.SAME), (5, b"x", Rank.CONFLICT)],
)
def test_a_sequence_message_is_ranked_by_version_then_content(version: int, digest: bytes, expected: Rank) -> None:
    assert rank(KNOWN, _message(version), digest) is expected


@pytest.mark.parametrize("origin", list(Origin))
def test_only_an_answer_to_our_question_corrects_an_equal_version(origin: Origin) -> None:
    expected = Rank.NEWER if origin in (Origin.FETCH, Origin.RECONCILE) else Rank.CONFLICT
    assert rank(KNOWN, _message(5, origin=origin), b"x") is expected
    assert rank(KNOWN, _message(4, origin=origin), b"x") is Rank.LATE


def test_first_contact_is_newer_whatever_the_version() -> None:
    assert rank(Position(), _message(-3), b"x") is Rank.NEWER


def test_what_was_received_before_the_source_was_accepted_anew_is_former() -> None:
    anew = Position(epoch=1, epoch_at=AT + timedelta(seconds=1))
    assert rank(anew, _message(9), b"x") is Rank.FORMER
    assert rank(anew, _message(9, received_at=AT + timedelta(seconds=1)), b"x") is Rank.NEWER


@pytest.mark.parametrize(("seq", "expected"), [(60, Rank.NEWER), (50, Rank.NEWER), (49, Rank.SAME)])
def test_observed_states_follow_the_order_in_which_they_came(seq: int, expected: Rank) -> None:
    assert rank(KNOWN, _message(None, order=OrderKind.OBSERVED, seq=seq), b"x") is expected


@given(st.permutations(list(range(6))))
def test_messages_are_decided_by_version_however_they_came(order: list[int]) -> None:
    messages = tuple(_message(version + 1, seq=place) for place, version in enumerate(order))
    assert [message.version for message in in_order(messages)] == [1, 2, 3, 4, 5, 6]


def test_of_equal_timestamps_the_strongest_stands_whatever_the_order() -> None:
    times = [_message(5, order=OrderKind.TIMESTAMP, sent_at=AT + timedelta(seconds=n)) for n in range(3)]
    for tried in permutations(times):
        position = KNOWN
        for message in tried:
            if rank(position, message, message.sent_at.isoformat().encode()) is Rank.NEWER:
                position = replace(position, sent_at=message.sent_at, message_id=message.message_id, digest=b"")
        assert position.sent_at == AT + timedelta(seconds=2)


@pytest.mark.parametrize(
    ("version", "here", "expected"),
    [
        (6, (), None),
        (9, (), (6, 8, 3)),
        (9, (7,), (6, 8, 2)),
        (9, (6, 7, 8), None),
        (9, (1, 9, 12), (6, 8, 3)),
    ],
)
def test_what_was_jumped_over_and_is_not_here_is_missing(
    version: int, here: tuple[int, ...], expected: tuple[int, int, int] | None
) -> None:
    assert missing_versions(KNOWN, _message(version), frozenset(here)) == expected


def test_timestamps_have_no_gaps() -> None:
    assert missing_versions(KNOWN, _message(900, order=OrderKind.TIMESTAMP), frozenset()) is None


ABSENT = replace(KNOWN, deleted=True, digest=FOUND_ABSENT)


def test_what_was_found_absent_gives_way_to_what_is_said_of_the_same_version_afterwards() -> None:
    later = timedelta(seconds=1)
    assert rank(ABSENT, _message(5, origin=Origin.RECONCILE), b"x") is Rank.NEWER
    assert rank(ABSENT, _message(5, sent_at=AT + later), b"x") is Rank.NEWER
    assert rank(ABSENT, _message(5, sent_at=AT - later), b"x") is Rank.CONFLICT, "it is older: the source is asked"
    assert rank(ABSENT, _message(4, sent_at=AT + later), b"x") is Rank.LATE
    told = replace(ABSENT, digest=b"deleted")
    assert rank(told, _message(5, sent_at=AT + later), b"x") is Rank.CONFLICT, "a deletion that was told stands"


@pytest.mark.parametrize("origin", [Origin.DOOR, Origin.RECONCILE])
def test_an_end_changes_nothing_about_what_was_found_absent(origin: Origin) -> None:
    assert rank(ABSENT, _message(5, origin=origin, action=Action.DELETED), b"deleted") is Rank.SAME


def test_an_end_that_nobody_counted_was_found_by_absence() -> None:
    gone = _message(5, origin=Origin.RECONCILE, action=Action.DELETED)
    assert end_digest(KNOWN, gone, b"deleted") == FOUND_ABSENT
    assert end_digest(KNOWN, replace(gone, version=6), b"deleted") == b"deleted"
    assert end_digest(KNOWN, replace(gone, origin=Origin.DOOR), b"deleted") == b"deleted"
