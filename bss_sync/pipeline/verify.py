"""Who sent this? Standard Webhooks signatures over the raw body, ``v1`` and ``v1a``.

The signed content is ``webhook-id.webhook-timestamp.body``, byte for byte as received. ``v1`` is HMAC-SHA256 with a
shared secret, ``v1a`` is Ed25519 with the sender's public key. The caller's clock decides about the timestamp, so that
a test and a door agree on what "now" is. Whatever arrives, the only errors are NotVerified and, once the signature has
been found good, InvalidMessage about the id: a stranger learns nothing but "not verified".
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets as random_source
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks.webhooks import hmac_data

from bss_sync.domain.errors import FieldProblem, InvalidMessage, InvalidRequest, NotVerified

TOLERANCE_SECONDS = 300
SIGNATURES_MAX = 32
"""Signatures looked at in one request; a sender that rotates needs two or three."""

SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
SECRET_BYTES_NEW = 32
SECRET_PREFIX, PUBLIC_KEY_PREFIX = "whsec_", "whpk_"
_PUBLIC_KEY_BYTES, _V1A_BYTES = 32, 64
_SIGNATURE_HEADER_CHARACTERS_MAX = SIGNATURES_MAX * 128

_ID = re.compile(r"[!-~]{1,255}")
_TIMESTAMP = re.compile(r"0|[1-9][0-9]{0,11}")


class SignatureVersion(StrEnum):
    """The two schemes of Standard Webhooks."""

    V1 = "v1"  # HMAC-SHA256 with a shared secret
    V1A = "v1a"  # Ed25519: we hold the sender's public key only


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key that a connection accepts: the shared secret (``v1``) or the raw Ed25519 public key (``v1a``)."""

    version: SignatureVersion
    material: bytes = field(repr=False)

    @classmethod
    def symmetric(cls, secret: bytes) -> SigningKey:
        """A shared secret, as ``parse_secret`` gives it."""
        return cls(SignatureVersion.V1, secret)

    @classmethod
    def public(cls, key: bytes) -> SigningKey:
        """A sender's public key, as ``parse_public_key`` gives it."""
        return cls(SignatureVersion.V1A, key)


def verify_standard_webhook(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[SigningKey],
    now: datetime,
    tolerance_seconds: int = TOLERANCE_SECONDS,
) -> str:
    """The ``webhook-id`` of a request whose signature fits one of ``secrets``.

    ``headers`` have lower-case names; ``now`` is aware. NotVerified in every other case, with its ``cause`` for the
    log. InvalidMessage (400) when the sender is known but its id holds a ``.``: it separates the signed parts.
    """
    webhook_id = _header(headers, "webhook-id")
    timestamp = _header(headers, "webhook-timestamp")
    signatures = _header(headers, "webhook-signature")
    if _ID.fullmatch(webhook_id) is None:
        raise NotVerified(cause="webhook-id is not 1 to 255 printable ASCII characters")
    _check_timestamp(timestamp, now, tolerance_seconds)
    offered = tuple(_offered(signatures))
    content = b"%b.%b.%b" % (webhook_id.encode("ascii"), timestamp.encode("ascii"), body)
    if not any(_fits(key, content, offered) for key in secrets):
        raise NotVerified(cause="no signature matches")
    if "." in webhook_id:
        raise InvalidMessage(
            "The webhook-id holds a dot.",
            status=400,
            fields=(FieldProblem("webhook-id", "must not hold a dot: it separates the signed parts"),),
            next_step="Send the message with an id without dots.",
        )
    return webhook_id


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise NotVerified(cause=f"missing header {name}")
    return value


def _check_timestamp(text: str, now: datetime, tolerance_seconds: int) -> None:
    if _TIMESTAMP.fullmatch(text) is None:
        raise NotVerified(cause="webhook-timestamp is not a number of seconds")
    offset_seconds = int(text) - now.timestamp()
    if abs(offset_seconds) > tolerance_seconds:
        raise NotVerified(cause=f"timestamp outside ±{tolerance_seconds / 60:g} min, offset {offset_seconds:+.0f} s")


