"""One comparison of a connection with a listing, in PostgreSQL (ports/reconciliation.py, Listing).

Which records a listing held, and which would end, is kept in tables under the run's id: a million of them cost this
process nothing, and whoever carries the run on finds them. What is made of them is kept in temporary tables of one
session; no transaction is longer than its statement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from operator import lt
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import DataError

from bss_sync.adapters.sql import level_pages
from bss_sync.adapters.sql import listing_statements as statements
from bss_sync.adapters.sql.database import Database, answering
from bss_sync.adapters.sql.literals import json_array, number_array, text_array
from bss_sync.adapters.sql.ranges import RANGE_NAME, hash_by_range
from bss_sync.adapters.sql.shown_columns import KEPT
from bss_sync.adapters.sql.streams_load import shown_content
from bss_sync.domain.change import Kind, stream_id
from bss_sync.ports.connector import Observation, RangeDigest, RangeForm
from bss_sync.ports.level_pages import AnsweredPage, LevelPage
from bss_sync.ports.reconciliation import Held, Listed, Undecided

CHUNK = 500
STRETCH_MIN = 20
"""A shorter chunk is looked up one by one: that is what PostgreSQL would do anyway."""


@contextmanager
def listing_session(database: Database) -> Iterator[Connection]:
    """A session with temporary tables of its own, empty. Each statement is a transaction; it ends with its use.

    What a crash takes back of what is noted in it is found out again: nothing waits for the disk.
    """
    with answering():
        connection = database.pool("engine").connect().execution_options(isolation_level="AUTOCOMMIT")
    try:
        with answering():
            with connection.begin():
                for statement in statements.SESSION:
                    connection.execute(statement)
            yield connection
    finally:
        # The session ends with its tables: a pooled one would hand the ids to whoever comes next.
        connection.invalidate()
        connection.close()


def fill_inside(connection: Connection, connection_id: UUID, source_id: str) -> None:
    """Note what the mirror has below an account, itself included: for one session."""
    connection.execute(statements.FILL_INSIDE, {"connection": connection_id, "source_id": source_id})


class SqlListing:
    """Listing over one session."""

    def __init__(
        self, connection: Connection, connection_id: UUID, run_id: UUID, started: datetime | None = None
    ) -> None:
        self._connection = connection
        self._connection_id = connection_id
        if started is None:
            with connection.begin():
                started = connection.execute(text("select now()")).scalar_one()
        self.started: datetime = started
        self._scope: dict[str, Any] = {"connection": connection_id, "run": run_id, "started": started}
        self._narrowed = "true"
        self._absent_known = False
        self._last: dict[Kind, bytes] = {}

    def unlike(self, kind: Kind, seen: Sequence[Listed], page: AnsweredPage | None = None) -> frozenset[str]:
        """See Listing."""
        names = [one.source_id for one in seen]
        values: dict[str, Any] = {
            "names": text_array(names),
            "versions": number_array([one.version for one in seen]),
            "contents": json_array([one.content for one in seen]),
        }
        statement = statements.UNLIKE_ONE_BY_ONE[kind]
        if self._goes_on(kind, names) and (page is not None or len(names) > STRETCH_MIN):
            values |= {"first": names[0], "last": names[-1]}
            if page is not None:
                values |= level_pages.named(page)
            statement = statements.UNLIKE_IN_STRETCH[kind, page is not None]
        with self._connection.begin():
            unlike = self._connection.execute(statement, self._scope | values).scalars().all()
        return frozenset(seen[place - 1].source_id for place in unlike)

    def _goes_on(self, kind: Kind, names: Sequence[str]) -> bool:
        """Whether these ids follow each other, and those listed before: then no stretch is read twice."""
        codes = [name.encode("utf-8", "surrogatepass") for name in names]
        before = self._last.get(kind, b"")
        self._last[kind] = max(before, codes[-1])
        # Of a narrowed listing a page spans what was left out: there each id is looked up.
        return self._narrowed == "true" and codes[0] > before and all(map(lt, codes, codes[1:]))

    def settle(self, page: AnsweredPage) -> None:
        """See Listing."""
        with self._connection.begin():
            level_pages.settle(self._connection, self._scope, page)

    def level_pages(self, rules: bytes) -> Mapping[str, LevelPage]:
        """See Listing."""
        with self._connection.begin():
            return level_pages.known_pages(self._connection, self._scope, rules)

    def still_level(self, known: LevelPage) -> bool:
        """See Listing."""
        with self._connection.begin():
            level = level_pages.still_level(self._connection, self._scope, known)
        if level:
            self._last[known.kind] = max(self._last.get(known.kind, b""), known.last.encode("utf-8", "surrogatepass"))
        return level

    def note(self, kind: Kind, source_ids: Sequence[str]) -> None:
        """See Listing."""
        ids = [stream_id(self._connection_id, kind, source_id) for source_id in source_ids]
        with self._connection.begin():
            self._connection.execute(statements.NOTE, self._scope | {"ids": ids})

    def forget(self) -> None:
        """See Listing."""
        with self._connection.begin():
            self._connection.execute(statements.FORGET, self._scope)

    def look(self, kind: Kind, source_ids: Sequence[str]) -> Mapping[str, Held]:
        """See Listing."""
        ids = {stream_id(self._connection_id, kind, source_id): source_id for source_id in source_ids}
        values = {"ids": list(ids), "started": self.started}
        with self._connection.begin():
            records = self._connection.execute(
                text(statements.HELD.format(table=kind) + " where r.id = any(:ids)"), values
            )
            held = {row.source_id: _record(kind, row) for row in records}
            if len(held) < len(ids):
                for row in self._connection.execute(statements.STREAMS, values):
                    if row.source_id not in held:
                        held[row.source_id] = _stream(kind, row)
        for identity, source_id in ids.items():
            if source_id not in held:
                held[source_id] = Held(identity, kind, source_id, False, None, None, False, None)
        return held

    def ranges(self, form: RangeForm) -> Mapping[str, RangeDigest] | None:
        """See Listing."""
        try:
            with self._transaction():
                hash_by_range(self._connection)
                rows = self._connection.execute(statements.RANGES[form], {"connection": self._connection_id}).all()
        except DataError:
            return None
        found = {row.range: RangeDigest(row.number, row.sums, form) for row in rows}
        return found if all(map(RANGE_NAME.fullmatch, found)) else None

    def narrow(self, ranges: Sequence[str]) -> None:
        """See Listing."""
        # Without any there is nothing to look for, and no row is read to find that out.
        self._narrowed = statements.INSIDE_RANGES if ranges else "false"
        with self._connection.begin():
            self._connection.execute(text("truncate inside_id"))
            self._connection.execute(statements.FILL_RANGES, self._scope | {"ranges": list(ranges)})

    def below(self, source_id: str) -> None:
        """See Listing."""
        self._narrowed = "exists (select 1 from inside_id i where i.id = r.id)"
        with self._connection.begin():
            fill_inside(self._connection, self._connection_id, source_id)

    def inside(self, record_ids: Sequence[UUID]) -> frozenset[UUID]:
        """See Listing."""
        with self._connection.begin():
            found = self._connection.execute(statements.INSIDE, {"ids": list(record_ids)}).scalars()
            return frozenset(found)

    def astray(self) -> Iterator[Sequence[Held]]:
        """See Listing."""
        for kind in Kind:
            for rows in self._chunks(
                statements.ASTRAY.format(held=statements.HELD.format(table=kind), columns=KEPT[kind])
            ):
                # What is taken over differs rightly, and only in those fields.
                held = [_record(kind, row) for row in rows]
                if bent := [one for one in held if _is_astray(one)]:
                    yield bent

    def live(self) -> int:
        """See Listing."""
        with self._connection.begin():
            return int(self._connection.execute(statements.LIVE, self._scope).scalar_one())

    def unseen_count(self) -> int:
        """See Listing."""
        self._absent_known = False
        self._find_absent()
        with self._connection.begin():
            return int(self._connection.execute(text("select count(*) from absent_id")).scalar_one())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Of several statements."""
        self._connection.execution_options(isolation_level="READ COMMITTED")
        try:
            with self._connection.begin():
                yield
        finally:
            self._connection.execution_options(isolation_level="AUTOCOMMIT")

    def _find_absent(self) -> None:
        if self._absent_known:
            return
        self._find("absent_id", *(statements.FIND_ABSENT.format(kind=kind, narrowed=self._narrowed) for kind in Kind))
        self._absent_known = True

    def _find(self, into: str, *searches: str) -> None:
        """Fill a temporary table by searching the whole mirror."""
        with self._transaction():
            for statement in statements.HASHED:
                self._connection.execute(statement)
            self._connection.execute(text(f"truncate {into}"))
            for search in searches:
                self._connection.execute(text(search), self._scope)

    def unseen(self) -> Iterator[Sequence[Held]]:
        """See Listing."""
        self._find_absent()
        for kind in (Kind.SUBSCRIPTION, Kind.ACCOUNT):
            statement = statements.ABSENT.format(held=statements.HELD.format(table=kind), kind=kind)
            for rows in self._chunks(statement):
                yield [_record(kind, row) for row in rows]

    def _chunks(self, statement: str) -> Iterator[Sequence[Row[Any]]]:
        """The rows of a statement in the order of their ids, a chunk in each transaction."""
        after = UUID(int=0)
        while True:
            with self._connection.begin():
                rows = self._connection.execute(text(statement), self._scope | {"after": after, "chunk": CHUNK}).all()
            if rows:
                yield rows
            if len(rows) < CHUNK:
                return
            after = rows[-1].id

    def end(self, gone: Sequence[Observation]) -> None:
        """See Listing."""
        rows = [
            {
                "record_id": str(stream_id(self._connection_id, one.kind, one.source_id)),
                "kind": str(one.kind),
                "source_id": one.source_id,
                "version": one.version,
                "changed_at": one.changed_at and one.changed_at.isoformat(),
                "effective_at": one.effective_at and one.effective_at.isoformat(),
                "passed": list(one.passed),
            }
            for one in {(one.kind, one.source_id): one for one in gone}.values()
        ]
        with self._connection.begin():
            self._connection.execute(statements.END, self._scope | {"rows": json.dumps(rows)})

    def ends_count(self) -> int:
        """See Listing."""
        with self._connection.begin():
            return int(self._connection.execute(statements.ENDS_COUNT, self._scope).scalar_one())

    def ends(self) -> Iterator[Sequence[Observation]]:
        """See Listing."""
        for kind in (Kind.SUBSCRIPTION, Kind.ACCOUNT):
            after = UUID(int=0)
            while True:
                values = self._scope | {"kind": str(kind), "after": after, "chunk": CHUNK}
                with self._connection.begin():
                    rows = self._connection.execute(statements.ENDS, values).all()
                if rows:
                    yield [_gone(row) for row in rows]
                if len(rows) < CHUNK:
                    break
                after = rows[-1].record_id

    def unlinked(self) -> Iterator[Sequence[tuple[Held, str, str | None]]]:
        """See Listing."""
        for kind, relative, column in statements.LINKS:
            names = {"relative": relative, "column": column, "narrowed": self._narrowed}
            statement = statements.UNLINKED.format(held=statements.HELD.format(table=kind), **names)
            for rows in self._chunks(statement):
                yield [(_record(kind, row), f"{column}_id", None) for row in rows]
            self._find("bent_id", statements.FIND_BENT.format(table=kind, **names))
            statement = statements.BENT.format(held=statements.HELD_BENT.format(table=kind), **names)
            for rows in self._chunks(statement):
                yield [(_record(kind, row), f"{column}_id", row.linked_to) for row in rows]


