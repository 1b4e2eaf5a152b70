"""``bss-sync doctor``: looks at everything and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from bss_sync.cli import output
from bss_sync.cli.output import AsJson
from bss_sync.domain.errors import BssSyncError, Transient

if TYPE_CHECKING:
    from bss_sync.bootstrap import App
    from bss_sync.settings import Settings

CLOCK_SECONDS_MAX = 60
"""Beyond this a door is not ready: senders' timestamps are judged by its clock."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at. ``ok`` None: worth knowing."""

    check: str
    ok: bool | None
    detail: str
    next_step: str = ""
    down: bool = False


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    settings: Annotated[bool, typer.Option("--settings", help="List every setting with its value instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check everything and say what to do. Exit code 1: something needs attention; 3: a dependency is down."""
    from bss_sync.settings import load_settings

    loaded = load_settings()
    if settings:
        _list_settings(loaded, as_json)
        return
    found = list(_examine(loaded))
    if as_json:
        output.emit_json({"ok": all(item.ok is not False for item in found), "checks": found})
    else:
        marks = {True: "ok", None: "note", False: "PROBLEM"}
        for item in found:
            output.say(f"{marks[item.ok]:<9}{item.check}: {item.detail}")
            if item.ok is not True and item.next_step:
                output.say(f"         {item.next_step}")
    if any(item.down for item in found):
        raise typer.Exit(output.IMPOSSIBLE)
    if any(item.ok is False for item in found):
        raise typer.Exit(output.DIFFERENT)


def _list_settings(settings: Settings, as_json: bool) -> None:
    """Every setting; secrets are shown as set or not, never as they are."""
    from pydantic import SecretStr

    from bss_sync.settings import PREFIX, Settings

    rows = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        shown = "(set)" if isinstance(value, SecretStr) else value
        rows.append({"setting": PREFIX + name.upper(), "value": shown, "meaning": field.description})
    if as_json:
        output.emit_json(
            {"items": [{**row, "value": None if row["value"] is None else str(row["value"])} for row in rows]}
        )
        return
    output.show_table(
        ["setting", "value", "meaning"], ([row["setting"], row["value"], row["meaning"]] for row in rows), empty=""
    )


def _examine(settings: Settings) -> Iterator[Diagnosis]:
    from bss_sync.bootstrap import open_app

    yield Diagnosis("settings", True, f"read; home is {settings.home}")
    try:
        with open_app(settings) as app:
            where = "embedded" if app.embedded is not None else "configured"
            yield Diagnosis("database", True, f"{where}, answers and is migrated")
            for look in (_clock, _secrets, _redis, _catalogue, _connections, _held, _runs, _target):
                yield from look(app)
    except BssSyncError as error:
        yield Diagnosis(
            "database", False, error.detail, output.advice(error), output.exit_code(error) == output.IMPOSSIBLE
        )


def _clock(app: App) -> Iterator[Diagnosis]:
    from sqlalchemy import text

    with app.database.engine() as sql:
        theirs = sql.execute(text("select clock_timestamp()")).scalar_one()
    seconds = abs((app.clock.now() - theirs).total_seconds())
    if seconds > CLOCK_SECONDS_MAX:
        yield Diagnosis("clock", False, f"{seconds:.0f} s apart from PostgreSQL's", "Synchronise the clock (NTP).")
    else:
        yield Diagnosis("clock", True, f"{seconds:.1f} s apart from PostgreSQL's")


def _secrets(app: App) -> Iterator[Diagnosis]:
    from sqlalchemy import text

    known = set(app.vault.key_ids)
    with app.database.engine() as sql:
        rows = sql.execute(text("select key_id, count(*) as number from secret group by key_id")).all()
    foreign = [row for row in rows if row.key_id not in known]
    old = sum(row.number for row in rows if row.key_id in known and row.key_id != app.vault.sealing_key_id)
    if foreign:
        names = ", ".join(f"{row.number} with {row.key_id}" for row in foreign)
        yield Diagnosis(
            "secrets", False, f"sealed with keys that are not given: {names}", "Add the keys to BSS_SYNC_MASTER_KEY."
        )
    elif old:
        yield Diagnosis("secrets", None, f"{old} are sealed with an older key", "Run: bss-sync db reseal")
    else:
        yield Diagnosis(
            "secrets", True, f"{sum(row.number for row in rows)}, all with the key {app.vault.sealing_key_id}"
        )


def _redis(app: App) -> Iterator[Diagnosis]:
    if app.settings.redis_url is None:
        yield Diagnosis("redis", True, "not configured: one process with a broker inside")
        return
    import redis

    try:
        with redis.Redis.from_url(app.settings.redis_url.get_secret_value(), socket_connect_timeout=2) as client:
            client.ping()
    except redis.RedisError as error:
        yield Diagnosis(
            "redis", False, f"does not answer: {type(error).__name__}", "Start it, or correct BSS_SYNC_REDIS_URL.", True
        )
    else:
        yield Diagnosis("redis", True, "answers")


def _catalogue(app: App) -> Iterator[Diagnosis]:
    from sqlalchemy import text

    with app.database.engine() as sql:
        number = sql.execute(text("select count(*) from product where retired_at is null")).scalar_one()
    if number:
        yield Diagnosis("catalogue", True, output.counted(number, "product"))
    else:
        yield Diagnosis("catalogue", None, "empty: nothing is in scope", "Run: bss-sync product add CODE")


def _connections(app: App) -> Iterator[Diagnosis]:
    from bss_sync.adapters.sql.reading.connections import list_connections
    from bss_sync.adapters.sql.reading.paging import LIMIT_MAX, Paging
    from bss_sync.adapters.sql.reading.reach import EVERYTHING

    with app.database.engine() as sql:
        page = list_connections(sql, EVERYTHING, None, Paging(LIMIT_MAX))
    if not page.items:
        yield Diagnosis("connections", None, "none", "Run: bss-sync connection add NAME --connector webhook")
    for item in page.items:
        yield _health(item)


def _health(item: dict[str, dict[str, object]]) -> Diagnosis:
    """One connection: what is wrong with it, the worst first."""
    name, health = f"connection {item['name']}", item["health"]
    show = f"See: bss-sync connection show {item['name']}"
    if health["poll_error"]:
        return Diagnosis(name, False, f"polling fails: {health['poll_error']}", show)
    if health["silent_since"]:
        return Diagnosis(name, False, f"silent since {output.moment(str(health['silent_since']))}", "Ask its owner.")
    if health["deliveries_stuck"]:
        return Diagnosis(name, False, f"{health['deliveries_stuck']} deliveries are stuck", "Run: bss-sync target test")
    if str(item["state"]) in ("draft", "checking", "paused"):
        return Diagnosis(
            name, None, f"{item['state']}: nothing is processed", f"Run: bss-sync connection activate {item['name']}"
        )
    return Diagnosis(name, True, str(item["state"]))


def _held(app: App) -> Iterator[Diagnosis]:
    from sqlalchemy import text

    with app.database.engine() as sql:
        counted = {
            row.state: row.number
            for row in sql.execute(
                text(
                    "select state, count(*) as number from message where state in ('quarantined', 'dead') "
                    "and settled_on(state, decided_at) = 'infinity' group by 1"
                )
            )
        }
    for state in ("quarantined", "dead"):
        if counted.get(state):
            step = f"See: bss-sync message list --state {state}"
            yield Diagnosis("messages", False, f"{counted[state]} {state}", step)
    if not counted:
        yield Diagnosis("messages", True, "none is held")


def _runs(app: App) -> Iterator[Diagnosis]:
    from sqlalchemy import text

    with app.database.engine() as sql:
        stopped = sql.execute(text("select count(*) from run where state = 'stopped'")).scalar_one()
    if stopped:
        yield Diagnosis("runs", False, f"{stopped} stopped by the guard", "See: bss-sync run list --state stopped")


def _target(app: App) -> Iterator[Diagnosis]:
    from bss_sync.adapters.clients import Clients

    try:
        target = Clients(app.database, app.vault, app.connectors, app.http).target()
        if target is None:
            yield Diagnosis("target", True, "none: the mirror is the distributor's BSS")
        else:
            yield Diagnosis("target", True, target.client.check())
    except BssSyncError as error:
        yield Diagnosis("target", False, error.detail, "See: bss-sync target show", isinstance(error, Transient))
