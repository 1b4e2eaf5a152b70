"""What routes have in common: who asks, how far they see, which part of a list, and bodies read strictly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Path, Query, Request
from pydantic import AfterValidator, BeforeValidator
from sqlalchemy import Connection

from bss_sync.adapters.sql.reading.context import read_installation
from bss_sync.adapters.sql.reading.paging import LIMIT_DEFAULT, LIMIT_MAX, Paging, is_uuid
from bss_sync.adapters.sql.reading.reach import Reach
from bss_sync.adapters.sql.reading.records import RecordFilter
from bss_sync.domain.change import Json
from bss_sync.domain.errors import FieldProblem, InvalidMessage, InvalidRequest, NotFound, NotPermitted
from bss_sync.domain.moment import AsOf, parse_as_of, parse_since
from bss_sync.domain.permissions import Right
from bss_sync.domain.tenancy import Role
from bss_sync.pipeline.json_text import read_json
from bss_sync.web.auth import Principal, require

BODY_DEPTH_MAX = 8
BODY_BYTES_MAX = 256 * 1024
_JSON_TYPES = ("application/json", "application/merge-patch+json")


def _storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not hold U+0000")
    return value


Text = Annotated[str, AfterValidator(_storable)]
"""Text that PostgreSQL can hold."""

Words = Annotated[Text, Query(max_length=1000)]
"""Text that a caller gives as a filter."""

Reader = Annotated[Principal, Depends(require(Right.READ))]
Editor = Annotated[Principal, Depends(require(Right.EDIT_OWN))]
Replayer = Annotated[Principal, Depends(require(Right.REPLAY))]
Administrator = Annotated[Principal, Depends(require(Right.ADMINISTER))]


def _staff(caller: Reader) -> Principal:
    if caller.role is Role.RESELLER:
        raise NotPermitted("This is the distributor's own and not shown to resellers.")
    return caller


Staff = Annotated[Principal, Depends(_staff)]
"""The distributor's people: contacts, activities, runs and differences are theirs alone."""


def reach_of(caller: Principal) -> Reach:
    """How far a caller sees."""
    return Reach(caller.tenant_id, caller.connection_id)


def _id(name: str) -> Callable[[str], UUID]:
    def parse(value: str) -> UUID:
        if not is_uuid(value):
            raise NotFound(f"There is no {name} {value[:100]!r}.")
        return UUID(value)

    return parse


_EXAMPLE_ID = "0d9cc8c1-4f8b-5c0e-9a53-2f6f1f0f9a11"


def _path_id(alias: str) -> Any:
    return Path(alias=alias, examples=[_EXAMPLE_ID])


RecordId = Annotated[UUID, BeforeValidator(_id("record")), _path_id("id")]
RelationId = Annotated[UUID, BeforeValidator(_id("entry")), _path_id("relation_id")]
MessageId = Annotated[UUID, BeforeValidator(_id("message")), _path_id("id")]
RunId = Annotated[UUID, BeforeValidator(_id("run")), _path_id("id")]
TokenId = Annotated[UUID, BeforeValidator(_id("token")), _path_id("id")]


def _paging(
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Rows on a page.")] = LIMIT_DEFAULT,
    cursor: Annotated[
        Words | None, Query(description="`next_cursor` of an earlier page; repeat the other parameters with it.")
    ] = None,
) -> Paging:
    return Paging(limit, cursor)


PagingQuery = Annotated[Paging, Depends(_paging)]

Since = Annotated[
    Words | None,
    Query(description="RFC 3339 timestamp, or a date: its beginning in the distributor's time zone. Inclusive."),
]


class AsOfQuery:
    """The bitemporal parameters, not read yet: that needs the distributor's time zone."""

    def __init__(
        self,
        as_of: Annotated[
            Words | None,
            Query(description="What was in effect then. A bare date is the end of that day."),
        ] = None,
        recorded_as_of: Annotated[
            Words | None,
            Query(description="As far as it had been recorded then; default now."),
        ] = None,
    ) -> None:
        self.as_of = as_of
        self.recorded_as_of = recorded_as_of

    def read(self, connection: Connection) -> AsOf | None:
        """The question; None asks for the present. InvalidRequest names the parameter."""
        if self.as_of is None and self.recorded_as_of is None:
            return None
        own = read_installation(connection)
        return parse_as_of(self.as_of, self.recorded_as_of, own.time_zone, own.now)


MomentQuery = Annotated[AsOfQuery, Depends(AsOfQuery)]


class RecordQuery:
    """The filters of record lists, not read yet."""

    def __init__(
        self,
        connection: Annotated[Words | None, Query(description="A connection's id or name.")] = None,
        source_id: Annotated[Words | None, Query(description="The source's own id, compared exactly.")] = None,
        state: Annotated[
            Words | None, Query(description="live, ended, deleted or orphaned (its account or parent is deleted).")
        ] = None,
        updated_since: Since = None,
        include_deleted: Annotated[
            bool, Query(description="Tombstones too. Whoever follows a list by its cursor wants them.")
        ] = False,
    ) -> None:
        self._words = (connection, source_id, state)
        self._since = updated_since
        self._include_deleted = include_deleted

    def read(self, database: Connection) -> RecordFilter:
        """The filter; InvalidRequest names the parameter."""
        connection, source_id, state = self._words
        return RecordFilter(connection, source_id, state, read_since(database, self._since), self._include_deleted)


def read_since(connection: Connection, since: str | None) -> Any:
    """``updated_since`` as a moment, or None."""
    if since is None:
        return None
    return parse_since(since, read_installation(connection).time_zone, field="updated_since")


async def _json_object(request: Request) -> dict[str, Json]:
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type not in _JSON_TYPES:
        raise InvalidMessage("The body must be application/json.", status=415, next_step="Send JSON.")
    body = await request.body()
    if len(body) > BODY_BYTES_MAX:
        raise InvalidMessage(f"The body is longer than {BODY_BYTES_MAX // 1024} KiB.", status=413)
    document = read_json(body or b"{}", BODY_DEPTH_MAX)
    if not isinstance(document, dict):
        raise InvalidRequest("The body must be a JSON object.", fields=(FieldProblem("body", "must be an object"),))
    return document


JsonObject = Annotated[dict[str, Any], Depends(_json_object)]
"""A body, with fractions as Decimal; none at all is an empty object.

Strict: repeated members, NaN and text that cannot be stored are refused.
"""


def one_of(document: dict[str, Json], required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """InvalidRequest that names each member of a body which is missing or unknown."""
    missing = [FieldProblem(name, "is required") for name in required if name not in document]
    unknown = [FieldProblem(name[:100], "is unknown") for name in document if name not in (*required, *optional)]
    if missing or unknown:
        names = ", ".join(problem.field for problem in (*missing, *unknown)[:20])
        raise InvalidRequest(f"Members missing or unknown: {names}.", fields=(*missing, *unknown))


def text_of(document: dict[str, Json], name: str, *, default: str | None = None, characters_max: int = 1000) -> str:
    """A member that must be text."""
    value = document.get(name, default)
    if not isinstance(value, str) or not value.strip() or len(value) > characters_max:
        detail = f"must be text of 1 to {characters_max} characters"
        raise InvalidRequest(f"{name} {detail}.", fields=(FieldProblem(name, detail),))
    return value
