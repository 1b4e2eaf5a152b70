"""What the simulator answers to: one small function per route."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from bss_sync.domain.change import Json, Kind, OrderKind
from connectors.simulator.distributor import OWN_USER, DistributorBss
from connectors.simulator.faults import Fault, Faults
from connectors.simulator.reseller import Refused, ResellerBss
from connectors.simulator.webhook import Endpoint, Knobs, Release, WebhookSender, check_secret


class Role(StrEnum):
    """Which BSS a server plays."""

    RESELLER = "reseller"
    DISTRIBUTOR = "distributor"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Simulation:
    """Everything that a route may touch."""

    reseller: ResellerBss
    distributor: DistributorBss
    webhooks: WebhookSender
    faults: Faults
    calls: Counter[str]
    role: Role


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read."""

    arguments: tuple[str, ...]
    query: Mapping[str, str]
    user: str | None
    key: str | None
    content: Json

    @property
    def members(self) -> dict[str, Json]:
        """The body as an object. Refused with 400 when it is none."""
        if not isinstance(self.content, dict):
            raise Refused(400, "The body is no object.")
        return self.content

    @property
    def kind(self) -> Kind:
        """The kind of entity in the path."""
        return Kind(self.arguments[0].removesuffix("s"))

    @property
    def limit(self) -> int:
        """The page's size, 1 to 1,000."""
        return max(1, min(int(self.query.get("limit", "100")), 1000))

    @property
    def cursor(self) -> int:
        """The place in a feed."""
        return int(self.query.get("cursor") or 0)


Handler = Callable[[Simulation, Call], Json]


@dataclass(frozen=True, slots=True)
class Route:
    """Method, pattern of the path, who plays it, and the status of success."""

    method: str
    pattern: str
    roles: tuple[Role, ...]
    handler: Handler
    status: int = 200


def _health(simulation: Simulation, call: Call) -> Json:  # noqa: ARG001 - the shape is Handler's
    health: dict[str, Json] = {"status": "ok", "name": f"simulator ({simulation.role})"}
    if simulation.role is not Role.DISTRIBUTOR:
        health |= simulation.reseller.counts() | {"order": str(simulation.reseller.order)}
    if simulation.role is not Role.RESELLER:
        health |= simulation.distributor.counts()
    return health


# The reseller's BSS


def _put(simulation: Simulation, call: Call) -> Json:
    return simulation.reseller.put(call.kind, call.arguments[1], call.members)


def _patch(simulation: Simulation, call: Call) -> Json:
    return simulation.reseller.patch(call.kind, call.arguments[1], call.members)


def _delete(simulation: Simulation, call: Call) -> Json:
    return simulation.reseller.delete(call.kind, call.arguments[1], call.members)


def _get(simulation: Simulation, call: Call) -> Json:
    record = simulation.reseller.get(call.kind, call.arguments[1])
    if record.get("deleted"):
        raise Refused(410, "It is gone.", record)
    return record


def _page(simulation: Simulation, call: Call) -> Json:
    return simulation.reseller.page(call.kind, call.query.get("after", ""), call.limit)


def _changes(simulation: Simulation, call: Call) -> Json:
    return simulation.reseller.changes(call.cursor, call.limit)


def _seed(simulation: Simulation, call: Call) -> Json:
    """Load ``{accounts: […], subscriptions: […], push: false}`` at once; each entity carries its id."""
    push = call.members.get("push") is True
    for kind in Kind:
        for entity in call.members.get(f"{kind}s", ()):
            if not isinstance(entity, dict) or not isinstance(entity.get("id"), str):
                raise Refused(422, f"Each of the {kind}s needs its id.")
            simulation.reseller.put(kind, entity["id"], entity, push=push)
    return simulation.reseller.counts()


def _order(simulation: Simulation, call: Call) -> Json:
    simulation.reseller.order = OrderKind(call.members.get("order", "sequence"))
    return {"order": str(simulation.reseller.order)}


def _announce(simulation: Simulation, call: Call) -> Json:  # noqa: ARG001 - the shape is Handler's
    return {"queued": simulation.reseller.announce()}


def _endpoint(simulation: Simulation, call: Call) -> Json:
    endpoint = Endpoint.model_validate(call.members)
    check_secret(endpoint)
    simulation.webhooks.configure(endpoint)
    return {"url": endpoint.url}


def _no_endpoint(simulation: Simulation, call: Call) -> Json:  # noqa: ARG001 - the shape is Handler's
    simulation.webhooks.configure(None)
    return {"url": None}


def _webhooks(simulation: Simulation, call: Call) -> Json:
    """Counters; ``?wait_seconds=`` waits until nothing is queued."""
    idle = simulation.webhooks.wait_until_idle(float(call.query.get("wait_seconds", "0")))
    return {"idle": idle, **simulation.webhooks.view()}


def _knobs(simulation: Simulation, call: Call) -> Json:
    simulation.webhooks.disturb(Knobs.model_validate(call.members))
    return simulation.webhooks.view()["knobs"]


def _release(simulation: Simulation, call: Call) -> Json:
    return {"released": simulation.webhooks.release(Release.model_validate(call.members))}


# The distributor's BSS


def _create_record(simulation: Simulation, call: Call) -> Json:
    return simulation.distributor.create(call.members, user=call.user or OWN_USER, key=call.key)


