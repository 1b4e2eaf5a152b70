"""Calls to a simulator of this process without sockets: where thousands of them only prepare a test."""

from __future__ import annotations

import json as to_json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from bss_sync.ports.http import HttpResponse
from connectors.simulator.server import SimulatorServer


@dataclass(frozen=True)
class DirectHttp:
    """An HttpClient whose every call is the simulator's own answer, without its faults."""

    simulator: SimulatorServer

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        idempotency_key: str | None = None,
        **_: Any,
    ) -> HttpResponse:
        """See HttpClient."""
        given = {name.lower(): value for name, value in (headers or {}).items()}
        if idempotency_key is not None:
            given["idempotency-key"] = idempotency_key
        body = b"" if json is None else to_json.dumps(json).encode()
        status, content = self.simulator.answer(method, urlsplit(url).path, urlencode(params or {}), given, body)
        assert status < 400, content
        return HttpResponse(status, {}, to_json.dumps(content).encode())
