"""A remote's HTTP client behind its breaker: every call asks the gate, and the gate counts what came of it.

What calls came to is written in batches: at once when it opens or closes the breaker, else every few seconds and when
the work is done. Between, this process goes by its own copy of the breaker, under the same rule.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from bss_sync.adapters.sql.breakers import PROBE_SECONDS, Entered
from bss_sync.domain.breaker import Outcome, after, credit_at, state_at, wait_seconds
from bss_sync.domain.errors import ConfigurationError, DependencyDown, RemoteBusy, RemoteDenied, Terminal, Transient
from bss_sync.ports.breakers import BreakerStore, Remote
from bss_sync.ports.http import HttpClient, HttpResponse

REPORT_SECONDS = 5.0
"""A long listing tells what its calls came to this often."""


class SharedGate:
    """Gate over a breaker in PostgreSQL."""

    def __init__(self, store: BreakerStore, remote: Remote, entered: Entered) -> None:
        self._store = store
        self._remote = remote
        self._breaker = entered.breaker
        self._probing = entered.probing
        self._entered_at, self._entered = entered.now, time.monotonic()
        self._reported = self._entered
        self._outcomes: list[Outcome] = []
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._trying = False
        self._taken = 0
        """Retries that are this gate's and nobody else's."""

    def limit(self, usual: int) -> int:
        """See Gate."""
        if self.wait_seconds() > 0:
            return 0
        return min(1, usual) if self._probing else usual

    def wait_seconds(self) -> float:
        """See Gate."""
        with self._lock:
            return self._wait_seconds()

    def retries(self, wanted: int) -> int:
        """See Gate."""
        with self._lock:
            # To try is not to beat: it may be a repetition whatever the budget says.
            return min(1, wanted) if self._probing else self._reserve(wanted)

    def _reserve(self, wanted: int) -> int:
        if int(credit_at(self._breaker, self._now())) < 1:
            return 0  # nobody asks PostgreSQL for what was not there a moment ago
        try:
            taken = self._store.reserve(self._remote, wanted)
        except DependencyDown:
            return 0
        self._taken += taken
        return taken

    def hold(self, retries: int) -> None:
        """See Gate."""
        with self._lock:
            self._taken += retries

    @contextmanager
    def attempt(self, *, again: bool, end_by: float | None = None) -> Iterator[None]:
        """See Gate."""
        before = getattr(self._thread, "again", False), getattr(self._thread, "end_by", None)
        # Within a piece of work a single call may be another kind of try; when it has to be over stays.
        self._thread.again, self._thread.end_by = again, end_by or before[1]
        try:
            yield
        finally:
            self._thread.again, self._thread.end_by = before

    @property
    def end_by(self) -> float | None:
        """When the calls of this thread have to be over; who tries, before another may."""
        own: float | None = getattr(self._thread, "end_by", None)
        if not self._probing:
            return own
        tried = self._entered + PROBE_SECONDS - 1  # PostgreSQL's clock for it has run for a moment already
        return tried if own is None else min(own, tried)

    def close(self) -> None:
        """See Gate."""
        with self._lock:
            self._report(done=True)

    def admit(self) -> None:
        """A call is about to be made. RemoteBusy when none may be."""
        with self._lock:
            seconds = self._wait_seconds()
            if seconds > 0 or (self._probing and self._trying):
                why = self._breaker.reason or "somebody tries"
                raise RemoteBusy(
                    f"The breaker is open for {max(1, round(seconds))} s more: {why}",
                    retry_after_seconds=max(1.0, seconds),
                )
            self._trying = self._probing

    def note(self, error: Exception | None, *, retry: bool) -> None:
        """What a call came to."""
        failed = isinstance(error, Transient)
        outcome = Outcome(
            failed=failed,
            wish_seconds=error.retry_after_seconds if isinstance(error, Transient) else None,
            retry=retry or getattr(self._thread, "again", False),
            reason=error.detail[:500] if isinstance(error, Transient) else None,
            denied=isinstance(error, RemoteDenied),
        )
        with self._lock:
            before = state_at(self._breaker, self._now())
            self._outcomes.append(outcome)
            self._breaker = after(self._breaker, [outcome], self._now())
            changed = before is not state_at(self._breaker, self._now())
            if changed or time.monotonic() - self._reported > REPORT_SECONDS:
                self._report()
            self._trying = False

    def may_retry(self) -> bool:
        """Whether a call that has failed may be made again at once."""
        with self._lock:
            may = not self._probing and self._wait_seconds() == 0
            return may and self._reserve(1) == 1

    def _now(self) -> datetime:
        """PostgreSQL's time, as far as we know it."""
        return self._entered_at + timedelta(seconds=time.monotonic() - self._entered)

    def _wait_seconds(self) -> float:
        if self._probing or self._breaker.open_until is None:
            return 0.0
        # Its time may have come meanwhile: who tries then is decided in PostgreSQL, not here.
        return max(1.0, wait_seconds(self._breaker, self._now()))

    def _report(self, *, done: bool = False) -> None:
        if not self._outcomes and not self._probing and not self._taken:
            return
        # Retries that have come to their ends pay for themselves; those that are under way stay ours.
        back = self._taken if done else min(self._taken, sum(outcome.retry for outcome in self._outcomes))
        try:
            self._breaker = self._store.report(self._remote, self._outcomes, probed=self._probing, taken=back)
        except DependencyDown:
            return  # what the calls came to is worth more than their count; the next report has both
        self._outcomes, self._probing, self._reported = [], False, time.monotonic()
        self._taken -= back


class GuardedHttp:
    """HttpClient through a gate."""

    def __init__(self, http: HttpClient, gate: SharedGate) -> None:
        self._http = http
        self._gate = gate

    def request(self, method: str, url: str, **options: Any) -> HttpResponse:
        """See HttpClient. RemoteBusy, with nothing sent, while the breaker is open."""
        self._gate.admit()
        tries, promised = 0, False

        def may_retry(error: Transient) -> bool:
            nonlocal tries, promised
            self._gate.note(error, retry=promised)
            tries += 1
            promised = self._gate.may_retry()
            return promised

        if (end_by := self._gate.end_by) is not None:
            options["end_by"] = end_by
        try:
            response = self._http.request(method, url, may_retry=may_retry, **options)
        except ConfigurationError:
            raise  # nothing was called
        except Transient as error:
            if tries == 0:
                self._gate.note(error, retry=False)
            raise
        except Terminal as error:
            self._gate.note(error, retry=promised)
            raise
        self._gate.note(None, retry=promised)
        return response
