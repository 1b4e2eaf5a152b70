"""Files of messages: what ``import`` takes in and what ``reconcile --snapshot`` compares with.

JSON Lines: each line a message of the contract (``{"id", "type", "timestamp", "data"}``; id and timestamp may be
missing) or a record (``{"kind": "account|subscription", "data": {…}}``). CSV: a header with the contract's members and
``kind`` (account or subscription; an account's own kind stands in ``account_kind``) and perhaps ``deleted``; an empty
cell is null, ``characteristics`` is JSON. XLSX: the first sheet, its first row being such a header. Every row is
validated as the door validates a message.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from bss_sync.domain.account import FIELDS as ACCOUNT_FIELDS
from bss_sync.domain.change import Action, Change, Json, Kind, OrderKind
from bss_sync.domain.errors import BssSyncError, InvalidMessage, InvalidRequest
from bss_sync.domain.subscription import FIELDS as SUBSCRIPTION_FIELDS
from bss_sync.pipeline.envelope import parse_request
from bss_sync.pipeline.json_text import digest
from bss_sync.pipeline.workbook import BROKEN, read_sheet
from bss_sync.ports.connector import Observation

LINE_BYTES_MAX = 1024 * 1024
_HEADERS = {"content-type": "application/json"}
_BOOLEANS = {"true": True, "false": False}
_TEXT_THAT_MAY_BE_EMPTY = frozenset({"name"})
_ORDERS = frozenset({"version", "source_updated_at"})
_EVERY = ("id", "version", "source_updated_at", "effective_at")
_MEMBERS: Mapping[str, tuple[str, ...]] = {
    Kind.ACCOUNT: tuple(name for name in ACCOUNT_FIELDS if name != "kind"),
    Kind.SUBSCRIPTION: tuple(name for name in SUBSCRIPTION_FIELDS if name != "source_status"),
}


class FileForm(StrEnum):
    """How a file is written."""

    JSON_LINES = "jsonl"  # one JSON object per line
    CSV = "csv"  # comma-separated, with a header
    XLSX = "xlsx"  # a workbook; its first sheet has a header


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row: its change, or why it is refused. ``line`` counts from 1, a CSV's header included."""

    line: int
    change: Change | None
    refusal: str | None = None


def form_of(name: str) -> FileForm:
    """By the file's name: ``.csv`` is CSV, ``.xlsx`` a workbook, anything else JSON Lines."""
    ending = name.lower().rpartition(".")[2]
    return FileForm(ending) if ending in (FileForm.CSV, FileForm.XLSX) else FileForm.JSON_LINES


class FileRows(Iterator[FileRow]):
    """The rows of a file, read one at a time. ``bytes_read`` of ``bytes_in_all`` tell how far that is."""

    def __init__(self, file: BinaryIO, form: FileForm, now: datetime) -> None:
        self._file = file
        self._lines = None if form is FileForm.XLSX else TextIOWrapper(file, encoding="utf-8-sig", newline="")
        if self._lines is None:
            documents = _sheet(file)
        else:
            documents = _csv(self._lines) if form is FileForm.CSV else _json_lines(self._lines)
        self._rows = _rows(documents, now)
        self.bytes_in_all = os.fstat(file.fileno()).st_size

    def __next__(self) -> FileRow:
        return next(self._rows)

    @property
    def bytes_read(self) -> int:
        """Of the file as it lies on the disk."""
        return self._file.tell()

    def let_go(self) -> None:
        """Nothing more is read; the file is its opener's to close."""
        if self._lines is not None:
            self._lines.detach()


@contextmanager
def open_rows(file: Path, now: datetime) -> Iterator[FileRows]:
    """The rows of a file; its form is told by its name. ``now`` stands for a timestamp that is missing.

    InvalidRequest when the file cannot be read, is not UTF-8 or is no workbook.
    """
    try:
        with file.open("rb") as opened:
            rows = FileRows(opened, form_of(file.name), now)
            try:
                yield rows
            finally:
                rows.let_go()
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file} is not UTF-8.") from None


def _rows(documents: Iterable[tuple[int, dict[str, Json] | str]], now: datetime) -> Iterator[FileRow]:
    for line, document in documents:
        if isinstance(document, str):
            yield FileRow(line, None, document)
            continue
        try:
            yield FileRow(line, _change(document, now))
        except BssSyncError as error:
            problems = "; ".join(f"{problem.field} {problem.detail}" for problem in error.fields)
            yield FileRow(line, None, problems or error.detail)


