"""The vault: a secret opens only with its key, its tenant and its row."""

from __future__ import annotations

import base64
import secrets
import stat
import threading
from pathlib import Path
from uuid import uuid4

import pytest

from bss_sync.adapters.secrets import (
    KEY_BYTES,
    KeyVault,
    home_master_key,
    key_id,
    parse_master_keys,
    secret_context,
)
from bss_sync.domain.errors import ConfigurationError

TENANT, ROW = uuid4(), uuid4()
OLD, NEW = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)


def test_what_was_sealed_opens_again() -> None:
    vault = KeyVault([OLD])
    nonce, sealed, key = vault.seal(b"whsec", tenant_id=TENANT, context=secret_context(ROW, "webhook"))
    assert vault.open(nonce, sealed, key, tenant_id=TENANT, context=secret_context(ROW, "webhook")) == b"whsec"
    assert b"whsec" not in sealed


@pytest.mark.parametrize(
    ("tenant", "row", "name"), [(uuid4(), ROW, "webhook"), (TENANT, uuid4(), "webhook"), (TENANT, ROW, "api_key")]
)
def test_a_ciphertext_that_was_moved_to_another_row_does_not_open(tenant: object, row: object, name: str) -> None:
    vault = KeyVault([OLD])
    nonce, sealed, key = vault.seal(b"whsec", tenant_id=TENANT, context=secret_context(ROW, "webhook"))
    with pytest.raises(ConfigurationError, match="does not open"):
        vault.open(nonce, sealed, key, tenant_id=tenant, context=f"secret/{row}/{name}")  # type: ignore[arg-type]  # parametrised


def test_an_older_key_still_opens_and_the_first_one_seals() -> None:
    nonce, sealed, key = KeyVault([OLD]).seal(b"x", tenant_id=TENANT, context="c")
    rotating = KeyVault([NEW, OLD])
    assert rotating.open(nonce, sealed, key, tenant_id=TENANT, context="c") == b"x"
    assert rotating.seal(b"x", tenant_id=TENANT, context="c")[2] == key_id(NEW)


def test_a_missing_key_is_named() -> None:
    nonce, sealed, key = KeyVault([OLD]).seal(b"x", tenant_id=TENANT, context="c")
    with pytest.raises(ConfigurationError, match=rf"^BSS_SYNC_MASTER_KEY: .*{key}"):
        KeyVault([NEW]).open(nonce, sealed, key, tenant_id=TENANT, context="c")


def test_two_seals_of_one_secret_differ() -> None:
    vault = KeyVault([OLD])
    assert vault.seal(b"x", tenant_id=TENANT, context="c")[:2] != vault.seal(b"x", tenant_id=TENANT, context="c")[:2]


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_keys_are_read_in_either_alphabet_padded_or_not(encode: object) -> None:
    assert callable(encode)
    text = f"{encode(OLD).decode()}, {encode(NEW).decode().rstrip('=')}"
    assert parse_master_keys(text) == [OLD, NEW]


@pytest.mark.parametrize("text", ["", "hunter2", base64.b64encode(b"short").decode(), "*" * 44])
def test_a_key_that_is_none_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^BSS_SYNC_MASTER_KEY: ") as caught:
        parse_master_keys(text)
    assert not text or text not in caught.value.detail


def test_the_key_file_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = home_master_key(home)
    assert home_master_key(home) == first
    assert stat.S_IMODE((home / "master.key").stat().st_mode) == 0o600
    assert [path.name for path in home.iterdir()] == ["master.key"]


def test_many_that_come_first_at_once_agree_on_one_key(tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.extend(home_master_key(tmp_path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
