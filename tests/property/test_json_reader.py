"""The quick reader of the door's JSON gives what a strict one gives, or leaves the document to it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bss_sync.domain.errors import InvalidMessage
from bss_sync.pipeline.json_text import read_json

DEPTH_MAX = 20
REFUSED = "refused"


def _written(text: str, escaped: bool) -> str:
    inner = "".join(f"\\u{ord(one):04x}" if one < "\U00010000" else one for one in text)
    return f'"{inner}"' if escaped else json.dumps(text, ensure_ascii=len(text) % 2 == 0)


characters = st.sampled_from('"\\/{}[],:ab \n\t\x1f\x7fé€\U0001f600u0') | st.characters(codec="utf-8")
strings = st.builds(_written, st.text(characters, max_size=6), st.booleans())
names = st.sampled_from(['"a"', '"b"', '"\\u0061"', '"\\""', '"\\\\"']) | strings
numbers = st.sampled_from(
    ["0", "-0", "1", "-1", "1.0", "0.1", "1e5", "1E5", "01", "999999999999999", "1234567890123456", "9" * 40, "1e400"]
)
blanks = st.sampled_from(["", " ", "\n", "\t \r\n"])
scalars = strings | numbers | st.sampled_from(["true", "false", "null", "NaN", "Infinity", '"1.5"', '"2026-01-01"'])
documents = st.recursive(
    scalars,
    lambda inner: (
        st.builds(
            lambda members, blank: (
                "{" + f",{blank}".join(f"{name}{blank}:{value}" for name, value in members) + blank + "}"
            ),
            st.lists(st.tuples(names, inner), max_size=5),
            blanks,
        )
        | st.builds(
            lambda members, blank: f"[{blank}" + f"{blank},".join(members) + "]", st.lists(inner, max_size=5), blanks
        )
    ),
    max_leaves=12,
)


def _strictly(body: bytes) -> Any:
    """By the standard library, its members compared one by one."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("repeated")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        document = json.loads(body.decode(), object_pairs_hook=unique, parse_float=Decimal, parse_constant=refuse)
        repr(document).encode()
    except (ValueError, ArithmeticError):
        return REFUSED
    return document if _is_storable(document) else REFUSED


def _is_storable(value: Any) -> bool:
    if isinstance(value, str):
        return not any(one == "\x00" or "\ud800" <= one <= "\udfff" for one in value)
    if isinstance(value, list):
        return all(map(_is_storable, value))
    if isinstance(value, dict):
        return all(_is_storable(name) and _is_storable(member) for name, member in value.items())
    return True


def _shape(value: Any) -> Any:
    """With the types, which comparing alone would not tell apart."""
    if isinstance(value, dict):
        return [(name, _shape(member)) for name, member in value.items()]
    if isinstance(value, list):
        return [_shape(member) for member in value]
    return type(value), str(value)


@settings(max_examples=1_500, deadline=None)
@given(text=documents, place=st.none() | st.integers(0, 200), byte=st.integers(0, 255))
@example('{"a":1,"a":1}', None, 0)
@example('{"a":"\\"","a":"\\""}', None, 0)
@example('{"a":"x\\u0022","a":"y","b":"\\u0022"}', None, 0)
@example('{"a\\\\":"x","a\\\\":"\\""}', None, 0)
@example('{"a":1e5,"b":[1.0,-0,12345678901234567890]}', None, 0)
@example('["\\ud800","\\u0000"]', None, 0)
def test_a_document_is_read_as_a_strict_reader_reads_it(text: str, place: int | None, byte: int) -> None:
    body = bytearray(text.encode())
    if place is not None and body:
        body[place % len(body)] = byte
    try:
        found = read_json(bytes(body), DEPTH_MAX)
    except InvalidMessage:
        found = REFUSED
    assert _shape(found) == _shape(_strictly(bytes(body)))


@pytest.mark.parametrize("around", ["", '"]"', '"[",', '"\\"]",', '"\\\\","]",', '"{}",'])
@pytest.mark.parametrize("depth", [DEPTH_MAX, DEPTH_MAX + 1])
def test_depth_is_counted_whatever_the_strings_hold(around: str, depth: int) -> None:
    filling = around if around.endswith(",") else around + "," if around else ""
    body = (f"[{filling}" * depth + "1" + "]" * depth).encode()
    if depth <= DEPTH_MAX:
        assert read_json(body, DEPTH_MAX)
        return
    with pytest.raises(InvalidMessage) as refused:
        read_json(body, DEPTH_MAX)
    assert refused.value.status == 413
