"""Who may do what at the distributor on a mirrored record (domain.md section 5), and what each role may do."""

from __future__ import annotations

from enum import StrEnum

from bss_sync.domain.change import Kind
from bss_sync.domain.errors import FieldProblem, InvalidRequest, NotPermitted, OperationRefused
from bss_sync.domain.tenancy import Role

REFUSED_OPERATIONS: dict[Kind, tuple[str, ...]] = {
    Kind.SUBSCRIPTION: (
        "add_addon",
        "upgrade",
        "downgrade",
        "renew",
        "suspend",
        "resume",
        "cancel",
        "delete",
        "change_quantity",
    ),
    Kind.ACCOUNT: ("sell_product", "synchronise", "delete"),
}
"""Only the tenant reseller may do these: it keeps full control of its subscriptions."""


class Right(StrEnum):
    """What a role may be allowed to do. Names follow the contract's role table."""

    READ = "read"  # every GET within one's reach
    EDIT_OWN = "edit_own"  # own fields, contacts, activities
    REPLAY = "replay"  # replay and reconcile
    FOLLOW = "follow"  # what the next tier's instance mirrors: /v1/chain
    ADMINISTER = "administer"  # tokens, secrets, connections, takeover, approvals


_RIGHTS: dict[Role, frozenset[Right]] = {
    Role.ADMIN: frozenset(Right),
    Role.OPERATOR: frozenset({Right.READ, Right.FOLLOW, Right.EDIT_OWN, Right.REPLAY}),
    Role.AUDITOR: frozenset({Right.READ, Right.FOLLOW}),
    Role.CHAIN: frozenset({Right.FOLLOW}),
    Role.RESELLER: frozenset({Right.READ}),
}

_WORDS: dict[Right, str] = {
    Right.READ: "read this",
    Right.FOLLOW: "follow this instance as its next tier",
    Right.EDIT_OWN: "edit fields, contacts and activities",
    Right.REPLAY: "replay or reconcile",
    Right.ADMINISTER: "administer tokens, secrets, connections, takeovers and approvals",
}

HIDDEN_FROM_RESELLER: dict[Kind, tuple[str, ...]] = {
    Kind.ACCOUNT: ("notes", "tags", "responsible_user"),
    Kind.SUBSCRIPTION: ("notes", "custom_fields", "bill_to_contact"),
}
"""A reseller sees mirrored fields and its own price, never the distributor's notes (contract: Roles)."""


def check_right(role: Role, right: Right) -> None:
    """Raise NotPermitted unless ``role`` has ``right``."""
    if right not in _RIGHTS[role]:
        able = ", ".join(sorted(other for other in Role if right in _RIGHTS[other]))
        raise NotPermitted(f"The role {role} may not {_WORDS[right]}; these may: {able}.")


def refuse_operation(kind: Kind, operation: str, *, reseller: str) -> OperationRefused:
    """The refusal of a known operation, naming who can. InvalidRequest for an operation that does not exist."""
    if operation not in REFUSED_OPERATIONS[kind]:
        known = ", ".join(REFUSED_OPERATIONS[kind])
        raise InvalidRequest(
            f"{operation!r} is no operation on {kind}.", fields=(FieldProblem("operation", f"known: {known}"),)
        )
    words = operation.replace("_", " ")
    return OperationRefused(
        f"{words} is refused: this {kind} is mirrored from {reseller}, and only {reseller} can do it in its own BSS.",
        owner=reseller,
    )
