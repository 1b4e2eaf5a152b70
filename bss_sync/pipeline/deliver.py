"""Deliver: drive the distributor's external BSS to what the mirror holds (architecture.md, decision 4).

    claim     due records whose account and parent are bound: lease, token, attempt + 1        → commit
              skip what the BSS is known to hold already
    intend    write down what is about to be sent                                              → commit
    call      a create is looked up first, always; a lost one is sent again word for word      (no transaction)
    settle    binding, confirmation, audit; or the error and when to try again                 → commit

A create is never sent before a look-up by our reference has found nothing: that holds after a lost answer, a kill
between the call and the commit, and a restored backup alike. While the lost intent is not known to have failed, the
same words travel under the same idempotency key.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from uuid import uuid4

from bss_sync.domain.change import Json
from bss_sync.domain.errors import (
    InvalidMessage,
    RemoteBusy,
    RemoteRefused,
    RemoteUnknown,
    RemoteUnreadable,
    Terminal,
    Transient,
)
from bss_sync.pipeline.read_pages import answered
from bss_sync.ports.breakers import Gate
from bss_sync.ports.connector import TargetClient, TargetRecord, TargetWrite
from bss_sync.ports.delivery import Claimed, Delivered, DeliveryStore, Intent, OpenTarget, Targets, Undelivered

BATCH_RECORDS = 64
CALLS_AT_ONCE = 8
CALLS_OVER_SHARE = 0.9
"""Of the lease: by then nothing of a call travels any more. What came later might be older than another's."""
CALLS_PER_RECORD = 2
"""A look-up and a write: what a repeated delivery takes from the retry budget."""
BACKOFF_SECONDS_MAX = 300.0
GONE = frozenset({404, 410})
_CERTAINLY_REFUSED = frozenset({400, 404, 405, 410, 415, 422})
"""Answers that prove that nothing took effect; 409 proves nothing, the first send may have."""


def backoff_seconds(attempts: int, wish_seconds: float | None = None) -> float:
    """Seconds until the next attempt: doubling from one second with jitter, never less than the remote's wish."""
    doubled = min(BACKOFF_SECONDS_MAX, 2.0 ** min(attempts - 1, 16))
    # Jitter keeps a crowd of records from coming back at the same moment; it needs no secrecy.
    jittered = doubled * (0.75 + random.random() / 2)  # noqa: S311 - see above
    return max(jittered, wish_seconds or 0.0)


@dataclass(frozen=True, slots=True)
class DeliverResult:
    """What one batch did. ``more``: there may be more that is due now."""

    delivered: int
    failed: int
    more: bool


NOTHING = DeliverResult(0, 0, more=False)


@dataclass(frozen=True, slots=True)
class _Times:
    """Of one batch (``time.monotonic()``): until when a call may begin, and when all are over."""

    begin_until: float
    end_by: float


