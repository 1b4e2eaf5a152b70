"""Workbooks: the rows of an XLSX file's first sheet, one at a time, in bounded memory. Read only, no library.

A workbook is a zip of XML parts (ECMA-376, Office Open XML). Most texts of a sheet stand in a part of their own, which
the sheet refers to by number: they are unpacked into a temporary file, so that a million of them cost no memory. A date
is a number with a format that shows a date. Document types and entities are refused: no workbook needs them.
"""

from __future__ import annotations

import mmap
import re
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from posixpath import join, normpath
from typing import IO, BinaryIO
from xml.parsers import expat

from bss_sync.domain.errors import InvalidRequest

_PIECE_BYTES = 1 << 16
_CELL_CHARACTERS_MAX = 1 << 20
"""Excel allows 32,767."""
_DATE_FORMATS = frozenset({*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)})
"""Numbers of the built-in formats that show dates or times."""
_NOT_A_DATE = re.compile(r'"[^"]*"|\\.|_.|\*.|\[(?![hms]+\])[^\]]*\]', re.IGNORECASE)
_DATE_LETTERS = re.compile("[dmyhs]", re.IGNORECASE)
_ESCAPED = re.compile("_x([0-9A-Fa-f]{4})_")
_REFERENCE = re.compile("([A-Z]{1,3})([0-9]+)")
_DAY_ZERO, _DAY_ZERO_1904 = datetime(1899, 12, 30, tzinfo=UTC), datetime(1904, 1, 1, tzinfo=UTC)
_NAMESPACE = "}"
BROKEN = (zipfile.BadZipFile, zlib.error, expat.ExpatError, EOFError, NotImplementedError)
"""What a damaged workbook raises while it is read."""


@dataclass(slots=True)
class SheetRow:
    """One row that is not empty. ``cells`` by the number of their column; both numbers count from 1.

    ``problem``: why it cannot be read, where a cell shows an error or is damaged.
    """

    number: int
    cells: dict[int, str] = field(default_factory=dict)
    problem: str | None = None


def read_sheet(file: BinaryIO) -> Iterator[SheetRow]:
    """The rows of the first sheet, with their cells as text.

    Whole numbers without a fraction, booleans as true and false, dates as YYYY-MM-DD, moments in UTC. InvalidRequest
    for what is no workbook; one of ``BROKEN`` where it is damaged further in.
    """
    try:
        book = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise InvalidRequest(f"It is no XLSX workbook: {error}.", next_step="Save it as .xlsx, or as CSV.") from None
    with book, tempfile.TemporaryFile() as kept:
        try:
            sheet, day_zero = _first_sheet(book)
            shared = _SharedTexts(book, kept)
            dates = _date_styles(book)
            part = book.open(sheet)
        except KeyError as error:
            raise InvalidRequest(f"It is no XLSX workbook: {error.args[0]}.") from None
        with part:
            yield from _Sheet(shared.text_of, dates, day_zero).rows(part)


class _Part:
    """An XML part, read piece by piece; names without their namespace."""

    def __init__(self) -> None:
        self._parser = expat.ParserCreate(namespace_separator=_NAMESPACE)
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self.text
        self._parser.StartDoctypeDeclHandler = _refuse

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self.begin(name.rpartition(_NAMESPACE)[2], attributes)

    def _end(self, name: str) -> None:
        self.end(name.rpartition(_NAMESPACE)[2])

    def begin(self, name: str, attributes: dict[str, str]) -> None:
        """An element begins."""

    def end(self, name: str) -> None:
        """An element ends."""

    def text(self, data: str) -> None:
        """Text within one."""

    def read(self, part: IO[bytes]) -> Iterator[None]:
        """Parse; a step for each piece."""
        while piece := part.read(_PIECE_BYTES):
            self._parser.Parse(piece, False)
            yield
        self._parser.Parse(b"", True)
        yield


def _refuse(*_given: object) -> None:
    raise InvalidRequest("It is no XLSX workbook: it declares a document type.")


def _attribute(attributes: dict[str, str], wanted: str) -> str | None:
    """By its name without namespace."""
    return next((value for name, value in attributes.items() if name.rpartition(_NAMESPACE)[2] == wanted), None)