def _gone(row: Row[Any]) -> Observation:
    return Observation(
        kind=Kind(row.kind),
        source_id=row.source_id,
        version=row.version,
        body=None,
        changed_at=row.changed_at,
        effective_at=row.effective_at,
        passed=tuple(row.passed),
    )


def _is_astray(held: Held) -> bool:
    content, recorded = held.content or {}, held.recorded or {}
    return any(value != content.get(name) for name, value in recorded.items() if name not in held.taken)


def _record(kind: Kind, row: Row[Any]) -> Held:
    return Held(
        stream_id=row.id,
        kind=kind,
        source_id=row.source_id,
        mirrored=True,
        version=row.known_version,
        digest=None if row.digest is None else bytes(row.digest),
        deleted=row.deleted_at is not None,
        content=shown_content(kind, row),
        ended_reason=row.ended_reason,
        taken=frozenset(row.taken),
        changed=row.changed,
        stopped=row.stopped,
        waiting=row.waiting,
        recorded=row.source,
        shown_version=row.version,
        known_deleted=row.known_deleted,
        once_mirrored=True,
        undecided=None if row.undecided is None else Undecided(*row.undecided),
    )


def _stream(kind: Kind, row: Row[Any]) -> Held:
    return Held(
        stream_id=row.id,
        kind=kind,
        source_id=row.source_id,
        mirrored=False,
        version=row.version,
        digest=None if row.digest is None else bytes(row.digest),
        deleted=row.deleted,
        content=None,
        changed=row.changed,
        stopped=row.stopped,
        waiting=row.waiting,
        known_deleted=row.deleted,
        once_mirrored=row.once_mirrored,
        undecided=None if row.undecided is None else Undecided(*row.undecided),
    )
