"""The table of protections cannot rot: each is still where it was, and so is the test that notices its absence.

Whether it does notice is played by ``make protections``.
"""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.protections.protection import ROOT, Protection
from tests.protections.table import PROTECTIONS, as_markdown


def _named(one: Protection) -> str:
    return one.name


@pytest.mark.parametrize("protection", PROTECTIONS, ids=_named)
def test_a_protection_is_where_it_was_and_has_its_test(protection: Protection) -> None:
    assert protection.occurrences() == 1, (
        f"tests/protections names a text that is not exactly once in {protection.file}"
    )
    assert protection.text not in protection.without or protection.without.startswith(protection.text + "\n")
    file, _, function = protection.test.partition("::")
    module = ast.parse((ROOT / file).read_text())
    assert function in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}


def test_every_protection_has_a_name_of_its_own() -> None:
    assert Counter(one.name for one in PROTECTIONS).most_common(1)[0][1] == 1


def test_the_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    assert "\n".join(as_markdown()) in page, "run: python -m tests.protections --table, and put it into docs/testing.md"
