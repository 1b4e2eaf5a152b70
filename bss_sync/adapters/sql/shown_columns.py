"""Whether the columns of a mirrored row show a content, as conditions: field by field, inside PostgreSQL.

``KEPT`` compares row ``r`` with what the row itself keeps as the source's last word: as text, because a cast would fail
on a value that somebody has bent.
"""

from __future__ import annotations

from collections.abc import Mapping

from bss_sync.domain.change import Kind

_TEXTS = {
    Kind.ACCOUNT: ("name", "number", "email", "kind", "parent_source_id"),
    Kind.SUBSCRIPTION: (
        "account_source_id",
        "parent_source_id",
        "product",
        "status",
        "source_status",
        "billing_cycle",
        "term",
    ),
}
_TYPED = {
    **dict.fromkeys(("start_date", "end_date", "activation_date", "cancellation_date"), "r.{}::text"),
    **dict.fromkeys(("trial", "auto_renew"), "r.{}::text"),
    # 25.0 is 25, also where somebody has written it so.
    "quantity": "trim_scale(r.{})::text",
}


def _conditions() -> Mapping[Kind, str]:
    found = {}
    for kind, columns in _TEXTS.items():
        words = [
            f"r.{name} is not distinct from (r.source ->> '{name.replace('_source_id', '_id')}')" for name in columns
        ]
        if kind is Kind.SUBSCRIPTION:
            words += [
                f"{shown.format(name)} is not distinct from (r.source ->> '{name}')" for name, shown in _TYPED.items()
            ]
            words.append("r.characteristics is not distinct from (r.source -> 'characteristics')")
        found[kind] = " and ".join(words)
    return found


KEPT = _conditions()
