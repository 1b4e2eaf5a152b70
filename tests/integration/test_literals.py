"""Lists written as PostgreSQL reads them; what no jsonb can hold becomes null, and nothing else does."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from bss_sync.adapters.sql.database import Database as SqlDatabase
from bss_sync.adapters.sql.literals import json_array, number_array, text_array

_WORDS = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]))


@given(st.lists(_WORDS))
def test_contents_are_as_they_were(words: list[str]) -> None:
    contents = [{"word": word, "number": number, "list": [word, None, 1.5, True]} for number, word in enumerate(words)]
    assert json.loads(json_array(contents)) == contents


@pytest.mark.parametrize("beyond", ["\x00", "\ud800", 2**70], ids=["U+0000", "half a pair", "a long number"])
def test_what_no_jsonb_can_hold_is_null_and_its_neighbours_are_not(beyond: Any) -> None:
    assert json.loads(json_array([{"a": 1}, {"a": beyond}, {"a": "b"}])) == [{"a": 1}, None, {"a": "b"}]


def test_numbers_may_be_unknown() -> None:
    assert number_array([1, None, -3, 2**62]) == f"{{1,NULL,-3,{2**62}}}"
    assert number_array([]) == "{}"


ODD = [
    ["a", "b"],
    ['"'],
    ["\\"],
    ['a","b', "c"],
    ["", " ", "null", "NULL", "{}", ","],
    ["ä", "\t", "\n"],
    [],
    ['\\"', '"'],
]


def test_words_come_back_from_postgresql_as_they_were(database: Any) -> None:
    with psycopg.connect(database.superuser_url.replace("+psycopg", "")) as connection:
        for words in ODD:
            (found,) = connection.execute("select cast(%s as text[])", [text_array(words)]).fetchone() or ([],)
            assert found == words


DOCUMENTS = [
    "[1, 1.0, -0, 0.1, 1e300, 1e-7]",
    f"[{2**70}, -{2**63}, 1e400]",
    '{"a": "ä\\ud83d\\ude00", "b": [null, true]}',
]


def test_documents_come_back_from_postgresql_as_the_standard_library_reads_them(database: Any) -> None:
    pools = SqlDatabase(database.login_url)
    with pools.engine() as connection:
        for written in DOCUMENTS:
            values = {"written": written}
            read = text("select cast(:written as jsonb), cast(cast(:written as jsonb) as text)")
            found, told = connection.execute(read, values).one()
            assert repr(found) == repr(json.loads(told))
    pools.dispose()
