"""The hierarchy as a forest: tenants, their accounts, subscriptions at each, add-ons below theirs.

Nodes come out in depth-first order and know their depth, so that writing them nested, indented or flat needs no
recursion, however deep the forest is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection

from bss_sync.adapters.sql.reading.context import find_connection
from bss_sync.adapters.sql.reading.entity import Record, show_moment, show_value
from bss_sync.adapters.sql.reading.reach import Reach, Where
from bss_sync.adapters.sql.reading.records import not_found
from bss_sync.adapters.sql.reading.tree_records import Wanted, check_number, read_below, read_records
from bss_sync.domain.change import Kind
from bss_sync.domain.moment import AsOf

Branch = Literal["accounts", "subscriptions"]


@dataclass(slots=True, eq=False)
class Node:
    """One place in the forest. ``kind`` is tenant, customer, reseller or subscription; ``values`` has the rest.

    Two nodes are the same only where they are one: comparing what hangs below could go on for ever.
    """

    kind: str
    id: UUID
    name: str | None
    values: dict[str, Any]
    accounts: list[Node] = field(default_factory=list)
    subscriptions: list[Node] = field(default_factory=list)

    def branches(self) -> tuple[Branch, ...]:
        """What can hang below it: add-ons only, where it is a subscription."""
        return ("subscriptions",) if self.kind == "subscription" else ("accounts", "subscriptions")

    def below(self) -> list[Node]:
        """Its children: accounts first."""
        return [*self.accounts, *self.subscriptions]

    def as_json(self) -> dict[str, Any]:
        """The node without its children."""
        return {"kind": self.kind, "id": str(self.id), "name": self.name, **self.values}


def read_tree(
    connection: Connection,
    reach: Reach,
    wanted_connection: str | None = None,
    at: AsOf | None = None,
    subtree: UUID | None = None,
) -> list[Node]:
    """The tenants within reach, each with what hangs below it, now or as of a time. Deleted records are left out.

    ``subtree``: of an account, only it and what hangs below it; NotFound where there is none within reach.
    InvalidRequest where it would be more records than a tree may have (tree_records.py).

    What hangs below a deleted record is ``orphaned`` and stands directly below the tenant. As of a time two accounts
    may stand below each other, because their messages took effect at different moments: such a ring is opened at its
    first account, which is marked ``cycle``.
    """
    only = None if wanted_connection is None else find_connection(connection, reach, wanted_connection).id
    below = None if subtree is None or at is not None else read_below(connection, reach, subtree)
    wanted = Wanted(reach, only, at, below)
    check_number(connection, wanted)
    roots = _tenants(connection, reach, only)
    accounts = [(record, _account(record)) for record in read_records(connection, Kind.ACCOUNT, wanted)]
    held = [(record, _subscription(record)) for record in read_records(connection, Kind.SUBSCRIPTION, wanted)]
    nodes = {record.id: node for record, node in (*accounts, *held)}
    for record, node in accounts:
        parent = nodes.get(record.parent_record) if record.parent_record else None
        (parent or roots[record.tenant_id]).accounts.append(node)
    for record, node in held:
        parent = nodes.get(record.parent_record) if record.parent_record else None
        holder = parent or (nodes.get(record.account_record) if record.account_record else None)
        (holder or roots[record.tenant_id]).subscriptions.append(node)
    if at is not None:
        _open_rings(roots, accounts, "accounts")
        _open_rings(roots, held, "subscriptions")
    if subtree is not None:
        roots = _cut_out(roots, [record for record, _node in accounts], nodes, subtree)
    return sorted(roots.values(), key=lambda root: root.name or "")


def walk(roots: Sequence[Node]) -> Iterator[tuple[int, Node]]:
    """Every node with its depth (a tenant's is 0), depth first."""
    stack = [(0, root) for root in reversed(roots)]
    while stack:
        depth, node = stack.pop()
        yield depth, node
        stack.extend((depth + 1, child) for child in reversed(node.below()))


def _tenants(connection: Connection, reach: Reach, only: UUID | None) -> dict[UUID, Node]:
    where = Where().within(reach, "c", connection_column="id")
    if only is not None:
        where.add("c.id = :only", only=only)
    query = where.under("select distinct t.id, t.display_name from connection c join tenant t on t.id = c.tenant_id")
    return {row.id: Node("tenant", row.id, row.display_name, {}) for row in connection.execute(query, where.values)}


def _cut_out(
    roots: dict[UUID, Node], accounts: Sequence[Record], nodes: dict[UUID, Node], subtree: UUID
) -> dict[UUID, Node]:
    """Its tenant, and below that one account with everything that it holds."""
    tenant_id = next((record.tenant_id for record in accounts if record.id == subtree), None)
    if tenant_id is None:
        raise not_found(Kind.ACCOUNT, subtree)
    root = roots[tenant_id]
    root.accounts, root.subscriptions = [nodes[subtree]], []
    return {tenant_id: root}


def _place(record: Record) -> dict[str, Any]:
    return {
        "connection": record.connection,
        "source_id": record.source_id,
        "parent_id": record.content.get("parent_id"),
        "orphaned": record.orphaned,
        "cycle": False,
        "ended_at": show_moment(record.ended_at),
    }


def _account(record: Record) -> Node:
    values = {**_place(record), "number": record.content.get("number")}
    return Node(str(record.content["kind"]), record.id, record.content.get("name"), values)


def _subscription(record: Record) -> Node:
    shown = ("account_id", "product", "status", "trial", "start_date", "end_date", "quantity")
    values = {name: show_value(name, record.content.get(name)) for name in shown}
    return Node("subscription", record.id, record.title, {**_place(record), **values})


def _open_rings(roots: dict[UUID, Node], records: Sequence[tuple[Record, Node]], branch: Branch) -> None:
    """Hang the first node of each ring below its tenant, until everything can be reached."""
    reached = {node.id for _, node in walk(list(roots.values()))}
    by_id = {node.id: node for _, node in records}
    for record, node in records:
        if node.id in reached or record.parent_record is None:
            continue
        parent = by_id.get(record.parent_record)
        if parent is None:
            continue
        getattr(parent, branch).remove(node)
        node.values["cycle"] = True
        getattr(roots[record.tenant_id], branch).append(node)
        reached.update(found.id for _, found in walk([node]))
