"""A small Two Rooms dataset that the training tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.data.store import EpisodeDataset


@pytest.fixture(scope="session")
def dataset(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> EpisodeDataset:
    """Twelve episodes of twelve transitions of Two Rooms at 16 px."""
    return collect(tiny_config(dataset_dir=str(tmp_path_factory.mktemp("two_room") / "data")))


@pytest.fixture
def training_config(tiny_config: Callable[..., Config], dataset: EpisodeDataset) -> Callable[..., Config]:
    """`tiny_config` on the shared dataset."""

    def make(**changes: Any) -> Config:
        return tiny_config(**{"load_dataset_path": str(dataset.path), **changes})

    return make


def weights(run: Path) -> dict[str, bytes]:
    """Every checkpoint of a run, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted((run / "checkpoints").glob("*.safetensors"))}
