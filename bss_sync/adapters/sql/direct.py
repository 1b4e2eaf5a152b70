"""The line's own way to PostgreSQL: the pool and the statements of everybody, sent by the driver as a pipeline.

A batch of a few messages is some thirty short statements. Each on its own is a journey there and back, and on a busy
machine every journey waits until either end gets a processor again. In a pipeline a statement is on its way at once,
and who wants to know what it brought waits for it and for all before it: the line asks as much as it can, then reads.

What a statement raises is raised by the next answer that is read, or by the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import Dialect, TextClause
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

_DIALECT: Dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]  # without annotations there
PLANNED_ONCE = {"planned_once": True}
"""Option of a statement whose plan is kept by the session, whatever the transaction does with others: one that puts the
rows that it is given into a table has no choice that values, or what the table holds, would decide."""


class Answer(Protocol):
    """What a statement brings: the part of SQLAlchemy's result that the line uses."""

    @property
    def rowcount(self) -> int: ...  # noqa: D102
    def all(self) -> Sequence[Any]: ...  # noqa: D102
    def one(self) -> Any: ...  # noqa: D102
    def scalars(self) -> Any: ...  # noqa: D102
    def scalar_one(self) -> Any: ...  # noqa: D102
    def scalar_one_or_none(self) -> Any: ...  # noqa: D102


class Statements(Protocol):
    """An open transaction: SQLAlchemy's connection, or a ``Direct`` one."""

    def execute(self, statement: TextClause, parameters: Mapping[str, Any] | None = None, /) -> Answer:
        """Run one statement."""
        ...


class Direct:
    """A transaction on the driver's connection. ``before`` is called before each statement and may take its time.

    An answer may be read at any time, also after the commit.
    """

    def __init__(self, driver: psycopg.Connection[Any], pipeline: psycopg.Pipeline, before: Callable[[], None]) -> None:
        self.driver = driver
        self._pipeline = pipeline
        self._before = before

    def execute(self, statement: TextClause, parameters: Mapping[str, Any] | None = None, /) -> _DirectAnswer:
        """See Statements."""
        self._before()
        query, given, kept = _compiled(statement)
        cursor = self.driver.cursor(row_factory=namedtuple_row)
        cursor.execute(query, {**given, **parameters} if parameters else given, prepare=kept)
        return _DirectAnswer(cursor, self._pipeline)


class _DirectAnswer:
    """See Answer."""

    def __init__(self, cursor: psycopg.Cursor[Any], pipeline: psycopg.Pipeline) -> None:
        self._cursor = cursor
        self._pipeline = pipeline

    @property
    def rowcount(self) -> int:
        self._pipeline.sync()
        return self._cursor.rowcount

    def all(self) -> Sequence[Any]:
        return self._cursor.fetchall()

    def one(self) -> Any:
        (row,) = self._cursor.fetchall()
        return row

    def scalars(self) -> _Scalars:
        return _Scalars(row[0] for row in self._cursor.fetchall())

    def scalar_one(self) -> Any:
        return self.one()[0]

    def scalar_one_or_none(self) -> Any:
        rows = self._cursor.fetchall()
        return rows[0][0] if rows else None


class _Scalars(list[Any]):
    """The first column."""

    def all(self) -> Sequence[Any]:
        """All of it."""
        return self


@lru_cache(maxsize=512)
def _compiled(statement: TextClause) -> tuple[bytes, Mapping[str, Any], bool | None]:
    """The statement as the driver takes it, the values that it brings along, and whether it is to be prepared."""
    compiled = statement.compile(dialect=_DIALECT)
    given = {name: value for name, value in compiled.params.items() if value is not None}
    kept = PLANNED_ONCE.items() <= statement.get_execution_options().items()
    return str(compiled).encode(), given, kept or None
