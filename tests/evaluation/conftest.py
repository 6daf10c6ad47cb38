"""Fixtures of the evaluation tests."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dot_world import write_dataset

from jepaworld.data.store import EpisodeDataset


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[[list[int]], EpisodeDataset]:
    return partial(write_dataset, tmp_path / "dataset")