def _update_record(simulation: Simulation, call: Call) -> Json:
    fields = call.members.get("fields")
    if not isinstance(fields, dict):
        raise Refused(422, "fields is missing.")
    return simulation.distributor.update(call.arguments[0], fields, user=call.user or OWN_USER, key=call.key)


def _edit_record(simulation: Simulation, call: Call) -> Json:
    """A person's edit; the body holds the fields to change."""
    return simulation.distributor.edit(call.arguments[0], call.members, user=call.user or "somebody")


def _remove_record(simulation: Simulation, call: Call) -> Json:
    simulation.distributor.remove(call.arguments[0], user=call.user or "somebody")
    return {"removed": call.arguments[0]}


def _get_record(simulation: Simulation, call: Call) -> Json:
    return simulation.distributor.get(call.arguments[0])


def _records(simulation: Simulation, call: Call) -> Json:
    reference = call.query.get("reference")
    if reference is not None:
        return simulation.distributor.look_up(reference, call.query.get("kind"))
    return simulation.distributor.page(call.query.get("after", ""), call.limit)


def _record_changes(simulation: Simulation, call: Call) -> Json:
    return simulation.distributor.changes(call.cursor, call.limit)


def _effects(simulation: Simulation, call: Call) -> Json:
    """The log after effect number ``after``: all of it, unless ``limit`` is given."""
    limit = int(call.query["limit"]) if "limit" in call.query else None
    return {"effects": simulation.distributor.effects(int(call.query.get("after") or 0), limit)}


def _lag(simulation: Simulation, call: Call) -> Json:
    simulation.distributor.lookup_lag_seconds = float(call.members.get("seconds", 0))
    return {"seconds": simulation.distributor.lookup_lag_seconds}


# Knobs of both


def _list_faults(simulation: Simulation, call: Call) -> Json:  # noqa: ARG001 - the shape is Handler's
    return {"faults": simulation.faults.view()}


def _add_fault(simulation: Simulation, call: Call) -> Json:
    simulation.faults.add(Fault.model_validate(call.members))
    return {"faults": simulation.faults.view()}


def _clear_faults(simulation: Simulation, call: Call) -> Json:  # noqa: ARG001 - the shape is Handler's
    simulation.faults.clear()
    return {"faults": []}


def _calls(simulation: Simulation, call: Call) -> Json:  # noqa: ARG001 - the shape is Handler's
    return {"calls": dict(simulation.calls)}


_RESELLER = (Role.RESELLER,)
_DISTRIBUTOR = (Role.DISTRIBUTOR,)
_EVERY = (Role.RESELLER, Role.DISTRIBUTOR)
_ENTITY = r"/(accounts|subscriptions)/([^/]+)"
_RECORD = r"/records/([^/]+)"

ROUTES: tuple[Route, ...] = (
    Route("GET", "/health", _EVERY, _health),
    Route("GET", _ENTITY, _RESELLER, _get),
    Route("PUT", _ENTITY, _RESELLER, _put),
    Route("PATCH", _ENTITY, _RESELLER, _patch),
    Route("DELETE", _ENTITY, _RESELLER, _delete),
    Route("GET", r"/(accounts|subscriptions)", _RESELLER, _page),
    Route("GET", "/changes", _RESELLER, _changes),
    Route("POST", "/seed", _RESELLER, _seed),
    Route("POST", "/order", _RESELLER, _order),
    Route("POST", "/webhook-endpoint", _RESELLER, _endpoint),
    Route("DELETE", "/webhook-endpoint", _RESELLER, _no_endpoint),
    Route("GET", "/webhooks", _RESELLER, _webhooks),
    Route("POST", "/webhooks/announce", _RESELLER, _announce),
    Route("POST", "/webhooks/knobs", _RESELLER, _knobs),
    Route("POST", "/webhooks/release", _RESELLER, _release),
    Route("POST", "/records", _DISTRIBUTOR, _create_record, 201),
    Route("GET", "/records", _DISTRIBUTOR, _records),
    Route("GET", _RECORD, _DISTRIBUTOR, _get_record),
    Route("PUT", _RECORD, _DISTRIBUTOR, _update_record),
    Route("PATCH", _RECORD, _DISTRIBUTOR, _edit_record),
    Route("DELETE", _RECORD, _DISTRIBUTOR, _remove_record),
    Route("GET", "/record-changes", _DISTRIBUTOR, _record_changes),
    Route("GET", "/effects", _DISTRIBUTOR, _effects),
    Route("POST", "/lookup-lag", _DISTRIBUTOR, _lag),
    Route("GET", "/faults", _EVERY, _list_faults),
    Route("POST", "/faults", _EVERY, _add_fault),
    Route("DELETE", "/faults", _EVERY, _clear_faults),
    Route("GET", "/calls", _EVERY, _calls),
)
"""Every route; the first whose pattern matches the whole path answers."""

CONTROL: frozenset[Handler] = frozenset(
    {_order, _endpoint, _no_endpoint, _webhooks, _announce, _knobs, _release, _effects, _lag}
    | {_list_faults, _add_fault, _clear_faults, _calls, _seed}
)
"""Handlers that need no api key: they are the test's, not the BSS's."""
