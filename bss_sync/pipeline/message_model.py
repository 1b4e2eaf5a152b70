"""The contract's ``data``, as strict models: accounts, subscriptions, deletions and notifications.

Every field is required and typed; what is well-typed but unknown (a status, a cycle) passes here and is quarantined
later. The values that come out are the stored ones: dates stay their ISO text, a quantity becomes its plain decimal
string, a characteristic's number becomes what jsonb gives back unchanged (see ``_characteristic_number``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, WithJsonSchema
from pydantic_core import PydanticCustomError

from bss_sync.domain.change import EPOCH, Action, Json, Kind
from bss_sync.domain.subscription import canonical_quantity

TEXT_CHARACTERS_MAX = 255
NAME_CHARACTERS_MAX = 1000
VERSION_MAX = 2**63 - 1
QUANTITY_MAX = 10**12
QUANTITY_DECIMALS_MAX = 6
CHARACTERISTICS_BYTES_MAX = 64 * 1024
_NUMBER_EXPONENT_MAX = 300

_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def parse_timestamp(text: str) -> datetime:
    """RFC 3339 with an offset, as aware UTC; ValueError says what is wrong.

    Digits beyond microseconds are cut off, never rounded, so that order is kept. A leap second (only ever 23:59:60
    UTC) becomes the last microsecond before it: a clock of 86,400 seconds a day has no other place for it.
    """
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise ValueError("must be an RFC 3339 timestamp with an offset, such as 2026-03-02T10:15:00Z")
    day, minutes, seconds, fraction, sign, offset_hours, offset_minutes = match.groups()
    leap = seconds == "60"
    try:
        if fraction is None and sign is None and not leap:
            # The usual form needs no arithmetic.
            moment = datetime.fromisoformat(f"{day}T{minutes}:{seconds}+00:00")
        else:
            moment = datetime.fromisoformat(f"{day}T{minutes}:{'59' if leap else seconds}")
            microsecond = 999_999 if leap else int((fraction or "")[:6].ljust(6, "0"))
            zone = UTC if sign is None else _zone(sign, int(offset_hours), int(offset_minutes))
            moment = moment.replace(microsecond=microsecond, tzinfo=zone).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("is no moment of the calendar") from None
    if leap and (moment.hour, moment.minute) != (23, 59):
        raise ValueError("is no moment of the calendar")
    if moment < EPOCH:
        raise ValueError("must not be before 1970")
    return moment


def _zone(sign: str, hours: int, minutes: int) -> timezone:
    if minutes > 59:
        raise ValueError("an offset's minutes end at 59")
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if sign == "-" else offset)


def _wrong(detail: str) -> PydanticCustomError:
    return PydanticCustomError("contract", "{detail}", {"detail": detail})


def _printable(value: str) -> str:
    if not value.isprintable():
        raise _wrong("must hold printable characters only")
    return value


def _without_control(value: str) -> str:
    if _CONTROL.search(value) is not None:
        raise _wrong("must not hold control characters")
    return value


def _timestamp(value: object) -> datetime:
    if not isinstance(value, str):
        raise _wrong("must be an RFC 3339 timestamp with an offset, such as 2026-03-02T10:15:00Z")
    try:
        return parse_timestamp(value)
    except ValueError as error:
        raise _wrong(str(error)) from None


def _date(value: str) -> str:
    try:
        if _DATE.fullmatch(value) is not None:
            date.fromisoformat(value)
            return value
    except ValueError:
        pass
    raise _wrong("must be a date of the calendar, written YYYY-MM-DD")


def _quantity(value: object) -> str:
    """The canonical text of a number ≥ 0. Only its text is looked at: Decimal's arithmetic would round."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _wrong("must be a number")
    if value < 0:
        raise _wrong("must not be negative")
    if value > QUANTITY_MAX:
        raise _wrong(f"must not be greater than {QUANTITY_MAX}")
    if isinstance(value, int):
        return str(value)
    if value == 0:
        return "0"
    if value.adjusted() < -QUANTITY_DECIMALS_MAX:
        raise _wrong(f"must have at most {QUANTITY_DECIMALS_MAX} decimals")
    text = canonical_quantity(value)
    if len(text.partition(".")[2]) > QUANTITY_DECIMALS_MAX:
        raise _wrong(f"must have at most {QUANTITY_DECIMALS_MAX} decimals")
    return text


def _characteristics(value: object) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise _wrong("must be an object")
    flat: dict[str, Json] = {}
    for name, member in value.items():
        if len(name) > TEXT_CHARACTERS_MAX:
            raise _wrong(f"must have names of at most {TEXT_CHARACTERS_MAX} characters")
        if isinstance(member, dict | list):
            raise _wrong("must be flat: text, numbers, booleans and null only")
        is_number = isinstance(member, int | Decimal) and not isinstance(member, bool)
        flat[name] = _characteristic_number(member) if is_number else member
    if len(_compact(flat)) > CHARACTERISTICS_BYTES_MAX:
        raise _wrong(f"must not exceed {CHARACTERISTICS_BYTES_MAX // 1024} KiB")
    return flat


def _compact(flat: dict[str, Json]) -> bytes:
    try:
        return orjson.dumps(flat)
    except TypeError:
        # An integer beyond 64 bits.
        return json.dumps(flat, ensure_ascii=False, separators=(",", ":")).encode()


