"""The one error tree.

    BssSyncError                      everything that bss_sync raises on purpose
    ├── Transient                     trying again later may succeed; retries ask only this
    │   ├── DependencyDown            PostgreSQL, Redis or a remote BSS does not answer
    │   │   └── SchemaBusy            a migration needs a lock that others hold
    │   ├── Overloaded                more waits here already than may wait: 429
    │   ├── RemoteBusy                the remote asked to wait (429, 503, Retry-After)
    │   ├── RemoteUnreadable          the remote answered with success and nothing that can be read
    │   ├── RemoteDenied              the remote does not take our credentials (401, 403)
    │   └── RemoteUnknown             the answer was lost: it may or may not have taken effect
    ├── Terminal                      trying again as it is can never succeed
    │   ├── NotVerified               signature, timestamp or connection could not be verified
    │   ├── InvalidMessage            malformed or not a message of the contract; names each field
    │   ├── MessageConflict           the same id was sent before with another body
    │   ├── UnknownValue              a well-typed value nobody has mapped yet: quarantine
    │   ├── FieldLocked               a non-owner tried to write a field; names every owner
    │   ├── OperationRefused          a forbidden act on a mirrored record; names who can
    │   ├── NotPermitted              the role lacks the right
    │   ├── NotFound                  no such record in what the caller may see
    │   │   └── NoLongerKept          it was there, and is gone by policy
    │   ├── InvalidRequest            a request or an argument is wrong; names the field
    │   ├── StateConflict             an illegal move of a state, or something exists already
    │   ├── GuardStopped              the blast-radius guard waits for an admin's yes
    │   ├── CannotFetch               the connector has no way to fetch or list
    │   ├── RemoteRefused             the remote refused for good (4xx)
    │   └── ConfigurationError        a setting is wrong; names it
    │       └── NotMigrated           the database stands at another schema than this version's
    └── LeaseLost                     another worker holds the stream now; this one's writes are refused

Programmer errors are assertions with a message and are not in this tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One field that is wrong: where it is, why, and who owns it where ownership is the reason."""

    field: str
    detail: str
    owner: str | None = None


