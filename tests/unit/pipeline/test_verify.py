from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from standardwebhooks import Webhook

from bss_sync.domain.errors import InvalidMessage, InvalidRequest, NotVerified
from bss_sync.pipeline.verify import (
    SIGNATURES_MAX,
    SigningKey,
    new_secret,
    parse_public_key,
    parse_secret,
    verify_standard_webhook,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "fixtures/third_party/standard_webhooks/vectors.json").read_text("utf-8")
)
CASES = [case for case in VECTORS["cases"] if "headers" in case]
NOW = datetime(2026, 3, 2, 10, 15, tzinfo=UTC)
BODY = b'{"type":"account.notified"}'
SECRET = bytes(range(32))
SECRET_TEXT = "whsec_" + base64.b64encode(SECRET).decode()
KEYS = (SigningKey.symmetric(SECRET),)


def signed(
    body: bytes = BODY, webhook_id: str = "msg_1", at: datetime = NOW, secret: str = SECRET_TEXT
) -> dict[str, str]:
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(webhook_id, at, body.decode()),
    }


def cause_of(headers: dict[str, str], body: bytes = BODY, keys: tuple[SigningKey, ...] = KEYS) -> str:
    with pytest.raises(NotVerified) as caught:
        verify_standard_webhook(headers, body, keys, NOW)
    assert caught.value.detail == "The sender could not be verified."
    return caught.value.cause


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_official_cases_come_out_as_the_official_suites_say(case: dict[str, Any]) -> None:
    keys = [SigningKey.symmetric(parse_secret(case["secret"]))]
    now = datetime.fromtimestamp(case["now"], UTC)
    body = case["payload"].encode()
    if case["valid"]:
        assert verify_standard_webhook(case["headers"], body, keys, now) == case["headers"]["webhook-id"]
    else:
        with pytest.raises(NotVerified):
            verify_standard_webhook(case["headers"], body, keys, now)


