"""The peer of a first load: dlt, ``merge`` with the strategy ``upsert``, from the same listing over HTTP.

Run as ``python -m bench.dlt_load SOURCE_URL POSTGRES_URL FOLDER [CHANGES_CURSOR]``; with a cursor it reads the feed of
changes from there instead of the whole listing. It prints one line of JSON with the seconds of its run. It was written
to be fast: pages are yielded whole, nested objects stay one JSON column, nothing is asked over the network.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import orjson

PAGE_SIZE = 1000
_NAMES = {"account": "accounts", "subscription": "subscriptions"}
# Types that a table would not show by itself while every value is null.
_TEXT: dict[str, Any] = {"data_type": "text", "nullable": True}
_COLUMNS: dict[str, dict[str, Any]] = {
    "account": {"parent_id": _TEXT, "number": _TEXT, "email": _TEXT},
    "subscription": {
        "parent_id": _TEXT,
        "cancellation_date": _TEXT,
        "end_date": _TEXT,
        "characteristics": {"data_type": "json"},
    },
}


class _Reader:
    """The pages of a source, over one kept-alive connection."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port)

    def get(self, path: str) -> Any:
        self._connection.request("GET", path)
        return orjson.loads(self._connection.getresponse().read())

    def listing(self, kind: str) -> Iterator[list[dict[str, Any]]]:
        after: str | None = ""
        while after is not None:
            page = self.get(f"/{_NAMES[kind]}?after={quote(after)}&limit={PAGE_SIZE}")
            yield page["items"]
            after = page["next"]

    def changes(self, cursor: str) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        more = True
        while more:
            page = self.get(f"/changes?cursor={cursor}&limit={PAGE_SIZE}")
            yield [(one["kind"], one["record"]) for one in page["changes"]]
            cursor, more = page["cursor"], page["more"]


def run(source_url: str, postgres_url: str, folder: str, cursor: str | None) -> float:
    """Load, and return the seconds from the pipeline's making to its end."""
    os.environ.update(
        {
            "RUNTIME__DLTHUB_TELEMETRY": "false",
            "RUNTIME__LOG_LEVEL": "ERROR",
            "DESTINATION__POSTGRES__CREDENTIALS": postgres_url,
            "DLT_DATA_DIR": folder,
        }
    )
    import dlt

    started = time.perf_counter()
    resources = []
    for kind, name in _NAMES.items():
        reader = _Reader(source_url)
        pages = (
            reader.listing(kind)
            if cursor is None
            else ([record for one, record in page if one == kind] for page in reader.changes(cursor))
        )
        resources.append(
            dlt.resource(
                pages,
                name=name,
                primary_key="id",
                columns=_COLUMNS[kind],
                write_disposition={"disposition": "merge", "strategy": "upsert"},
                max_table_nesting=0,
            )
        )
    pipeline = dlt.pipeline("load", pipelines_dir=folder, destination="postgres", dataset_name="mirror")
    pipeline.run(resources).raise_on_failed_jobs()
    return time.perf_counter() - started


if __name__ == "__main__":
    seconds = run(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
    sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")
