"""What deploy/ carries is accepted by the tools that read it, and says what the contract says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).resolve().parents[2]
_UNITS = sorted((_CHECKOUT / "deploy" / "systemd").glob("*.service"))


def test_there_is_a_unit_for_every_part() -> None:
    commands = {re.search(r"^ExecStart=\S+/bss-sync (\w+)$", unit.read_text(), re.MULTILINE) for unit in _UNITS}
    assert {command[1] for command in commands if command} == {"web", "worker", "scheduler", "serve"}


@pytest.mark.parametrize("unit", _UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_without_root_and_without_rights_that_it_does_not_need(unit: Path) -> None:
    lines = set(unit.read_text().splitlines())
    assert {"User=bss-sync", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet="} <= lines


@pytest.mark.needs_program("systemd-analyze")
def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    assert program is not None
    names = []
    for unit in _UNITS:
        # The program is not installed here at its place; everything else is verified as it is.
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
        names.append(tmp_path / unit.name.replace("@", "@1"))
        names[-1].write_text(text)
    done = subprocess.run([program, "verify", "--man=no", *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_container_installs_only_what_the_locks_name_and_does_not_run_as_root() -> None:
    lines = (_CHECKOUT / "deploy" / "Containerfile").read_text().splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]


@pytest.mark.parametrize("lock", sorted(_CHECKOUT.glob("requirements*.lock")), ids=lambda lock: lock.name)
def test_a_lock_names_a_version_and_a_hash_for_everything_and_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert "--index" not in text
    entries = re.findall(r"^(\S+?)==\S+(?: ; [^\\\n]*)? \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    named = re.findall(r"^([a-z0-9]\S*?)(?:==|[<>@ \[])", text, re.MULTILINE)
    assert len(entries) > 3
    assert entries == named
