"""The real program for tests: ``bss-sync`` in a process of its own, over a test's database."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bss_sync.settings import PREFIX
from tests.servers import Database


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)

    @property
    def problem(self) -> Any:
        """Standard error as a problem document."""
        return json.loads(self.err)


@dataclass
class CommandLine:
    """Runs commands with one environment."""

    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str | Path, given: str = "", **more: str) -> Answer:
        """Run one command; ``given`` is its standard input, ``more`` further settings by their short names."""
        bare = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        settings = {f"{PREFIX}{name.upper()}": value for name, value in more.items()}
        done = subprocess.run(
            [sys.executable, "-m", "bss_sync.cli.main", *map(str, arguments)],
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**bare, **self.environment, **settings, "COLUMNS": "80"},
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str | Path, given: str = "") -> Answer:
        """Run one command that must succeed."""
        answer = self(*arguments, given=given)
        assert answer.code == 0, f"{arguments}: {answer.code}\n{answer.out}\n{answer.err}"
        return answer


def over(database: Database, home: Path) -> CommandLine:
    """The program over a configured database."""
    return CommandLine(
        {
            "BSS_SYNC_HOME": str(home),
            "BSS_SYNC_DATABASE_URL": database.login_url,
            "BSS_SYNC_DATABASE_OWNER_URL": database.owner_url,
            "BSS_SYNC_MASTER_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        }
    )
