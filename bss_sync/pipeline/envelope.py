"""What does this request say? One message, an array of messages, or CloudEvents; out come changes.

``parse_request`` is called after the signature has been verified. Every refusal is an InvalidMessage with its HTTP
status (400 malformed, 413 too large, 415 media type, 422 not a message of the contract, naming each field); one wrong
element refuses the whole request. Two elements with one id and different content are the inbox's to refuse, which
records it. Source of the rules: the contract's HTTP section.

The deduplication key (``Change.message_id``) is the webhook-id of a plain message, the element's id in an array, and
``<source> <id>`` for CloudEvents: a source holds no blank, so the first blank ends it.

No Content-Encoding but identity is taken: what is signed, counted and hashed is what was sent, and nothing inflates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from bss_sync.domain.change import Action, Change, Json, OrderKind, timestamp_version
from bss_sync.domain.errors import FieldProblem, InvalidMessage
from bss_sync.domain.made_quickly import made_quickly
from bss_sync.pipeline import cloudevents, json_text
from bss_sync.pipeline.cloudevents import CloudEvent, MediaType, media_type
from bss_sync.pipeline.json_text import PROBLEMS_MAX, malformed, read_json, safe_name, too_large
from bss_sync.pipeline.message_model import MESSAGE_TYPES, TEXT_CHARACTERS_MAX, MessageType, parse_timestamp

DROPPED_MAX = 50
"""Names of dropped members kept per message; the last says how many more there were."""

_MEMBERS = frozenset({"type", "timestamp", "data"})
_REQUIRED = "is required"


@dataclass(frozen=True, slots=True)
class Limits:
    """The contract's limits on one request."""

    body_bytes_max: int = 1024 * 1024
    messages_max: int = 500
    depth_max: int = 20


CONTRACT_LIMITS = Limits()


class Form(StrEnum):
    """The forms in which messages may be sent."""

    PLAIN = "plain"  # one JSON message
    ARRAY = "array"  # a JSON array of messages, each with an id
    CLOUDEVENT_STRUCTURED = "cloudevent_structured"  # one CloudEvent, all in the body
    CLOUDEVENT_BINARY = "cloudevent_binary"  # one CloudEvent, attributes in the headers
    CLOUDEVENT_BATCH = "cloudevent_batch"  # a JSON array of CloudEvents


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """The changes of one request, in the order sent. An element repeated with equal content is there twice."""

    changes: tuple[Change, ...]
    form: Form


@made_quickly
@dataclass(frozen=True, slots=True)
class _Envelope:
    """One message before its fields are looked at. ``place`` is "" or ``[3].``; ``time_name`` is timestamp or time."""

    place: str
    message_id: str
    type: Json
    time_name: str
    time: Json
    data: Json
    unknown: Iterable[str]
    digest: bytes


class _Problems:
    """What is wrong with a request, gathered over all its elements."""

    def __init__(self) -> None:
        self.fields: list[FieldProblem] = []
        self.unknown_types = 0

    def add(self, field: str, detail: str) -> None:
        self.fields.append(FieldProblem(field, detail))

    def add_unknown_type(self, field: str) -> None:
        self.unknown_types += 1
        self.add(field, "is not a type of the contract")

    def refuse_if_any(self) -> None:
        """Raise InvalidMessage (422) with what was found; ``unknown-type`` when that is all there is."""
        if not self.fields:
            return
        only_types = self.unknown_types == len(self.fields)
        raise InvalidMessage(
            "The message has a type that is not known." if only_types else "The message is not valid.",
            slug="unknown-type" if only_types else None,
            fields=tuple(self.fields[:PROBLEMS_MAX]),
        )


def check_length(content_length: int, bytes_max: int = CONTRACT_LIMITS.body_bytes_max) -> None:
    """Raise InvalidMessage (413) for a body longer than ``bytes_max``; for a Content-Length before any byte is read."""
    if content_length > bytes_max:
        raise too_large(f"The body is larger than {bytes_max} bytes.")


def parse_request(
    headers: Mapping[str, str], body: bytes, webhook_id: str, limits: Limits = CONTRACT_LIMITS
) -> ParsedRequest:
    """The changes in a verified request. ``headers`` have lower-case names, ``body`` is as received.

    Raises InvalidMessage (400, 413, 415, 422).
    """
    check_length(len(body), limits.body_bytes_max)
    if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise _unsupported("Content-Encoding must be identity: send the body as it was signed.")
    media = media_type(headers.get("content-type", ""))
    problems = _Problems()
    if media.essence == cloudevents.BATCH:
        form, envelopes = Form.CLOUDEVENT_BATCH, _batch(media, body, limits, problems)
    elif media.essence == cloudevents.STRUCTURED:
        form, envelopes = Form.CLOUDEVENT_STRUCTURED, _structured(media, body, limits, problems)
    elif f"\n{cloudevents.PREFIX}" in "\n" + "\n".join(headers):
        form, envelopes = Form.CLOUDEVENT_BINARY, _binary(media, headers, body, limits, problems)
    else:
        form, envelopes = _plain_or_array(media, body, webhook_id, limits, problems)
    changes = [_change(envelope, problems) for envelope in envelopes]
    problems.refuse_if_any()
    accepted = tuple(change for change in changes if change is not None)
    assert len(accepted) == len(changes), "a message without a problem is a change"
    return ParsedRequest(accepted, form)


