"""Where the product's own files are: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bss_sync.domain.errors import ConfigurationError

_PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: Literal["migrations", "config"]) -> Path:
    """The folder of that name, absolute.

    A wheel carries it under ``bss_sync/data`` (pyproject.toml, ``wheel.sources``); a checkout has it at its top.
    Raises ConfigurationError where neither exists: the installation is broken.
    """
    candidates = (_PACKAGE / "data" / name, _PACKAGE.parent / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ConfigurationError(
        f"The folder {name} is missing from the installation (looked in {candidates[0]} and {candidates[1]})",
        next_step="Install bss-sync again from its wheel, or run it from a complete checkout.",
    )
