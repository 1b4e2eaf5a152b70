"""The catalogue decides what is in scope (domain.md section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

LEFT_SCOPE = "left_scope"
"""Why a mirror ended whose source changed to a foreign product."""


class Standing(StrEnum):
    """How a product of the source stands in the distributor's catalogue."""

    OFFERED = "offered"  # in the catalogue: paid subscriptions enter
    RETIRED = "retired"  # in the catalogue, no new entries; what has entered stays
    FOREIGN = "foreign"  # not the distributor's product


@dataclass(frozen=True, slots=True)
class Product:
    """A source's product, resolved: ``code`` is the distributor's code, or the source's own when it is foreign."""

    code: str
    standing: Standing


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The distributor's products as one connection sees them.

    ``codes`` maps the distributor's code to whether it is retired; ``mapped`` the source's code to the distributor's.
    A source code is the distributor's code unless it is mapped.
    """

    codes: Mapping[str, bool]
    mapped: Mapping[str, str]

    def code_of(self, source_code: str) -> str:
        """The distributor's code for a source's; the source's own when it is foreign."""
        code = self.mapped.get(source_code, source_code)
        return code if code in self.codes else source_code

    def resolve(self, source_code: str) -> Product:
        """The product behind a source's code."""
        code = self.mapped.get(source_code, source_code)
        if code not in self.codes:
            return Product(source_code, Standing.FOREIGN)
        return Product(code, Standing.RETIRED if self.codes[code] else Standing.OFFERED)


def why_out_of_scope(product: Product, *, trial: bool) -> str | None:
    """The reason why an unbound subscription does not enter; None when it does. Status never decides."""
    if product.standing is Standing.FOREIGN:
        return "product_not_in_catalogue"
    if product.standing is Standing.RETIRED:
        return "product_retired"
    if trial:
        return "trial"
    return None


def why_left_scope(product: Product) -> str | None:
    """The reason why a bound subscription's mirror ends; None when it goes on, or resumes.

    A retired product stops new entries only, and a trial too stays bound.
    """
    return "product_not_in_catalogue" if product.standing is Standing.FOREIGN else None
