"""Backups for tests: taken and brought back by the program itself, onto the same server or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from bss_sync.bootstrap import open_app
from bss_sync.jobs.work import make_work
from bss_sync.settings import Settings
from tests.command_line import CommandLine
from tests.servers import Database
from tests.world import AllWakeUps, World


def program(settings: Settings, database: Database) -> CommandLine:
    """The command line over ``database``, with the home and the key of ``settings``."""
    assert settings.master_key is not None, "every test has one of its own"
    return CommandLine(
        {
            "BSS_SYNC_HOME": str(settings.home),
            "BSS_SYNC_DATABASE_URL": database.login_url,
            "BSS_SYNC_DATABASE_OWNER_URL": database.owner_url,
            "BSS_SYNC_MASTER_KEY": settings.master_key.get_secret_value(),
        }
    )


def moved(settings: Settings, database: Database) -> Settings:
    """The same settings over another database."""
    urls = {"database_url": SecretStr(database.login_url), "database_owner_url": SecretStr(database.owner_url)}
    return settings.model_copy(update=urls)


@contextmanager
def reopened(before: World, database: Database) -> Iterator[World]:
    """The world of before over a restored database: the same source, the same target."""
    wake = AllWakeUps()
    with open_app(moved(before.app.settings, database), clock=before.app.clock, wake=wake) as app:
        yield replace(before, app=app, work=make_work(app, wake))


def take(settings: Settings, database: Database, file: Path) -> Path:
    """``bss-sync db backup``."""
    program(settings, database).ok("db", "backup", file)
    return file
