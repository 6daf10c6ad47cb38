"""Versions of packages, for records of how something was made."""

from __future__ import annotations

import platform
from importlib import metadata

import jepaworld


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of this library and of other packages; "unknown" where a package is not installed."""
    found = {"python": platform.python_version(), "jepaworld": jepaworld.__version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # on the path, but not installed: there is no metadata to read
            found[name] = "unknown"
    return found
