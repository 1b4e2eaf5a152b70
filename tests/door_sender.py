"""A sender of signed messages for tests: the official library signs, a real HTTP client sends."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import httpx
from standardwebhooks import Webhook

from bss_sync.web.openapi import ACCOUNT_EXAMPLE, SUBSCRIPTION_EXAMPLE

_numbers = count(1)


def fresh_id(prefix: str = "msg") -> str:
    """An id that no other test has used."""
    return f"{prefix}_{next(_numbers):06d}"


def subscription(source_id: str = "sub-4711", version: int = 7, **members: Any) -> dict[str, Any]:
    """A message about a subscription; ``members`` replace those of its data."""
    message = copy.deepcopy(SUBSCRIPTION_EXAMPLE)
    message["data"] |= {"id": source_id, "version": version, **members}
    return message


def account(source_id: str = "cust-x", version: int = 3, **members: Any) -> dict[str, Any]:
    """A message about an account."""
    message = copy.deepcopy(ACCOUNT_EXAMPLE)
    message["data"] |= {"id": source_id, "version": version, **members}
    return message


@dataclass
class Sender:
    """Signs with ``secret`` and posts to one connection's door."""

    client: httpx.Client
    connection: str
    secret: str
    now: datetime | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return f"/v1/connections/{self.connection}/messages"

    def through(self, client: httpx.Client) -> Sender:
        """The same sender with another client."""
        return replace(self, client=client)

    def signed(self, body: bytes, webhook_id: str, **headers: str) -> dict[str, str]:
        """The headers of a signed body."""
        moment = self.now or datetime.now(UTC)
        signature = Webhook(self.secret).sign(webhook_id, moment, body.decode("utf-8"))
        return {
            "content-type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": signature,
            **self.headers,
            **headers,
        }

    def send_bytes(self, body: bytes, webhook_id: str | None = None, **headers: str) -> httpx.Response:
        """Post exactly these bytes."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(self.path, content=body, headers=self.signed(body, webhook_id or fresh_id(), **given))

    def send(self, document: Any, webhook_id: str | None = None, **headers: str) -> httpx.Response:
        """Post a document as JSON."""
        return self.send_bytes(json.dumps(document).encode(), webhook_id, **headers)


def slug(response: httpx.Response) -> str:
    """The last part of a problem's type; fails when it is no problem document."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    problem = response.json()
    assert problem["status"] == response.status_code
    assert problem["title"]
    assert problem["detail"]
    assert problem["next_step"]
    return str(problem["type"]).rpartition("/")[2]


def fields(response: httpx.Response) -> list[str]:
    """The fields that a problem names."""
    return [item["field"] for item in response.json().get("errors", [])]
