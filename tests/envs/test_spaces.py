"""Action spaces: JSON form, support, width."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from jepaworld.envs.spaces import block_size, check_action_space, space_from_dict, space_to_dict
from jepaworld.errors import EnvironmentNotUsableError


@pytest.mark.parametrize(
    "space",
    [
        Box(-1, 1, (2,), np.float32),
        Box(np.array([-1, 0, 0.1], np.float32), np.array([1, 0.3, np.inf], np.float32)),
        Box(-np.inf, np.inf, (2, 3), np.float64),
        Box(0.1, 0.7, (), np.float32),
        Box(0, 255, (2, 2), np.uint8),
        Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64),
        Discrete(5),
        Discrete(3, start=-1),
    ],
    ids=str,
)
def test_a_space_survives_json(space):
    text = json.dumps(space_to_dict(space), allow_nan=False)
    assert space_from_dict(json.loads(text)) == space


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "Tuple"},
        {"type": "Discrete", "n": 3},
        {"type": "Discrete", "n": "x", "start": 0},
        {"type": "Box", "shape": [2], "low": [0.0], "high": [1.0, 1.0], "dtype": "float32"},
        {"type": "Box", "shape": [1], "low": [0.0], "high": [1.0], "dtype": "float33"},
    ],
)
def test_what_describes_no_space_is_refused(fields):
    with pytest.raises(ValueError, match=r"space"):
        space_from_dict(fields)


@pytest.mark.parametrize("space", [MultiDiscrete([2, 3]), Dict(a=Discrete(2))], ids=str)
def test_other_spaces_are_named_and_refused(space):
    for function in (check_action_space, space_to_dict):
        with pytest.raises(EnvironmentNotUsableError, match="Box and Discrete"):
            function(space)
    with pytest.raises(EnvironmentNotUsableError, match=type(space).__name__):
        block_size(space, 1)


def test_a_box_without_entries_is_refused():
    with pytest.raises(EnvironmentNotUsableError, match="no entries"):
        check_action_space(Box(-1, 1, (0,), np.float32))


def test_block_size_counts_the_numbers_of_all_skipped_steps():
    assert block_size(Box(-1, 1, (2, 3), np.float32), 4) == 24
    assert block_size(Box(-1, 1, (), np.float32), 4) == 4
    assert block_size(Discrete(9), 4) == 4
