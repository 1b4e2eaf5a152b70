"""The senders that this process knows: asked for once, then trusted only as far as the inbox confirms them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

import anyio.to_thread
from anyio import CapacityLimiter

from bss_sync.adapters.group_commit import Batcher, Bounds
from bss_sync.adapters.sql.senders import Sender, SqlSenders
from bss_sync.pipeline.verify import SignatureVersion, SigningKey

WEBHOOK_SECRET = "webhook"  # noqa: S105  a secret's name
HOOK_SECRET = "webhook_secret"  # noqa: S105  likewise
_CLOSE_SECONDS = 5
_VERSIONS = {version.value: version for version in SignatureVersion}

_NOBODY = (SigningKey.symmetric(secrets.token_bytes(32)),)
"""What an unknown connection is verified with: the same work, never a match."""


class KnownSenders:
    """Senders by the id or name that requests use. Only connections that exist are remembered, so it stays small."""

    def __init__(self, source: SqlSenders) -> None:
        self._known: dict[str, Sender] = {}
        self._source = source
        self._thread = CapacityLimiter(1)
        self._finder: Batcher[str, Sender | None] = Batcher(
            self._find, Bounds(batch_weight_max=100, waiting_weight_max=1_000)
        )

    async def close(self) -> None:
        """Stop."""
        await self._finder.close(_CLOSE_SECONDS)

    async def _find(self, wanted: Sequence[str]) -> Sequence[Sender | None]:
        return await anyio.to_thread.run_sync(self._source.find, wanted, limiter=self._thread, abandon_on_cancel=True)

    def remembered(self, wanted: str) -> Sender | None:
        """As it was when it was last looked up; None when it never was."""
        return self._known.get(wanted)

    async def present(self, wanted: str) -> Sender | None:
        """As it is now. Look-ups that wait at the same time share one query, so a flood of strangers costs little."""
        sender = await self._finder.put(wanted)
        if sender is None:
            self._known.pop(wanted, None)
        else:
            self._known[wanted] = sender
        return sender


def signing_keys(sender: Sender | None, now: datetime) -> Sequence[SigningKey]:
    """The keys that count for a sender now; for nobody, or where none is left, one that never matches."""
    if sender is None:
        return _NOBODY
    keys = [
        SigningKey(_VERSIONS[secret.scheme], secret.material)
        for secret in sender.secrets
        if secret.name == WEBHOOK_SECRET and secret.scheme in _VERSIONS and secret.counts_at(now)
    ]
    return keys or _NOBODY


def hook_secrets(sender: Sender, now: datetime) -> list[bytes]:
    """What verifies a system's own format: its ``webhook_secret``; never another credential, such as an API key."""
    return [secret.material for secret in sender.secrets if secret.name == HOOK_SECRET and secret.counts_at(now)]
