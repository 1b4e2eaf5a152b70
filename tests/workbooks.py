"""Writes XLSX workbooks as spreadsheet programs do, for tests of what reads them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_DOCUMENT = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
DATE, MOMENT, ODD_TEXT, MONEY = "1", "2", "3", "4"
"""Styles of cells: a built-in date, a date with a format of its own, a text between quotes, an amount of money."""
_STYLES = f"""{_HEAD}<styleSheet xmlns="{_MAIN}">
<numFmts count="3"><numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd\\ hh:mm:ss"/>
<numFmt numFmtId="165" formatCode="0.00&quot; days&quot;"/>
<numFmt numFmtId="166" formatCode="[$EUR] #,##0.00"/></numFmts>
<cellStyleXfs count="1"><xf numFmtId="14"/></cellStyleXfs>
<cellXfs count="5"><xf numFmtId="0"/><xf numFmtId="14"/><xf numFmtId="164"/><xf numFmtId="165"/><xf numFmtId="166"/>
</cellXfs></styleSheet>"""
Cell = str | int | float | bool | None | tuple[float, str]
"""A tuple is a number with its style."""


def write_workbook(
    file: Path, rows: Iterable[Sequence[Cell]], *, shared: bool = True, year_1904: bool = False, raw: str = ""
) -> None:
    """One sheet. ``shared``: texts stand in their own part, as most programs do it; ``raw``: more XML of rows."""
    texts: dict[str, int] = {}
    flag = ' date1904="1"' if year_1904 else ""
    book = (
        f'{_HEAD}<workbook xmlns="{_MAIN}" xmlns:r="{_DOCUMENT}"><workbookPr{flag}/>'
        '<sheets><sheet name="Export" sheetId="7" r:id="rId3"/><sheet name="Other" sheetId="1" r:id="rId1"/></sheets>'
        "</workbook>"
    )
    relations = (
        f'{_HEAD}<Relationships xmlns="{_PACKAGE}"><Relationship Id="rId1" Target="worksheets/sheet2.xml"/>'
        '<Relationship Id="rId3" Target="/xl/worksheets/sheet1.xml"/></Relationships>'
    )
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", book)
        archive.writestr("xl/_rels/workbook.xml.rels", relations)
        archive.writestr("xl/styles.xml", _STYLES)
        with archive.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as sheet:
            sheet.write(f'{_HEAD}<worksheet xmlns="{_MAIN}"><sheetData>'.encode())
            for number, row in enumerate(rows, start=1):
                places = enumerate(row)
                cells = [_cell(f"{_letters(place)}{number}", cell, texts if shared else None) for place, cell in places]
                sheet.write(f'<row r="{number}">{"".join(cells)}</row>'.encode())
            sheet.write(f"{raw}</sheetData></worksheet>".encode())
        if shared:
            items = "".join(f'<si><t xml:space="preserve">{escape(one)}</t></si>' for one in texts)
            archive.writestr("xl/sharedStrings.xml", f'{_HEAD}<sst xmlns="{_MAIN}">{items}</sst>')


def _cell(place: str, cell: Cell, texts: dict[str, int] | None) -> str:
    if cell is None:
        return f'<c r="{place}"/>'
    if isinstance(cell, bool):
        return f'<c r="{place}" t="b"><v>{int(cell)}</v></c>'
    if isinstance(cell, tuple):
        return f'<c r="{place}" s="{cell[1]}"><v>{cell[0]!r}</v></c>'
    if not isinstance(cell, str):
        return f'<c r="{place}"><v>{cell!r}</v></c>'
    if texts is None:
        return f'<c r="{place}" t="inlineStr"><is><t>{escape(cell)}</t></is></c>'
    return f'<c r="{place}" t="s"><v>{texts.setdefault(cell, len(texts))}</v></c>'


def _letters(place: int) -> str:
    first, second = divmod(place, 26)
    return (chr(64 + first) if first else "") + chr(65 + second)
