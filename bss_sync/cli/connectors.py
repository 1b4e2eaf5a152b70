"""``bss-sync connector``: which systems can be connected, with which settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import Secrets, Sets, example, group
from bss_sync.cli.output import AsJson
from bss_sync.cli.session import pairs, secrets_of

if TYPE_CHECKING:
    from bss_sync.ports.connector import Capabilities, ConnectorSpec

commands = group("connector", "The installed connectors: list, show, test.")

ConnectorName = Annotated[str, typer.Argument(metavar="K", help="The connector's name.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    app.add_typer(commands)


def _can(capabilities: Capabilities) -> list[str]:
    names = ("push", "hooks", "fetch", "list", "poll", "target")
    return [name for name in names if getattr(capabilities, name)]


@commands.command("list")
def list_connectors(as_json: AsJson = False) -> None:
    """Show what is installed, and what each can do."""
    from bss_sync.bootstrap import Connectors

    found = list(Connectors().values())
    if as_json:
        items = [{"name": spec.name, "title": spec.title, "capabilities": _can(spec.capabilities)} for spec in found]
        output.emit_json({"items": items})
        return
    output.show_table(
        ["name", "title", "can"],
        ([spec.name, spec.title, ", ".join(_can(spec.capabilities))] for spec in found),
        empty="No connector is installed: install bss-sync again.",
    )


@commands.command("show")
def show(connector: ConnectorName, as_json: AsJson = False) -> None:
    """Show one: its settings with their defaults, and the secrets that it takes."""
    from bss_sync.bootstrap import Connectors

    spec = Connectors().require(connector)
    schema = spec.config.model_json_schema()
    if as_json:
        output.emit_json(
            {
                "name": spec.name,
                "title": spec.title,
                "capabilities": _can(spec.capabilities),
                "order": spec.capabilities.order,
                "secrets": list(spec.secret_names),
                "settings": schema,
            }
        )
        return
    output.show_facts(
        {
            "name": spec.name,
            "title": spec.title,
            "can": ", ".join(_can(spec.capabilities)),
            "order": spec.capabilities.order or "as each sender says",
            "secrets": ", ".join(spec.secret_names),
        }
    )
    output.say("")
    required = set(schema.get("required", ()))
    output.show_table(
        ["setting", "default", "meaning"],
        (
            [name, "(needed)" if name in required else output.shown(one.get("default")), one.get("description")]
            for name, one in schema["properties"].items()
        ),
        empty="No settings.",
    )


@commands.command(
    "test",
    epilog=example(
        "connector test simulator --set base_url=http://127.0.0.1:9000 --set allow_http_private=true",
        "connector test stripe --secret api_key=-",
    ),
)
def try_out(
    connector: ConnectorName,
    settings: Sets = None,
    secret: Secrets = None,
    writes: Annotated[
        bool, typer.Option("--writes", help="Also what writes to it as a target: for a test system only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hold a connector, with a running system behind it, against what is expected of every connector."""
    from bss_sync.adapters.sql.admin.connector_settings import validate_settings
    from bss_sync.bootstrap import Connectors, make_http
    from bss_sync.testing.contract_subject import Subject

    spec = Connectors().require(connector)
    values = validate_settings(spec, pairs(settings or [], "--set"))
    subject = Subject(
        spec=spec,
        package=type(spec).__module__,
        config=spec.config.model_validate(values),
        http=make_http(),
        secrets=secrets_of(secret or []),
    )
    results = _results(subject, spec, writes)
    if as_json:
        output.emit_json({"connector": connector, "ok": all(item["ok"] for item in results), "checks": results})
    else:
        for item in results:
            output.say(
                f"{'ok' if item['ok'] else 'FAILED':<8}{item['check']}{': ' if item['detail'] else ''}{item['detail']}"
            )
    if not all(item["ok"] for item in results):
        raise typer.Exit(output.DIFFERENT)


def _results(subject: Any, spec: ConnectorSpec, writes: bool) -> list[dict[str, Any]]:
    from bss_sync.domain.errors import BssSyncError
    from bss_sync.testing.connector_contract import CHECKS
    from bss_sync.testing.target_contract import TARGET_CHECKS

    results = []
    for check in CHECKS:
        if check in TARGET_CHECKS and not (writes and spec.capabilities.target):
            continue
        detail = ""
        try:
            check(subject)
        except (AssertionError, BssSyncError) as error:
            detail = str(error) or type(error).__name__
        name = check.__name__.removeprefix("check_").replace("_", " ")
        results.append({"check": name, "ok": not detail, "detail": detail})
    return results