def test_official_cases_are_all_there() -> None:
    assert len(CASES) == 13
    assert [case["secrets"] for case in VECTORS["cases"] if "secrets" in case] == [["", "whsec_"]]


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_====", "whsec_AAAA", "whsec_!!!!", "whsec_é", "A" * 88, "A"])
def test_empty_short_long_and_garbled_secrets_are_refused_without_repeating_them(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_secret(text)
    assert caught.value.fields[0].field == "secret"
    assert not text.strip("whsec_=") or text not in str(caught.value)


@pytest.mark.parametrize("length", [24, 32, 33, 64])
def test_secrets_of_24_to_64_bytes_are_read_with_and_without_padding(length: int) -> None:
    text = base64.b64encode(bytes(length)).decode()
    assert parse_secret("whsec_" + text) == parse_secret(text.rstrip("=")) == bytes(length)


def test_a_new_secret_has_32_bytes_and_reads_back() -> None:
    text, material = new_secret()
    assert parse_secret(text) == material
    assert len(material) == 32
    assert new_secret()[0] != text


def test_a_secret_never_shows_in_the_repr_of_a_key() -> None:
    assert "material" not in repr(SigningKey.symmetric(SECRET))


def test_a_signature_of_the_official_library_is_accepted() -> None:
    assert verify_standard_webhook(signed(), BODY, KEYS, NOW) == "msg_1"


def test_during_rotation_either_secret_is_enough() -> None:
    fresh_text, fresh = new_secret()
    keys = (SigningKey.symmetric(fresh), *KEYS)
    assert verify_standard_webhook(signed(), BODY, keys, NOW) == "msg_1"
    assert verify_standard_webhook(signed(secret=fresh_text), BODY, keys, NOW) == "msg_1"
    both = signed()
    both["webhook-signature"] += " " + signed(secret=fresh_text)["webhook-signature"]
    assert verify_standard_webhook(both, BODY, KEYS, NOW) == "msg_1"


def test_a_public_key_verifies_v1a_and_nothing_else() -> None:
    private = Ed25519PrivateKey.generate()
    public = "whpk_" + base64.b64encode(private.public_key().public_bytes_raw()).decode()
    keys = (SigningKey.public(parse_public_key(public)),)
    headers = signed()
    assert cause_of(headers, keys=keys) == "no signature matches"
    content = f"msg_1.{headers['webhook-timestamp']}.".encode() + BODY
    headers["webhook-signature"] += " v1a," + base64.b64encode(private.sign(content)).decode()
    assert verify_standard_webhook(headers, BODY, keys, NOW) == "msg_1"
    assert cause_of(headers, BODY + b" ", keys) == "no signature matches"
    headers["webhook-signature"] = headers["webhook-signature"].replace("v1a,", "v1,")
    assert cause_of(headers, keys=keys) == "no signature matches"


def test_a_public_key_used_as_a_shared_secret_signs_nothing() -> None:
    material = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    forged = signed(secret="whsec_" + base64.b64encode(material).decode())
    assert cause_of(forged, keys=(SigningKey.public(material),)) == "no signature matches"


@pytest.mark.parametrize("text", ["", "whpk_", "whpk_AAAA", SECRET_TEXT, "whpk_" + "A" * 88])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_public_key(text)


@pytest.mark.parametrize("key", [b"\x02" + bytes(31), b"\xff" * 32, b"short"])
def test_a_stored_key_that_is_no_point_verifies_nothing(key: bytes) -> None:
    headers = signed() | {"webhook-signature": "v1a," + base64.b64encode(bytes(64)).decode()}
    body = b"anything"
    assert cause_of(headers, body, (SigningKey.public(key),)) == "no signature matches"


ORDER_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
PRIME = 2**255 - 19


@pytest.mark.parametrize("y", [0, 1, 2, PRIME - 1, PRIME, PRIME + 1, int.from_bytes(bytes.fromhex(ORDER_8), "little")])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_public_key_that_anybody_can_sign_for_is_refused(y: int, sign: int) -> None:
    key = (y | sign << 255).to_bytes(32, "little")
    with pytest.raises(InvalidRequest, match="no Ed25519 key"):
        parse_public_key("whpk_" + base64.b64encode(key).decode())


def test_every_generated_public_key_is_taken() -> None:
    for _ in range(50):
        key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        assert parse_public_key("whpk_" + base64.b64encode(key).decode()) == key


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_or_empty_header_is_named_for_the_log(name: str) -> None:
    assert cause_of({key: value for key, value in signed().items() if key != name}) == f"missing header {name}"
    assert cause_of(signed() | {name: ""}) == f"missing header {name}"


@pytest.mark.parametrize(("seconds", "shown"), [(-312, "-312"), (301, "+301"), (-301, "-301")])
def test_the_log_learns_how_far_the_sender_clock_is_off(seconds: int, shown: str) -> None:
    headers = signed(at=NOW + timedelta(seconds=seconds))
    assert cause_of(headers) == f"timestamp outside ±5 min, offset {shown} s"


@pytest.mark.parametrize("seconds", [-300, 0, 300])
def test_five_minutes_either_way_are_tolerated(seconds: int) -> None:
    headers = signed(at=NOW + timedelta(seconds=seconds))
    assert verify_standard_webhook(headers, BODY, KEYS, NOW) == "msg_1"


@pytest.mark.parametrize("text", ["1e9", "-1", "+1", "1.0", " 1", "٣", "9" * 13, "inf", "nan", "0x1", "1_0", "01"])
def test_a_timestamp_that_is_no_plain_integer_is_refused(text: str) -> None:
    assert cause_of(signed() | {"webhook-timestamp": text}) == "webhook-timestamp is not a number of seconds"


@pytest.mark.parametrize("webhook_id", ["msg 1", "msg\n1", "é", "m" * 256, "\x00", "\ud800"])
def test_an_id_that_is_not_printable_ascii_is_not_verified(webhook_id: str) -> None:
    cause = cause_of(signed() | {"webhook-id": webhook_id})
    assert cause == "webhook-id is not 1 to 255 printable ASCII characters"


def test_an_id_with_a_dot_is_refused_only_to_a_sender_that_is_known() -> None:
    with pytest.raises(InvalidMessage) as caught:
        verify_standard_webhook(signed(webhook_id="msg.1"), BODY, KEYS, NOW)
    assert (caught.value.status, caught.value.fields[0].field) == (400, "webhook-id")
    assert cause_of(signed(webhook_id="msg.1"), BODY + b" ") == "no signature matches"


@pytest.mark.parametrize(
    "signature", ["v1", "v1,", "v1,*", "v1,é", ",", "v1,a,b", "v1 ,x", "v1,\ud800", "v1,AAA", "   ", "v1a,AA=="]
)
def test_malformed_signatures_fit_nothing(signature: str) -> None:
    assert cause_of(signed() | {"webhook-signature": signature}) == "no signature matches"


def test_the_number_of_signatures_is_bounded() -> None:
    good = signed()["webhook-signature"]
    many = " ".join(["v1,AAAA"] * (SIGNATURES_MAX - 1) + [good])
    assert verify_standard_webhook(signed() | {"webhook-signature": many}, BODY, KEYS, NOW) == "msg_1"
    assert cause_of(signed() | {"webhook-signature": "v1,AAAA " + many}) == "more than 32 signatures"
    assert cause_of(signed() | {"webhook-signature": "v1," + "A" * 100_000}) == "more than 32 signatures"


def test_a_body_that_is_not_utf8_is_verified_by_its_bytes() -> None:
    body = b"\xff\xfe"
    assert cause_of(signed(), body) == "no signature matches"


def test_no_key_at_all_verifies_nothing() -> None:
    assert cause_of(signed(), keys=()) == "no signature matches"
