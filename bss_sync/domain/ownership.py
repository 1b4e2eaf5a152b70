"""Who owns which field, as versioned data (domain.md section 4).

A policy maps (entity kind, field) to its owner. What the reseller's BSS owns is locked at the distributor; taking a
field over is an admin's act and makes the distributor its owner until it is released.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from bss_sync.domain import account, subscription
from bss_sync.domain.change import Kind
from bss_sync.domain.errors import ConfigurationError, FieldLocked, FieldProblem, InvalidRequest


class Owner(StrEnum):
    """Who may write a field."""

    RESELLER = "reseller"  # the reseller's BSS: locked at the distributor
    DISTRIBUTOR = "distributor"  # the distributor's people


MIRRORED: Mapping[Kind, tuple[str, ...]] = {Kind.ACCOUNT: account.FIELDS, Kind.SUBSCRIPTION: subscription.FIELDS}
OWN: Mapping[Kind, tuple[str, ...]] = {Kind.ACCOUNT: account.OWN_FIELDS, Kind.SUBSCRIPTION: subscription.OWN_FIELDS}


@dataclass(frozen=True, slots=True)
class OwnershipPolicy:
    """One version of the policy of a connection. ``owners`` has every mirrored and every own field of both kinds."""

    version: int
    owners: Mapping[Kind, Mapping[str, Owner]]

    def owner(self, kind: Kind, field: str, taken: Iterable[str] = ()) -> Owner:
        """The owner of a field now; a taken field is the distributor's. InvalidRequest for a field that is none."""
        try:
            declared = self.owners[kind][field]
        except KeyError:
            names = ", ".join(self.owners[kind])
            raise InvalidRequest(
                f"{field!r} is no field of {kind}.", fields=(FieldProblem(field, f"known fields: {names}"),)
            ) from None
        return Owner.DISTRIBUTOR if field in taken else declared

    def locked(self, kind: Kind, field: str, taken: Iterable[str] = ()) -> bool:
        """Whether the distributor's people are refused."""
        return self.owner(kind, field, taken) is Owner.RESELLER

    def check_write(self, kind: Kind, fields: Iterable[str], *, reseller: str, taken: Iterable[str] = ()) -> None:
        """Raise FieldLocked that names every locked field and its owner; one locked field refuses the whole write."""
        held = tuple(taken)
        problems = tuple(
            FieldProblem(field, f"owned by {reseller}, locked here", reseller)
            for field in fields
            if self.locked(kind, field, held)
        )
        if problems:
            names = ", ".join(problem.field for problem in problems)
            raise FieldLocked(f"{names}: owned by {reseller} and locked here. Nothing was changed.", fields=problems)


def parse_policy(document: Mapping[str, Mapping[str, str]], version: int) -> OwnershipPolicy:
    """The policy of a document ``{kind: {field: owner}}``; ConfigurationError where a field or an owner is unknown.

    Every field has an owner: one that the document leaves out, or adds, is an error, never a default.
    """
    owners: dict[Kind, dict[str, Owner]] = {}
    for kind in Kind:
        declared = document.get(kind, {})
        wanted = set(MIRRORED[kind]) | set(OWN[kind])
        if set(declared) != wanted:
            difference = ", ".join(sorted(set(declared) ^ wanted))
            raise ConfigurationError(f"ownership.{kind}: fields missing or unknown: {difference}")
        try:
            owners[kind] = {field: Owner(name) for field, name in declared.items()}
        except ValueError as error:
            raise ConfigurationError(f"ownership.{kind}: {error}; owners are reseller and distributor") from error
        foreign = [field for field in OWN[kind] if owners[kind][field] is Owner.RESELLER]
        if foreign:
            raise ConfigurationError(f"ownership.{kind}: {', '.join(foreign)} never comes from the reseller's BSS")
    return OwnershipPolicy(version, owners)


def default_document() -> dict[str, dict[str, str]]:
    """The law's own table: mirrored fields are the reseller's, the rest the distributor's."""
    return {
        str(kind): dict.fromkeys(MIRRORED[kind], Owner.RESELLER.value)
        | dict.fromkeys(OWN[kind], Owner.DISTRIBUTOR.value)
        for kind in Kind
    }
