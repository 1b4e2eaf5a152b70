"""How answers are written: JSON, lists as CSV where asked for, and how OpenAPI shows them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from bss_sync.adapters.sql.reading.paging import Page

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def list_answer(request: Request, page: Page) -> Response:
    """A page as JSON, or as CSV for ``Accept: text/csv`` (the cursor is then in the header ``X-Next-Cursor``)."""
    if "text/csv" not in request.headers.get("accept", ""):
        return JSONResponse(page.as_json())
    headers = {"X-Next-Cursor": page.next_cursor, "X-Has-More": str(page.has_more).lower(), "Vary": "Accept"}
    return Response(_csv(page), media_type="text/csv; charset=utf-8", headers=headers)


def _csv(page: Page) -> str:
    columns = list(dict.fromkeys(name for item in page.items for name in item))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(item.get(name)) for name in columns] for item in page.items)
    return out.getvalue()


def _cell(value: Any) -> str:
    """Text that a spreadsheet would run as a formula is quoted with an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) else value
    return json.dumps(value, ensure_ascii=False)


def shows(
    example: Any, status: int = 200, description: str = "Done", *, csv_too: bool = False
) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI of an answer, with its example."""
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}, "example": example}}
    if csv_too:
        content["text/csv"] = {"schema": {"type": "string"}}
    return {status: {"description": description, "content": content}}


def shows_list(example: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI of a list."""
    page = {"items": [example], "next_cursor": "WyJhY2NvdW50cyIsMTAsWyIwIl0sbnVsbF0", "has_more": False}
    return shows(page, description="One page, in the order of changes", csv_too=True)


def takes(schema: Mapping[str, Any], example: Any, *, required: bool = True) -> dict[str, Any]:
    """The OpenAPI of a body that is read by hand."""
    content = {"application/json": {"schema": dict(schema), "example": example}}
    return {"requestBody": {"required": required, "content": content}}


def an_object(required: tuple[str, ...] = (), **properties: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a strict object."""
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema
