"""Prints the licence of every package that requirements.lock names; exits 1 where one is unknown or not accepted.

Run by `make licences`. A package for another platform is not installed here: it is named and counted.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
# Words of permissive licences, and of two weak copyleft ones (used as they are, never changed: psycopg, certifi).
ACCEPTED = re.compile(
    r"\b(MIT|MIT-CMU|BSD|0BSD|BSD-[23]-Clause|Apache|Apache-2\.0|ISC|PSF|PSF-2\.0|Python Software Foundation"
    r"|PostgreSQL|Unlicense|ZPL|MPL|MPL-2\.0|Mozilla Public License|LGPL|LGPL-3\.0-only|LGPL-3\.0-or-later"
    r"|Lesser General Public License)\b",
    re.IGNORECASE,
)
# Strong copyleft, also where it stands beside an accepted word.
REFUSED = re.compile(r"(?<!L)(?<!Lesser )\b(AGPL|GPL|Affero|General Public License)", re.IGNORECASE)


def licence(found: PackageMetadata) -> str:
    """The expression, else the classifiers, else the first line of the old free text."""
    classifiers = [line.split("::")[-1].strip() for line in found.get_all("Classifier", []) if "License ::" in line]
    free_text = (found.get("License") or "").strip().splitlines()
    return found.get("License-Expression") or ", ".join(classifiers) or (free_text[0] if free_text else "unknown")


def main() -> int:
    """Print one line per package."""
    refused, absent = [], []
    for name, version in re.findall(r"^(\S+?)==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE):
        try:
            words = licence(metadata(name))
        except PackageNotFoundError:
            absent.append(name)
            continue
        sys.stdout.write(f"{name:32} {version:16} {words}\n")
        if REFUSED.search(words) or not ACCEPTED.search(words):
            refused.append(name)
    if absent:
        sys.stdout.write(f"not looked at: {len(absent)} for other platforms: {', '.join(absent)}\n")
    for name in refused:
        sys.stdout.write(f"not accepted: {name}\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
