"""Settings and comparisons shared by the tests of datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jepaworld.config import Config

ECHO = "toy_envs:toy/Echo-v0"


def folder_bytes(path: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its content."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Config]:
    """Make a configuration of a small collection of the Echo environment."""

    def make(collection: dict[str, Any] | None = None, **changes: Any) -> Config:
        values: dict[str, Any] = {
            "environment_name": ECHO,
            "image_size": 16,
            "num_episodes_data_collection": 7,
            "max_steps_per_episode_data_collection": 20,
            "dataset_dir": str(tmp_path / "data"),
            "collection": {"num_workers": 1} | (collection or {}),
        }
        return Config(**(values | changes))

    return make