class Snapshot(Iterator[Observation]):
    """The rows as a listing. InvalidMessage at the first row that is refused: a listing with holes proves nothing."""

    def __init__(self, rows: Iterable[FileRow]) -> None:
        self._rows = iter(rows)
        self._first = next(self._rows, None)

    @property
    def order(self) -> OrderKind | None:
        """How the versions of the file are ordered, as its first row shows it."""
        return None if self._first is None or self._first.change is None else self._first.change.order

    def __next__(self) -> Observation:
        row = self._first or next(self._rows)
        self._first = None
        if row.change is None:
            raise InvalidMessage(f"Line {row.line} of the snapshot is refused: {row.refusal}")
        if row.change.action is Action.NOTIFIED:
            raise InvalidMessage(f"Line {row.line} of the snapshot is a notification; a snapshot holds states.")
        return observation_of(row.change)


def snapshot(rows: Iterable[FileRow]) -> Snapshot:
    """The rows as a listing."""
    return Snapshot(rows)


def observation_of(change: Change) -> Observation:
    """What a change of a file says of its entity."""
    gone = change.action is Action.DELETED
    return Observation(
        kind=change.kind,
        source_id=change.source_id,
        version=change.version,
        body=None if gone else change.body,
        changed_at=change.sent_at,
        effective_at=change.effective_at,
    )


def _json_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Json] | str]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(line) > LINE_BYTES_MAX:
            yield number, "the line is longer than 1 MiB"
            continue
        try:
            document = json.loads(line, parse_float=Decimal)
        except ValueError as error:
            yield number, f"is not JSON: {error}"
            continue
        yield number, document if isinstance(document, dict) else "is not a JSON object"


def _csv(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Json] | str]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        for cells in reader:
            try:
                yield reader.line_num, _record(cells)
            except ValueError as error:
                yield reader.line_num, str(error)
    except csv.Error as error:
        yield reader.line_num, f"is not CSV: {error}"


def _sheet(file: BinaryIO) -> Iterator[tuple[int, dict[str, Json] | str]]:
    header: dict[int, str] | None = None
    number = 0
    try:
        for row in read_sheet(file):
            number = row.number
            if header is None:
                header = {column: name.strip() for column, name in row.cells.items()}
                continue
            try:
                if row.problem is not None:
                    raise ValueError(row.problem)
                if not row.cells.keys() <= header.keys():
                    raise ValueError("has more cells than the header")
                yield number, _record({name: row.cells.get(column, "") for column, name in header.items()})
            except ValueError as error:
                yield number, str(error)
    except BROKEN as error:
        yield number + 1, f"is not XLSX from here on: {error}"


def _record(cells: Mapping[Any, str | list[str] | None]) -> dict[str, Json]:
    if None in cells:
        raise ValueError("has more cells than the header")
    texts = {str(name): cell or "" for name, cell in cells.items() if not isinstance(cell, list)}
    kind = texts.get("kind") or (Kind.SUBSCRIPTION if texts.get("product") else Kind.ACCOUNT)
    if kind not in _MEMBERS:
        raise ValueError("kind must be account or subscription")
    members = [name for name in (*_EVERY, *_MEMBERS[Kind(kind)]) if name in texts]
    data = {name: _cell(name, texts[name]) for name in members if texts[name] or name not in _ORDERS}
    if kind == Kind.ACCOUNT:
        data["kind"] = texts.get("account_kind")
    return {"kind": kind, "deleted": texts.get("deleted", "").lower() == "true", "data": data}


def _cell(name: str, cell: str) -> Json:
    """A cell as the JSON value that its member has. ValueError when it is none."""
    if cell == "":
        return "" if name in _TEXT_THAT_MAY_BE_EMPTY else {} if name == "characteristics" else None
    if name == "version":
        return int(cell) if cell.lstrip("-").isdecimal() else cell
    if name in ("trial", "auto_renew"):
        return _BOOLEANS.get(cell.lower(), cell)
    if name == "quantity":
        try:
            return Decimal(cell)
        except InvalidOperation:
            return cell
    if name == "characteristics":
        try:
            return json.loads(cell, parse_float=Decimal)
        except ValueError as error:
            raise ValueError(f"characteristics is not JSON: {error}") from None
    return cell


def _change(document: Mapping[str, Json], now: datetime) -> Change:
    message = dict(document)
    if "type" not in message:
        kind, gone = message.pop("kind", None), message.pop("deleted", False)
        message["type"] = f"{kind}.{'deleted' if gone else 'updated'}"
    # The same record in another file, or later, is the same message: its time is not part of it.
    fingerprint = digest({"type": message["type"], "data": message.get("data")}, "row")
    named = "id" in message
    message.setdefault("id", f"import:{fingerprint[:16].hex()}")
    message.setdefault("timestamp", now.isoformat())
    # The row goes through the very validation of the door, as an element of an array.
    (change,) = parse_request(_HEADERS, json.dumps([message], default=_number).encode(), "import").changes
    return change if named else replace(change, digest=fingerprint)


def _number(value: object) -> float | int:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
