"""The installed wheel is the whole product: program, connectors, migrations, configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

_CHECKOUT = Path(__file__).resolve().parents[2]
_DATA_FOLDERS = ("migrations", "config")

pytestmark = pytest.mark.slow


def _run(*arguments: str | Path, cwd: Path) -> str:
    # Neither the checkout nor the tests' own environment may lend the wheel what it lacks.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{arguments} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the network: the build backend comes from the lock like everything else."""
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, _CHECKOUT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its dependencies are borrowed from this one by path, without the checkout."""
    environment = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    python = environment / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    _run(sys.executable, "-m", "pip", "--python", python, *install, wheel, cwd=environment)
    own = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=environment).strip()
    # A path named in a .pth file is searched, but its own .pth files (the checkout's among them) are not read.
    shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(own) / "dependencies.pth").write_text("\n".join(sorted(shared)) + "\n", encoding="utf-8")
    return environment


def test_the_installed_program_prints_its_help(installed: Path) -> None:
    text = _run(installed / "bin" / "bss-sync", "--help", cwd=installed)
    for command in ("demo", "serve", "doctor", "reconcile"):
        assert command in text


def test_the_installed_package_is_the_wheels_and_finds_its_migrations_and_configuration(installed: Path) -> None:
    script = """
import json, bss_sync
from bss_sync.resources import resource_folder
print(json.dumps([bss_sync.__file__, *(str(resource_folder(name)) for name in ("migrations", "config"))]))
"""
    package, *folders = json.loads(_run(installed / "bin" / "python", "-c", script, cwd=installed))
    assert Path(package).is_relative_to(installed)
    for name, folder in zip(_DATA_FOLDERS, folders, strict=True):
        assert Path(folder).is_relative_to(installed)
        assert _files(Path(folder)) == _files(_CHECKOUT / name)
        assert _files(Path(folder))


def test_every_registered_connector_can_be_loaded_from_the_wheel(installed: Path) -> None:
    script = """
import json
from importlib.metadata import entry_points
print(json.dumps({e.name: type(e.load()).__name__ for e in entry_points(group="bss_sync.connectors")}))
"""
    found = json.loads(_run(installed / "bin" / "python", "-c", script, cwd=installed))
    assert {"webhook", "simulator", "stripe"} <= set(found)


def test_the_wheel_carries_neither_tests_nor_secrets_nor_caches(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "bss_sync/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"bss_sync", "connectors"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".key", ".pem", ".env"))]
