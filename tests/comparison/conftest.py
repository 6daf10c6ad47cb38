"""A grid without its runs, and results without a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepaworld.comparison.cell import CellResult, Measure, result_file
from jepaworld.comparison.grid import Cell, make_grid
from jepaworld.config import Config
from jepaworld.utils.storage import atomic_write_text

Grid = Callable[..., list[Cell]]


@pytest.fixture
def grid(tiny_config: Callable[..., Config], tmp_path: Path) -> Grid:
    """`grid({"latent_dim": [4, 8]}, seeds=2)`: cells of the tiny configuration."""

    def make(vary: dict[str, list[Any]], seeds: int = 1, vary_data: bool = False, **changes: Any) -> list[Cell]:
        return make_grid(tiny_config(**changes), vary, seeds, tmp_path / "out", vary_data)

    return make


def a_result(reached: Sequence[bool] = (True, False), **changes: Any) -> CellResult:
    """A result whose tasks have an episode each."""
    content = {
        "reached": list(reached),
        "ended": [False] * len(reached),
        "owners": list(range(len(reached))),
        "random": 0.25,
        "protocol": "two tasks",
        "linear": {"state": Measure(value=0.5, low=0.4, high=0.55)},
        "mlp": {"state": Measure(value=0.75)},
        "effective_rank": 3.5,
        "collapsed": False,
        "imagination": Measure(value=0.25, low=0.2, high=0.3),
        "imagined_steps": 16,
        "seconds": {"jepa": 90.0, "decoder": 30.0},
        "parameters": 1234,
        "device": "cpu",
    }
    return CellResult.model_validate(content | changes)


def write_result(cell: Cell, folder: Path, **changes: Any) -> None:
    """As the process of a cell does."""
    file = result_file(cell, folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(file, a_result(**changes).model_dump_json())


def outcomes(rate: float, tasks: int, seed: int) -> list[bool]:
    """Independent tasks with this chance of success."""
    return [bool(one) for one in np.random.default_rng(seed).random(tasks) < rate]
