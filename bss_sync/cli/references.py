"""Records as people name them: our id, CONNECTION/SOURCE_ID, or a source id that only one connection has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from bss_sync.domain.change import Kind, stream_id
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection

RecordId = Annotated[
    str, typer.Argument(metavar="ID", help="Our id, CONNECTION/SOURCE_ID, or a source id that is unambiguous.")
]
KindArgument = Annotated[Kind, typer.Argument(metavar="account|subscription", help="What kind of record.")]

CANDIDATES_MAX = 10


def resolve(sql: Connection, kind: Kind, reference: str) -> UUID:
    """The id of a record. NotFound, or InvalidRequest that names the candidates when it is ambiguous."""
    from sqlalchemy import text

    from bss_sync.adapters.sql.admin import connections
    from bss_sync.adapters.sql.reading.named import records_named
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    try:
        return UUID(reference)
    except ValueError:
        pass
    rows = sql.execute(
        text(
            f"""select r.id, c.name from {kind} r join connection c on c.id = r.connection_id
                where r.id = any(:named) order by c.name limit :limit"""  # noqa: S608  an enum's value
        ),
        {"named": records_named(sql, EVERYTHING, kind, reference, None), "limit": CANDIDATES_MAX},
    ).all()
    if len(rows) == 1:
        found: UUID = rows[0].id
        return found
    if rows:
        names = ", ".join(f"{row.name}/{reference}" for row in rows)
        raise InvalidRequest(f"{reference!r} is ambiguous.", fields=(FieldProblem("ID", f"one of: {names}"),))
    name, slash, source_id = reference.partition("/")
    if slash and name and source_id:
        return stream_id(connections.find(sql, name).id, kind, source_id)
    raise NotFound(
        f"There is no {kind} {reference!r} in the mirror.", next_step=f"See: bss-sync {kind} list, or bss-sync tree"
    )
