"""Secrets of connections and of the target, sealed by the vault. ``owner_id`` is the connection's id, or the
distributor's for the target's.

    v1      the shared signing secret of Standard Webhooks: its bytes
    v1a     the sender's Ed25519 public key: its 32 bytes
    opaque  what a connector needs (``api_key``, …): its text in UTF-8
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

from pydantic import SecretStr
from sqlalchemy import Connection, text

from bss_sync.adapters.sql.admin.acts import grow_revision, record_act, record_distributor_act
from bss_sync.domain.errors import ConfigurationError, FieldProblem, InvalidRequest, NotFound, StateConflict
from bss_sync.domain.tenancy import Connection as SourceConnection
from bss_sync.ports.runtime import Vault

SIGNING = "webhook"
"""The name of signing secrets and public keys."""
SIGNING_SECRET_PREFIX = "whsec_"  # noqa: S105  the form that Standard Webhooks gives it
SIGNING_SECRET_BYTES = 32
OVERLAP_DEFAULT = timedelta(hours=24)


class Scheme(StrEnum):
    """What a secret is used for."""

    V1 = "v1"  # verifies HMAC-SHA256 signatures
    V1A = "v1a"  # verifies Ed25519 signatures
    OPAQUE = "opaque"  # handed to the connector


class Standing(StrEnum):
    """Whether a secret still counts."""

    ACTIVE = "active"  # accepted
    PHASING_OUT = "phasing_out"  # accepted until it expires: a newer one is there
    EXPIRED = "expired"  # its overlap is over
    REVOKED = "revoked"  # ended by an admin


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """A secret without its content."""

    id: UUID
    name: str
    scheme: Scheme
    standing: Standing
    key_id: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def new_signing_secret() -> tuple[str, bytes]:
    """A fresh signing secret: its text, to be shown once, and its bytes."""
    material = secrets.token_bytes(SIGNING_SECRET_BYTES)
    return SIGNING_SECRET_PREFIX + base64.b64encode(material).decode("ascii"), material


def store(
    connection: Connection, vault: Vault, *, tenant_id: UUID, owner_id: UUID, name: str, scheme: Scheme, plain: bytes
) -> UUID:
    """Seal and keep one secret. The context that it is bound to names its row."""
    row_id = uuid4()
    nonce, ciphertext, key_id = vault.seal(plain, tenant_id=tenant_id, context=f"secret/{row_id}/{name}")
    connection.execute(
        text(
            """insert into secret (id, tenant_id, owner_id, name, scheme, nonce, ciphertext, key_id)
               values (:id, :tenant_id, :owner_id, :name, :scheme, :nonce, :ciphertext, :key_id)"""
        ),
        {
            "id": row_id,
            "tenant_id": tenant_id,
            "owner_id": owner_id,
            "name": name,
            "scheme": scheme,
            "nonce": nonce,
            "ciphertext": ciphertext,
            "key_id": key_id,
        },
    )
    return row_id


def replace_opaque(
    connection: Connection, vault: Vault, *, tenant_id: UUID, owner_id: UUID, values: Mapping[str, SecretStr]
) -> None:
    """Keep a connector's secrets; older ones of the same names are revoked."""
    connection.execute(
        text(
            """update secret set revoked_at = now()
               where owner_id = :owner_id and name = any(:names) and scheme = 'opaque' and revoked_at is null"""
        ),
        {"owner_id": owner_id, "names": list(values)},
    )
    for name, value in values.items():
        plain = value.get_secret_value().encode()
        store(connection, vault, tenant_id=tenant_id, owner_id=owner_id, name=name, scheme=Scheme.OPAQUE, plain=plain)


