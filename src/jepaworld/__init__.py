"""Action-conditioned JEPA world models trained from pixels.

Importing this package registers the built-in environments with Gymnasium. Its names are imported on first use, so that
nobody waits for torch who does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jepaworld.envs import register

if TYPE_CHECKING:
    from jepaworld import models
    from jepaworld.config import Config, load_config
    from jepaworld.data.writer import DatasetWriter
    from jepaworld.models import JEPA
    from jepaworld.training_engine import run_training

__version__ = "0.1.0"
__all__ = ["JEPA", "Config", "DatasetWriter", "__version__", "load_config", "models", "run_training"]

_HOME = {
    "Config": "jepaworld.config",
    "load_config": "jepaworld.config",
    "DatasetWriter": "jepaworld.data.writer",
    "JEPA": "jepaworld.models",
    "run_training": "jepaworld.training_engine",
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module("jepaworld.models")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Gymnasium loads no plug-ins by itself: importing this package is what makes the ids known.
register()
