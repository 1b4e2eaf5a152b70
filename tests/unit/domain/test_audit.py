"""The audit's chain is whole, or the first entry that was touched is named."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from bss_sync.domain.audit import AuditEntry, ChainedEntry, chain, first_break

AT = datetime(2026, 3, 31, 12, tzinfo=UTC)
CHAIN, TENANT = UUID(int=1), UUID(int=2)


def _entries(*words: str, seq: int = 0, previous: bytes = b"") -> list[ChainedEntry]:
    entries = [AuditEntry(CHAIN, TENANT, "cli:mara", "record.noted", {"word": word}) for word in words]
    return chain(entries, seq=seq, previous=previous, at=AT)


def test_a_chain_that_nobody_touched_is_whole_also_when_it_was_continued() -> None:
    begun = _entries("one", "two")
    assert first_break([*begun, *_entries("three", seq=2, previous=begun[-1].hash)]) is None


def test_a_detail_that_was_changed_is_found() -> None:
    one, two, three = _entries("one", "two", "three")
    forged = replace(two, entry=replace(two.entry, detail={"word": "forged"}))
    assert first_break([one, forged, three]) == 2


def test_a_link_that_was_exchanged_is_found() -> None:
    one, _two, three = _entries("one", "two", "three")
    # Sound in itself, at its own place, but chained to another past.
    (stranger,) = _entries("stranger", seq=1, previous=b"another past")
    assert first_break([one, stranger, three]) == 2


def test_an_entry_that_was_taken_away_is_found_by_the_next() -> None:
    one, _two, three = _entries("one", "two", "three")
    assert first_break([one, three]) == 2


@pytest.mark.parametrize("change", [{"actor": "cli:somebody"}, {"action": "record.other"}, {"tenant_id": CHAIN}])
def test_who_did_what_cannot_be_changed(change: dict[str, object]) -> None:
    one, two = _entries("one", "two")
    assert first_break([one, replace(two, entry=replace(two.entry, **change))]) == 2  # type: ignore[arg-type]  # the names are the entry's


def test_an_erased_detail_leaves_the_chain_whole() -> None:
    one, two, three = _entries("one", "two", "three")
    erased = replace(two, salt=b"", entry=replace(two.entry, detail={}))
    assert first_break([one, erased, three], erased=frozenset({2})) is None
