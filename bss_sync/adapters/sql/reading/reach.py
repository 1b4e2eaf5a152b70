"""How far somebody sees. The second barrier: row-level security holds even where a query forgets this one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text


@dataclass(frozen=True, slots=True)
class Reach:
    """``tenant_id`` None: the distributor's people, every tenant. ``connection_id`` narrows to one connection."""

    tenant_id: UUID | None = None
    connection_id: UUID | None = None

    @property
    def is_reseller(self) -> bool:
        """Whether the distributor's own notes are hidden (contract: Roles)."""
        return self.tenant_id is not None


EVERYTHING = Reach()
"""The distributor's people."""


@dataclass(slots=True)
class Where:
    """Conditions of one query with their values, joined by ``and``."""

    parts: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def add(self, condition: str, **values: Any) -> Where:
        """Add a condition; names of values are unique within a query."""
        assert not values.keys() & self.values.keys(), "a value's name is used twice"
        self.parts.append(condition)
        self.values.update(values)
        return self

    def within(self, reach: Reach, alias: str, *, connection_column: str = "connection_id") -> Where:
        """Only rows within ``reach``."""
        if reach.tenant_id is not None:
            self.add(f"{alias}.tenant_id = :reach_tenant", reach_tenant=reach.tenant_id)
        if reach.connection_id is not None:
            self.add(f"{alias}.{connection_column} = :reach_connection", reach_connection=reach.connection_id)
        return self

    def sql(self) -> str:
        """The whole condition."""
        return " and ".join(self.parts) or "true"

    def under(self, query: str, ending: str = "") -> TextClause:
        """``query`` (our own text, never a caller's) with these conditions."""
        return text(f"{query} where {self.sql()} {ending}")
