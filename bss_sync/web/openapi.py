"""The HTTP interface described: what FastAPI knows of its routes, and the door, which is outside it for speed."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from bss_sync.pipeline.cloudevents import BATCH, STRUCTURED
from bss_sync.pipeline.message_model import message_schemas
from bss_sync.web.problem import MEDIA_TYPE, PROBLEM_BASE

SUBSCRIPTION_EXAMPLE: dict[str, Any] = {
    "type": "subscription.updated",
    "timestamp": "2026-03-02T10:15:00Z",
    "data": {
        "id": "sub-4711",
        "version": 7,
        "account_id": "cust-x",
        "parent_id": None,
        "product": "M365-BUS-PREM",
        "status": "active",
        "trial": False,
        "start_date": "2026-01-01",
        "end_date": "2026-12-31",
        "activation_date": "2026-01-01",
        "cancellation_date": None,
        "auto_renew": True,
        "billing_cycle": "P1M",
        "term": "P1Y",
        "quantity": 25,
        "characteristics": {"domain": "customer-x.example"},
        "effective_at": "2026-03-01T00:00:00Z",
    },
}
ACCOUNT_EXAMPLE: dict[str, Any] = {
    "type": "account.created",
    "timestamp": "2026-03-02T10:14:00Z",
    "data": {
        "id": "cust-x",
        "version": 3,
        "parent_id": "lite-1",
        "kind": "customer",
        "name": "Cloud Customer X",
        "number": "C-1001",
        "email": "it@customer-x.example",
    },
}
_ACCEPTED = {
    "type": "object",
    "required": ["accepted", "duplicates"],
    "properties": {
        "accepted": {"type": "integer", "minimum": 0, "description": "New messages."},
        "duplicates": {"type": "integer", "minimum": 0, "description": "Messages that were known already."},
    },
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "next_step"],
    "properties": {
        "type": {"type": "string", "format": "uri", "examples": [PROBLEM_BASE + "not-found"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "next_step": {"type": "string", "description": "What to do."},
        "error_id": {"type": "string", "description": "Finds the cause in the log."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "detail"],
                "properties": {
                    "field": {"type": "string"},
                    "detail": {"type": "string"},
                    "owner": {"type": "string", "description": "Who may write the field."},
                },
            },
        },
    },
}
_REFUSALS = {
    "400": "malformed",
    "401": "not verified; an unknown connection looks the same",
    "408": "the body did not arrive in time",
    "409": "the same id was sent before with another body (message-conflict), or the connection is closed",
    "413": "too large: 1 MiB, 500 messages, 20 levels",
    "415": "media type, charset or content encoding",
    "422": "not a valid message, naming each field; or unknown-type",
    "429": "too much waits; send again after Retry-After seconds",
    "503": "nothing can be stored; send again after Retry-After seconds",
}
_CONNECTION = {
    "name": "connection",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^/]+$"},
    "description": "The connection's id or name.",
    "example": "cloud-resell",
}
_SIGNATURE_HEADERS = (
    ("webhook-id", "The message's id, the same on every retry; without dots.", "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"),
    ("webhook-timestamp", "Seconds since 1970, at most 5 minutes from now.", "1772446500"),
    (
        "webhook-signature",
        "Standard Webhooks: v1 (HMAC-SHA256) or v1a (Ed25519).",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
)


def describe(application: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of ``application``, made once."""
    if application.openapi_schema is None:
        document = get_openapi(
            title=application.title,
            version=application.version,
            summary=application.summary,
            description=application.description,
            routes=application.routes,
        )
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        schemas.update(_message_components())
        schemas["Problem"] = _PROBLEM
        paths = document.setdefault("paths", {})
        paths["/v1/connections/{connection}/messages"] = {"post": _messages_operation()}
        paths["/v1/connections/{connection}/hooks"] = {"post": _hooks_operation()}
        for operations in paths.values():
            for operation in operations.values():
                _as_problems(operation)
        application.openapi_schema = document
    return application.openapi_schema


def _component(message_type: str) -> str:
    return message_type.replace(".", "_")


def _message_components() -> dict[str, Any]:
    """One schema per message type; the shared parts that pydantic puts into $defs are moved to the top."""
    components: dict[str, Any] = {}
    for name, schema in message_schemas().items():
        own = {key: value for key, value in schema.items() if key != "$schema"}
        components[_component(name)] = own
    return components


def _messages_operation() -> dict[str, Any]:
    single = {"oneOf": [{"$ref": f"#/components/schemas/{_component(name)}"} for name in message_schemas()]}
    event = {"type": "object", "required": ["id", "source", "specversion", "type", "time", "data"]}
    return {
        "tags": ["door"],
        "summary": "Send messages",
        "description": (
            "One message, an array of messages (each with an `id`), or CloudEvents in binary, structured or batch "
            "form. The raw body is signed as Standard Webhooks. 202 comes only after the commit."
        ),
        "operationId": "send_messages",
        "security": [],
        "parameters": [_CONNECTION, *_signature_parameters()],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"oneOf": [single, {"type": "array", "maxItems": 500, "items": single}]},
                    "examples": {
                        "subscription": {"value": SUBSCRIPTION_EXAMPLE},
                        "account": {"value": ACCOUNT_EXAMPLE},
                        "array": {"value": [{"id": "m-1", **ACCOUNT_EXAMPLE}, {"id": "m-2", **SUBSCRIPTION_EXAMPLE}]},
                    },
                },
                STRUCTURED: {"schema": event, "example": _event_example()},
                BATCH: {"schema": {"type": "array", "maxItems": 500, "items": event}, "example": [_event_example()]},
            },
        },
        "responses": _responses(),
    }


def _hooks_operation() -> dict[str, Any]:
    return {
        "tags": ["door"],
        "summary": "Receive a system's own webhooks",
        "description": (
            "For connectors with a format of their own (Stripe, say), signed as that system signs. Any path below "
            "`/hooks/` is taken too. A connector without one answers 404, to senders that can prove who they are."
        ),
        "operationId": "receive_hook",
        "security": [],
        "parameters": [_CONNECTION],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {}, "example": {"id": "evt_1", "type": "customer.created"}}},
        },
        "responses": {**_responses(), "404": _refusal("the connector has no format of its own")},
    }


def _signature_parameters() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "header",
            "required": True,
            "schema": {"type": "string"},
            "description": description,
            "example": example,
        }
        for name, description, example in _SIGNATURE_HEADERS
    ]


def _event_example() -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "c-1",
        "source": "https://bss.cloud-resell.example",
        "type": "example.cloud-resell." + ACCOUNT_EXAMPLE["type"],
        "time": ACCOUNT_EXAMPLE["timestamp"],
        "datacontenttype": "application/json",
        "data": ACCOUNT_EXAMPLE["data"],
    }


def _refusal(description: str) -> dict[str, Any]:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


def _responses() -> dict[str, Any]:
    accepted = {"schema": _ACCEPTED, "example": {"accepted": 1, "duplicates": 0}}
    return {
        "202": {"description": "Stored for good.", "content": {"application/json": accepted}},
        **{status: _refusal(description) for status, description in _REFUSALS.items()},
    }


def _as_problems(operation: dict[str, Any]) -> None:
    """The framework's own validation answer is a problem document here."""
    answer = operation.get("responses", {}).get("422", {})
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/HTTPValidationError"):
        operation["responses"]["422"] = _refusal("the request is not valid, naming each field")
