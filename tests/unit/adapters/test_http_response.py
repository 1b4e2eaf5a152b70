"""An answer's JSON means the same whichever reader it is read by."""

from __future__ import annotations

import json
import math

import pytest

from bss_sync.domain.errors import RemoteRefused
from bss_sync.ports.http import HttpResponse


@pytest.mark.parametrize(
    "body",
    [
        b"123456789012345678901",
        b'{"id": -9223372036854775809, "next": 18446744073709551616}',
        b'["\\ud800", "\\ud83d\\ude00"]',
        b'{"a": 1, "a": 2.50}',
        b"[1e400, -0, 1E5, 0.1]",
        '["Müller"]'.encode("utf-16"),
        b"\xef\xbb\xbf[]",
        b"\n [true, null] ",
    ],
)
def test_what_the_standard_library_reads_is_read_alike(body: bytes) -> None:
    found, wanted = HttpResponse(200, {}, body).json(), json.loads(body)
    assert (found, repr(found)) == (wanted, repr(wanted))


def test_not_a_number_is_read_as_before() -> None:
    (found,) = HttpResponse(200, {}, b"[NaN]").json()
    assert math.isnan(found)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a": }', b"\xff\xfe\xff"])
def test_what_is_no_json_is_refused_with_its_status(body: bytes) -> None:
    with pytest.raises(RemoteRefused, match="not JSON") as refused:
        HttpResponse(502, {}, body).json()
    assert refused.value.status == 502