def _characteristic_number(value: int | Decimal) -> int | float | str:
    """A number in the form that jsonb gives back unchanged, so that equal content stays equal.

    Whole numbers become int (3.0 and 3 are the same number), fractions float when a double names exactly this
    decimal, else their plain decimal text: nothing is rounded.
    """
    if isinstance(value, Decimal) and value == 0:
        return 0
    magnitude = value.adjusted() if isinstance(value, Decimal) else value.bit_length() * 0.302
    if abs(magnitude) > _NUMBER_EXPONENT_MAX:
        raise _wrong("must hold numbers between 1e-300 and 1e300")
    if isinstance(value, int):
        return value
    text = canonical_quantity(value)
    if "." not in text:
        return int(text)
    return float(value) if Decimal(repr(float(value))) == value else text


Id = Annotated[
    str,
    Field(min_length=1, max_length=TEXT_CHARACTERS_MAX, description="Printable, compared exactly."),
    AfterValidator(_printable),
]
Word = Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS_MAX), AfterValidator(_printable)]
Text = Annotated[str, Field(max_length=TEXT_CHARACTERS_MAX), AfterValidator(_without_control)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX), AfterValidator(_without_control)]
Day = Annotated[str, AfterValidator(_date), WithJsonSchema({"type": "string", "format": "date"})]
Moment = Annotated[datetime, PlainValidator(_timestamp), WithJsonSchema({"type": "string", "format": "date-time"})]
Quantity = Annotated[
    str,
    PlainValidator(_quantity),
    WithJsonSchema(
        {"type": "number", "minimum": 0, "maximum": QUANTITY_MAX, "description": "At most 6 decimals."},
    ),
]
Characteristics = Annotated[
    dict[str, Any],
    PlainValidator(_characteristics),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
            "propertyNames": {"maxLength": TEXT_CHARACTERS_MAX},
            "description": "The order's attributes, flat, up to 64 KiB.",
        }
    ),
]


def _not_null(value: int | datetime | None) -> int | datetime | None:
    """An explicit null is no order; absence is the default, which is never validated."""
    if value is None:
        raise _wrong("must not be null; leave it out when the other is sent")
    return value


def _one_order(schema: dict[str, Any]) -> None:
    """Exactly one of the two orders; their Python default stands for absence and is no JSON value."""
    schema["oneOf"] = [{"required": ["version"]}, {"required": ["source_updated_at"]}]
    for name in ("version", "source_updated_at"):
        schema["properties"][name].pop("default", None)


class Notified(BaseModel):
    """Only the id: the state has to be fetched."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: Id


class Deleted(Notified):
    """The entity is gone at this version. A full body is welcome; only these members count."""

    model_config = ConfigDict(strict=True, extra="ignore", json_schema_extra=_one_order)

    version: Annotated[
        int | None,
        Field(ge=0, le=VERSION_MAX),
        AfterValidator(_not_null),
        WithJsonSchema({"type": "integer", "minimum": 0, "maximum": VERSION_MAX}),
    ] = None
    source_updated_at: Annotated[
        Moment | None, AfterValidator(_not_null), WithJsonSchema({"type": "string", "format": "date-time"})
    ] = Field(None, description="Instead of version, from a source that orders by change time.")
    effective_at: Moment | None = Field(None, description="When it took effect; default the message's timestamp.")


class Account(Deleted):
    """The whole state of an account."""

    name: Name
    number: Text | None
    email: Annotated[str, Field(max_length=320), AfterValidator(_without_control)] | None
    kind: Word = Field(description="customer or reseller; another word is quarantined.")
    parent_id: Id | None = Field(description="Null: directly below the tenant reseller.")


class Subscription(Deleted):
    """The whole state of a subscription."""

    account_id: Id | None = Field(description="Null: the tenant reseller's own use.")
    parent_id: Id | None = Field(description="The subscription that this is an add-on of.")
    product: Word
    status: Word = Field(description="A canonical status; another word is quarantined.")
    trial: bool
    start_date: Day | None
    end_date: Day | None
    activation_date: Day | None
    cancellation_date: Day | None
    auto_renew: bool
    billing_cycle: Word = Field(description="An ISO 8601 duration, or one_time.")
    term: Word | None = Field(description="An ISO 8601 duration, or one_time.")
    quantity: Quantity
    characteristics: Characteristics


@dataclass(frozen=True, slots=True)
class MessageType:
    """One type of the contract: what it is about, how its data is validated and which members it names."""

    kind: Kind
    action: Action
    model: type[Notified]
    validator: TypeAdapter[Notified]
    members: frozenset[str]


def _message_types() -> dict[str, MessageType]:
    states: dict[Kind, type[Notified]] = {Kind.ACCOUNT: Account, Kind.SUBSCRIPTION: Subscription}
    types: dict[str, MessageType] = {}
    for kind, state in states.items():
        # Whatever the contract names is no surprise in a shorter message either: it is not listed as dropped.
        members = frozenset(state.model_fields)
        for verb, action, model in (
            ("created", Action.STATE, state),
            ("updated", Action.STATE, state),
            ("deleted", Action.DELETED, Deleted),
            ("notified", Action.NOTIFIED, Notified),
        ):
            types[f"{kind}.{verb}"] = MessageType(kind, action, model, TypeAdapter(model), members)
    return types


MESSAGE_TYPES = _message_types()


def message_schemas() -> dict[str, dict[str, Any]]:
    """The JSON Schema (2020-12) of each message type, from the models that the door validates with."""
    schemas: dict[str, dict[str, Any]] = {}
    for name, message_type in MESSAGE_TYPES.items():
        schemas[name] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": name,
            "type": "object",
            "properties": {
                "type": {"const": name},
                "timestamp": {"type": "string", "format": "date-time"},
                "id": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": TEXT_CHARACTERS_MAX,
                    "description": "The deduplication key; required of the elements of an array.",
                },
                "data": message_type.model.model_json_schema(),
            },
            "required": ["type", "timestamp", "data"],
        }
    return schemas
