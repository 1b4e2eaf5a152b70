"""``bss-sync``: the admin's hand. Each module holds one group of commands and imports what it needs when it runs."""

from __future__ import annotations

import bss_sync.cli.early  # noqa: F401 - first of all: it listens for SIGTERM while the rest is loaded

# isort: split
import io
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from bss_sync.cli import (
    audit,
    breakers,
    connection_secrets,
    connections,
    connectors,
    databases,
    doctor,
    fields,
    gathering,
    messages,
    processes,
    products,
    records,
    runs,
    story,
    targets,
    tokens,
    trees,
)
from bss_sync.cli.output import (
    IMPOSSIBLE,
    INTERRUPTED,
    WRONG,
    exit_code,
    report,
    report_defect,
    report_interrupted,
    usage_error,
    wants_json,
)
from bss_sync.domain.errors import BssSyncError

WHAT_BECOMES_OF_RUNS = (
    "what was done stays. A run that had begun is shown by bss-sync run list: a replay goes on by itself, "
    "a backfill goes on, and a reconcile goes on or begins anew, when the command is given again."
)
EPILOG = (
    "Exit codes: 0 done · 1 a difference, or refused · 2 wrong usage, or a conflict · "
    "3 a dependency is down, or no answer is possible · 130 interrupted (Ctrl-C)."
)

app = typer.Typer(
    name="bss-sync",
    help="Mirrors resellers' accounts and subscriptions into a distributor's BSS.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from bss_sync import __version__

        typer.echo(f"bss-sync {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Mirrors resellers' accounts and subscriptions into a distributor's BSS."""


processes.register(app)
databases.register(app)
doctor.register(app)
tokens.register(app)
products.register(app)
connections.register(app)
connection_secrets.register(connections.group)
targets.register(app)
breakers.register(connections.group, targets.commands)
trees.register(app)
records.register(app)
fields.register(app)
messages.register(app)
story.register(messages.commands)
gathering.register(app)
runs.register(app)
audit.register(app)
connectors.register(app)


def _is_interrupted(ended: SystemExit) -> bool:
    """Whether Ctrl-C was its cause: a command that has ended itself so has said why."""
    error: BaseException | None = ended
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return ended.code == INTERRUPTED and error is not None


def main() -> None:
    """Run a command; an error of ours becomes its exit code and two lines that say what happened and what to do."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Who starts us as a process waits for what we say: a line must not sit in a buffer while we serve.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        # Typer's own words for wrong usage are for people.
        code = app(standalone_mode=not wants_json())
        if code == INTERRUPTED:
            report_interrupted(WHAT_BECOMES_OF_RUNS)
        if code:
            sys.exit(code)
    except SystemExit as ended:
        if _is_interrupted(ended):
            report_interrupted(WHAT_BECOMES_OF_RUNS)
        raise
    except TyperException as error:
        report(usage_error(error))
        sys.exit(WRONG)
    except BssSyncError as error:
        report(error)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        # Whoever read our output has enough of it (``| head``).
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:  # noqa: BLE001  the last place: a defect is named, without the values it worked on
        report_defect(error)
        sys.exit(IMPOSSIBLE)


if __name__ == "__main__":
    main()
