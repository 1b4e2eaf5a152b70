"""The push-only connector keeps the contract of connectors."""

from __future__ import annotations

import pytest

from bss_sync.testing.connector_contract import CHECKS, Check, ScriptedHttp, Subject
from connectors.webhook import CONNECTOR
from connectors.webhook.config import WebhookConfig


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(check: Check) -> None:
    http = ScriptedHttp()
    check(Subject(spec=CONNECTOR, package="connectors.webhook", config=WebhookConfig(), http=http))
    assert http.calls == 0


def test_it_takes_either_order_or_none() -> None:
    orders = [WebhookConfig.model_validate({"order": order}).order for order in ("sequence", "timestamp", None)]
    assert orders == ["sequence", "timestamp", None]
    with pytest.raises(ValueError, match="order"):
        WebhookConfig.model_validate({"order": "observed"})
