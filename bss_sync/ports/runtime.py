"""What the running process gives to the rules: the time, wake-ups and secrets."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol
from uuid import UUID


class Clock(Protocol):
    """The time, injected. Leases and retry times use PostgreSQL's clock instead."""

    def now(self) -> datetime:
        """The present moment; aware UTC."""
        ...


class WakeUps(Protocol):
    """Hints that there is work. Losing one costs seconds, never work: the sweeper wakes what is stranded."""

    def process(self, *shards: int) -> None:
        """There are messages to decide in these shards: one hint, that one worker takes, for all of them."""
        ...

    def deliver(self) -> None:
        """There are records to deliver."""
        ...

    def fetch(self) -> None:
        """There are entities to fetch."""
        ...


class Vault(Protocol):
    """Encrypts secrets at rest with authenticated context: a ciphertext moved to another row does not open."""

    def seal(self, plain: bytes, *, tenant_id: UUID, context: str) -> tuple[bytes, bytes, str]:
        """(nonce, ciphertext, key id). ``context`` names table, row and column."""
        ...

    def open(self, nonce: bytes, ciphertext: bytes, key_id: str, *, tenant_id: UUID, context: str) -> bytes:
        """The plain secret; ConfigurationError when the key is not the one that sealed it or the row was swapped."""
        ...
