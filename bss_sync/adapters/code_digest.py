"""What code is at work: so that nothing that other code has found out is taken for true."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def code_digest(*packages: str) -> bytes:
    """SHA-256 over every module of these packages, as it lies on the disk when it is first asked for."""
    digest = hashlib.sha256()
    for package in packages:
        spec = find_spec(package)
        assert spec is not None, f"{package} is running"
        files = [
            path for folder in spec.submodule_search_locations or () for path in sorted(Path(folder).rglob("*.py"))
        ] or [Path(spec.origin or "")]
        for path in files:
            written = path.read_bytes()
            digest.update(f"{path.name} {len(written)} ".encode())
            digest.update(written)
    return digest.digest()