def open_opaque(connection: Connection, vault: Vault, owner_id: UUID) -> dict[str, SecretStr]:
    """What the connector of this owner needs, by name."""
    rows = connection.execute(
        text(
            """select id, tenant_id, name, nonce, ciphertext, key_id from secret
               where owner_id = :owner_id and scheme = 'opaque' and revoked_at is null
                 and (expires_at is null or expires_at > now()) order by created_at"""
        ),
        {"owner_id": owner_id},
    )
    found = {}
    for row in rows:
        plain = vault.open(
            bytes(row.nonce),
            bytes(row.ciphertext),
            row.key_id,
            tenant_id=row.tenant_id,
            context=f"secret/{row.id}/{row.name}",
        )
        found[row.name] = SecretStr(plain.decode())
    return found


def list_all(connection: Connection, owner_id: UUID) -> list[StoredSecret]:
    """Every secret that an owner has or had, newest first."""
    rows = connection.execute(
        text(
            """select id, name, scheme, key_id, created_at, expires_at, revoked_at,
                      case when revoked_at is not null then 'revoked' when expires_at is null then 'active'
                           when expires_at > now() then 'phasing_out' else 'expired' end as standing
               from secret where owner_id = :owner_id order by created_at desc, id"""
        ),
        {"owner_id": owner_id},
    )
    return [
        StoredSecret(
            row.id,
            row.name,
            Scheme(row.scheme),
            Standing(row.standing),
            row.key_id,
            row.created_at,
            row.expires_at,
            row.revoked_at,
        )
        for row in rows
    ]


_PHASE_OUT = text(
    """update secret set expires_at = least(expires_at, now() + cast(:overlap as interval))
       where owner_id = :owner_id and scheme = :scheme and revoked_at is null returning id"""
)


def rotate(
    connection: Connection, vault: Vault, source: SourceConnection, *, overlap: timedelta, actor: str
) -> tuple[str, UUID]:
    """A new signing secret beside the old ones, which stay good for ``overlap``. Returns its text, shown once."""
    if overlap < timedelta(0):
        raise InvalidRequest("The overlap is negative.", fields=(FieldProblem("overlap", "0 or longer"),))
    connection.execute(_PHASE_OUT, {"owner_id": source.id, "scheme": Scheme.V1, "overlap": overlap})
    shown, material = new_signing_secret()
    row_id = add_signing(connection, vault, source, scheme=Scheme.V1, material=material)
    _record(connection, actor, "secret.rotated", source, {"secret_id": str(row_id), "overlap": str(overlap)})
    return shown, row_id


def add_signing(
    connection: Connection, vault: Vault, source: SourceConnection, *, scheme: Scheme, material: bytes
) -> UUID:
    """Keep a signing secret or public key of a connection; whoever caches its keys reads them again."""
    assert scheme is not Scheme.OPAQUE, "an opaque secret verifies nothing"
    row_id = store(
        connection,
        vault,
        tenant_id=source.tenant_id,
        owner_id=source.id,
        name=SIGNING,
        scheme=scheme,
        plain=material,
    )
    grow_revision(connection, source.id)
    return row_id


def add_public_key(
    connection: Connection, vault: Vault, source: SourceConnection, material: bytes, *, actor: str
) -> UUID:
    """Accept what the owner of this Ed25519 key signs, beside what was accepted before."""
    row_id = add_signing(connection, vault, source, scheme=Scheme.V1A, material=material)
    _record(connection, actor, "secret.added", source, {"secret_id": str(row_id), "scheme": "v1a"})
    return row_id


def set_opaque(
    connection: Connection, vault: Vault, source: SourceConnection, values: Mapping[str, SecretStr], *, actor: str
) -> None:
    """Give the connector its secrets; older ones of the same names are revoked."""
    replace_opaque(connection, vault, tenant_id=source.tenant_id, owner_id=source.id, values=values)
    grow_revision(connection, source.id)
    _record(connection, actor, "secret.added", source, {"names": sorted(values), "scheme": "opaque"})


