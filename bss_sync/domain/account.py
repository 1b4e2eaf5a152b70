"""Accounts: the commercial record of a party inside a BSS (domain.md sections 2 and 4)."""

from __future__ import annotations

from enum import StrEnum

FIELDS = ("name", "number", "email", "kind", "parent_id")
"""The mirrored fields: owned by the reseller's BSS, locked at the distributor."""

OWN_FIELDS = ("notes", "tags", "responsible_user")
"""The fields that the distributor owns and may edit."""


class AccountKind(StrEnum):
    """What an account is."""

    CUSTOMER = "customer"  # an end customer
    RESELLER = "reseller"  # a lite reseller, living inside somebody else's BSS
