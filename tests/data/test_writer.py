"""Datasets of recordings: what is stored, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from jepaworld import DatasetWriter
from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import DatasetError, EnvironmentNotUsableError

BOX = Box(-1.0, 1.0, (2,), np.float32)
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (5, 16, 16, 3), np.uint8)
ACTIONS = RNG.uniform(-1, 1, (4, 2)).astype(np.float32)


def writer(path: Path, space: Any = BOX, **settings: Any) -> DatasetWriter:
    return DatasetWriter(path / "data", space, **{"image_size": 16, **settings})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with writer(tmp_path, environment_name="robot", episodes_per_shard=2, seed=3) as out:
        for number in range(5):
            out.add(
                FRAMES / 255, ACTIONS, rewards=np.arange(4), terminated=number == 1, states={"x": np.arange(5) + number}
            )
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert dataset.spec.complete and len(dataset.shards) == 3 and dataset.episode_lengths.tolist() == [4] * 5
    assert dataset.action_space == BOX and dataset.provenance.environment_name == "robot"
    assert dataset.provenance.seed == 3 and dataset.provenance.max_steps_per_episode == 4
    episode = dataset.episode(1)
    np.testing.assert_array_equal(episode.frames, FRAMES.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(episode.actions, ACTIONS)
    assert episode.rewards.tolist() == [0, 1, 2, 3] and episode.states["x"].tolist() == [1, 2, 3, 4, 5]
    assert episode.terminated.tolist() == [False, False, False, True] and not episode.truncated.any()
    assert dataset.episode(2).truncated.tolist() == [False, False, False, True]


def test_frames_lie_frame_skipping_actions_apart(tmp_path: Path) -> None:
    with writer(tmp_path, Discrete(4, start=1), frame_skipping=2, image_size=8, input_channels=1) as out:
        out.add(list(FRAMES[:3, ..., 0]), [1, 2, 3, 4])
    episode = EpisodeDataset.open(tmp_path / "data").episode(0)
    assert episode.frames.shape == (3, 1, 8, 8)
    assert episode.actions.tolist() == [[1, 2], [3, 4]] and episode.actions.dtype == np.int64


@pytest.mark.parametrize(
    ("space", "change", "message"),
    [
        (BOX, {"actions": [*ACTIONS[:3], [0.0, 1.1]]}, r"episode 1, step 3: action \[0.0, 1.1\].*out of bounds"),
        (BOX, {"actions": [*ACTIONS[:1], [np.nan, 0], *ACTIONS[2:]]}, "episode 1, step 1: .*not finite"),
        (BOX, {"actions": ACTIONS[:, :1]}, r"episode 1, step 0: .*shape is \(1,\)"),
        (BOX, {"actions": [*ACTIONS, ACTIONS[0]]}, "episode 1: 5 frames and 5 actions"),
        (BOX, {"actions": [[1], [1, 2]]}, "episode 1: actions are no array"),
        (Discrete(4), {"actions": [1, 2, 3, 4]}, r"episode 1, step 3: action 4 .*Discrete\(4\): .*0 to 3"),
        (Discrete(4), {"actions": [0.0, 1.0, 2.0, 3.0]}, "episode 1, step 0: .*an integer"),
        (BOX, {"frames": FRAMES.astype(np.uint16) * 16}, "episode 1, frame 0: .*from 0 to 4080"),
        (BOX, {"frames": (FRAMES > 99).astype(np.uint8)}, "episode 1: no value of its frames is above 1"),
        (BOX, {"frames": [*FRAMES[:4], FRAMES[0] / 255 - 0.5]}, "episode 1, frame 4: .*values from -0.5"),
        (BOX, {"frames": []}, "episode 1: it has no frames"),
        (BOX, {"rewards": np.zeros(5)}, r"episode 1: rewards have the shape \(5,\); expected 4 rows"),
        (BOX, {"rewards": [0, 0, 0, np.inf]}, "episode 1: rewards .* finite"),
        (BOX, {"states": {"x": np.zeros(4)}}, "episode 1: state x .*expected 5 rows"),
        (BOX, {"states": {"y": np.zeros(5)}}, "episode 1: its states are .*y"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place_and_the_rest_goes_on(
    tmp_path: Path, space: Any, change: dict[str, Any], message: str
) -> None:
    good = {"frames": FRAMES, "actions": ACTIONS if space == BOX else np.arange(4), "states": {"x": np.zeros(5)}}
    with writer(tmp_path, space) as out:
        out.add(**good)
        with pytest.raises(DatasetError, match=message):
            out.add(**(good | change))
        out.add(**good)
    assert EpisodeDataset.open(tmp_path / "data").episode_lengths.tolist() == [4, 4]


def test_an_error_leaves_nothing_behind_and_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writer(tmp_path, episodes_per_shard=1) as out:
        out.add(FRAMES, ACTIONS)
        raise KeyError
    assert list((tmp_path / "data").iterdir()) == []
    with pytest.raises(DatasetError, match="no episode"), writer(tmp_path):
        pass
    (tmp_path / "data" / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"not empty: it holds notes\.txt"), writer(tmp_path):
        pass
    with pytest.raises(EnvironmentNotUsableError, match="Box and Discrete"):
        writer(tmp_path, Dict({"a": BOX}))
