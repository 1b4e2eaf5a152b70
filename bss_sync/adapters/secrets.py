"""The vault: secrets at rest under AES-256-GCM (bss_sync.ports.runtime.Vault).

The tenant and the context (``secret/<row id>/<name>``) are authenticated with the ciphertext, so that one moved to
another row does not open. A key is known by the first eight hexadecimal digits of its SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bss_sync.domain.errors import ConfigurationError

KEY_BYTES = 32
NONCE_BYTES = 12
_SETTING = "BSS_SYNC_MASTER_KEY"


class KeyVault:
    """Seals with the first key and opens with whichever sealed: that is how a master key is rotated."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        assert keys, "a vault has at least one key"
        assert all(len(key) == KEY_BYTES for key in keys), f"a key has {KEY_BYTES} bytes"
        self._ciphers = {key_id(key): AESGCM(key) for key in keys}
        self.sealing_key_id = key_id(keys[0])
        self.key_ids = tuple(self._ciphers)

    def seal(self, plain: bytes, *, tenant_id: UUID, context: str) -> tuple[bytes, bytes, str]:
        """(nonce, ciphertext, key id)."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._ciphers[self.sealing_key_id].encrypt(nonce, plain, _bound_to(tenant_id, context))
        return nonce, sealed, self.sealing_key_id

    def open(self, nonce: bytes, ciphertext: bytes, key_id: str, *, tenant_id: UUID, context: str) -> bytes:
        """The plain secret; ConfigurationError when its key is missing or the row was swapped."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise ConfigurationError(
                f"{_SETTING}: a stored secret was sealed with the key {key_id}, which is not among the given ones.",
                next_step=f"Add that key behind a comma in {_SETTING}, or restore home/master.key.",
            )
        try:
            return cipher.decrypt(nonce, ciphertext, _bound_to(tenant_id, context))
        except InvalidTag:
            raise ConfigurationError(
                f"{_SETTING}: the stored secret {context} does not open: it was altered or moved from another row.",
                next_step="Set the secret anew: bss-sync connection secret rotate NAME.",
            ) from None


def _bound_to(tenant_id: UUID, context: str) -> bytes:
    return tenant_id.bytes + context.encode("utf-8")


def key_id(key: bytes) -> str:
    """What stands beside a ciphertext to name its key."""
    return hashlib.sha256(key).hexdigest()[:8]


def secret_context(row_id: UUID, name: str) -> str:
    """The context of a row of the table ``secret``."""
    return f"secret/{row_id}/{name}"


def parse_master_keys(text: str) -> list[bytes]:
    """The keys of the setting, the sealing one first. ConfigurationError unless each is 32 bytes in base64."""
    keys = []
    for part in text.split(","):
        encoded = part.strip().rstrip("=").replace("-", "+").replace("_", "/")
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            # The text itself is never repeated: it is, or was meant to be, a secret.
            raise ConfigurationError(
                f"{_SETTING}: each key must be {KEY_BYTES} bytes in base64.",
                next_step="Make one with: openssl rand -base64 32",
            )
        keys.append(key)
    return keys


def home_master_key(home: Path) -> list[bytes]:
    """The keys in ``home/master.key``; the file is made (0600) where there is none. Safe between processes."""
    path = home / "master.key"
    try:
        return parse_master_keys(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{_SETTING}: {path} cannot be read: {error}") from None
    try:
        _write_once(path, base64.b64encode(secrets.token_bytes(KEY_BYTES)))
    except OSError as error:
        raise ConfigurationError(
            f"BSS_SYNC_HOME: {path} cannot be written: {error.strerror}",
            next_step=f"Make {home} writable, name another folder, or set {_SETTING}.",
        ) from None
    return parse_master_keys(path.read_text(encoding="ascii").strip())


def _write_once(path: Path, content: bytes) -> None:
    """The file appears whole; where another process was first, its content stays."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    handle = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(unfinished)
    finally:
        unfinished.unlink(missing_ok=True)
