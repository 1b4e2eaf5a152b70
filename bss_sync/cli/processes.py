"""``bss-sync serve | web | worker | scheduler | demo``: the processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from bss_sync.cli import output
from bss_sync.cli.groups import example
from bss_sync.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from bss_sync.bootstrap import App
    from bss_sync.ports.runtime import WakeUps
    from bss_sync.settings import Settings

Bind = Annotated[
    str | None, typer.Option("--bind", metavar="ADDRESS:PORT", help="Where to listen; default: BSS_SYNC_BIND.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("demo", epilog=example("demo", "demo --keep"))(demo)
    app.command("serve", epilog=example("serve", "serve --bind 127.0.0.1:9090"))(serve)
    app.command("web")(web)
    app.command("worker")(worker)
    app.command("scheduler")(scheduler)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running afterwards.")] = False,
) -> None:
    """Play the reference scenario through real processes, and say what happened."""
    from bss_sync.demo import play

    raise typer.Exit(play(keep=keep))


def serve(bind: Bind = None) -> None:
    """Run web, workers and scheduler in one process. Without BSS_SYNC_DATABASE_URL it brings its own PostgreSQL.

    Other commands in other terminals work on the same home meanwhile. It ends on Ctrl-C or SIGTERM, drained.
    """
    from bss_sync.adapters.embedded import serve_lock
    from bss_sync.runner import Parts, running_scheduler, running_worker
    from bss_sync.web.server import run_web

    settings = _settings(bind)
    parts = Parts(_redis_url(settings))
    with (
        serve_lock(settings.home),
        _application(settings, parts.wake, "serve") as app,
        running_worker(app, parts),
        running_scheduler(app, parts.wake),
    ):
        run_web(app, settings.bind, _say_where(settings))


def web(bind: Bind = None) -> None:
    """Run the webhook door and the API. Several may run behind one address."""
    from bss_sync.web.server import run_web

    settings = _settings(bind)
    with _application(settings, None, "web") as app:
        run_web(app, settings.bind, _say_where(settings))


def worker() -> None:
    """Run a worker: it decides messages, delivers, fetches and polls. Start about as many as there are cores."""
    from bss_sync.collector import settle_memory
    from bss_sync.runner import Parts, running_worker, wait_for_signal

    settings = _between_processes()
    parts = Parts(_redis_url(settings))
    with _application(settings, parts.wake, "worker") as app, _figures(app), running_worker(app, parts):
        settle_memory()
        output.say("working")
        wait_for_signal()


def scheduler() -> None:
    """Run the scheduler: it finds work that nobody was woken for. One acts; others stand by."""
    from bss_sync.runner import Parts, running_scheduler, wait_for_signal

    settings = _between_processes()
    parts = Parts(_redis_url(settings))
    with (
        _application(settings, parts.wake, "scheduler") as app,
        _figures(app),
        running_scheduler(app, parts.wake),
    ):
        output.say("scheduling")
        wait_for_signal()


def _settings(bind: str | None) -> Settings:
    """The settings of a long-running process, whose log is set up with them."""
    from bss_sync.settings import load_settings
    from bss_sync.telemetry import configure_logging

    settings = load_settings() if bind is None else load_settings(bind=bind)
    configure_logging(level=settings.log_level, form=None if settings.log_format == "auto" else settings.log_format)
    return settings


def _between_processes() -> Settings:
    settings = _settings(None)
    if settings.redis_url is None:
        raise ConfigurationError(
            "BSS_SYNC_REDIS_URL: is needed where web, worker and scheduler are processes of their own.",
            next_step="Set it, or run everything in one process: bss-sync serve",
        )
    return settings


def _redis_url(settings: Settings) -> str | None:
    return None if settings.redis_url is None else settings.redis_url.get_secret_value()


@contextmanager
def _application(settings: Settings, wake: WakeUps | None, part: str) -> Iterator[App]:
    from bss_sync.adapters.sql.admin.secrets import check_keys
    from bss_sync.bootstrap import make_traces, open_app

    with make_traces(settings, part) as traces, open_app(settings, wake=wake, traces=traces) as app:
        with app.database.engine() as sql:
            check_keys(sql, app.vault.key_ids)
        yield app


@contextmanager
def _figures(app: App) -> Iterator[None]:
    """Where it is set, this process shows its metrics at an address of its own, and says where."""
    from bss_sync.telemetry import serving_metrics

    if app.settings.metrics_bind is None:
        yield
        return
    host, _, port = app.settings.metrics_bind.rpartition(":")
    with serving_metrics(app.metrics, host.strip("[]"), int(port)) as chosen:
        output.say(f"metrics on http://{host}:{chosen}/metrics")
        yield


def _say_where(settings: Settings) -> Callable[[int], None]:
    """Says, once requests are taken, where; the port may have been chosen by the system."""

    def say(port: int) -> None:
        host = settings.bind.rpartition(":")[0]
        output.say(f"listening on http://{host}:{port}")
        sys.stdout.flush()

    return say