def _unsupported(detail: str) -> InvalidMessage:
    return InvalidMessage(
        detail,
        status=415,
        next_step="Send JSON in UTF-8 as application/json, application/cloudevents+json or "
        "application/cloudevents-batch+json.",
    )


def _document(media: MediaType, body: bytes, limits: Limits) -> Json:
    """The JSON document of a body. 415 for another charset, 400 when it is empty or no JSON, 413 when too deep."""
    if media.charset not in ("", "utf-8"):
        raise _unsupported("The charset must be UTF-8.")
    if not body:
        raise malformed("the body is empty")
    return read_json(body, limits.depth_max)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.messages_max:
        raise too_large(f"The request holds more than {limits.messages_max} messages.")


def _plain_or_array(
    media: MediaType, body: bytes, webhook_id: str, limits: Limits, problems: _Problems
) -> tuple[Form, list[_Envelope]]:
    if media.essence != "application/json":
        raise _unsupported("The content type is not one of the contract's.")
    document = _document(media, body, limits)
    if isinstance(document, dict):
        return Form.PLAIN, [_message(document, "", webhook_id, _MEMBERS, hashlib.sha256(body).digest())]
    if not isinstance(document, list):
        problems.add("message", "must be a JSON object, or an array of them")
        return Form.PLAIN, []
    _check_count(len(document), limits)
    return Form.ARRAY, list(_elements(document, problems))


_ELEMENT_MEMBERS = _MEMBERS | {"id"}


def _elements(document: list[Json], problems: _Problems) -> Iterator[_Envelope]:
    for index, element in enumerate(document):
        place = f"[{index}]."
        if not isinstance(element, dict):
            problems.add(f"[{index}]", "must be a JSON object")
            continue
        message_id = element.get("id")
        if "id" not in element:
            problems.add(f"{place}id", _REQUIRED)
        elif not _is_id(message_id):
            problems.add(f"{place}id", f"must be 1 to {TEXT_CHARACTERS_MAX} printable characters")
        yield _message(element, place, str(message_id), _ELEMENT_MEMBERS, json_text.digest(element, f"[{index}]"))


def _is_id(value: Json) -> bool:
    return isinstance(value, str) and 0 < len(value) <= TEXT_CHARACTERS_MAX and value.isprintable()


def _message(
    document: dict[str, Json], place: str, message_id: str, members: frozenset[str], digest: bytes
) -> _Envelope:
    return _Envelope(
        place,
        message_id,
        type=document.get("type"),
        time_name="timestamp",
        time=document.get("timestamp"),
        data=document.get("data"),
        unknown=document.keys() - members,
        digest=digest,
    )


def _batch(media: MediaType, body: bytes, limits: Limits, problems: _Problems) -> list[_Envelope]:
    document = _document(media, body, limits)
    if not isinstance(document, list):
        raise malformed("a batch is a JSON array")
    _check_count(len(document), limits)
    envelopes = []
    for index, element in enumerate(document):
        event = cloudevents.read_structured(element, f"[{index}]")
        envelopes.append(_event(event, f"[{index}].", json_text.digest(element, f"[{index}]"), limits, problems))
    return envelopes


def _structured(media: MediaType, body: bytes, limits: Limits, problems: _Problems) -> list[_Envelope]:
    event = cloudevents.read_structured(_document(media, body, limits))
    return [_event(event, "", hashlib.sha256(body).digest(), limits, problems)]


def _binary(
    media: MediaType, headers: Mapping[str, str], body: bytes, limits: Limits, problems: _Problems
) -> list[_Envelope]:
    if media.is_json and media.charset not in ("", "utf-8"):
        raise _unsupported("The charset must be UTF-8.")
    event = cloudevents.read_binary(headers, body, limits.depth_max)
    if not event.carries_json and _own_type(event.attributes["type"]) in MESSAGE_TYPES:
        raise _unsupported("The data of a CloudEvent must be JSON.")
    return [_event(event, "", hashlib.sha256(body).digest(), limits, problems)]


