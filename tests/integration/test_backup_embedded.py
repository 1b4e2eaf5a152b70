"""A laptop's database: saved in one command, brought back in one, and nothing starts without the key that it needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.command_line import CommandLine
from tests.servers import short_folder


def test_an_embedded_database_is_saved_and_brought_back_also_into_a_new_home(server_home: Path) -> None:
    run = CommandLine({"BSS_SYNC_HOME": str(server_home)})
    run.ok("product", "add", "M365")
    run.ok("connection", "add", "cloud-resell", "--connector", "webhook")
    file = server_home / "one.dump"
    run.ok("db", "backup", file)
    assert file.stat().st_mode & 0o077 == 0, "nobody else reads it"
    assert (server_home / "master.key").read_bytes().strip() not in file.read_bytes()
    assert run("db", "backup", file).code == 2, "no backup is written over"
    refused = run("db", "restore", file)
    assert (refused.code, "--replace" in refused.err) == (2, True)
    run.ok("connection", "add", "later", "--connector", "webhook")
    run.ok("db", "restore", file, "--replace")
    assert [one["name"] for one in run.ok("connection", "list", "--json").json["items"]] == ["cloud-resell"]
    assert run.ok("audit", "verify", "--json").json["whole"] is True
    with short_folder() as home:
        elsewhere = CommandLine({"BSS_SYNC_HOME": str(home), "BSS_SYNC_BIND": "127.0.0.1:0"})
        without_key = elsewhere("db", "restore", file)
        assert (without_key.code, "master.key" in without_key.err) == (1, True)
        started = elsewhere("serve")
        assert (started.code, "stored secrets were sealed with the keys" in started.err) == (2, True)
        shutil.copy(server_home / "master.key", home / "master.key")
        assert "all with the key" in elsewhere("doctor").out


def test_a_copy_that_looks_like_the_original_is_declared(server_home: Path) -> None:
    run = CommandLine({"BSS_SYNC_HOME": str(server_home)})
    assert run.ok("db", "restored", "--json").json == {"restored": True}
    entries = run.ok("audit", "list", "--json").json["items"]
    assert [one["action"] for one in entries][-1:] in ([], ["database.restored"])


def test_what_is_no_backup_changes_nothing(server_home: Path) -> None:
    run = CommandLine({"BSS_SYNC_HOME": str(server_home)})
    run.ok("product", "add", "M365")
    file = server_home / "no.dump"
    file.write_text("no dump")
    assert run("db", "restore", file).code == 3
    assert [one["code"] for one in run.ok("product", "list", "--json").json["items"]] == ["M365"]