def revoke(connection: Connection, source: SourceConnection, secret_id: UUID | None, *, actor: str) -> list[UUID]:
    """End one secret at once, or, without an id, every signing secret that is being phased out.

    NotFound when there is none; StateConflict for the last signing key: nothing could be verified any more.
    """
    known = [
        item for item in list_all(connection, source.id) if item.standing in (Standing.ACTIVE, Standing.PHASING_OUT)
    ]
    if secret_id is None:
        wanted = [item for item in known if item.standing is Standing.PHASING_OUT]
    else:
        wanted = [item for item in known if item.id == secret_id]
    if not wanted:
        what = "being phased out" if secret_id is None else f"with the id {secret_id}"
        raise NotFound(
            f"{source.name} has no secret {what}.", next_step=f"See: bss-sync connection secret list {source.name}"
        )
    signing = {item.id for item in known if item.scheme is not Scheme.OPAQUE}
    ended = {item.id for item in wanted}
    if ended & signing and not signing - ended:
        raise StateConflict(
            f"{source.name} would have no signing secret left, and its messages would be refused.",
            next_step=f"Make a new one first: bss-sync connection secret rotate {source.name}",
        )
    connection.execute(text("update secret set revoked_at = now() where id = any(:ids)"), {"ids": list(ended)})
    grow_revision(connection, source.id)
    _record(connection, actor, "secret.revoked", source, {"secret_ids": sorted(str(item) for item in ended)})
    return sorted(ended)


def _record(
    connection: Connection, actor: str, action: str, source: SourceConnection, detail: Mapping[str, object]
) -> None:
    record_act(connection, actor, action, detail, tenant_id=source.tenant_id, connection_id=source.id)


_OLD_KEY = text(
    """select id, tenant_id, name, nonce, ciphertext, key_id from secret where key_id <> :key_id
       order by id limit :limit for update skip locked"""
)


def reseal(connection: Connection, vault: Vault, *, sealing_key_id: str, limit: int, actor: str) -> int:
    """Seal up to ``limit`` secrets anew that an older master key sealed; 0 when none is left. Can be resumed."""
    rows = connection.execute(_OLD_KEY, {"key_id": sealing_key_id, "limit": limit}).all()
    for row in rows:
        context = f"secret/{row.id}/{row.name}"
        plain = vault.open(
            bytes(row.nonce), bytes(row.ciphertext), row.key_id, tenant_id=row.tenant_id, context=context
        )
        nonce, ciphertext, key_id = vault.seal(plain, tenant_id=row.tenant_id, context=context)
        connection.execute(
            text("update secret set nonce = :nonce, ciphertext = :ciphertext, key_id = :key_id where id = :id"),
            {"nonce": nonce, "ciphertext": ciphertext, "key_id": key_id, "id": row.id},
        )
    if rows:
        record_distributor_act(connection, actor, "secrets.resealed", {"count": len(rows), "key_id": sealing_key_id})
    return len(rows)


_FOREIGN_KEYS = text(
    """select key_id, count(*) as number from secret
       where key_id <> all(:known) and revoked_at is null and (expires_at is null or expires_at > now())
       group by key_id order by key_id"""
)


def keys_missing(connection: Connection, known: Sequence[str]) -> list[str]:
    """The ids of the master keys that sealed secrets which still count, and which are not among ``known``."""
    return [row.key_id for row in connection.execute(_FOREIGN_KEYS, {"known": list(known)})]


def check_keys(connection: Connection, known: Sequence[str]) -> None:
    """ConfigurationError unless every secret that counts can be opened: a process without its key does half its work.

    What happens after a restore without its key file: a new key is made, and opens nothing.
    """
    missing = keys_missing(connection, known)
    if missing:
        raise ConfigurationError(
            f"BSS_SYNC_MASTER_KEY: stored secrets were sealed with the keys {', '.join(missing)}, which are not given.",
            next_step="Add them behind a comma, or restore master.key in the home. If they are lost: rotate or revoke "
            "the secrets of each connection (bss-sync connection secret).",
        )
