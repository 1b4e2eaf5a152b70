"""JSON as the door reads it: strict, bounded before it is built, numbers exact; and its canonical form.

Stricter than RFC 8259 where leniency would lose something: a repeated member, NaN and Infinity are malformed, and
text that PostgreSQL cannot hold (U+0000, a lone surrogate) is refused by the name of its field. Fractions become
Decimal, so that 0.1 stays 0.1.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import NoReturn

import orjson
import rfc8785

from bss_sync.domain.change import Json
from bss_sync.domain.errors import FieldProblem, InvalidMessage

PROBLEMS_MAX = 50
"""Fields named in one refusal; a sender that is that wrong is helped by the first ones."""

_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_UNSTORABLE_ESCAPE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NAME_CHARACTERS_MAX = 100


def malformed(detail: str, *, field: str | None = None) -> InvalidMessage:
    """The refusal (400) of a body that cannot be read at all."""
    fields = () if field is None else (FieldProblem(field, detail),)
    return InvalidMessage(
        f"The message is malformed: {field + ' ' if field else ''}{detail}.", status=400, fields=fields
    )


def too_large(detail: str) -> InvalidMessage:
    """The refusal (413) of a body beyond a limit."""
    return InvalidMessage(detail, status=413, next_step="Send it in smaller parts.")


def safe_name(name: str) -> str:
    """A member's name as it may be stored and shown: printable and short."""
    text = name[: _NAME_CHARACTERS_MAX + 1]
    if not text.isprintable():
        text = ascii(text)[1:-1]
    return text if len(text) <= _NAME_CHARACTERS_MAX else text[: _NAME_CHARACTERS_MAX - 1] + "…"


def read_json(body: bytes, depth_max: int) -> Json:
    """The document in ``body``: dict, list, str, int, Decimal, bool or None.

    InvalidMessage: 400 when it is no JSON, 413 when it is nested deeper than ``depth_max``, 422 naming each field
    whose text cannot be stored.
    """
    outside, quotes = _outside_of_texts(body)
    _check_depth(outside, depth_max)
    document = _read_plain(body, outside, quotes)
    if document is not None:
        return document
    try:
        document = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise malformed("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise malformed(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except (ValueError, ArithmeticError):
        # Python refuses integers of thousands of digits, and Decimal exponents of dozens.
        raise malformed("a number is out of any range") from None
    if _UNSTORABLE_ESCAPE.search(body) is not None:
        _refuse_unstorable(document)
    return document


def _outside_of_texts(body: bytes) -> tuple[bytes, int]:
    """What stands outside of the strings, and how many quotes begin or end one. Nothing is built.

    Up to the first byte that is no JSON it is what the decoder will see; there the decoder stops.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    parts = body.split(b'"')
    return b"".join(parts[::2]), len(parts) - 1


def _check_depth(outside: bytes, depth_max: int) -> None:
    """Count nesting: what is left without the strings is squeezed pair by pair."""
    if outside.count(b"{") + outside.count(b"[") <= depth_max:
        return
    rest = outside.translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(depth_max):
        rest = rest.replace(b"[]", b"")
    # Closers without openers are left to the decoder, which says where they are.
    if b"[]" in rest or rest.count(b"[") > depth_max:
        raise too_large(f"The message is nested deeper than {depth_max} levels.")


_NOT_PLAIN_TEXT = re.compile(rb"\\(?:\\|u(?:00(?:00|22|5[cC])|[dD][89a-fA-F]))")
_KINDS = bytes.maketrans(b"123456789-E", b"000000000.e")
_LONG_NUMBER = b"0" * 16


def _read_plain(body: bytes, outside: bytes, quotes: int) -> Json | None:
    """The document when the quick reader gives what the strict one would, which most messages are; else None.

    It takes a repeated member's last value: then there are fewer quotes in what it read than in the body. So that they
    can be counted, no string may hold a backslash, nor a quote in its hexadecimal form. Only whole numbers of up to 15
    digits are the same to both.
    """
    kinds = outside.translate(_KINDS)
    if not body.startswith((b"{", b"[")) or b"." in kinds or b"0e" in kinds or _LONG_NUMBER in kinds:
        return None
    if b"\\" in body and _NOT_PLAIN_TEXT.search(body) is not None:
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    written = orjson.dumps(document)
    return document if written.count(b'"') - written.count(b'\\"') == quotes else None


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    members = dict(pairs)
    if len(members) != len(pairs):
        repeated, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise malformed(f"the member {safe_name(repeated)} is repeated")
    return members


def _refuse_constant(_: str) -> NoReturn:
    raise malformed("NaN and Infinity are no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=Decimal, parse_constant=_refuse_constant)


def _refuse_unstorable(document: Json) -> None:
    fields = [name for name, text in _texts(document, "") if _UNSTORABLE.search(text) is not None]
    if fields:
        detail = "holds U+0000 or a lone surrogate, which cannot be stored"
        raise InvalidMessage(
            "The message holds text that cannot be stored.",
            fields=tuple(FieldProblem(name or "message", detail) for name in fields[:PROBLEMS_MAX]),
        )


def _texts(value: Json, place: str) -> Iterator[tuple[str, str]]:
    """Every string of a document with its place, member names included; no deeper than ``_check_depth`` let it be."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from _texts(element, f"{place}[{index}]")
    elif isinstance(value, dict):
        for name, member in value.items():
            inner = f"{place}.{safe_name(name)}" if place else safe_name(name)
            yield inner, name
            yield from _texts(member, inner)


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
)
_BEYOND_PLAIN = re.compile("[0-9]{16}|[\U00010000-\U0010ffff]")
_ASTRAL = re.compile(b"[\xf0-\xf4]")
_EXACT_MAX = 2**53 - 1


