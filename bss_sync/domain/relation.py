"""What the distributor's people keep about an account: contacts and activities (domain.md sections 4 and 5)."""

from __future__ import annotations

from enum import StrEnum


class Relation(StrEnum):
    """What can be related to an account."""

    CONTACT = "contact"  # a person
    ACTIVITY = "activity"  # an e-mail, task, event, document or case


class ActivityKind(StrEnum):
    """Kinds of activities; the names are the contract's."""

    EMAIL = "email"  # a message sent or received
    TASK = "task"  # something to do
    EVENT = "event"  # a meeting or a call
    DOCUMENT = "document"  # a paper about the account
    CASE = "case"  # a request for support


FIELDS: dict[Relation, tuple[str, ...]] = {
    Relation.CONTACT: ("name", "email", "phone"),
    Relation.ACTIVITY: ("kind", "subject", "body", "due_at"),
}
REQUIRED: dict[Relation, tuple[str, ...]] = {
    Relation.CONTACT: ("name",),
    Relation.ACTIVITY: ("kind", "subject"),
}
