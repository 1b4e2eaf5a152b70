"""Alerts: what a person is told of (goals.md: dead letters, silence, drift and a stopped run). Rules are data.

A condition is a rule that holds for one subject: a connection, or a run. A person is told once; it may be told again
after it has cleared. An alert says which connection and how many: ids, names of connections and counts, nobody's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from uuid import UUID

from bss_sync.domain.change import Json
from bss_sync.domain.errors import ConfigurationError
from bss_sync.domain.moment import rfc3339


class Rule(StrEnum):
    """What is watched."""

    DEAD_LETTERS = "dead_letters"  # messages that cannot be processed, records that the distributor's BSS refused
    QUARANTINED = "quarantined"  # messages that wait for an admin's word
    SILENCE = "silence"  # a connection has sent nothing for longer than its rhythm
    DRIFT = "drift"  # somebody edited a locked field, or a reconciliation found differences
    STOPPED_RUN = "stopped_run"  # a long run was stopped by the guard, or failed
    HELD_BACK = "held_back"  # a remote is down or denies our credentials: calls to it are held back for a minute now


@dataclass(frozen=True, slots=True)
class Wording:
    """How a rule is told. ``{number}`` and ``{connection}`` and ``{subject}`` are filled in."""

    severity: str
    title: str
    next_step: str


WORDINGS: Mapping[Rule, Wording] = MappingProxyType(
    {
        Rule.DEAD_LETTERS: Wording(
            "critical",
            "{number} dead letters of {connection}",
            "bss-sync message list --state dead --connection {connection}",
        ),
        Rule.QUARANTINED: Wording(
            "warning",
            "{number} messages of {connection} are held",
            "bss-sync message list --state quarantined --connection {connection}",
        ),
        Rule.SILENCE: Wording("critical", "{connection} is silent", "bss-sync connection check {connection}"),
        Rule.DRIFT: Wording(
            "warning",
            "{number} differences of {connection}",
            "bss-sync reconcile {connection} --dry-run",
        ),
        Rule.HELD_BACK: Wording("critical", "Calls are held back: a remote of {connection} fails", "bss-sync doctor"),
        Rule.STOPPED_RUN: Wording("critical", "A run of {connection} has stopped", "bss-sync run show {subject}"),
    }
)


@dataclass(frozen=True, slots=True)
class Alert:
    """One condition that holds. ``connection`` is its name; None for a run on no connection."""

    id: UUID
    rule: Rule
    subject: UUID
    connection: str | None
    number: int
    since: datetime | None
    opened_at: datetime
    attempts: int = 0
    told: tuple[str, ...] = ()


def parse_rules(text: str) -> frozenset[Rule]:
    """The rules of a setting, with commas between them; ConfigurationError for one that there is not."""
    names = {part.strip() for part in text.split(",")} - {""}
    unknown = sorted(names - set(Rule))
    if unknown:
        raise ConfigurationError(
            f"BSS_SYNC_ALERT_RULES: there is no rule {unknown[0]!r}.", next_step=f"Known rules: {', '.join(Rule)}."
        )
    return frozenset(Rule(name) for name in names)


def title_of(alert: Alert) -> str:
    """One line."""
    return _filled(WORDINGS[alert.rule].title, alert)


def next_step_of(alert: Alert) -> str:
    """The command that shows more."""
    return _filled(WORDINGS[alert.rule].next_step, alert)


def _filled(words: str, alert: Alert) -> str:
    return words.format(
        number=alert.number, connection=alert.connection or "the whole installation", subject=alert.subject
    )


def document_of(alert: Alert) -> dict[str, Json]:
    """An alert as a webhook carries it: a Standard Webhooks message ``{"type", "timestamp", "data"}``."""
    return {
        "type": f"alert.{alert.rule}",
        "timestamp": rfc3339(alert.opened_at),
        "data": {
            "id": str(alert.id),
            "rule": alert.rule.value,
            "severity": WORDINGS[alert.rule].severity,
            "title": title_of(alert),
            "next_step": next_step_of(alert),
            "connection": alert.connection,
            "subject": str(alert.subject),
            "number": alert.number,
            "since": None if alert.since is None else rfc3339(alert.since),
        },
    }