def _offered(header: str) -> Iterator[tuple[str, bytes]]:
    """The signatures of the header as (version, bytes); those that are no base64 are skipped, they can fit nothing."""
    parts = header.split(" ", SIGNATURES_MAX) if len(header) <= _SIGNATURE_HEADER_CHARACTERS_MAX else ()
    if not 0 < len(parts) <= SIGNATURES_MAX:
        raise NotVerified(cause=f"more than {SIGNATURES_MAX} signatures")
    for part in parts:
        version, _, encoded = part.partition(",")
        try:
            yield version, base64.b64decode(encoded, validate=True)
        except ValueError:
            # binascii.Error is one too; non-ASCII text raises ValueError itself.
            continue


def _fits(key: SigningKey, content: bytes, offered: Sequence[tuple[str, bytes]]) -> bool:
    candidates = [signature for version, signature in offered if version == key.version]
    if not candidates:
        return False
    if key.version is SignatureVersion.V1A:
        return any(_fits_public(key.material, content, signature) for signature in candidates)
    # Not hmac.digest: it lets other threads in, and the loop that is at work here must wait to get back.
    expected = hmac_data(key.material, content)
    return any(hmac.compare_digest(expected, signature) for signature in candidates)


def _fits_public(key: bytes, content: bytes, signature: bytes) -> bool:
    if len(signature) != _V1A_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, content)
    except (InvalidSignature, ValueError):
        # ValueError: a stored key that is no point on the curve verifies nothing.
        return False
    return True


def parse_secret(text: str) -> bytes:
    """The bytes of ``whsec_…`` or of plain base64, padded or not. InvalidRequest unless they are 24 to 64 bytes."""
    return _decoded(text, SECRET_PREFIX, "secret", SECRET_BYTES_MIN, SECRET_BYTES_MAX)


def parse_public_key(text: str) -> bytes:
    """The 32 bytes of an Ed25519 public key written ``whpk_…``. InvalidRequest for anything else.

    Points of small order are refused: signatures that fit them can be made up by anybody (RFC 8032 leaves it open).
    """
    if not text.startswith(PUBLIC_KEY_PREFIX):
        raise _refused("public_key", f"must begin with {PUBLIC_KEY_PREFIX}")
    key = _decoded(text, PUBLIC_KEY_PREFIX, "public_key", _PUBLIC_KEY_BYTES, _PUBLIC_KEY_BYTES)
    if not _is_sound_point(key):
        raise _refused("public_key", "is no Ed25519 key that protects anything")
    return key


_FIELD_PRIME = 2**255 - 19
_CURVE_D = -121665 * pow(121666, -1, _FIELD_PRIME) % _FIELD_PRIME


def _is_sound_point(key: bytes) -> bool:
    """Whether ``key`` encodes a point of the curve whose order is not 1, 2, 4 or 8.

    The y coordinate is enough: x² follows from the curve's equation, and so does the double of a point.
    """
    y = int.from_bytes(key, "little") & (2**255 - 1)
    if y >= _FIELD_PRIME:
        return False
    x_squared = _x_squared(y)
    if pow(x_squared, (_FIELD_PRIME - 1) // 2, _FIELD_PRIME) not in (0, 1):
        return False
    for _ in range(3):
        x_squared = _x_squared(y)
        denominator = 1 - _CURVE_D * x_squared * y * y
        y = (y * y + x_squared) * pow(denominator, -1, _FIELD_PRIME) % _FIELD_PRIME
    return y != 1


def _x_squared(y: int) -> int:
    # −x² + y² = 1 + d·x²·y². The denominator is never 0, because −1/d is no square.
    return (y * y - 1) * pow(_CURVE_D * y * y + 1, -1, _FIELD_PRIME) % _FIELD_PRIME


def new_secret() -> tuple[str, bytes]:
    """A fresh secret of 32 random bytes: its text (shown once) and its bytes."""
    material = random_source.token_bytes(SECRET_BYTES_NEW)
    return SECRET_PREFIX + base64.b64encode(material).decode("ascii"), material


def _decoded(text: str, prefix: str, name: str, bytes_min: int, bytes_max: int) -> bytes:
    encoded = text.removeprefix(prefix).rstrip("=")
    try:
        material = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        raise _refused(name, "is not base64") from None
    if not bytes_min <= len(material) <= bytes_max:
        wanted = str(bytes_min) if bytes_min == bytes_max else f"{bytes_min} to {bytes_max}"
        raise _refused(name, f"must be {wanted} bytes, written in base64; it has {len(material)}")
    return material


def _refused(name: str, detail: str) -> InvalidRequest:
    # The text itself is never repeated: it is, or was meant to be, a secret.
    return InvalidRequest(f"The {name} {detail}.", fields=(FieldProblem(name, detail),))
