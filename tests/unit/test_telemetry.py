"""Logs: one event per line, and no secret or personal datum in any of them."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator

import pytest
import structlog

from bss_sync.telemetry import configure_logging

CANARY = "canary-4711"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = list(root.handlers)
    before = structlog.get_config()
    stream = io.StringIO()
    configure_logging(form="json", stream=stream)
    yield stream
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)


def _written(stream: io.StringIO, count: int) -> list[dict[str, object]]:
    deadline = time.monotonic() + 5
    while stream.getvalue().count("\n") < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    "key", ["name", "email", "phone", "body", "secret", "webhook_secret", "api_key", "token", "signature", "user_email"]
)
def test_a_sensitive_key_is_masked_wherever_it_stands(lines: io.StringIO, key: str) -> None:
    structlog.get_logger().info("test.event", **{key: CANARY, "inner": {"list": [{key: CANARY}]}})
    assert _written(lines, 1)[0]["event"] == "test.event"
    assert CANARY not in lines.getvalue()


@pytest.mark.parametrize(
    "text", ["whsec_Y2FuYXJ5LTQ3MTE=", "Authorization: Bearer bss_canary-4711", "postgresql://user:canary-4711@host/db"]
)
def test_a_credential_within_a_text_is_masked(lines: io.StringIO, text: str) -> None:
    structlog.get_logger().warning("test.event", detail=text)
    logging.getLogger("library").warning("said %s", text)
    assert len(_written(lines, 2)) == 2
    assert CANARY not in lines.getvalue()
    assert "Y2FuYXJ5" not in lines.getvalue()


def test_a_defect_is_logged_by_place_and_type_and_not_by_what_it_quotes(lines: io.StringIO) -> None:
    try:
        raise ValueError(CANARY)
    except ValueError as error:
        structlog.get_logger().error("web.defect", exc_info=error)
    written = _written(lines, 1)[0]
    assert written["error"] == "ValueError"
    assert "test_telemetry.py:" in str(written["stack"])
    assert CANARY not in lines.getvalue()


def test_a_warning_is_written_at_once_and_after_what_came_before(lines: io.StringIO) -> None:
    log = structlog.get_logger()
    log.info("first")
    log.warning("second")
    assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == ["first", "second"]


def test_ids_and_figures_pass(lines: io.StringIO) -> None:
    structlog.get_logger().info("web.request", route="/v1/accounts/{id}", status=200, connection="c-1")
    written = _written(lines, 1)[0]
    assert (written["route"], written["status"], written["connection"], written["level"]) == (
        "/v1/accounts/{id}",
        200,
        "c-1",
        "info",
    )
