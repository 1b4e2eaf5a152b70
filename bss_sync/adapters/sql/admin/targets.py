"""The distributor's own BSS. Without one, the mirror is it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin import deliveries, secrets
from bss_sync.adapters.sql.admin.acts import record_distributor_act
from bss_sync.adapters.sql.admin.connections import check_secret_names
from bss_sync.adapters.sql.admin.connector_settings import as_words, validate_settings
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotFound
from bss_sync.ports.connector import ConnectorSpec
from bss_sync.ports.runtime import Vault


class DriftPolicy(StrEnum):
    """What happens to an edit of a locked field behind our back (domain.md section 4, rule 2)."""

    REPAIR = "repair"  # put back
    REPORT = "report"  # only reported


@dataclass(frozen=True, slots=True)
class TargetDetails:
    """The target with its health. ``deliveries`` counts records by the state of their delivery."""

    connector: str
    settings: dict[str, Any]
    drift_policy: DriftPolicy
    poll_seconds: float
    poll_error: str | None
    deliveries: dict[str, int]
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class NewTarget:
    """What ``target set`` is asked for. None keeps what is set."""

    spec: ConnectorSpec
    settings: Mapping[str, Any]
    secrets: Mapping[str, SecretStr]
    drift_policy: DriftPolicy | None = None
    poll_seconds: float | None = None


_UPSERT = text(
    """insert into target (connector, settings, drift_policy, poll_seconds)
       values (:connector, cast(:settings as jsonb), coalesce(:drift_policy, 'repair'), coalesce(:poll_seconds, 60))
       on conflict (only_row) do update set connector = excluded.connector, settings = excluded.settings,
           drift_policy = coalesce(:drift_policy, target.drift_policy),
           poll_seconds = coalesce(:poll_seconds, target.poll_seconds),
           poll_cursor = case when target.connector = excluded.connector then target.poll_cursor end,
           poll_due_at = now(), poll_error = null, updated_at = now()"""
)


def set_target(connection: Connection, vault: Vault, new: NewTarget, *, actor: str) -> int:
    """Set or change the target, and ask for every live record to be there. Returns how many deliveries are due.

    Settings of the same connector that are not given stay. InvalidRequest names each wrong setting or secret.
    """
    if not new.spec.capabilities.target:
        raise InvalidRequest(
            f"The connector {new.spec.name} cannot be a target.",
            fields=(FieldProblem("connector", "cannot be written to"),),
        )
    before = connection.execute(text("select connector, settings from target for update")).one_or_none()
    same = before is not None and before.connector == new.spec.name
    kept = dict(before.settings) if before is not None and same else {}
    settings = validate_settings(new.spec, {**kept, **new.settings})
    check_secret_names(new.spec, new.secrets)
    connection.execute(
        _UPSERT,
        {
            "connector": new.spec.name,
            "settings": json.dumps(settings),
            "drift_policy": new.drift_policy,
            "poll_seconds": new.poll_seconds,
        },
    )
    owner = _owner(connection)
    secrets.replace_opaque(connection, vault, tenant_id=owner, owner_id=owner, values=new.secrets)
    if before is not None and not same:
        deliveries.forget_confirmations(connection)
    due = deliveries.desire(connection)
    detail = {"connector": new.spec.name, "settings": as_words(settings), "deliveries": due}
    record_distributor_act(connection, actor, "target.set", detail)
    return due


def remove(connection: Connection, *, actor: str) -> None:
    """The mirror is the distributor's BSS again; its old target is left as it stands. NotFound when there is none."""
    row = connection.execute(text("delete from target returning connector")).one_or_none()
    if row is None:
        raise NotFound("No target is set.", next_step="Nothing to do: the mirror is the distributor's BSS.")
    deliveries.rest(connection)
    connection.execute(
        text("update secret set revoked_at = now() where owner_id = :owner and revoked_at is null"),
        {"owner": _owner(connection)},
    )
    record_distributor_act(connection, actor, "target.removed", {"connector": row.connector})


def show(connection: Connection) -> TargetDetails | None:
    """The target, or None: the mirror is it."""
    row = connection.execute(text("select * from target")).one_or_none()
    if row is None:
        return None
    counted = connection.execute(text("select state, count(*) as number from delivery group by state order by state"))
    return TargetDetails(
        row.connector,
        row.settings,
        DriftPolicy(row.drift_policy),
        row.poll_seconds,
        row.poll_error,
        {count.state: count.number for count in counted},
        row.updated_at,
    )


def _owner(connection: Connection) -> UUID:
    owner: UUID = connection.execute(text("select distributor_id from instance")).scalar_one()
    return owner