class BssSyncError(Exception):
    """Base of every error that is raised on purpose.

    ``slug`` is the last part of the problem document's stable ``type``; ``next_step`` says what the reader can do.
    """

    slug: ClassVar[str] = "error"
    next_step: ClassVar[str] = "Read the detail and try again."

    def __init__(self, detail: str, *, fields: tuple[FieldProblem, ...] = (), next_step: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = fields
        self.advice = next_step or type(self).next_step


class Transient(BssSyncError):
    """Trying again later may succeed. ``retry_after_seconds`` is the other side's wish, if it had one."""

    slug = "transient"
    next_step = "Wait and try again."

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class DependencyDown(Transient):
    """A server that we need does not answer."""

    slug = "dependency-down"
    next_step = "Nothing was stored. Try again after Retry-After seconds; a message keeps its id."


class SchemaBusy(DependencyDown):
    """A migration needs a lock that others hold for longer than anybody wanted to wait. It left nothing half done."""

    slug = "schema-busy"
    next_step = (
        "End the transaction that is open for so long (pg_stat_activity, xact_start), then again: bss-sync db upgrade"
    )


class Overloaded(Transient):
    """More waits here already than may wait. Nothing was stored."""

    slug = "overloaded"
    next_step = "Nothing was stored. Send the same message again after Retry-After seconds, and fewer at a time."


class RemoteBusy(Transient):
    """The remote BSS asked us to wait."""

    slug = "remote-busy"


class RemoteUnreadable(Transient):
    """The remote answered with success, and what it said cannot be read. Behind a write it may have taken effect."""

    slug = "remote-unreadable"
    next_step = "Look at what the remote, or a proxy before it, answers there; it is tried again."


class RemoteDenied(Transient):
    """The remote does not take our credentials (401, 403): the connection's trouble, and no record's.

    Nothing took effect. Whatever was to be said can be said once the credentials are right.
    """

    slug = "remote-denied"
    next_step = (
        "Give it a key that is valid there: bss-sync connection set NAME --secret NAME=- (or target set); "
        "what waits goes on by itself."
    )


class RemoteUnknown(Transient):
    """The remote's answer was lost. Look up before sending again (domain.md section 7, guarantee 2)."""

    slug = "remote-unknown"


class Terminal(BssSyncError):
    """Trying again as it is can never succeed."""

    slug = "terminal"


class NotVerified(Terminal):
    """The sender could not be verified. An unknown connection looks the same.

    ``cause`` says which part was wrong; it is for the log and never for the sender.
    """

    slug = "not-verified"
    next_step = "Check the connection's id, the signing secret and the clock of the sender; sign the raw body."

    def __init__(self, detail: str = "The sender could not be verified.", *, cause: str = "") -> None:
        super().__init__(detail)
        self.cause = cause


class InvalidMessage(Terminal):
    """Malformed, or not a message of the contract. ``status`` is the HTTP status that says which."""

    slug = "invalid-message"
    next_step = "Correct the named fields and send the message again with the same id."

    def __init__(
        self,
        detail: str,
        *,
        status: int = 422,
        slug: str | None = None,
        fields: tuple[FieldProblem, ...] = (),
        next_step: str | None = None,
    ) -> None:
        super().__init__(detail, fields=fields, next_step=next_step)
        self.status = status
        self.problem_slug = slug or type(self).slug


class MessageConflict(Terminal):
    """The same message id was accepted before with another body."""

    slug = "message-conflict"
    next_step = "Give a changed message a new id. The first body stays in effect."


class UnknownValue(Terminal):
    """A well-typed value outside the canonical set: quarantined, never guessed (domain.md section 6)."""

    slug = "unknown-value"
    next_step = "Map it once: bss-sync connection map CONNECTION FIELD SOURCE_VALUE CANONICAL"

    def __init__(self, field: str, value: str) -> None:
        super().__init__(f"{field} {value!r} is not known", fields=(FieldProblem(field, f"{value!r} is not mapped"),))
        self.field = field
        self.value = value


class FieldLocked(Terminal):
    """A non-owner tried to write. Every locked field and its owner is in ``fields``."""

    slug = "field-locked"
    next_step = "Ask the owner to change it in its own BSS, or let an admin take the field over with a reason."


class OperationRefused(Terminal):
    """An act that only the tenant reseller may do (domain.md section 5)."""

    slug = "operation-refused"
    next_step = "Ask the named reseller: it controls its subscriptions and customers."

    def __init__(self, detail: str, *, owner: str) -> None:
        super().__init__(detail, fields=(FieldProblem("operation", detail, owner),))
        self.owner = owner


class NotPermitted(Terminal):
    """The caller's role lacks the right."""

    slug = "not-permitted"
    next_step = "Use a token whose role has the right."


class NotFound(Terminal):
    """No such record in what the caller may see. A foreign id looks the same."""

    slug = "not-found"
    next_step = "Check the id, and that the token may see it."


class NoLongerKept(NotFound):
    """It was there, and is gone by policy (BSS_SYNC_MESSAGE_DAYS). What it changed stays, and so does the audit."""

    slug = "no-longer-kept"
    next_step = "Read what it did in the record's history and in the audit: bss-sync audit list --message ID"


class InvalidRequest(Terminal):
    """A request or an argument is wrong."""

    slug = "invalid-request"
    next_step = "Correct the named fields."


class StateConflict(Terminal):
    """An illegal move between states, or a thing that exists already."""

    slug = "state-conflict"
    next_step = "Look at the present state first."


class GuardStopped(Terminal):
    """The blast-radius guard stopped a run (domain.md section 7, guarantee 4). ``run_id``: which, where it is known."""

    slug = "guard-stopped"
    next_step = "Look at the run (bss-sync run show ID), then approve or reject it."

    def __init__(self, detail: str, *, next_step: str | None = None, run_id: UUID | None = None) -> None:
        super().__init__(detail, next_step=next_step)
        self.run_id = run_id


class CannotFetch(Terminal):
    """The connector cannot fetch or list."""

    slug = "cannot-fetch"
    next_step = "Give a snapshot: bss-sync reconcile CONNECTION --snapshot FILE"


class RemoteRefused(Terminal):
    """The remote refused for good. ``status`` is its HTTP status."""

    slug = "remote-refused"

    def __init__(self, detail: str, *, status: int) -> None:
        super().__init__(detail)
        self.status = status


class ConfigurationError(Terminal):
    """A setting is wrong. The message begins with its name."""

    slug = "configuration"
    next_step = "Correct the setting and start again."


class NotMigrated(ConfigurationError):
    """The database stands at another schema than this version works with."""

    slug = "not-migrated"
    next_step = "Run: bss-sync db upgrade"


class LeaseLost(BssSyncError):
    """Another worker holds the stream now: nothing of this claim was written."""

    slug = "lease-lost"
    next_step = "Nothing to do: the present holder does the work."
