"""Connections and their health, long runs, differences, and the audit trail."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from sqlalchemy import Connection
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql.reading.connections import get_connection, list_connections
from bss_sync.adapters.sql.reading.oversight import OversightFilter, get_run, list_audit, list_drift, list_runs
from bss_sync.adapters.sql.reading.paging import is_uuid
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.web.api import examples
from bss_sync.web.api.answers import list_answer, shows, shows_list
from bss_sync.web.api.parameters import PagingQuery, Reader, RunId, Since, Staff, Text, Words, reach_of, read_since
from bss_sync.web.auth import transaction

router = APIRouter(prefix="/v1", tags=["oversight"])


def _uuid(name: str, value: str | None) -> UUID | None:
    if value is None:
        return None
    if not is_uuid(value):
        raise InvalidRequest(f"{name} must be an id.", fields=(FieldProblem(name, "must be an id (UUID)"),))
    return UUID(value)


class OversightQuery:
    """The filters that runs, differences and the audit share, not read yet."""

    def __init__(
        self,
        connection: Annotated[Words | None, Query(description="A connection's id or name.")] = None,
        kind: Annotated[Words | None, Query(description="The kind of run or of record.")] = None,
        updated_since: Since = None,
    ) -> None:
        self._connection = connection
        self._kind = kind
        self._since = updated_since

    def read(
        self,
        database: Connection,
        *,
        state: str | None = None,
        source_id: str | None = None,
        record_id: UUID | None = None,
        message: UUID | None = None,
        action: str | None = None,
        actor: str | None = None,
    ) -> OversightFilter:
        """The filter; InvalidRequest names the parameter."""
        return OversightFilter(
            connection=self._connection,
            kind=self._kind,
            updated_since=read_since(database, self._since),
            state=state,
            source_id=source_id,
            record_id=record_id,
            message=message,
            action=action,
            actor=actor,
        )


Shared = Annotated[OversightQuery, Depends(OversightQuery)]
State = Annotated[Words | None, Query(description="The state.")]


@router.get("/connections", summary="List connections with their health", responses=shows_list(examples.CONNECTION))
def connections(request: Request, caller: Reader, paging: PagingQuery, state: State = None) -> Response:
    """Resellers see their own, without settings."""
    with transaction(request, caller) as connection:
        return list_answer(request, list_connections(connection, reach_of(caller), state, paging))


@router.get("/connections/{connection}", summary="One connection with its health", responses=shows(examples.CONNECTION))
def one_connection(
    request: Request,
    caller: Reader,
    wanted: Annotated[
        Text, Path(alias="connection", description="The connection's id or name.", examples=["cloud-resell"])
    ],
) -> Response:
    """By id or name."""
    with transaction(request, caller) as connection:
        return JSONResponse(get_connection(connection, reach_of(caller), wanted))


@router.get("/runs", summary="List long runs", responses=shows_list(examples.RUN))
def runs(request: Request, caller: Staff, paging: PagingQuery, shared: Shared, state: State = None) -> Response:
    """Reconciliations, backfills, imports, replays, closings. `stopped`: the guard waits for an admin."""
    with transaction(request, caller) as connection:
        wanted = shared.read(connection, state=state)
        return list_answer(request, list_runs(connection, reach_of(caller), wanted, paging))


@router.get("/runs/{id}", summary="One long run", responses=shows(examples.RUN))
def one_run(request: Request, caller: Staff, run_id: RunId) -> Response:
    """Its options, progress and result."""
    with transaction(request, caller) as connection:
        return JSONResponse(get_run(connection, reach_of(caller), run_id))


@router.get("/drift", summary="List differences that were found", responses=shows_list(examples.DRIFT))
def drift(
    request: Request,
    caller: Staff,
    paging: PagingQuery,
    shared: Shared,
    state: Annotated[Words | None, Query(description="open or settled")] = None,
    source_id: Words | None = None,
    record_id: Words | None = None,
) -> Response:
    """Lock violations in the distributor's BSS, and what reconciliation named."""
    with transaction(request, caller) as connection:
        wanted = shared.read(connection, state=state, source_id=source_id, record_id=_uuid("record_id", record_id))
        return list_answer(request, list_drift(connection, reach_of(caller), wanted, paging))


@router.get("/audit", summary="List the audit trail", responses=shows_list(examples.AUDIT))
def audit(
    request: Request,
    caller: Reader,
    paging: PagingQuery,
    shared: Shared,
    record_id: Words | None = None,
    message: Annotated[Words | None, Query(description="Our id of a message.")] = None,
    action: Annotated[Words | None, Query(description="Such as field.refused.")] = None,
    actor: Annotated[Words | None, Query(description="Such as token:mara.")] = None,
) -> Response:
    """Append-only and hash-chained. Resellers see what became of their own messages, never what others did."""
    with transaction(request, caller) as connection:
        wanted = shared.read(
            connection,
            record_id=_uuid("record_id", record_id),
            message=_uuid("message", message),
            action=action,
            actor=actor,
        )
        return list_answer(request, list_audit(connection, reach_of(caller), wanted, paging))
