"""Code that is not ours: importing what a setting names, how failures of it are told, versions of packages."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jepaworld
from jepaworld.errors import ConfigError, JepaworldError

EXTRAS = {
    "atari": "ale_py",
    "box2d": "Box2D",
    "mujoco": "mujoco",
    "pusht": "gym_pusht",
    "ogbench": "ogbench",
    "pretrained": "transformers",
    "sb3": "stable_baselines3",
}
"""A package of each extra, whose presence says whether the extra is installed."""


def in_words(error: Exception) -> str:
    """What an error is and says, or where it was raised if it says nothing; without a full stop."""
    if text := str(error).rstrip("."):
        return f"{type(error).__name__}: {text}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}: {last.line}"


@contextmanager
def failures(doing: str, kind: type[JepaworldError] = ConfigError) -> Iterator[None]:
    """Make whatever is raised inside an error of that kind, "`doing` failed: ...", with the traceback as a note."""
    try:
        yield
    except JepaworldError:
        raise
    except Exception as error:
        problem = kind(f"{doing} failed: {in_words(error)}.")
        problem.add_note(traceback.format_exc())
        raise problem from error


def prepare_rendering() -> None:
    """Let MuJoCo render without a display: it looks at MUJOCO_GL once, when it is imported, by whatever imports it."""
    has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if sys.platform == "linux" and not has_display and importlib.util.find_spec("mujoco") is not None:
        os.environ.setdefault("MUJOCO_GL", "egl")  # its own default would fail there


def import_module(name: str, setting: str, kind: type[JepaworldError] = ConfigError) -> ModuleType:
    """Import a module that a setting names; it may lie in the current folder.

    Raises:
        kind: importing failed; the message begins with `setting` and says what to install or where to start.
    """
    # Installed commands do not have the folder they are started in on their path, as `python -m` has. Last,
    # so that a user's random.py does not hide the standard library's.
    prepare_rendering()
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        with failures(f"{setting}: importing {name}", kind):
            return importlib.import_module(name)
    except kind as problem:
        missing = (problem.__cause__.name or "") if isinstance(problem.__cause__, ModuleNotFoundError) else ""
        root, missing_root = name.partition(".")[0], missing.partition(".")[0]
        if not missing:  # the module's own fault
            raise
        if extra := next((extra for extra, package in EXTRAS.items() if package in (root, missing_root)), None):
            remedy = f'Install it: pip install "jepaworld[{extra}]".'
        elif missing_root == root:
            remedy = f"Install it, or start in the folder that holds it (this is {folder})."
        else:
            remedy = f"Install {missing}, which it imports."
        raise kind(f"{problem} {remedy}") from problem.__cause__


def import_attribute(name: str, setting: str) -> Any:
    """What the import path `module:attribute` names.

    Raises:
        ConfigError: importing the module failed, or it has no such attribute; the message begins with `setting`.
    """
    module, _, attribute = name.partition(":")
    target: Any = import_module(module, setting)
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise ConfigError(f"{setting}: {module} has no {attribute}.{did_you_mean(part, dir(target))}")
        target = getattr(target, part)
    return target


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the most similar name, with a space before it; empty where none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def version(package: str) -> str:
    """The version of a package; "unknown" for one that is not there."""
    if package == "jepaworld":  # it may be on the path without being installed
        return jepaworld.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
