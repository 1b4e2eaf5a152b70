"""How the accounts and parents that a batch names stand, and which accounts are waited for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from sqlalchemy import text

from bss_sync.adapters.sql.direct import Answer, Statements
from bss_sync.adapters.sql.records import id_array
from bss_sync.ports.streams import Relative, Standing

WAITING_FOR = """cross join lateral (
        select stream_id, state, wait_reason from message
        where waits_for = k.id and settled_on(state, decided_at) = 'infinity' offset 0) m"""
"""SQL: the open messages that wait for ``k.id``, or waited for it. In whichever state: a plan that was made while
nothing waited, and is kept, would else take an index by the state, and look at all that wait for each of these."""
NEEDED = f"""
    select distinct k.id from unnest(cast(:ids as uuid[])) as k (id) {WAITING_FOR}
    where m.state in ('dead', 'pending')
       or (m.state = 'waiting' and m.wait_reason in ('account_unknown', 'parent_unknown'))"""  # noqa: S608  our own text
"""SQL: the accounts among ``:ids`` that a message waits for, or waited for before it was opened again."""
_NEEDED = text(NEEDED)
# Parents are looked up one by one: a plan that joins them expects many, and reads every subscription there is.
_RELATIVES = text("""
    with recursive account_up as (
        select id, parent_id from account where id = any(cast(:accounts as uuid[]))
        union select a.id, a.parent_id from account_up u
            cross join lateral (select id, parent_id from account where id = u.parent_id limit 1) a
    ), subscription_up as (
        select id, parent_id from subscription where id = any(cast(:subscriptions as uuid[]))
        union select s.id, s.parent_id from subscription_up u
            cross join lateral (select id, parent_id from subscription where id = u.parent_id limit 1) s
    )
    select stream_id as id, 'staged' as standing, null::uuid as parent_id from staging
        where (stream_id = any(cast(:accounts as uuid[])) or stream_id = any(cast(:subscriptions as uuid[])))
          and action = 'state'
    union all select id, 'gone', null from stream
        where (id = any(cast(:accounts as uuid[])) or id = any(cast(:subscriptions as uuid[]))) and deleted
    union all select id, 'mirrored', parent_id from account_up
    union all select id, 'mirrored', parent_id from subscription_up""")
_RANKS = {"gone": 0, "staged": 1, "mirrored": 2}
"""What is mirrored is that, whatever else is known of it."""


def needed_accounts(connection: Statements, ids: Sequence[UUID]) -> set[UUID]:
    """Which of these a message waits for."""
    return set(connection.execute(_NEEDED, {"ids": id_array(ids)}).scalars())


def ask_relatives(connection: Statements, accounts: Collection[UUID], subscriptions: Collection[UUID]) -> Answer:
    """Ask how these stand, and all that is above them in the mirror."""
    return connection.execute(_RELATIVES, {"accounts": id_array(accounts), "subscriptions": id_array(subscriptions)})


def read_relatives(answer: Answer) -> dict[UUID, Relative]:
    """The answer."""
    relatives: dict[UUID, Relative] = {}
    ranks: dict[UUID, int] = {}
    for key, standing, parent in answer.all():
        if ranks.get(key, -1) <= _RANKS[standing]:
            ranks[key] = _RANKS[standing]
            relatives[key] = Relative(Standing(standing), parent)
    return relatives
