"""What goes wrong between two companies: a message comes twice, unsigned, late, or not at all."""

from __future__ import annotations

import time
from typing import Any

from bss_sync.demo.calls import Caller
from bss_sync.demo.stage import DISTRIBUTOR
from bss_sync.demo.world import CONNECTION, RESELLER, World, check, on, require
from bss_sync.domain.change import Kind

HELD, AFTER = 40, 30
"""X's users from 10 September, and from 17 September."""
LOST = 32
"""X's users from 1 October: the message about it never comes."""
OVERTAKEN_SECONDS = 2.0
ANYBODY_WAIT_SECONDS = 30.0


def troubles(world: World) -> None:
    """Each trouble, and what the mirror says in the end."""
    world.narrator.chapter(
        "What the network does to messages",
        "The mirror's present never goes back, and what came late still gets its place in history.",
    )
    _twice(world)
    _forged(world)
    _late(world)
    _lost(world)
    _show_history(world)


def _twice(world: World) -> None:
    counted = len(_messages(world))
    world.knobs(duplicate=1)
    began = time.monotonic()
    world.change("PATCH", Kind.SUBSCRIPTION, "sub-y", {"quantity": 12}, on("08-01"))
    milliseconds = world.arrives(Kind.SUBSCRIPTION, "sub-y", {"quantity": 12}, since=began)
    check("webhooks that were refused", 0, world.sent()["refused"])
    check("messages kept of one sent twice", counted + 1, len(_messages(world)))
    states = [one for one in _history(world, "sub-y") if one["changes"].get("quantity", {}).get("to") == 12]
    check("states in history of one sent twice", 1, len(states))
    world.narrator.act("Y gets 12; the message is sent twice", "stored and applied once", *milliseconds)
    world.knobs()


def _forged(world: World) -> None:
    url = world.items("/v1/connections")[0]["id"]
    body = {
        "type": "subscription.deleted",
        "timestamp": f"{on('08-02')}T00:00:00Z",
        "data": {"id": "sub-x", "version": 99},
    }
    headers = {
        "webhook-id": "msg_forged",
        "webhook-timestamp": str(int(time.time())),
        "webhook-signature": "v1,Zm9yZ2Vk",
    }
    answer = Caller(world.api.url).call("POST", f"/v1/connections/{url}/messages", body, headers=headers)
    require("a forged message", 401, answer)
    check(
        "X's subscription after a forged deletion", False, (world.record(Kind.SUBSCRIPTION, "sub-x") or {})["deleted"]
    )
    world.narrator.refusal("somebody forges a deletion", f"401: {answer.content['detail']}")


def _late(world: World) -> None:
    """The older of two messages is overtaken: the present follows the newer, history gets both."""
    narrator = world.narrator
    world.knobs(delay_seconds=OVERTAKEN_SECONDS)
    world.change("PATCH", Kind.SUBSCRIPTION, "sub-x", {"quantity": HELD}, on("09-10"))
    world.knobs()
    began = time.monotonic()
    world.change("PATCH", Kind.SUBSCRIPTION, "sub-x", {"quantity": AFTER}, on("09-17"))
    milliseconds = world.arrives(Kind.SUBSCRIPTION, "sub-x", {"quantity": AFTER}, since=began)
    record = world.record(Kind.SUBSCRIPTION, "sub-x") or {}
    recorded_at, version = str(record["updated_at"]), int(record["version"])
    narrator.act(f"X: {HELD} from 10 Sep (held up), {AFTER} from 17 Sep", f"{AFTER} at once", *milliseconds)
    world.stage.eventually(
        f"X's quantity on {on('09-12')}",
        HELD,
        lambda: _quantity(world, as_of=on("09-12")),
        seconds=ANYBODY_WAIT_SECONDS,
    )
    after = world.record(Kind.SUBSCRIPTION, "sub-x") or {}
    check("the present after the late message", (AFTER, version), (after["quantity"], after["version"]))
    late = [one["changes"]["quantity"]["to"] for one in _history(world, "sub-x") if one["late"]]
    check("what came late", [HELD], late)
    narrator.act("the first one arrives after all", f"still {AFTER}; {HELD} is entered for that week")
    narrator.gap()
    narrator.table(
        [f"How many did X hold on {on('09-12')}?", "answer#"],
        [
            ["as it was known before the late message came", str(_known_then(world, recorded_at))],
            ["as it is known now (what that week is billed by)", str(_quantity(world, as_of=on("09-12")))],
        ],
    )
    narrator.gap()


