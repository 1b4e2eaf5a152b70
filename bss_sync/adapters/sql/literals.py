"""Long lists as PostgreSQL reads them from text: the driver's own way looks at each value several times."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from bss_sync.domain.change import Content


def text_array(words: Sequence[str]) -> str:
    """For ``cast(… as text[])``."""
    joined = '","'.join(words)
    if "\\" in joined or joined.count('"') > 2 * len(words) - 2:
        joined = '","'.join(word.replace("\\", r"\\").replace('"', r"\"") for word in words)
    return f'{{"{joined}"}}' if words else "{}"


def number_array(numbers: Sequence[int | None]) -> str:
    """For ``cast(… as bigint[])``."""
    return "{" + ",".join(["NULL" if number is None else str(number) for number in numbers]) + "}"


def json_array(contents: Sequence[Content]) -> str:
    """For ``cast(… as jsonb)``, one element for each; null for a content that no jsonb can hold."""
    try:
        written = orjson.dumps(contents)
    except TypeError:
        written = b""
    if written and not _is_beyond(written):
        return written.decode()
    return "[" + ",".join(map(_element, contents)) + "]"


def _is_beyond(written: bytes) -> bool:
    """Whether U+0000 may be in it, which PostgreSQL does not take."""
    return b"\\u0000" in written


def _element(content: Content) -> str:
    try:
        written = orjson.dumps(content)
    except TypeError:
        # Half of a surrogate pair, a number beyond 64 bits.
        return "null"
    return "null" if _is_beyond(written) else written.decode()
