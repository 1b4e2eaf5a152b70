"""One schedule: a world from a seed, its faults, its coming to rest, and the comparison with the model."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from bss_sync.domain.change import Change, Kind, stream_id
from bss_sync.domain.errors import Transient
from bss_sync.domain.tenancy import PROCESSING, ConnectionState
from bss_sync.pipeline.line import rehearse
from bss_sync.pipeline.reconcile import Result
from bss_sync.ports.loading import Taken
from bss_sync.ports.streams import Settled
from bss_sync.testing.simulation.network import Network
from bss_sync.testing.simulation.reseller import Reseller, Version
from connectors.simulator.distributor import DistributorBss
from tests.simulation.admin import STEP_MESSAGES, Office
from tests.simulation.core import Core, Name, Present
from tests.simulation.oracles import Broken, check_moment, check_rest
from tests.simulation.processes import Processes
from tests.simulation.profile import FOREIGN, LATER, OURS, RETIRING, Profile, draw_profile
from tests.simulation.scheduler import Task

START = datetime(2026, 1, 1, tzinfo=UTC)
TASKS_MAX = 5
ROUNDS_MAX = 60
DEADLINE_SECONDS = 1000
"""Longer than a message waits for its parent, longer than every lease and every retry."""

GATES = {
    "streams.claim": PROCESSING,
    "fetches.claim": PROCESSING,
    "polls.claim": PROCESSING,
    "deliveries.claim": frozenset({ConnectionState.LIVE}),
}
"""In which states of the connection a worker may get work."""

MakeCore = Callable[[Sequence[str], Profile], Core]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything that the process draws (uuids, jitter) comes from the seed, so that a failure can be replayed."""
    entropy = random.Random(seed)
    before, os.urandom = os.urandom, entropy.randbytes
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        os.urandom = before
        random.setstate(state)


