"""Gauges of the whole, as PostgreSQL knows it at the moment of a scrape. Connections are named by their ids only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Row, text

from bss_sync.domain.errors import DependencyDown

if TYPE_CHECKING:
    from bss_sync.bootstrap import App

SCRAPE_SECONDS = 1.0
"""Scrapes that come faster than this share one look at the database."""

TARGET = "target"
"""How the distributor's own BSS is named among the remotes."""

_OPEN_STATES = ("pending", "waiting", "quarantined", "dead")
_UNDELIVERED = ("pending", "sending", "unknown", "blocked", "dead")

Rows = Sequence[Row[Any]]

_MESSAGES = text(
    """select connection_id, state, count(*) as number, extract(epoch from now() - min(received_at)) as age
       from message where state in ('pending', 'waiting', 'quarantined', 'dead')
         and settled_on(state, decided_at) = 'infinity'
       group by connection_id, state"""
)
_DELIVERIES = text(
    """select state, count(*) as number, count(*) filter (where due_at <= now()) as due,
              coalesce(extract(epoch from now() - min(due_at) filter (where due_at <= now())), 0) as age
       from delivery where due_at is not null or state = 'dead' group by state"""
)
_CONNECTIONS = text(
    """select c.id, c.state, extract(epoch from now() - coalesce(c.last_received_at, c.created_at)) as silence,
              c.silent_since is not null as silent, c.poll_failures,
              (select count(*) from drift d where d.connection_id = c.id and d.settled_at is null) as drift
       from connection c where c.state <> 'closed'"""
)
_BREAKERS = text(
    """select connection_id,
              case when open_until is null then 0 when open_until <= now() then 1 else 2 end as state from breaker"""
)
_RUNS = text(
    "select kind, state, count(*) as number from run where state in ('running', 'stopped') group by kind, state"
)


class DatabaseGauges(Collector):
    """What stands in the database at a scrape; ``bss_sync_database_up`` is 0 when it cannot be asked."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._taken_at = -SCRAPE_SECONDS
        self._taken: list[Metric] = []

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are known when they are collected."""
        return []

    def collect(self) -> Iterable[Metric]:
        """The gauges, at most ``SCRAPE_SECONDS`` old."""
        with self._lock:
            if time.monotonic() - self._taken_at >= SCRAPE_SECONDS:
                self._taken = self._look()
                self._taken_at = time.monotonic()
            return self._taken

    def _look(self) -> list[Metric]:
        up = GaugeMetricFamily("bss_sync_database_up", "1 when PostgreSQL answers.")
        try:
            with self._app.database.api(None) as connection:
                found = [(show, connection.execute(query).all()) for query, show in _GAUGES]
        except DependencyDown:
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *(metric for show, rows in found for metric in show(rows))]


def _messages(rows: Rows) -> list[Metric]:
    count = GaugeMetricFamily("bss_sync_messages", "Messages that are not settled, by state.", labels=["state"])
    age = GaugeMetricFamily("bss_sync_oldest_message_seconds", "Age of the oldest of them, by state.", labels=["state"])
    for state in _OPEN_STATES:
        of_state = [row for row in rows if row.state == state]
        count.add_metric([state], sum(row.number for row in of_state))
        age.add_metric([state], max((float(row.age) for row in of_state), default=0))
    labels = ["connection", "state"]
    own = GaugeMetricFamily("bss_sync_connection_messages", "The same for each connection that has any.", labels=labels)
    own_age = GaugeMetricFamily("bss_sync_connection_oldest_message_seconds", "Likewise.", labels=labels)
    for row in rows:
        own.add_metric([str(row.connection_id), row.state], row.number)
        own_age.add_metric([str(row.connection_id), row.state], float(row.age))
    return [count, age, own, own_age]


def _deliveries(rows: Rows) -> list[Metric]:
    due = GaugeMetricFamily("bss_sync_deliveries_due", "Records that the distributor's BSS does not hold yet.")
    due.add_metric([], sum(row.due for row in rows))
    oldest = GaugeMetricFamily("bss_sync_oldest_delivery_seconds", "How long the longest of them has been due.")
    oldest.add_metric([], max((float(row.age) for row in rows), default=0))
    open_ones = GaugeMetricFamily("bss_sync_deliveries_open", "Deliveries to be made, by state.", labels=["state"])
    numbers = {row.state: row.number for row in rows}
    for state in _UNDELIVERED:
        open_ones.add_metric([state], numbers.get(state, 0))
    return [due, oldest, open_ones]


def _connections(rows: Rows) -> list[Metric]:
    def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"bss_sync_connection_{name}", words, labels=["connection", *labels])

    silence = gauge("silence_seconds", "Seconds since a connection sent something.")
    silent = gauge("silent", "1 when that is longer than its rhythm.")
    states = gauge("state", "1 for its state.", "state")
    drift = gauge("drift", "Differences that were found and are not settled.")
    failures = gauge("poll_failures", "Polls in a row that failed.")
    for row in rows:
        name = str(row.id)
        silence.add_metric([name], float(row.silence))
        silent.add_metric([name], 1 if row.silent else 0)
        states.add_metric([name, row.state], 1)
        drift.add_metric([name], row.drift)
        failures.add_metric([name], row.poll_failures)
    return [silence, silent, states, drift, failures]


def _breakers(rows: Rows) -> list[Metric]:
    gauge = GaugeMetricFamily(
        "bss_sync_breaker_state", "Calls to a remote: 0 go through, 1 one tries, 2 are held back.", labels=["remote"]
    )
    for row in rows:
        gauge.add_metric([TARGET if row.connection_id is None else str(row.connection_id)], row.state)
    return [gauge]


def _runs(rows: Rows) -> list[Metric]:
    gauge = GaugeMetricFamily("bss_sync_runs", "Long runs under way or stopped by the guard.", labels=["kind", "state"])
    for row in rows:
        gauge.add_metric([row.kind, row.state], row.number)
    return [gauge]


_GAUGES: tuple[tuple[Any, Callable[[Rows], list[Metric]]], ...] = (
    (_MESSAGES, _messages),
    (_DELIVERIES, _deliveries),
    (_CONNECTIONS, _connections),
    (_BREAKERS, _breakers),
    (_RUNS, _runs),
)
