"""After a load, whatever was killed, there is every record, each of its states once, each message applied once."""

from __future__ import annotations

from bench.places import Installation

EVERY = "substring(source_id from '[0-9]+$')::int"
_WRONG = f"""
    select count(*) from subscription where account_id is null or version <> 1 + ({{changed}})::int
        or quantity <> {EVERY} % 500 + 1 + ({{changed}})::int
        or account_source_id <> 'customer-' || lpad(({EVERY} / 100)::text, 6, '0')"""


def check(here: Installation, records: int, changed: str) -> None:
    """AssertionError where an end is not the model's. ``changed``, SQL: which subscriptions have changed meanwhile."""
    facts = {
        "subscriptions": here.ask("select count(*) from subscription"),
        "streams": here.ask("select count(*) from stream where kind = 'subscription'"),
        "told": here.ask("select count(distinct record_id) from history where kind = 'subscription'"),
    }
    assert set(facts.values()) == {records}, f"{facts} of {records}"
    wrong = here.ask(_WRONG.format(changed=changed))
    assert wrong == 0, f"{wrong} subscriptions are not what the model says"
    once = {
        "history": "select count(*) from (select from history group by record_id, version having count(*) > 1) d",
        "audit": "select count(*) from (select from audit where action = 'message.applied' group by message "
        "having count(*) > 1) d",
        "unaudited": "select count(*) from message m where state = 'applied' "
        "and not exists (select from audit a where a.message = m.id and a.action = 'message.applied')",
        "held": "select count(*) from message where state in ('quarantined', 'dead')",
    }
    found = {name: here.ask(statement) for name, statement in once.items()}
    assert set(found.values()) == {0}, f"{found}"