class World:
    """One schedule. ``tag`` keeps products apart where several schedules share a database, ``short`` halves it."""

    def __init__(
        self, seed: int, make_core: MakeCore, *, tag: str = "", looks_up: bool = True, short: bool = False
    ) -> None:
        self.seed = seed
        self._short = short
        self.random = random.Random(seed)
        self.profile = draw_profile(self.random, random.Random(f"of late {seed}"))
        self.trace: list[str] = []
        self.clock = START
        self.faulty = True
        self.tasks: list[Task] = []
        self.spawned = 0
        self.edits = 0
        codes = {code: code + tag for code in (OURS, RETIRING, LATER, FOREIGN)}
        self.later, self.retiring = codes[LATER], codes[RETIRING]
        self.catalogue = {codes[OURS], codes[RETIRING]}
        self.retired: set[str] = set()
        self.core = make_core(sorted(self.catalogue), self.profile)
        products = [codes[OURS], codes[OURS], codes[RETIRING], codes[LATER], codes[FOREIGN]]
        self.reseller = Reseller(self.random, self.profile.order, products, self.now, self.profile.odd)
        self.network = Network(self.random, self.profile.loss, self.profile.doubled)
        self.bss = DistributorBss(self.now)
        self.processes = Processes(self.core, self.reseller, self.bss, self.profile, self, looks_up=looks_up)
        self.present: dict[UUID, Present] = {}
        self.sent: list[Change] = []
        self.lied: set[Name] = set()
        self.recounted: set[Name] = set()
        self.acts: Counter[str] = Counter()
        self.office = Office(self)
        self.core.set_time(self.clock)

    # --- luck (processes.Luck) ----------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        """See Luck."""
        return self.faulty and self.random.random() < share * self.profile.faults

    def skew(self) -> timedelta:
        """See Luck."""
        if not self.profile.skewed:
            return timedelta(0)
        return timedelta(minutes=self.random.uniform(-10, 10))

    def counted(self, act: str) -> None:
        """Count what was done, to show that it is done at all."""
        self.acts[act] += 1

    def seconds(self) -> float:
        """See Luck."""
        return (self.clock - START).total_seconds()

    def now(self) -> datetime:
        """See Luck."""
        return self.clock

    def happened(self, what: str) -> None:
        """See Luck."""
        self.trace.append(f"{self.seconds():9.1f} {what}")

    def stepped(self, label: str, result: object, stale: frozenset[UUID]) -> None:
        """See Luck."""
        self._check_gate(label, result)
        if isinstance(result, Taken):
            self.acts["decided where it was stored"] += result.accepted
        if label == "streams.work":
            present = dict(self.core.present())
            anew = {stream_id(self.core.connection_id, *name) for name in self.recounted}
            check_moment(self.present, present, anew)
            self.present = present
            assert isinstance(result, tuple)
            self._note_verdicts(result[0])
            written = stale & result[0].entities.keys()
            if written:
                raise Broken(f"A worker wrote {len(written)} streams that another has claimed since.")

    def _check_gate(self, label: str, result: object) -> None:
        """Nothing is processed, polled or fetched in pause, and nothing is delivered in shadow either."""
        needed = GATES.get(label)
        if needed is not None and result and self.office.state not in needed:
            raise Broken(f"{label} gave {result} to a worker while the connection is {self.office.state}.")

    def _note_verdicts(self, settled: Settled) -> None:
        for _stream, verdict in settled.verdicts.values():
            self.happened(f"    {verdict.verdict} {verdict.reason or ''} {verdict.message.hex[:6]}")

    # --- one schedule -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play it. Raises Broken when a promise does not hold."""
        try:
            self.happened(f"seed {self.seed}: {self.profile}")
            for _ in range(self.profile.steps // (2 if self._short else 1)):
                self._step()
            self._calm()
            self._rest()
            check_rest(self)
            self._replay_everything()
        except Broken:
            raise
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
        finally:
            for task in self.tasks:
                with suppress(Exception):
                    task.kill()

    def _step(self) -> None:
        self._pass_time(self.random.choice((0, 0, 0.2, 1, 3)))
        roll = self.random.random()
        if roll < 0.22:
            self.act()
        elif roll < 0.40:
            self._arrive()
        elif roll < 0.84:
            self._turn()
        elif roll < 0.88:
            self._kill_one()
        elif roll < 0.91:
            self._edit_target()
        elif roll < 0.95:
            if not self.office.act():
                self._turn()
        else:
            self._pass_time(self.random.choice((10, 31, 130)))

    def act(self) -> None:
        """The reseller does something."""
        lost_count = self.reseller.recount() if self.profile.recounts and self.random.random() < 0.08 else []
        self.recounted |= {(one.kind, one.source_id) for one in lost_count}
        self.acts["counted anew"] += len(lost_count)
        for version in lost_count or self.reseller.act():
            self.send(version)

    def send(self, version: Version) -> None:
        """The reseller's BSS sends what it did."""
        notify = self.random.random() < self.profile.notified
        what = "deleted" if version.body is None else str(version.body)
        self.happened(f"source: {version.kind} {version.source_id} v{version.version} (m{version.number}): {what}")
        change = version.change(self.profile.order, notify=notify)
        self.sent.append(change)
        self.network.send(change)
        if self.profile.forgetful and self.random.random() < 0.3:
            self.counted("old message sent again")
            self.network.on_the_way.append(self.random.choice(self.sent))
        if self.random.random() < self.profile.lies and version.body is not None and not notify:
            self._lie(version)

    def _lie(self, version: Version) -> None:
        """Somebody else's copy of the message: the same version, another content."""
        if version.kind is Kind.SUBSCRIPTION:
            self.counted("version conflict")
            self.lied.add((version.kind, version.source_id))
            body = {**(version.body or {}), "quantity": "99"}
            copy = replace(version, body=body).change(self.profile.order, notify=False)
            self.network.send(replace(copy, message_id=f"{copy.message_id}-copy"))

    def _arrive(self) -> None:
        if not self.network.on_the_way:
            return
        changes = self.network.arrive()
        kept: list[Change] = []
        task = Task("door", _enduring(lambda task: self.processes.arrive(task, changes, kept)))
        task.finish()
        self.network.on_the_way += kept
        self.happened(f"door: {[change.message_id for change in changes]}{' refused' if kept else ''}")

    def _turn(self) -> None:
        if self.tasks and (len(self.tasks) >= TASKS_MAX or self.random.random() < 0.8):
            self._resume(self.random.choice(self.tasks))
            return
        self._resume(self._spawn())

    def _spawn(self) -> Task:
        names = ("process", "process", "process", "deliver", "deliver", "fetch", "poll", "drift", "reconcile", "sweep")
        name = self.random.choice((*names, "load") if self.profile.loads else names)
        limit = self.random.choice((1, 2, 4, 50))
        bodies: dict[str, Callable[[Task], object]] = {
            "process": lambda task: self.processes.process(task, limit),
            "deliver": lambda task: self.processes.deliver(task, limit),
            "fetch": self.processes.fetch,
            "poll": self.processes.poll,
            "drift": self.processes.drift,
            "reconcile": self._compare,
            "load": self.processes.load,
            "sweep": lambda _task: self.core.sweep(),
        }
        self.spawned += 1
        task = Task(f"{name}-{self.spawned}", _enduring(bodies[name]))
        self.tasks.append(task)
        return task

    def _compare(self, task: Task) -> None:
        """Everything, or what has changed since the last time, or one account and what is below it."""
        roll = self.random.random() if self.profile.parts else 0.0
        accounts = sorted(source_id for kind, source_id in self.core.records() if kind is Kind.ACCOUNT)
        if roll < 0.4:
            self.processes.reconcile(task)
            return
        self.counted("comparison of a part")
        if roll < 0.7 or not accounts:
            self.processes.reconcile(task, since_last=True)
        else:
            self.processes.reconcile(task, subtree=self.random.choice(accounts))

    def _resume(self, task: Task) -> None:
        try:
            task.resume()
        finally:
            if task.finished:
                self.tasks.remove(task)

    def _kill_one(self) -> None:
        if self.tasks and self.profile.faults:
            task = self.random.choice(self.tasks)
            self.happened(f"{task.name}: killed at {task.at}")
            self.tasks.remove(task)
            task.kill()

    def _edit_target(self) -> None:
        """Somebody edits or removes a record in the distributor's BSS."""
        records = self.bss.records()
        if records and self.random.random() < 0.5:
            record = self.random.choice(records)
            self.edits += 1
            if self.random.random() < 0.15:
                self.happened(f"somebody removes {record['id']}")
                self.bss.remove(record["id"], user="somebody")
            else:
                self.happened(f"somebody edits {record['id']}")
                self.bss.edit(record["id"], {"bill_to": f"somebody-{self.edits}"}, user="somebody")

    def _pass_time(self, seconds: float) -> None:
        if seconds:
            self.clock += timedelta(seconds=seconds)
            self.core.set_time(self.clock)

    # --- coming to rest -----------------------------------------------------------------------------------------------

    def _calm(self) -> None:
        """Faults end. Of what was going on some dies, the rest wakes up after its lease and carries on."""
        self.happened("faults end")
        self.faulty = False
        self.office.calm()
        self._pass_time(DEADLINE_SECONDS)
        while self.tasks:
            task = self.random.choice(self.tasks)
            if task.at != "start" and self.random.random() < 0.1:
                self.happened(f"{task.name}: killed at {task.at}")
                self.tasks.remove(task)
                task.kill()
            else:
                self._resume(task)
        while self.network.on_the_way:
            self._arrive()

    def _rest(self) -> None:
        """Sweep, process, fetch, poll, deliver and reconcile until nothing happens, also past every deadline."""
        quiet = 0
        for _round in range(ROUNDS_MAX):
            before = self.core.fingerprint(), len(self.bss.effects())
            self._round()
            quiet = quiet + 1 if before == (self.core.fingerprint(), len(self.bss.effects())) else 0
            if quiet == 3:
                return
            self._pass_time(DEADLINE_SECONDS if quiet else 45)
        raise Broken(f"It did not come to rest in {ROUNDS_MAX} rounds.")

    def _round(self) -> None:
        self.core.revive_killed()
        self.office.let_ends_pass()
        self._decide()
        for _ in range(100):
            if not self._finish_with(self.processes.fetch):
                break
        self._finish_with(self.processes.poll)
        self._decide()
        self._deliver()
        self._finish_with(self.processes.drift)
        self._finish_with(self.processes.reconcile)
        self.office.accept_recounts()
        self._decide()
        self._deliver()

    def _decide(self) -> None:
        for _ in range(100):
            if not self.core.sweep():
                return
            self._finish_with(lambda task: self.processes.process(task, 50))

    def _deliver(self) -> None:
        for _ in range(100):
            if not self._finish_with(lambda task: self.processes.deliver(task, 50)):
                return

    def _finish_with(self, body: Callable[[Task], object]) -> object:
        """Run a task to its end and return what it returned."""
        answers: list[object] = []
        Task("rest", lambda task: answers.append(body(task))).finish()
        return answers[0]

    def _replay_everything(self) -> None:
        """A replay of whatever is not decided for good ends as its dry run said."""
        before = {one.id: one.state for one in self.core.messages() if one.state not in ("applied", "superseded")}
        if not before:
            return
        verdicts = rehearse(self.core.streams, list(before)).verdicts
        planned = before | {key: str(verdict.state) for key, (_stream, verdict) in verdicts.items() if key in before}
        self.core.admin.begin_replay(list(before))
        while self.core.admin.carry_replay(STEP_MESSAGES):
            pass
        self._decide()
        self.counted("replay of everything")
        states = {one.id: one.state for one in self.core.messages()}
        wrong = {key: (state, states[key]) for key, state in planned.items() if states[key] != state}
        if wrong:
            raise Broken(f"A replay ended otherwise than its dry run said (planned, found): {wrong}")

    def resumed(self) -> set[Name]:
        """Subscriptions whose history may hold a state twice: let in anew by an admin's act, or told of in two ways."""
        changing = {self.later, self.retiring} if self.profile.catalogue_changes else set()
        log = self.reseller.log
        return (
            {(one.kind, one.source_id) for one in log if one.body and one.body.get("product") in changing}
            | self.lied
            | self.recounted
        )

    def reconcile(self, accept: frozenset[str] = frozenset()) -> Result:
        """One comparison of everything, at rest; what others have begun before tells what there was then."""
        while True:
            result = self._finish_with(lambda task: self.processes.reconcile(task, accept=accept))
            assert isinstance(result, Result)
            if not result.resumed:
                return result


def _enduring(body: Callable[[Task], object]) -> Callable[[Task], None]:
    """A process logs a dependency that is down and goes on; the sweeper hints again."""

    def run(task: Task) -> None:
        try:
            body(task)
        except Transient:
            return

    return run
