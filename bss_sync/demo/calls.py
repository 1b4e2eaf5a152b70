"""JSON over HTTP to this machine, as a browser or a BSS would call: no connection is kept, none is shared."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from bss_sync.domain.change import Json

TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. ``content`` is the decoded JSON, or None where there was none."""

    status: int
    content: Json


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who calls one server. ``headers`` go with every call: a token, say, or who is acting."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def call(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call. OSError when the server does not answer within ``TIMEOUT_SECONDS``."""
        sent = None if body is None else json.dumps(body).encode()
        target = f"{path}?{urlencode(params)}" if params else path
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=TIMEOUT_SECONDS)
        try:
            about = {"Content-Type": "application/json", **self.headers, **(headers or {})}
            connection.request(method, target, body=sent, headers=about)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        return Answer(response.status, json.loads(text) if text else None)

    def get(self, path: str, **params: str) -> Any:
        """The content of a GET, whatever its status."""
        return self.call("GET", path, params=params).content