class _Attributes(_Part):
    """The attributes of every element of a small part."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []

    def begin(self, name: str, attributes: dict[str, str]) -> None:
        """See _Part."""
        self.found.append((name, attributes))


def _elements(book: zipfile.ZipFile, name: str) -> list[tuple[str, dict[str, str]]]:
    part = _Attributes()
    with book.open(name) as opened:
        for _ in part.read(opened):
            pass
    return part.found


def _first_sheet(book: zipfile.ZipFile) -> tuple[str, datetime]:
    """The part of the first sheet, and the day that dates count from."""
    elements = _elements(book, "xl/workbook.xml")
    old = any(name == "workbookPr" and attributes.get("date1904") in ("1", "true") for name, attributes in elements)
    number = next((_attribute(attributes, "id") for name, attributes in elements if name == "sheet"), None)
    for name, attributes in _elements(book, "xl/_rels/workbook.xml.rels"):
        if name == "Relationship" and number is not None and attributes.get("Id") == number:
            target = attributes.get("Target", "")
            path = target[1:] if target.startswith("/") else normpath(join("xl", target))
            return path, _DAY_ZERO_1904 if old else _DAY_ZERO
    raise InvalidRequest("The workbook has no sheet.")


def _date_styles(book: zipfile.ZipFile) -> frozenset[str]:
    """The numbers of the cell styles that show dates."""
    try:
        elements = _elements(book, "xl/styles.xml")
    except KeyError:
        return frozenset()
    dates, styles, inside = {str(number) for number in _DATE_FORMATS}, [], False
    for name, attributes in elements:
        if name == "numFmt":
            shown = _NOT_A_DATE.sub("", attributes.get("formatCode", ""))
            (dates.add if _DATE_LETTERS.search(shown) else dates.discard)(attributes.get("numFmtId", ""))
        elif name in ("cellXfs", "cellStyles", "dxfs"):
            inside = name == "cellXfs"
        elif name == "xf" and inside:
            styles.append(attributes.get("numFmtId", "0"))
    return frozenset(str(number) for number, shown in enumerate(styles) if shown in dates)


class _SharedTexts(_Part):
    """The texts that cells refer to by number, in a file of their own."""

    def __init__(self, book: zipfile.ZipFile, kept: IO[bytes]) -> None:
        super().__init__()
        self._kept = kept
        self._ends = array("Q", [0])
        self._pieces: list[str] | None = None
        self._shown = self._phonetic = False
        with suppress(KeyError), book.open("xl/sharedStrings.xml") as part:
            for _ in self.read(part):
                pass
        kept.flush()
        self._map = mmap.mmap(kept.fileno(), 0, access=mmap.ACCESS_READ) if self._ends[-1] else b""

    def begin(self, name: str, attributes: dict[str, str]) -> None:  # noqa: ARG002 - the shape is _Part's
        """See _Part. Phonetic runs are hints for a reader, and no part of the text."""
        if name == "si":
            self._pieces = []
        elif name == "rPh":
            self._phonetic = True
        elif name == "t":
            self._shown = not self._phonetic

    def text(self, data: str) -> None:
        """See _Part."""
        if self._shown and self._pieces is not None:
            self._pieces.append(data)

    def end(self, name: str) -> None:
        """See _Part."""
        if name == "t":
            self._shown = False
        elif name == "rPh":
            self._phonetic = False
        elif name == "si" and self._pieces is not None:
            written = _unescaped("".join(self._pieces)).encode("utf-8", "surrogatepass")
            self._kept.write(written)
            self._ends.append(self._ends[-1] + len(written))
            self._pieces = None

    def text_of(self, number: int) -> str:
        """The text of that number. ValueError when there is none."""
        if not 0 <= number < len(self._ends) - 1:
            raise ValueError("refers to a text that is not in the workbook")
        return bytes(self._map[self._ends[number] : self._ends[number + 1]]).decode("utf-8", "surrogatepass")


class _Sheet(_Part):
    """The rows of a sheet."""

    def __init__(self, shared: Callable[[int], str], dates: frozenset[str], day_zero: datetime) -> None:
        super().__init__()
        self._shared, self._dates, self._day_zero = shared, dates, day_zero
        self._done: list[SheetRow] = []
        self._row = SheetRow(0)
        self._column = 0
        self._kind = self._style = ""
        self._pieces: list[str] | None = None

    def rows(self, part: IO[bytes]) -> Iterator[SheetRow]:
        """Each row, as soon as it is read."""
        for _ in self.read(part):
            yield from self._done
            self._done.clear()

    def begin(self, name: str, attributes: dict[str, str]) -> None:
        """See _Part."""
        if name in ("v", "t"):
            self._pieces = []
        elif name == "c":
            self._column += 1
            place = _REFERENCE.fullmatch(attributes.get("r", ""))
            if place is not None:
                self._column = _column(place[1])
            self._kind, self._style = attributes.get("t", "n"), attributes.get("s", "0")
        elif name == "row":
            number = attributes.get("r", "")
            self._row = SheetRow(int(number) if number.isdecimal() else self._row.number + 1)
            self._column = 0

    def text(self, data: str) -> None:
        """See _Part."""
        if self._pieces is not None:
            self._pieces.append(data)

    def end(self, name: str) -> None:
        """See _Part."""
        if name in ("v", "t") and self._pieces is not None:
            written, self._pieces = "".join(self._pieces), None
            if written:
                self._take(written)
        elif name == "row" and (self._row.cells or self._row.problem):
            self._done.append(self._row)

    def _take(self, written: str) -> None:
        """A cell's text, or a run of it."""
        row, column = self._row, self._column
        try:
            if len(written) > _CELL_CHARACTERS_MAX:
                raise ValueError("is longer than 1 MiB")
            row.cells[column] = row.cells.get(column, "") + self._shown(written)
        except (ValueError, OverflowError) as error:
            row.problem = row.problem or f"column {column}: {error}"

    def _shown(self, written: str) -> str:
        if self._kind == "s":
            return self._shared(int(written))
        if self._kind == "n":
            return self._number_of(written)
        if self._kind == "b":
            return "true" if written == "1" else "false"
        if self._kind == "e":
            raise ValueError(f"shows the error {written}")
        return written if self._kind == "d" else _unescaped(written)

    def _number_of(self, written: str) -> str:
        if self._style in self._dates:
            return _moment(float(written), self._day_zero)
        if written.isdecimal():
            return written
        number = float(written)
        # The shortest number that is this one: 2.2999999999999998 was typed as 2.3.
        return str(int(number)) if number.is_integer() else repr(number)


def _column(letters: str) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - 64
    return number


def _moment(days: float, day_zero: datetime) -> str:
    moment = day_zero + timedelta(seconds=round(days * 86_400))
    return moment.date().isoformat() if days == int(days) else moment.isoformat().replace("+00:00", "Z")


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "_x" in text else text
