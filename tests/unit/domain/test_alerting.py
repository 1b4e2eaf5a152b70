"""Alerts are data: every rule has its words, and says nothing about anybody."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from bss_sync.domain.alerting import WORDINGS, Alert, Rule, document_of, next_step_of, parse_rules, title_of
from bss_sync.domain.errors import ConfigurationError

NOW = datetime(2026, 3, 2, 10, 15, tzinfo=UTC)


def _alert(rule: Rule, connection: str | None = "cloud-resell") -> Alert:
    return Alert(UUID(int=1), rule, UUID(int=2), connection, 3, NOW, NOW)


@pytest.mark.parametrize("rule", list(Rule))
def test_every_rule_is_told_in_one_line_and_names_the_command_that_shows_more(rule: Rule) -> None:
    assert rule in WORDINGS
    assert "cloud-resell" in title_of(_alert(rule))
    assert "\n" not in title_of(_alert(rule))
    assert next_step_of(_alert(rule)).startswith("bss-sync ")


def test_a_webhook_carries_the_rule_the_connection_and_the_number() -> None:
    document = document_of(_alert(Rule.DEAD_LETTERS))
    assert document["type"] == "alert.dead_letters"
    assert document["timestamp"] == "2026-03-02T10:15:00Z"
    assert document["data"]["title"] == "3 dead letters of cloud-resell"
    assert document["data"]["number"] == 3


def test_a_run_on_no_connection_is_one_of_the_whole_installation() -> None:
    assert "the whole installation" in title_of(_alert(Rule.STOPPED_RUN, None))


def test_rules_are_chosen_by_their_names_and_an_unknown_one_is_refused() -> None:
    assert parse_rules("silence, drift") == {Rule.SILENCE, Rule.DRIFT}
    assert parse_rules("") == frozenset()
    with pytest.raises(ConfigurationError, match=r"^BSS_SYNC_ALERT_RULES: .*'weather'"):
        parse_rules("silence,weather")
