"""Versions of packages, for records of how something was made."""

from __future__ import annotations

from importlib import metadata

import jepaworld


def version(package: str) -> str:
    """The version of a package; "unknown" for one that is not there.

    This package knows its own, as it may be on the path without being installed.
    """
    if package == "jepaworld":
        return jepaworld.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