def sorted_bytes(document: Mapping[str, Json]) -> bytes | None:
    """What the standard encoder writes with sorted names and nothing between, some times faster.

    None where it might write otherwise, or RFC 8785 would: fractions, long integers, and what is no plain JSON.
    """
    if not _is_plain(document):
        return None
    try:
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None


def _is_plain(document: Mapping[str, Json]) -> bool:
    for value in document.values():
        kind = type(value)
        if kind is str or value is None or kind is bool:
            continue
        if kind is int:
            if -_EXACT_MAX <= value <= _EXACT_MAX:
                continue
        elif kind is dict and _is_plain(value):
            continue
        return False
    return True


def canonical_bytes(document: Json) -> bytes:
    """The RFC 8785 form of a document that ``read_json`` gave.

    Integers beyond ±(2^53 − 1) have no RFC 8785 form; they are written digit by digit as text that begins with
    U+0000, which no document can hold, so that two of them never look the same. OverflowError for a number with a
    fraction or an exponent that is too large for a double.
    """
    quick = sorted_bytes(document) if type(document) is dict else None
    # Characters beyond the BMP sort differently by UTF-16 units.
    if quick is not None and (quick.isascii() or _ASTRAL.search(quick) is None):
        return quick
    try:
        text = _ENCODER.encode(document)
    except TypeError:
        # A Decimal: its ECMAScript form is the package's business.
        return rfc8785.dumps(_as_doubles(document))
    # Without fractions, long integers and characters beyond the BMP the standard encoder writes the same bytes, and
    # about ten times faster; those characters sort differently by UTF-16 units.
    if _BEYOND_PLAIN.search(text) is not None:
        return rfc8785.dumps(_as_doubles(document))
    return text.encode("utf-8")


def digest(document: Json, place: str) -> bytes:
    """SHA-256 of the RFC 8785 form. InvalidMessage (422), naming ``place``, for a number that has no such form."""
    try:
        return hashlib.sha256(canonical_bytes(document)).digest()
    except OverflowError:
        detail = "holds a number beyond a double's range"
        raise InvalidMessage("The message is not valid.", fields=(FieldProblem(place, detail),)) from None


def _as_doubles(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _as_doubles(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_as_doubles(element) for element in value]
    if isinstance(value, Decimal):
        number = float(value)
        if not math.isfinite(number):
            raise OverflowError("a number is beyond a double's range")
        return number
    if isinstance(value, int) and abs(value) > _EXACT_MAX:
        return f"\x00{value}"
    return value