def _known_then(world: World, recorded_at: str) -> object:
    known = _quantity(world, as_of=on("09-12"), recorded_as_of=recorded_at)
    check("what was known before the late message", 25, known)
    return known


def _lost(world: World) -> None:
    """A message never comes: the next one shows the gap, and polling fills it."""
    narrator = world.narrator
    world.knobs(drop=1)
    world.change("PATCH", Kind.SUBSCRIPTION, "sub-x", {"quantity": LOST}, on("10-01"))
    check("webhooks lost", 1, world.sent()["dropped"])
    check("X's quantity in the mirror", AFTER, (world.record(Kind.SUBSCRIPTION, "sub-x") or {})["quantity"])
    narrator.act(f"X gets {LOST} from 1 Oct; the message is lost", f"{AFTER}: {DISTRIBUTOR} cannot know yet")
    began = time.monotonic()
    noted = {"characteristics": {"domain": "customer-x.example"}}
    world.change("PATCH", Kind.SUBSCRIPTION, "sub-x", noted, on("11-01"))
    milliseconds = world.arrives(Kind.SUBSCRIPTION, "sub-x", {"quantity": LOST, **noted}, since=began)
    world.stage.eventually("the gap is recorded", 1, lambda: _open_gaps(world))
    narrator.act("the next change, of 1 Nov, arrives", f"{LOST} at once; a gap is noted", *milliseconds)
    check(f"X's quantity on {on('10-15')}", AFTER, _quantity(world, as_of=on("10-15")))
    world.stage.administer("connection", "set", CONNECTION, "poll_seconds=1")
    world.stage.eventually("the gap is closed", 0, lambda: _open_gaps(world), seconds=ANYBODY_WAIT_SECONDS)
    world.stage.eventually(
        f"X's quantity on {on('10-15')}",
        LOST,
        lambda: _quantity(world, as_of=on("10-15")),
        seconds=ANYBODY_WAIT_SECONDS,
    )
    narrator.act(f"{RESELLER}'s BSS is polled", f"the lost change is found: {LOST} since 1 Oct")


def _show_history(world: World) -> None:
    narrator = world.narrator
    narrator.gap()
    narrator.say("The history of X's subscription: when it was in effect, when it was recorded, by which message")
    rows = []
    for one in _history(world, "sub-x"):
        told = ", ".join(
            f"{name} {change['to']}"
            for name, change in one["changes"].items()
            if name in ("product", "quantity", "end_date")
        )
        told = told or ", ".join(one["changes"])
        rows.append(
            [
                one["effective_at"][:10],
                one["recorded_at"][11:23],
                str(one["version"]),
                told,
                _short(one["message"]["message_id"]),
                "late" if one["late"] else "",
            ]
        )
    narrator.table(["in effect", "recorded", "v#", "what changed", "message", ""], rows)


def _short(message_id: str) -> str:
    """The beginning of a sender's id; of our own polling's, which speaks, the first word."""
    return message_id.partition(":")[0][:12]


def _messages(world: World) -> list[dict[str, Any]]:
    return world.items("/v1/messages", connection=CONNECTION)


def _history(world: World, source_id: str) -> list[dict[str, Any]]:
    record = world.record(Kind.SUBSCRIPTION, source_id) or {}
    return world.items(f"/v1/subscriptions/{record['id']}/history")


def _quantity(world: World, **moment: str) -> object:
    """X's quantity as of a time, as far as it was recorded by another."""
    record = world.record(Kind.SUBSCRIPTION, "sub-x") or {}
    found: object = world.api.get(f"/v1/subscriptions/{record['id']}", **moment).get("quantity")
    return found


def _open_gaps(world: World) -> object:
    found: object = world.api.get(f"/v1/connections/{CONNECTION}")["health"]["open_gaps"]
    return found
