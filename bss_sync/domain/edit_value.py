"""Values that people write: of the distributor's own fields, of contacts and activities.

Strict: a value is taken as it is meant or refused with the field's name, never bent. Source: domain.md section 4 and
the contract's PATCH. Numbers with a fraction come in as Decimal, so that a price stays what was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from bss_sync.domain.change import Json, Kind
from bss_sync.domain.errors import FieldProblem, InvalidRequest
from bss_sync.domain.moment import parse_moment, rfc3339
from bss_sync.domain.relation import ActivityKind, Relation

TEXT_CHARACTERS_MAX = 255
NOTES_CHARACTERS_MAX = 20_000
TAGS_MAX = 50
OBJECT_BYTES_MAX = 64 * 1024
AMOUNT_MAX = 10**12
DECIMALS_MAX = 6

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_CURRENCY = re.compile("[A-Z]{3}")

Check = Callable[[Json], Json]


class Wrong(ValueError):
    """What is wrong with one value; becomes an InvalidRequest that names the field."""


def own_value(kind: Kind, field: str, value: Json, *, currency: str) -> Json:
    """A distributor's field as it is stored. null clears; a price without a currency is in ``currency``."""
    checks: Mapping[str, Check] = {
        "notes": lambda given: _text(given, NOTES_CHARACTERS_MAX, null=True),
        "tags": _tags,
        "responsible_user": lambda given: _text(given, TEXT_CHARACTERS_MAX, null=True),
        "price": lambda given: _price(given, currency),
        "bill_to_contact": lambda given: _text(given, TEXT_CHARACTERS_MAX, null=True),
        "custom_fields": lambda given: {} if given is None else _flat_object(given),
    }
    assert field in checks, f"{field} is an own field of {kind}"
    return _checked(field, value, checks[field])


def relation_value(relation: Relation, field: str, value: Json, *, zone: str) -> Json:
    """A field of a contact or an activity. A bare date in ``due_at`` is the end of that day in ``zone``."""
    if field == "due_at":
        if value is None:
            return None
        if not isinstance(value, str):
            raise _refusal(field, "must be a date or an RFC 3339 timestamp")
        return rfc3339(parse_moment(value, zone, field=field))
    return _checked(field, value, _RELATED[relation][field])


def _checked(field: str, value: Json, check: Check) -> Json:
    try:
        return check(value)
    except Wrong as error:
        raise _refusal(field, str(error)) from None


def _refusal(field: str, detail: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {detail}.", fields=(FieldProblem(field, detail),))


def _text(value: Json, characters_max: int, *, null: bool) -> str | None:
    if value is None and null:
        return None
    if not isinstance(value, str):
        raise Wrong("must be text or null" if null else "must be text")
    if len(value) > characters_max:
        raise Wrong(f"must have at most {characters_max} characters")
    if not null and not value.strip():
        raise Wrong("must not be empty")
    if _UNSTORABLE.search(value) is not None:
        raise Wrong("holds U+0000 or a lone surrogate, which cannot be stored")
    return value


def _tags(value: Json) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > TAGS_MAX:
        raise Wrong(f"must be a list of at most {TAGS_MAX} texts")
    tags = [str(_text(tag, TEXT_CHARACTERS_MAX, null=False)) for tag in value]
    return list(dict.fromkeys(tags))


def _price(value: Json, currency: str) -> dict[str, str] | None:
    if value is None:
        return None
    if isinstance(value, dict):
        if "amount" not in value or not set(value) <= {"amount", "currency"}:
            raise Wrong("must have amount, and may have currency")
        named = value.get("currency", currency)
        if not isinstance(named, str) or _CURRENCY.fullmatch(named) is None:
            raise Wrong("must have a currency of three capital letters (ISO 4217), such as EUR")
        return {"amount": _amount(value["amount"]), "currency": named}
    return {"amount": _amount(value), "currency": currency}


def _amount(value: Json) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise Wrong("must be a decimal number ≥ 0, such as 9.90")
    text = str(value)
    if re.fullmatch(r"[0-9]{1,13}(\.[0-9]{1,6})?", text) is None or Decimal(text) > AMOUNT_MAX:
        raise Wrong(
            f"must be a decimal number from 0 to {AMOUNT_MAX} with at most {DECIMALS_MAX} decimals, such as 9.90"
        )
    return text


def _flat_object(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise Wrong("must be an object")
    flat: dict[str, Json] = {}
    for name, member in value.items():
        _text(name, TEXT_CHARACTERS_MAX, null=False)
        if isinstance(member, dict | list):
            raise Wrong("must be flat: text, numbers, booleans and null only")
        flat[name] = _text(member, OBJECT_BYTES_MAX, null=True) if isinstance(member, str) else plain_number(member)
    if len(json.dumps(flat, ensure_ascii=False).encode()) > OBJECT_BYTES_MAX:
        raise Wrong(f"must not exceed {OBJECT_BYTES_MAX // 1024} KiB")
    return flat


def plain_number(value: Json) -> Json:
    """What jsonb gives back unchanged: whole numbers as they are, others as a double."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise Wrong("holds a number beyond 64 bits")
    if not isinstance(value, Decimal):
        return value
    number = float(value)
    if number in (float("inf"), float("-inf")):
        raise Wrong("holds a number beyond a double's range")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _one_of(*names: str) -> Check:
    def check(value: Json) -> Json:
        if value not in names:
            raise Wrong(f"must be one of {', '.join(names)}")
        return str(value)

    return check


def _email(value: Json) -> str | None:
    text = _text(value, TEXT_CHARACTERS_MAX, null=True)
    if text is not None and _EMAIL.fullmatch(text) is None:
        raise Wrong("must be an e-mail address or null")
    return text


def _optional(value: Json) -> str | None:
    return _text(value, TEXT_CHARACTERS_MAX, null=True)


def _required(value: Json) -> str | None:
    return _text(value, TEXT_CHARACTERS_MAX, null=False)


_RELATED: Mapping[Relation, Mapping[str, Check]] = {
    Relation.CONTACT: {"name": _required, "email": _email, "phone": _optional},
    Relation.ACTIVITY: {
        "kind": _one_of(*ActivityKind),
        "subject": _required,
        "body": lambda given: _text(given, OBJECT_BYTES_MAX, null=True),
    },
}
