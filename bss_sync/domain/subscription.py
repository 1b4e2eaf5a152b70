"""Subscriptions and add-ons (domain.md sections 3 and 4)."""

from __future__ import annotations

import re
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache

FIELDS = (
    "account_id",
    "parent_id",
    "product",
    "status",
    "source_status",
    "trial",
    "start_date",
    "end_date",
    "activation_date",
    "cancellation_date",
    "auto_renew",
    "billing_cycle",
    "term",
    "quantity",
    "characteristics",
)
"""The mirrored fields: owned by the reseller's BSS, locked at the distributor."""

OWN_FIELDS = ("price", "bill_to_contact", "custom_fields", "notes")
"""The fields that the distributor owns and may edit."""

ONE_TIME = "one_time"
_DURATION = re.compile(r"P(?=\d|T\d)(\d+Y)?(\d+M)?(\d+W)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?")


class Status(StrEnum):
    """The canonical statuses. The source's own word is kept beside it as ``source_status``."""

    CREATED = "created"  # ordered, nothing provisioned
    PENDING_ACTIVE = "pending_active"  # being provisioned
    ACTIVE = "active"  # usable and charged
    SUSPENDED = "suspended"  # held: data kept, not usable
    PENDING_TERMINATE = "pending_terminate"  # being ended
    TERMINATED = "terminated"  # ended
    CANCELLED = "cancelled"  # ended before its term
    ABORTED = "aborted"  # never came to life


@lru_cache(maxsize=1024)
def is_period(value: str) -> bool:
    """Whether ``value`` is an ISO 8601 duration or ``one_time`` (contract: billing cycle and term)."""
    return value == ONE_TIME or _DURATION.fullmatch(value) is not None


def canonical_quantity(value: Decimal) -> str:
    """The plain decimal string of a quantity: no exponent, no trailing zeros; 25.000 and 25 are the same."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text or "0"
