"""What every command needs: the wired application, who is acting, and arguments as people write them."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bss_sync.domain.errors import FieldProblem, InvalidRequest

if TYPE_CHECKING:
    from pydantic import SecretStr

    from bss_sync.bootstrap import App

ANYBODY = "unknown"


@contextmanager
def opened(**overrides: Any) -> Iterator[App]:
    """The application with the settings of this process; ``overrides`` are options of the command line."""
    from bss_sync.bootstrap import open_app
    from bss_sync.settings import load_settings

    with open_app(load_settings(**{name: value for name, value in overrides.items() if value is not None})) as app:
        yield app


def actor() -> str:
    """How the audit names the person at this terminal."""
    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):
        return f"cli:{ANYBODY}"


def pairs(options: Sequence[str], option: str) -> dict[str, str]:
    """``KEY=VALUE`` options as a mapping; InvalidRequest for one that is not of this form."""
    found: dict[str, str] = {}
    for given in options:
        name, separator, value = given.partition("=")
        if not separator or not name:
            raise InvalidRequest(
                f"{option} {given!r} is not of the form KEY=VALUE.", fields=(FieldProblem(option, "write KEY=VALUE"),)
            )
        found[name] = value
    return found


def secrets_of(options: Sequence[str]) -> dict[str, SecretStr]:
    """``KEY=-`` reads a line from standard input (asked for, unseen, at a terminal), ``KEY=@FILE`` a file.

    A secret never stands on the command line: other users of the machine could read it there.
    """
    return {name: _secret(name, source) for name, source in pairs(options, "--secret").items()}


def _secret(name: str, source: str) -> SecretStr:
    from pydantic import SecretStr

    if source == "-":
        text = getpass.getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.readline()
    elif source.startswith("@"):
        try:
            text = Path(source[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"{source[1:]} cannot be read: {error.strerror}.") from None
    else:
        raise InvalidRequest(
            f"The secret {name} must not stand on the command line, where others can read it.",
            fields=(FieldProblem("--secret", f"write {name}=- and give it on standard input, or {name}=@FILE"),),
        )
    if not text.strip():
        raise InvalidRequest(f"The secret {name} is empty.", fields=(FieldProblem("--secret", "nothing was given"),))
    return SecretStr(text.strip())


def is_terminal() -> bool:
    """Whether a person looks at the output: progress is shown then."""
    return sys.stderr.isatty()
