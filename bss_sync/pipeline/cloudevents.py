"""CloudEvents 1.0 over HTTP: binary, structured and batched, JSON format (the CloudEvents specification).

Only the envelope is read here; whether the type is one of ours is the caller's question. Attributes that are null are
unset. A string ``data`` is data, never JSON text to be parsed again.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from bss_sync.domain.change import Json
from bss_sync.pipeline.json_text import malformed, read_json

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
PREFIX = "ce-"
DEPTH_MAX = 20
REQUIRED = ("id", "source", "specversion", "type")
CORE = frozenset({*REQUIRED, "time", "subject", "datacontenttype", "dataschema"})
_TEXT_CHARSETS = frozenset({"us-ascii", "utf-8"})

_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HEADER_TEXT = re.compile(r"[ -~\t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class MediaType:
    """A parsed Content-Type: ``essence`` and ``charset`` in lower case; charset "" when there is none."""

    essence: str
    charset: str

    @property
    def is_json(self) -> bool:
        """Whether data of this type is JSON by the CloudEvents rule (``…/json``, ``…/…+json``)."""
        return self.essence.endswith(("/json", "+json"))


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """One event: the attributes that are set, extensions included, and its data.

    ``data`` is bytes for binary data (``data_base64``, or a body that is neither JSON nor text), str for text,
    otherwise what the JSON was. ``carries_json`` says whether it is JSON, read already or, as bytes, to be read.
    """

    attributes: Mapping[str, Json]
    data: Json
    carries_json: bool

    @property
    def extensions(self) -> list[str]:
        """Names of the attributes that CloudEvents itself does not define."""
        return [name for name in self.attributes if name not in CORE]


@lru_cache(maxsize=256)
def media_type(header: str) -> MediaType:
    """Parse a Content-Type; what cannot be understood keeps an essence that matches nothing."""
    essence, *parameters = header.split(";")
    charset = ""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip('"').lower()
    return MediaType(essence.strip().lower(), charset)


def parse_cloudevent(headers: Mapping[str, str], body: bytes, depth_max: int = DEPTH_MAX) -> CloudEvent:
    """The event of a structured or binary request. InvalidMessage (400) when it is no CloudEvent."""
    if media_type(headers.get("content-type", "")).essence == STRUCTURED:
        return read_structured(read_json(body, depth_max))
    return read_binary(headers, body, depth_max)


def parse_batch(body: bytes, depth_max: int = DEPTH_MAX) -> tuple[CloudEvent, ...]:
    """The events of a batch, which may be empty. InvalidMessage (400) names the element by index."""
    document = read_json(body, depth_max)
    if not isinstance(document, list):
        raise malformed("a batch is a JSON array")
    return tuple(read_structured(element, f"[{index}]") for index, element in enumerate(document))


def read_structured(document: Json, place: str = "") -> CloudEvent:
    """The event in one JSON object of the JSON format. ``place`` is its index in a batch, for the errors."""
    if not isinstance(document, dict):
        raise malformed("must be a JSON object", field=place or "message")
    prefix = f"{place}." if place else ""
    attributes = {
        name: value for name, value in document.items() if value is not None and name not in ("data", "data_base64")
    }
    _check_attributes(attributes, prefix)
    encoded = document.get("data_base64")
    if encoded is None:
        return CloudEvent(attributes, document.get("data"), carries_json=True)
    if document.get("data") is not None:
        raise malformed("and data exclude each other", field=f"{prefix}data_base64")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (ValueError, TypeError):
        raise malformed("is not base64", field=f"{prefix}data_base64") from None
    return CloudEvent(attributes, data, carries_json=_says_json(attributes))


def read_binary(headers: Mapping[str, str], body: bytes, depth_max: int = DEPTH_MAX) -> CloudEvent:
    """The event whose attributes are ``ce-`` headers and whose data is the body, typed by Content-Type."""
    attributes: dict[str, Json] = {
        name.removeprefix(PREFIX): _decoded(name, value) for name, value in headers.items() if name.startswith(PREFIX)
    }
    # The content type is the datacontenttype; a header of that name means nothing in this mode.
    attributes.pop("datacontenttype", None)
    content_type = headers.get("content-type")
    if content_type is not None:
        attributes["datacontenttype"] = content_type
    _check_attributes(attributes, PREFIX)
    if content_type is None:
        # Senders leave the type out when it is the default; whose type it is decides whether it is read as JSON.
        return CloudEvent(attributes, body or None, carries_json=True)
    media = media_type(content_type)
    if not body:
        return CloudEvent(attributes, None, media.is_json)
    if media.is_json:
        return CloudEvent(attributes, read_json(body, depth_max), carries_json=True)
    return CloudEvent(attributes, _text_or_bytes(media, body), carries_json=False)


def _says_json(attributes: Mapping[str, Json]) -> bool:
    """Whether base64 data is JSON: when its type says so, or says nothing (the format's default is JSON)."""
    declared = attributes.get("datacontenttype")
    return declared is None or media_type(str(declared)).is_json


def _text_or_bytes(media: MediaType, body: bytes) -> Json:
    textual = media.essence.startswith("text/") or media.essence.endswith(("/xml", "+xml"))
    if not textual or (media.charset or "utf-8") not in _TEXT_CHARSETS:
        return body
    try:
        return body.decode(media.charset or "utf-8")
    except UnicodeDecodeError:
        return body


def _check_attributes(attributes: Mapping[str, Json], prefix: str) -> None:
    for name in REQUIRED:
        if name not in attributes:
            raise malformed("is required in a CloudEvent", field=prefix + name)
    for name in CORE:
        value = attributes.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not value:
            raise malformed("must be a string that is not empty", field=prefix + name)
        if _CONTROL.search(value) is not None:
            raise malformed("holds a control character", field=prefix + name)
    if attributes["specversion"] != "1.0":
        raise malformed("must be 1.0", field=f"{prefix}specversion")


def _decoded(name: str, value: str) -> str:
    """A header's value: unquoted, then percent-decoded once, strictly (HTTP protocol binding 3.1.3.2)."""
    if _HEADER_TEXT.fullmatch(value) is None:
        raise malformed("must be percent-encoded outside printable ASCII", field=name)
    quoted = _QUOTED.fullmatch(value)
    text = _ESCAPED.sub(r"\1", quoted[1]) if quoted is not None else value
    if "%" not in text:
        return text
    if _BROKEN_PERCENT.search(text) is not None:
        raise malformed("is not percent-encoded correctly", field=name)
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise malformed("is not UTF-8 after percent-decoding", field=name) from None
    if _CONTROL.search(decoded) is not None:
        raise malformed("holds a control character", field=name)
    return decoded
