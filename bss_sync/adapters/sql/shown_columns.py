"""Whether the columns of a mirrored row show a content, as conditions: field by field, inside PostgreSQL.

``LISTED`` compares row ``r`` with the content of a listed state ``l``. ``KEPT`` compares it with what the row itself
keeps as the source's last word: as text, because a cast would fail on a value that somebody has bent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    **dict.fromkeys(("start_date", "end_date", "activation_date", "cancellation_date"), "date"),
    **dict.fromkeys(("trial", "auto_renew"), "boolean"),
    "quantity": "numeric",
}


def _cast(column: str, content: str) -> str:
    return f"r.{column} is not distinct from ({content} ->> '{column}')::{_TYPED[column]}"


def _as_text(column: str, content: str) -> str:
    return f"r.{column}::text is not distinct from ({content} ->> '{column}')"


def _conditions(content: str, typed: Callable[[str, str], str]) -> Mapping[Kind, str]:
    found = {}
    for kind, columns in _TEXTS.items():
        words = [
            f"r.{name} is not distinct from ({content} ->> '{name.replace('_source_id', '_id')}')" for name in columns
        ]
        if kind is Kind.SUBSCRIPTION:
            words += [typed(name, content) for name in _TYPED]
            words.append(f"r.characteristics is not distinct from ({content} -> 'characteristics')")
        found[kind] = " and ".join(words)
    return found


LISTED = _conditions("l.content", _cast)
KEPT = _conditions("r.source", _as_text)
