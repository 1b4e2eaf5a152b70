"""Every refusal as a problem document (RFC 9457), whoever noticed: our rules, the framework or a defect.

Members: ``type`` (stable; its last part is the slug), ``title``, ``status``, ``detail``, ``next_step`` (what to do),
``errors`` [{``field``, ``detail``, ``owner``?}] where fields are meant, ``error_id`` where the log says more.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from bss_sync.domain import errors
from bss_sync.domain.errors import BssSyncError, FieldProblem, InvalidMessage, NotVerified, Transient

PROBLEM_BASE = "https://bss-sync.dev/problems/"
"""Stable beginning of every ``type``. It identifies; nothing has to answer there."""

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2
"""Said where the cause has no wish of its own: about as long as a server's restart."""

FIELDS_MAX = 100

_STATUS: dict[type[BssSyncError], int] = {
    errors.NotVerified: 401,
    errors.MessageConflict: 409,
    errors.UnknownValue: 422,
    errors.FieldLocked: 409,
    errors.OperationRefused: 403,
    errors.NotPermitted: 403,
    errors.NoLongerKept: 410,
    errors.NotFound: 404,
    errors.InvalidRequest: 422,
    errors.StateConflict: 409,
    errors.GuardStopped: 409,
    errors.CannotFetch: 409,
    errors.RemoteRefused: 502,
    errors.LeaseLost: 409,
    errors.Overloaded: 429,
    errors.Transient: 503,
}

_SLUG_BY_STATUS = {
    400: "malformed",
    401: "not-authenticated",
    403: "not-permitted",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    408: "timeout",
    413: "too-large",
    415: "media-type",
    422: "invalid-request",
    429: "overloaded",
    431: "headers-too-large",
    500: "internal",
    503: "dependency-down",
}
_NEXT_STEP = {
    401: "Send Authorization: Bearer TOKEN with a token that is not revoked.",
    404: "Check the address; /openapi.json lists every route.",
    405: "Use a method that the Allow header names.",
    413: "Send it in smaller parts.",
    422: errors.InvalidRequest.next_step,
    500: "Try again; if it stays, give the operator the error_id: the log says more.",
}

_log = structlog.get_logger("bss_sync.web")


def problem(
    status: int,
    detail: str,
    *,
    slug: str | None = None,
    next_step: str | None = None,
    fields: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
    **members: str,
) -> Response:
    """A problem document as a response. ``slug`` and ``next_step`` default to the status's own."""
    slug = slug or _SLUG_BY_STATUS.get(status, "error")
    document: dict[str, Any] = {
        "type": PROBLEM_BASE + slug,
        "title": _title(slug),
        "status": status,
        "detail": detail,
        "next_step": next_step or _NEXT_STEP.get(status, BssSyncError.next_step),
        **members,
    }
    if fields:
        document["errors"] = [_field(item) for item in fields[:FIELDS_MAX]]
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return Response(body, status, headers, MEDIA_TYPE)


def _title(slug: str) -> str:
    return slug.replace("-", " ").capitalize()


def _field(item: FieldProblem) -> dict[str, str]:
    named = {"field": item.field, "detail": item.detail}
    return named if item.owner is None else {**named, "owner": item.owner}


def status_of(error: BssSyncError) -> int:
    """The HTTP status of an error of our tree; 500 for one that a caller cannot do anything about."""
    if isinstance(error, InvalidMessage):
        return error.status
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return 500


def slug_of(error: BssSyncError) -> str:
    """The last part of the problem's type: the error's own; for a message that was not read, what stopped it."""
    if not isinstance(error, InvalidMessage):
        return error.slug
    if error.problem_slug == InvalidMessage.slug and error.status != 422:
        return _SLUG_BY_STATUS.get(error.status, error.problem_slug)
    return error.problem_slug


def problem_of(error: BssSyncError) -> Response:
    """The problem document of an error of our tree. What only the operator can mend is logged and not told."""
    status = status_of(error)
    if status == 500:
        return defect(error)
    headers: dict[str, str] = {}
    if isinstance(error, Transient):
        headers["Retry-After"] = str(math.ceil(error.retry_after_seconds or RETRY_AFTER_SECONDS))
    if isinstance(error, NotVerified):
        # One answer for every cause: what was wrong is in the log, never with a stranger.
        return problem(
            status, "The sender could not be verified.", slug=NotVerified.slug, next_step=NotVerified.next_step
        )
    return problem(
        status, error.detail, slug=slug_of(error), next_step=error.advice, fields=error.fields, headers=headers
    )


def defect(error: BaseException) -> Response:
    """The answer to what nobody expected: no details, but an id that finds them in the log."""
    error_id = uuid.uuid4().hex
    _log.error("web.defect", error_id=error_id, exc_info=error)
    return problem(500, "Something went wrong here, not with the request.", error_id=error_id)


async def _on_own_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, BssSyncError), "registered for our own tree only"
    return problem_of(error)


async def _on_http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for the framework's errors only"
    return problem(error.status_code, error.detail or HTTPStatus(error.status_code).phrase, headers=error.headers)


async def _on_invalid_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for the framework's validation only"
    wrong = error.errors()
    fields = [FieldProblem(_place(item["loc"]), str(item["msg"])) for item in wrong]
    if any(item["type"] == "json_invalid" for item in wrong):
        return problem(400, "The body is not JSON.", fields=fields, next_step="Send a JSON document.")
    return problem(422, "The request is not valid.", fields=fields)


def _place(location: Sequence[str | int]) -> str:
    """``body.tags.0`` without the word body; a parameter of the address or the query is named as it is."""
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] in ("body", "query", "path", "header", "cookie"):
        parts = parts[1:]
    return ".".join(parts)


def install(application: FastAPI) -> None:
    """Make every error of ``application`` a problem document."""
    application.add_exception_handler(BssSyncError, _on_own_error)
    application.add_exception_handler(HTTPException, _on_http_error)
    application.add_exception_handler(RequestValidationError, _on_invalid_request)
