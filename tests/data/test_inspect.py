"""Summaries and contact sheets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.data.inspect import contact_sheet, inspect_dataset
from jepaworld.data.spec import write_description
from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import DatasetError
from tests.data.conftest import ECHO

Settings = Callable[..., Config]


def test_summary_agrees_with_the_episodes(settings: Settings):
    dataset = collect(
        settings(environment_kwargs={"random_length": True, "length": 9}, num_episodes_data_collection=20)
    )
    summary = inspect_dataset(dataset.path)
    episodes = [dataset.episode(index) for index in range(20)]
    lengths = [len(episode.actions) for episode in episodes]
    actions = np.concatenate([episode.actions for episode in episodes])
    rewards = np.concatenate([episode.rewards for episode in episodes])
    assert summary.problem is None and summary.spec == dataset.spec
    assert (summary.episodes, summary.frames, summary.transitions) == (20, sum(lengths) + 20, sum(lengths))
    assert (summary.shortest, summary.median, summary.longest) == (
        min(lengths),
        np.median(lengths),
        max(lengths),
    )
    assert (summary.terminations, summary.truncations) == (20, 0)
    assert summary.rewards.mean == pytest.approx(rewards.mean()) and summary.rewards.minimum == 1.0
    assert [column.minimum for column in summary.actions] == pytest.approx(actions.min(axis=0))
    assert [column.mean for column in summary.actions] == pytest.approx(actions.mean(axis=0))
    assert summary.states["count"][0].maximum == max(lengths) and len(summary.states["last"]) == 2
    assert summary.disk_bytes == sum(file.stat().st_size for file in dataset.path.rglob("*") if file.is_file())
    assert summary.action_space.startswith("Box")


def test_numbers_that_are_not_finite_are_counted(settings: Settings):
    dataset = collect(settings(environment_kwargs={"oddity": "nan reward"}, max_steps_per_episode_data_collection=4))
    summary = inspect_dataset(dataset.path)
    assert summary.rewards.not_finite == 28 and np.isnan(summary.rewards.mean)
    assert (summary.terminations, summary.truncations) == (0, 7)


def test_damage_is_told_and_what_can_be_read_is_summarised(settings: Settings):
    dataset = collect(settings())
    frames = dataset.path / "shard-00003" / "frames.npy"
    content = frames.read_bytes()
    frames.write_bytes(content[:-1] + b"\x01")
    summary = inspect_dataset(dataset.path)
    assert "altered" in str(summary.problem) and summary.episodes == 7
    frames.write_bytes(content[:-1])
    summary = inspect_dataset(dataset.path)
    assert "truncated" in str(summary.problem) and summary.episodes == 0 and summary.disk_bytes > 0
    with pytest.raises(DatasetError, match="no such dataset folder"):
        inspect_dataset(dataset.path / "nowhere")


def test_contact_sheet(settings: Settings, tmp_path: Path):
    dataset = collect(settings())
    contact_sheet(dataset, tmp_path / "sheet.png", episodes=3, frames=4)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    # The last frame of the last row shows the end of the last episode, enlarged without blurring.
    colour = dataset.episode(6).frames[-1, :, 0, 0]
    matches = (sheet == colour).all(axis=-1)
    assert matches.sum() >= 96 * 96
    assert matches[-40, -40]
    contact_sheet(dataset, tmp_path / "all.png", episodes=50, frames=50)


def test_contact_sheet_of_nothing(settings: Settings, tmp_path: Path):
    dataset = collect(settings())
    (tmp_path / "empty").mkdir()
    spec = replace(dataset.spec, complete=False, shards=None)
    write_description(tmp_path / "empty", spec, dataset.provenance)
    with pytest.raises(DatasetError, match="has no episodes yet"):
        contact_sheet(EpisodeDataset.open(tmp_path / "empty"), tmp_path / "sheet.png")
    summary = inspect_dataset(tmp_path / "empty")
    assert summary.problem is None and summary.episodes == 0 and summary.spec is not None


def test_summary_reads_as_a_table(settings: Settings):
    dataset = collect(settings())
    text = str(inspect_dataset(dataset.path))
    for words in (ECHO, "7 of 7 episodes", "policy       smooth_random, seed 0", "reward", "action", "integrity    ok"):
        assert words in text, text
    frames = dataset.path / "shard-00000" / "frames.npy"
    content = bytearray(frames.read_bytes())
    content[-1] ^= 1
    frames.write_bytes(content)
    assert "altered" in str(inspect_dataset(dataset.path))
