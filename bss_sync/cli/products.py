"""``bss-sync product``: the catalogue decides what is in scope."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import ConnectionName, SomeConnection, example, group
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import actor, opened
from bss_sync.domain.errors import FieldProblem, InvalidRequest

if TYPE_CHECKING:
    from bss_sync.adapters.sql.admin.products import Added, NewProduct
    from bss_sync.bootstrap import App

commands = group("product", "The catalogue: it decides which subscriptions are mirrored.")

Code = Annotated[str, typer.Argument(metavar="CODE", help="The distributor's product code.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(commands)


@commands.command("add", epilog=example("product add M365-BUS-PREM --name 'Microsoft 365 Business Premium'"))
def add(
    code: Code,
    name: Annotated[str | None, typer.Option("--name", help="What people call it; default: the code.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add a product, or bring a retired one back. What was waiting for it enters the mirror."""
    from bss_sync.adapters.sql.admin.products import NewProduct

    _add([NewProduct(code, name or code)], as_json)


@commands.command("import", epilog=example("product import catalogue.csv", "product import catalogue.jsonl"))
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV with a header, JSON lines or a JSON array.")],
    as_json: AsJson = False,
) -> None:
    """Add many products: columns or members `code` and, if you like, `name`. All or nothing."""
    _add(list(_read(file)), as_json)


def _add(products: list[NewProduct], as_json: bool) -> None:
    from bss_sync.adapters.sql.admin import products as catalogue

    with opened() as app:
        with app.database.engine() as sql:
            added = catalogue.add(sql, products, actor=actor())
        _wake(app, added)
    _tell(added, as_json, "product")


def _wake(app: App, added: Added) -> None:
    for shard in added.shards:
        app.wake.process(shard)


def _tell(added: Added, as_json: bool, what: str) -> None:
    if as_json:
        output.emit_json({"added": added.added, "unchanged": added.unchanged, "released": added.released})
        return
    plural = "" if added.added == 1 else "s"
    output.say(f"{added.added} {what}{plural} added or changed, {added.unchanged} as they were")
    if added.released:
        output.say(f"{output.counted(added.released, 'subscription')} out of scope decided anew")


def _read(file: Path) -> Iterator[NewProduct]:
    """The products of a file. InvalidRequest names the line."""
    from bss_sync.adapters.sql.admin.products import NewProduct

    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} cannot be read: {error}.") from None
    rows = _json_rows(file, text) if text.lstrip()[:1] in ("{", "[") else _csv_rows(file, text)
    for place, row in rows:
        code, name = row.get("code"), row.get("name")
        if not isinstance(code, str) or not code:
            raise InvalidRequest(f"{file}: {place} has no code.", fields=(FieldProblem("code", f"missing in {place}"),))
        yield NewProduct(code, str(name) if name else code)


def _json_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import json

    try:
        if text.lstrip().startswith("["):
            rows = list(enumerate(json.loads(text), 1))
        else:
            rows = [(number, json.loads(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    except ValueError as error:
        raise InvalidRequest(f"{file} is no JSON: {error}.") from None
    for number, row in rows:
        if not isinstance(row, dict):
            raise InvalidRequest(f"{file}: element {number} is no object.")
        yield f"element {number}", row


def _csv_rows(file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import csv
    import io

    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=";" if ";" in head and "," not in head else ",")
    names = [name.strip().lower() for name in reader.fieldnames or []]
    if "code" not in names:
        raise InvalidRequest(
            f"{file}: the header has no column code.",
            fields=(FieldProblem("code", f"found: {', '.join(names) or 'nothing'}"),),
        )
    for row in reader:
        cleaned = {str(key).strip().lower(): (value or "").strip() for key, value in row.items() if key}
        yield f"line {reader.line_num}", cleaned


@commands.command("retire")
def retire(code: Code, as_json: AsJson = False) -> None:
    """Let nothing new in. What has entered stays and keeps following its source."""
    from bss_sync.adapters.sql.admin import products

    with opened() as app, app.database.engine() as sql:
        product = products.retire(sql, code, actor=actor())
    if as_json:
        output.emit_json(product)
        return
    output.say(f"{code} is retired; {product.subscriptions} subscriptions that have entered stay")


@commands.command("list")
def list_products(
    maps: Annotated[bool, typer.Option("--maps", help="Show which source codes stand for which codes.")] = False,
    connection: SomeConnection = None,
    as_json: AsJson = False,
) -> None:
    """Show the catalogue, or with --maps the mapped codes."""
    from bss_sync.adapters.sql.admin import connections, products

    with opened() as app, app.database.engine() as sql:
        if maps or connection is not None:
            source = None if connection is None else connections.find(sql, connection)
            mapped = products.list_maps(sql, None if source is None else source.id)
            if as_json:
                output.emit_json({"items": mapped})
                return
            rows = ([item.connection, item.source_code, item.code] for item in mapped)
            output.show_table(["connection", "source code", "code"], rows, empty="No source code is mapped.")
            return
        found = products.list_all(sql)
    if as_json:
        output.emit_json({"items": found})
        return
    output.show_table(
        ["code", "subscriptions#", "retired", "name"],
        ([item.code, item.subscriptions, item.retired_at, item.name] for item in found),
        empty="The catalogue is empty, so nothing is in scope. Add a product: bss-sync product add CODE",
    )


@commands.command("map", epilog=example("product map cloud-resell PROD-881 M365-BUS-PREM"))
def map_code(
    connection: ConnectionName,
    source_code: Annotated[str, typer.Argument(metavar="SOURCE_CODE", help="What the reseller's BSS calls it.")],
    code: Code,
    as_json: AsJson = False,
) -> None:
    """Let a reseller's own code stand for one of the distributor's."""
    from bss_sync.adapters.sql.admin import connections, products

    with opened() as app:
        with app.database.engine() as sql:
            source = connections.find(sql, connection, lock=True)
            added = products.map_code(sql, source, source_code, code, actor=actor())
        _wake(app, added)
    if as_json:
        output.emit_json({"source_code": source_code, "code": code, "released": added.released})
        return
    waiting = output.counted(added.released, "waiting subscription")
    output.say(f"{source_code} of {source.name} is {code}; {waiting} decided anew")
