"""How PostgreSQL writes a jsonb value: so that a digest of it can be compared without sending the value.

Members stand in the order of their names' length, then of their bytes. A number that Python writes otherwise (1e-07)
gives another text: whoever compares digests then looks at the value itself, so a difference here costs time only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

from bss_sync.domain.account import FIELDS as ACCOUNT_FIELDS
from bss_sync.domain.change import Content, Json, Kind
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS

_encode = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": "), check_circular=False).encode


def _order(name: str) -> tuple[int, bytes]:
    encoded = name.encode("utf-8", "surrogatepass")
    return len(encoded), encoded


@dataclass(frozen=True, slots=True)
class _Layout:
    """A content's members in their order: those before the one that is an object itself, that one, and the others."""

    head: Callable[[Content], tuple[Json, ...]]
    head_openings: tuple[str, ...]
    inner: str | None
    tail: Callable[[Content], tuple[Json, ...]]
    tail_openings: tuple[str, ...]


def _layout(fields: tuple[str, ...], inner: str | None) -> _Layout:
    names = sorted(fields, key=_order)
    openings = tuple(f'{"{" if name == names[0] else ", "}"{name}": ' for name in names)
    cut = len(names) - 2 if inner is None else names.index(inner)
    behind = cut if inner is None else cut + 1
    return _Layout(_picker(names[:cut]), openings[:cut], inner, _picker(names[behind:]), openings[behind:])


def _picker(names: Sequence[str]) -> Callable[[Content], tuple[Json, ...]]:
    if len(names) == 1:
        (only,) = names
        return lambda content: (content[only],)
    return itemgetter(*names)


_LAYOUTS = {
    Kind.ACCOUNT: _layout(ACCOUNT_FIELDS, None),
    Kind.SUBSCRIPTION: _layout(SUBSCRIPTION_FIELDS, "characteristics"),
}


# Most values of a listing are a few words, dates and numbers that come again and again.
@lru_cache(maxsize=16_384, typed=True)
def _member(opening: str, value: Json) -> str:
    return opening + _encode(value)


def _object(value: Json) -> str:
    if not isinstance(value, dict) or len(value) < 2:
        return _encode(value)
    return _encode({name: value[name] for name in sorted(value, key=_order)})


def content_digest_as_kept(kind: Kind, content: Content) -> bytes:
    """SHA-256 of the text that PostgreSQL writes for a content."""
    layout = _LAYOUTS[kind]
    text = "".join(map(_member, layout.head_openings, layout.head(content)))
    if layout.inner is not None:
        text += f', "{layout.inner}": {_object(content[layout.inner])}'
    text += "".join(map(_member, layout.tail_openings, layout.tail(content))) + "}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
