"""XLSX: the first sheet's rows as text, whoever wrote the workbook."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import pytest

from bss_sync.domain.errors import InvalidRequest
from bss_sync.pipeline.workbook import BROKEN, SheetRow, read_sheet
from tests.workbooks import DATE, MOMENT, MONEY, ODD_TEXT, Cell, write_workbook


def _read(file: Path) -> list[SheetRow]:
    with file.open("rb") as opened:
        return list(read_sheet(opened))


@pytest.mark.parametrize("shared", [True, False])
def test_cells_are_read_as_the_text_that_was_meant(tmp_path: Path, shared: bool) -> None:
    file = tmp_path / "book.xlsx"
    row: list[Cell] = [
        "Müller & <Co>",
        25,
        2.2999999999999998,
        1e3,
        True,
        False,
        (46023.0, DATE),
        (46023.5, MOMENT),
        None,
    ]
    write_workbook(file, [row, [], [(3.5, ODD_TEXT), (12.5, MONEY), "a_x000D__x005F_b"]], shared=shared)
    first, second = _read(file)
    assert list(first.cells.values()) == [
        "Müller & <Co>", "25", "2.3", "1000", "true", "false", "2026-01-01", "2026-01-01T12:00:00Z"
    ]  # fmt: skip
    assert (second.number, list(second.cells.values())) == (3, ["3.5", "12.5", "a\r_b"])


def test_dates_may_count_from_1904(tmp_path: Path) -> None:
    file = tmp_path / "book.xlsx"
    write_workbook(file, [[(44561.0, DATE)]], year_1904=True)
    assert _read(file)[0].cells == {1: "2026-01-01"}


def test_cells_without_places_and_columns_beyond_z_are_found(tmp_path: Path) -> None:
    file = tmp_path / "book.xlsx"
    raw = '<row><c t="str"><v>one</v></c><c r="AB9" t="str"><v>two</v></c><c><f>1+1</f><v>2</v></c></row>'
    write_workbook(file, [["head"]], raw=raw)
    assert _read(file)[1] == SheetRow(2, {1: "one", 28: "two", 29: "2"})


def test_runs_of_one_text_are_joined_and_phonetic_hints_left_out(tmp_path: Path) -> None:
    file = tmp_path / "book.xlsx"
    runs = "<is><r><t>Cloud </t></r><r><t>Resell</t></r></is>"
    write_workbook(file, [["head"]], raw=f'<row><c t="inlineStr">{runs}</c></row>')
    assert _read(file)[1].cells == {1: "Cloud Resell"}


def test_an_error_in_a_cell_is_a_problem_of_its_row_alone(tmp_path: Path) -> None:
    file = tmp_path / "book.xlsx"
    raw = '<row><c t="e"><v>#N/A</v></c></row><row><c t="s"><v>99</v></c></row><row><c><v>7</v></c></row>'
    write_workbook(file, [["head"]], raw=raw)
    problems = [row.problem for row in _read(file)]
    assert problems == [
        None,
        "column 1: shows the error #N/A",
        "column 1: refers to a text that is not in the workbook",
        None,
    ]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\xd0\xcf\x11\xe0 an old workbook"])
def test_what_is_no_workbook_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "book.xlsx"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match="no XLSX workbook"):
        _read(file)


def test_a_zip_of_something_else_is_no_workbook(tmp_path: Path) -> None:
    file = tmp_path / "book.xlsx"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(InvalidRequest, match=r"xl/workbook\.xml"):
        _read(file)


def test_entities_are_refused_before_they_are_expanded(tmp_path: Path) -> None:
    file = tmp_path / "book.xlsx"
    bomb = '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><workbook>&b;</workbook>'
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", bomb)
    with pytest.raises(InvalidRequest, match="document type"):
        _read(file)


def test_a_damaged_sheet_gives_what_stands_before_the_damage(tmp_path: Path) -> None:
    file = tmp_path / "book.xlsx"
    write_workbook(file, [["head"]] * 5_000, shared=False, raw="<row><c></row>")
    with file.open("rb") as opened:
        found = read_sheet(opened)
        assert next(found).cells == {1: "head"}
        with pytest.raises(BROKEN):
            list(found)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for number in (2_000, 20_000):
        file = tmp_path / f"{number}.xlsx"
        write_workbook(file, [[f"customer {place} with a name", place] for place in range(number)])
        tracemalloc.start()
        with file.open("rb") as opened:
            assert sum(1 for _row in read_sheet(opened)) == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1_500_000, peaks
