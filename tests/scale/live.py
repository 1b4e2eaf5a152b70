"""Live messages beside a load, about records that it loads too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from bench.places import Installation
from bss_sync.adapters.sql.database import Database
from bss_sync.adapters.sql.inbox import SqlInbox
from bss_sync.domain.change import Action, Change, Kind
from bss_sync.pipeline.json_text import digest
from bss_sync.ports.inbox import Arrival, Origin
from tests.scale.level import body_of, id_of
from tests.scale.model import EVERY

LIVE_EVERY = 500
"""One of so many subscriptions changes at its source while the others are read."""


class Live:
    """What changes at the source meanwhile, and is sent."""

    def __init__(self, here: Installation, records: int, change_at_source: Callable[[int], None]) -> None:
        self.sent = 0
        self._here, self._records, self._change_at_source = here, records, change_at_source
        self._over = threading.Event()

    @property
    def changed(self) -> str:
        """SQL: whether a subscription is one of them."""
        return f"{EVERY} % {LIVE_EVERY} = 0 and {EVERY} < {self.sent * LIVE_EVERY}"

    def stop(self) -> None:
        """No more."""
        self._over.set()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send until it is stopped."""
        thread = threading.Thread(target=self._send)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _send(self) -> None:
        tenant_id = self._here.ask("select tenant_id from connection")
        connection_id = self._here.ask("select id from connection")
        database = Database(self._here.database.login_url)
        inbox = SqlInbox(database)
        for number in range(0, self._records, LIVE_EVERY):
            if self._over.wait(0.05):
                break
            self._change_at_source(number)
            told = {**body_of(number), "quantity": str(number % 500 + 2)}
            now = datetime.now(UTC)
            name = f"live-{number}"
            live = Change(
                name, Kind.SUBSCRIPTION, id_of(number), Action.STATE, 2, now, now, told, digest({"id": name}, "live")
            )
            inbox.accept([Arrival(tenant_id, connection_id, None, Origin.DOOR, [live])])
            self.sent += 1
        database.dispose()
