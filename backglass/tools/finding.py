"""What doctor's checks find, and how they ask for packages."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from importlib import metadata


@dataclass
class Finding:
    """ok: True, False, or None for something optional that is absent.  fix: a command to run."""

    name: str
    ok: bool | None
    found: str
    why: str = ""
    fix: str = ""

    def row(self) -> dict:
        return asdict(self)


def version(package: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def pip(*packages: str) -> str:
    return f"{sys.executable} -m pip install " + " ".join(f"'{p}'" for p in packages)