def _event(event: CloudEvent, place: str, digest: bytes, limits: Limits, problems: _Problems) -> _Envelope:
    source, event_id = event.attributes["source"], event.attributes["id"]
    own_type = _own_type(event.attributes["type"])
    data = event.data
    if own_type in MESSAGE_TYPES:
        if not _is_id(source) or " " in source:
            problems.add(f"{place}source", f"must be 1 to {TEXT_CHARACTERS_MAX} printable characters without blanks")
        if not _is_id(event_id):
            problems.add(f"{place}id", f"must be 1 to {TEXT_CHARACTERS_MAX} printable characters")
        if isinstance(data, bytes) and event.carries_json:
            data = read_json(data, limits.depth_max)
    return _Envelope(
        place,
        f"{source} {event_id}",
        type=own_type,
        time_name="time",
        time=event.attributes.get("time"),
        data=data,
        unknown=event.extensions,
        digest=digest,
    )


def _own_type(event_type: str) -> str:
    """The contract's type behind a reverse-DNS prefix, as in ``com.example.bss.subscription.updated``."""
    labels = event_type.split(".")
    return ".".join(labels[-2:]) if all(labels) else event_type


def _change(envelope: _Envelope, problems: _Problems) -> Change | None:
    """The change that a message describes, or None when something is wrong with it; then ``problems`` has grown."""
    known_problems = len(problems.fields)
    place = envelope.place
    message_type = _message_type(envelope, problems)
    if message_type is None:
        return None
    sent_at = _sent_at(envelope, problems)
    values = _values(message_type, envelope, problems)
    if values is None or sent_at is None or len(problems.fields) > known_problems:
        return None
    source_id: str = values.pop("id")
    version: int | None = values.pop("version", None)
    updated_at: datetime | None = values.pop("source_updated_at", None)
    effective_at: datetime | None = values.pop("effective_at", None)
    order = OrderKind.SEQUENCE
    if updated_at is not None:
        order, version = OrderKind.TIMESTAMP, timestamp_version(updated_at)
    assert (version is None) == (message_type.action is Action.NOTIFIED), f"{place}data has one order"
    return Change(
        message_id=envelope.message_id,
        kind=message_type.kind,
        source_id=source_id,
        action=message_type.action,
        version=version,
        sent_at=sent_at,
        effective_at=effective_at or sent_at,
        body=values,
        digest=envelope.digest,
        order=order,
        dropped=_dropped(envelope.unknown, envelope.data.keys() - message_type.members),
    )


def _message_type(envelope: _Envelope, problems: _Problems) -> MessageType | None:
    field = f"{envelope.place}type"
    if envelope.type is None:
        problems.add(field, _REQUIRED)
    elif not isinstance(envelope.type, str):
        problems.add(field, "must be a string")
    elif envelope.type not in MESSAGE_TYPES:
        problems.add_unknown_type(field)
    else:
        return MESSAGE_TYPES[envelope.type]
    return None


def _sent_at(envelope: _Envelope, problems: _Problems) -> datetime | None:
    field = envelope.place + envelope.time_name
    if envelope.time is None:
        problems.add(field, _REQUIRED)
    elif not isinstance(envelope.time, str):
        problems.add(field, "must be a string")
    else:
        try:
            return parse_timestamp(envelope.time)
        except ValueError as error:
            problems.add(field, str(error))
    return None


def _values(message_type: MessageType, envelope: _Envelope, problems: _Problems) -> dict[str, Any] | None:
    """The validated members of ``data`` in stored form, or None."""
    data, place = envelope.data, f"{envelope.place}data"
    if not isinstance(data, dict):
        problems.add(place, _REQUIRED if data is None else "must be a JSON object")
        return None
    if message_type.action is not Action.NOTIFIED:
        if "version" not in data and "source_updated_at" not in data:
            problems.add(f"{place}.version", "is required (or source_updated_at, from a source that orders by time)")
        elif "version" in data and "source_updated_at" in data:
            problems.add(f"{place}.source_updated_at", "excludes version: send one of them")
    try:
        return message_type.validator.validate_python(data).__dict__
    except ValidationError as error:
        for wrong in error.errors(include_url=False, include_context=False, include_input=False):
            field = ".".join(str(part) for part in wrong["loc"])
            problems.add(f"{place}.{field}", _REQUIRED if wrong["type"] == "missing" else wrong["msg"])
    return None


def _dropped(unknown: Iterable[str], unknown_data: Iterable[str]) -> tuple[str, ...]:
    """The names, never the values, of what is not stored; sorted, so that a retry gives the same."""
    names = [safe_name(name) for name in unknown] + [f"data.{safe_name(name)}" for name in unknown_data]
    if len(names) <= 1:
        return tuple(names)
    names.sort()
    if len(names) > DROPPED_MAX:
        names[DROPPED_MAX - 1 :] = [f"… and {len(names) - DROPPED_MAX + 1} more"]
    return tuple(names)
