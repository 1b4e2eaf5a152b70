"""Who takes part: Cloud Resell in its BSS, Cloud in its own, and what each of them sees of the other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bss_sync.demo.calls import Answer, Caller
from bss_sync.demo.narration import Narrator
from bss_sync.demo.stage import NotAsPromised, Stage, picked
from bss_sync.domain.change import Json, Kind

RESELLER, CONNECTION = "Cloud Resell", "cloud-resell"
BASIC, STANDARD, PREMIUM, PHONE = "M365-BUS-BASIC", "M365-BUS-STD", "M365-BUS-PREM", "TEAMS-PHONE"
CATALOGUE = {
    BASIC: "Microsoft 365 Business Basic",
    STANDARD: "Microsoft 365 Business Standard",
    PREMIUM: "Microsoft 365 Business Premium",
    PHONE: "Teams Phone (add-on)",
}
OWN_PRODUCT = "RESELL-BACKUP"
"""Sold by Cloud Resell on its own account: no business of Cloud's."""

YEAR = datetime.now(UTC).year - 1
"""The story plays in the past year: nothing in it lies in the future, whenever it is told."""


def on(month_and_day: str) -> str:
    """A date of the story, ``on("03-31")``."""
    return f"{YEAR}-{month_and_day}"


@dataclass(frozen=True, slots=True)
class World:
    """Everybody's hands. ``reseller`` and ``own_bss`` call the two BSSs, ``api`` is a person at Cloud (operator)."""

    stage: Stage
    narrator: Narrator
    reseller: Caller
    own_bss: Caller
    api: Caller

    def change(self, method: str, kind: Kind, source_id: str, body: dict[str, Json], since: str) -> None:
        """Cloud Resell changes something in its own BSS, in effect since a date; its BSS tells Cloud by webhook."""
        sent = {**body, "effective_at": f"{since}T00:00:00Z"}
        answer = self.reseller.call(method, f"/{kind}s/{source_id}", sent)
        require(f"{RESELLER}'s BSS takes the change of {source_id}", 200, answer)

    def record(self, kind: Kind, source_id: str, connection: str = CONNECTION, **params: str) -> dict[str, Any] | None:
        """The record in Cloud's mirror; None when it is not there. ``params``: of the request.

        A deleted one is found too; ``deleted`` says so.
        """
        asked = {"connection": connection, "source_id": source_id, "include_deleted": "true", **params}
        items = self.items(f"/v1/{kind}s", **asked)
        return {**items[0], "deleted": items[0]["deleted_at"] is not None} if items else None

    def items(self, path: str, **params: str) -> list[dict[str, Any]]:
        """All items of a list of the API."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            answer = self.api.call("GET", path, params={"limit": "500", **params, **cursor})
            require(f"GET {path}", 200, answer)
            found += answer.content["items"]
            if not answer.content.get("has_more"):
                return found
            cursor = {"cursor": answer.content["next_cursor"]}

    def external(self, kind: Kind, source_id: str, connection: str = CONNECTION) -> dict[str, Any] | None:
        """The record in Cloud's own BSS, found by our reference; None when it is not there."""
        record = self.record(kind, source_id, connection)
        if record is None:
            return None
        items = self.own_bss.get("/records", kind=str(kind), reference=record["id"])["items"]
        return items[0] if items else None

    def arrives(
        self,
        kind: Kind,
        source_id: str,
        expected: Mapping[str, object],
        *,
        since: float | None = None,
        connection: str = CONNECTION,
        external: Mapping[str, object] | None = None,
    ) -> tuple[float, float]:
        """Wait until mirror and Cloud's own BSS show ``expected``; milliseconds until each did.

        ``since`` is the monotonic second of the act (default: now). ``external``: what differs in Cloud's own BSS,
        where quantities are decimal strings and other records are named by that BSS's ids.
        """
        began = time.monotonic() if since is None else since
        self.stage.eventually(
            f"Cloud's mirror of {kind} {source_id}",
            dict(expected),
            lambda: picked(self.record(kind, source_id, connection), expected),
        )
        mirrored = (time.monotonic() - began) * 1_000
        wanted = {name: written(value) for name, value in expected.items()} if external is None else dict(external)

        def held() -> object:
            found = self.external(kind, source_id, connection)
            return None if found is None else picked(found["fields"], wanted)

        self.stage.eventually(f"Cloud's own BSS about {kind} {source_id}", wanted, held)
        return mirrored, (time.monotonic() - began) * 1_000

    def reason(self, source_id: str, state: str) -> str:
        """Wait until the newest message about an entity has a state; returns the reason that is recorded with it."""
        newest = partial(self.items, "/v1/messages", source_id=source_id)
        self.stage.eventually(
            f"the message about {source_id}", [state], lambda: [one["state"] for one in newest()[-1:]]
        )
        found = newest()[-1]
        return str(found["reason"] or found["verdict"])

    def knobs(self, **knobs: Json) -> None:
        """Set how Cloud Resell's BSS sends its webhooks: all knobs anew."""
        require("the webhook knobs", 200, self.reseller.call("POST", "/webhooks/knobs", knobs))

    def sent(self) -> dict[str, Any]:
        """What became of the webhooks, once nothing is queued."""
        found: dict[str, Any] = self.reseller.get("/webhooks", wait_seconds="10")
        return found

    def tree(self, *options: str) -> str:
        """What ``bss-sync tree`` prints."""
        done = self.stage.command("tree", *options)
        if done.code != 0:
            raise NotAsPromised("bss-sync tree", "exit code 0", done.errors)
        return done.output.rstrip()


def written(value: object) -> object:
    """A value as it stands in Cloud's own BSS: quantities are decimal strings there."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def require(what: str, status: int, answer: Answer) -> None:
    """NotAsPromised unless the answer has the status."""
    if answer.status != status:
        raise NotAsPromised(what, f"status {status}", f"status {answer.status}: {answer.content}")


def check(what: str, expected: object, seen: object) -> None:
    """NotAsPromised unless what was seen is what was expected."""
    if seen != expected:
        raise NotAsPromised(what, expected, seen)