@dataclass
class Deliverer:
    """Delivers batches to the target, as far as its breaker lets calls through."""

    store: DeliveryStore
    targets: Targets
    calls_at_once: int = CALLS_AT_ONCE
    lease_seconds: float = 30.0
    """The store's: no call is begun when half of it has gone, lest it arrives when the record is another's."""

    def deliver(self, limit: int = BATCH_RECORDS) -> DeliverResult:
        """One batch."""
        target = self.targets.target()
        if target is None:
            return NOTHING
        with closing(target.gate):
            return self._deliver(target, limit)

    def _deliver(self, target: OpenTarget, usual: int) -> DeliverResult:
        gate = target.gate
        limit = gate.limit(usual)
        tries = limit < usual
        started = time.monotonic()
        times = _Times(started + self.lease_seconds / 2, started + self.lease_seconds * CALLS_OVER_SHARE)
        claimed = self._claim(gate, limit, tries=tries) if limit else ()
        if not claimed:
            return NOTHING
        outcomes: list[Delivered | Undelivered] = [held for one in claimed if (held := already_held(one)) is not None]
        settled = {outcome.claimed.record_id for outcome in outcomes}
        intents = [(one, intent_of(one)) for one in claimed if one.record_id not in settled]
        ours = self.store.write_intents(intents) if intents else frozenset()
        called = [pair for pair in intents if pair[0].record_id in ours]
        answers = self._call(target, called, times)
        if tries:
            answers = [_uncounted(answer, gate.wait_seconds()) for answer in answers]
        outcomes += [answer for answer in answers if answer is not None]
        self.store.settle(outcomes)
        unsent = [one for (one, _intent), answer in zip(called, answers, strict=True) if answer is None]
        if unsent:
            self.store.release(unsent, gate.wait_seconds())
        failed = sum(isinstance(outcome, Undelivered) for outcome in outcomes)
        # A new binding has woken what waited for it.
        bound = any(isinstance(outcome, Delivered) and outcome.claimed.external_id is None for outcome in outcomes)
        more = (bound or len(claimed) == limit) and gate.wait_seconds() == 0
        return DeliverResult(len(outcomes) - failed, failed, more)

    def _claim(self, gate: Gate, limit: int, *, tries: bool) -> Sequence[Claimed]:
        if tries:
            # What was never sent, where there is such a record: to try is then no retry.
            return self.store.claim(limit, 0) or self.store.claim(limit, limit)
        return self.store.claim(limit, gate.retries(limit * CALLS_PER_RECORD) // CALLS_PER_RECORD)

    def _call(
        self, target: OpenTarget, pairs: Sequence[tuple[Claimed, Intent]], times: _Times
    ) -> list[Delivered | Undelivered | None]:
        if not pairs:
            return []
        with ThreadPoolExecutor(min(self.calls_at_once, len(pairs)), thread_name_prefix="deliver") as pool:
            return list(pool.map(lambda pair: _attempt(target, pair[0], pair[1], times), pairs))


def _attempt(target: OpenTarget, claimed: Claimed, intent: Intent, times: _Times) -> Delivered | Undelivered | None:
    """None: not attempted, because another call has just found the target down, or the lease will not last."""
    if target.gate.wait_seconds() > 0 or time.monotonic() >= times.begin_until:
        return None
    try:
        with target.gate.attempt(again=claimed.again, end_by=times.end_by):
            return write(target, claimed, intent)
    except Transient as error:
        return later(claimed, error)
    except Terminal as error:
        return refused(claimed, error)


def _uncounted(answer: Delivered | Undelivered | None, wait_seconds: float) -> Delivered | Undelivered | None:
    """What became of a record that tried whether the target is back: a failure was the target's, not the record's."""
    if (
        isinstance(answer, Undelivered)
        and answer.state == "pending"
        and "binding" not in answer.forget
        and wait_seconds > 0
    ):
        return replace(answer, delay_seconds=wait_seconds, counted=False)
    return answer


def already_held(claimed: Claimed) -> Delivered | None:
    """Done without a call: the external BSS is known to hold just this."""
    if claimed.external_id is None or claimed.stored is not None or claimed.confirmed != claimed.desired.fields:
        return None
    unsent = Intent("", claimed.desired.revision, claimed.desired.fields)
    return Delivered(claimed, claimed.external_id, unsent, "unchanged")


def intent_of(claimed: Claimed) -> Intent:
    """What to send: a create whose end is unknown goes out word for word, everything else as the mirror is now."""
    stored, desired = claimed.stored, claimed.desired
    if stored is not None and (claimed.external_id is None or stored.fields == desired.fields):
        return stored
    return Intent(str(uuid4()), desired.revision, desired.fields)


def write(target: OpenTarget, claimed: Claimed, intent: Intent) -> Delivered | Undelivered:
    """Create or update. Raises what the client raises; a look-up that fails has sent nothing, and leaves no intent."""
    external_id, reference = claimed.external_id, str(claimed.record_id)
    if external_id is None:
        try:
            with answered():
                found = target.client.look_up(claimed.kind, reference)
        except Transient as error:
            return _unsent(claimed, later(claimed, error))
        if found is not None:
            if matches(found.fields, intent.fields):
                return Delivered(claimed, found.external_id, intent, "found")
            # Ours from before a lost answer or a restored backup, with older content: an update under a key of its own.
            external_id = found.external_id
            intent = Intent(str(uuid4()), claimed.desired.revision, claimed.desired.fields)
        pause_seconds = target.gate.wait_seconds()
        if pause_seconds > 0:
            busy = RemoteBusy("Meanwhile the target asked to wait.", retry_after_seconds=pause_seconds)
            return _unsent(claimed, later(claimed, busy))
    # After a look-up that failed nothing was sent: then this is the first time.
    with target.gate.attempt(again=claimed.again and (claimed.stored is not None or claimed.external_id is not None)):
        write = TargetWrite(claimed.kind, reference, external_id, intent.fields, intent.key)
        record = _sent(target.client, write)
    return Delivered(claimed, record.external_id, intent, "created" if external_id is None else "updated")


def _unsent(claimed: Claimed, failed: Undelivered) -> Undelivered:
    """An attempt that ended before its write: what was to be sent is no intent, unless an earlier one has sent it."""
    return failed if claimed.stored is not None else replace(failed, forget=frozenset({"intent"}))


def _sent(client: TargetClient, write: TargetWrite) -> TargetRecord:
    """The record as it stands there afterwards.

    RemoteUnknown when the answer of success cannot be read: it may have taken effect, and a look-up will tell.
    """
    try:
        with answered():
            return client.write(write)
    except (RemoteUnreadable, InvalidMessage) as error:
        raise RemoteUnknown(error.detail) from error


def matches(found: Mapping[str, Json], intended: Mapping[str, Json]) -> bool:
    """Whether a record holds every intended field; fields that the BSS adds of its own do not count."""
    return all(found.get(name) == value for name, value in intended.items())


def later(claimed: Claimed, error: Transient) -> Undelivered:
    """Try again: after a lost answer with a look-up first."""
    state = "unknown" if isinstance(error, RemoteUnknown) else "pending"
    delay = backoff_seconds(claimed.attempts, error.retry_after_seconds)
    if isinstance(error, RemoteBusy) and error.retry_after_seconds:
        delay = error.retry_after_seconds
    return Undelivered(claimed, state, f"{error.slug}: {error.detail}", delay)


def refused(claimed: Claimed, error: Terminal) -> Undelivered:
    """Give up, unless the record that we knew was removed there: then it is looked up and created anew."""
    status = error.status if isinstance(error, RemoteRefused) else None
    words = f"{error.slug}: {error.detail}"
    if status in GONE and claimed.external_id is not None:
        return Undelivered(claimed, "pending", words, 0.0, frozenset({"intent", "binding"}))
    forget = frozenset({"intent"}) if status in _CERTAINLY_REFUSED else frozenset()
    return Undelivered(claimed, "dead", words, None, forget)
