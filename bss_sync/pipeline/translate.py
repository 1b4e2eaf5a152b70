"""Translate: a message's body in the source's words → content in the canonical words. Pure.

Unknown but well-typed values of status, kind, billing cycle and term are never guessed: UnknownValue, until an admin
maps them once for the connection (domain.md section 6).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

from bss_sync.domain.account import AccountKind
from bss_sync.domain.change import Action, Content, Json, Kind
from bss_sync.domain.errors import UnknownValue
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.domain.subscription import Status, is_period
from bss_sync.pipeline.json_text import sorted_bytes
from bss_sync.ports.streams import ConnectionRules

_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_STATUSES = frozenset(Status)
_KINDS = frozenset(AccountKind)
_NOTHING: dict[str, Json] = dict.fromkeys(SUBSCRIPTION_FIELDS)


def content_digest(action: Action, body: Mapping[str, Json]) -> bytes:
    """SHA-256 of what a message says: equal digests mean equal content, whatever the message's id and times."""
    if action is Action.DELETED:
        return hashlib.sha256(b"deleted").digest()
    written = sorted_bytes(body)
    return hashlib.sha256(_SORTED.encode(body).encode() if written is None else written).digest()


def translate(kind: Kind, body: Mapping[str, Json], rules: ConnectionRules) -> Content:
    """The canonical content of a state. Raises UnknownValue for the first value that nobody has mapped."""
    return _account(body, rules) if kind is Kind.ACCOUNT else _subscription(body, rules)


def _account(body: Mapping[str, Json], rules: ConnectionRules) -> Content:
    return {
        "name": body["name"],
        "number": body["number"],
        "email": body["email"],
        "kind": _known("kind", body["kind"], _KINDS.__contains__, rules),
        "parent_id": body["parent_id"],
    }


def _subscription(body: Mapping[str, Json], rules: ConnectionRules) -> Content:
    content = {**_NOTHING, **body}
    if len(content) > len(_NOTHING):
        content = {name: content[name] for name in SUBSCRIPTION_FIELDS}
    content["product"] = rules.catalogue.code_of(body["product"])
    content["source_status"] = body.get("source_status") or body["status"]
    content["status"] = _known("status", body["status"], _STATUSES.__contains__, rules)
    for name in ("billing_cycle", "term"):
        if body[name] is not None:
            content[name] = _known(name, body[name], is_period, rules)
    return content


def _known(name: str, value: str, accepts: Callable[[str], bool], rules: ConnectionRules) -> str:
    mapped = rules.value_maps.get((name, value), value)
    if not accepts(mapped):
        raise UnknownValue(name, value)
    return str(mapped)
