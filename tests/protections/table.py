"""Every protection of the line, with the test that notices when it is taken out."""

from __future__ import annotations

from tests.protections.comparing import COMPARING
from tests.protections.fairness import FAIRNESS
from tests.protections.hints import HINTS
from tests.protections.lists import LISTS
from tests.protections.loading import LOADING
from tests.protections.order import ORDER
from tests.protections.pages import PAGES
from tests.protections.remotes import REMOTES
from tests.protections.streams import STREAMS

PROTECTIONS = (*ORDER, *COMPARING, *STREAMS, *HINTS, *LOADING, *REMOTES, *PAGES, *LISTS, *FAIRNESS)


def as_markdown() -> list[str]:
    """The lines of the table in docs/testing.md."""
    rows = [(one.name, *one.test.split("::")) for one in PROTECTIONS]
    found = [f"| {name} | `{function}` in `{file.removeprefix('tests/')}` |" for name, file, function in rows]
    return ["| protection | test that fails without it |", "|---|---|", *found]
