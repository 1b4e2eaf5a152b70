"""Moments as people write and read them (domain.md section 6, two times; contract: timestamps and dates)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from bss_sync.domain.errors import FieldProblem, InvalidRequest

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# A plus sign that a client forgot to escape arrives as a space.
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?)"
    r"(?:([Zz])|([+\- ])([0-9]{2}:[0-5][0-9]))"
)
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class AsOf:
    """A bitemporal question: what was in effect at ``effective``, as far as we had recorded it by ``recorded``."""

    effective: datetime
    recorded: datetime


def rfc3339(moment: datetime) -> str:
    """How every timestamp is answered: UTC with Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_moment(text: str, zone: str, *, field: str) -> datetime:
    """An RFC 3339 timestamp, or a bare date: the end of that day in ``zone``. Aware UTC.

    InvalidRequest names ``field``.
    """
    day = _day(text, field)
    if day is not None:
        return _midnight(day, zone, field, days_later=1) - _INSTANT
    return _timestamp(text, field)


def parse_since(text: str, zone: str, *, field: str) -> datetime:
    """An RFC 3339 timestamp, or a bare date: the beginning of that day in ``zone``. Aware UTC."""
    day = _day(text, field)
    return _timestamp(text, field) if day is None else _midnight(day, zone, field)


def parse_as_of(as_of: str | None, recorded_as_of: str | None, zone: str, now: datetime) -> AsOf | None:
    """The question behind the two parameters; None asks for the present. One without the other means now for it."""
    if as_of is None and recorded_as_of is None:
        return None
    return AsOf(
        effective=now if as_of is None else parse_moment(as_of, zone, field="as_of"),
        recorded=now if recorded_as_of is None else parse_moment(recorded_as_of, zone, field="recorded_as_of"),
    )


def _day(text: str, field: str) -> date | None:
    if _DATE.fullmatch(text) is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise _wrong(field) from None


def _midnight(day: date, zone: str, field: str, *, days_later: int = 0) -> datetime:
    try:
        return datetime.combine(day + timedelta(days=days_later), time(), ZoneInfo(zone)).astimezone(UTC)
    except OverflowError:
        raise _wrong(field) from None


def _timestamp(text: str, field: str) -> datetime:
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise _wrong(field)
    day, clock, utc, sign, offset = match.groups()
    try:
        return datetime.fromisoformat(
            f"{day}T{clock}{'+00:00' if utc else sign.replace(' ', '+') + offset}"
        ).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _wrong(field) from None


def _wrong(field: str) -> InvalidRequest:
    detail = "must be a date (YYYY-MM-DD) or an RFC 3339 timestamp with an offset, such as 2026-03-31T12:00:00Z"
    return InvalidRequest(f"{field} {detail}.", fields=(FieldProblem(field, detail),))
