"""Batches: which windows are drawn, in which order, and that they are the frames and actions stored."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from jepaworld.data.store import EpisodeDataset
from jepaworld.data.windows import WindowLoader
from jepaworld.errors import DatasetError
from tests.evaluation.dot_world import write_dataset

CPU = torch.device("cpu")


def make_loader(
    dataset: EpisodeDataset,
    episodes: np.ndarray | None = None,
    transitions: int = 2,
    batch: int = 7,
    buffer_bytes: int | None = None,
    seed: int = 0,
) -> WindowLoader:
    episodes = np.arange(len(dataset.episode_lengths)) if episodes is None else episodes
    return WindowLoader(dataset, episodes, transitions, batch, CPU, buffer_bytes, seed)


def small_buffer(dataset: EpisodeDataset) -> int:
    """Room for two groups of about three episodes."""
    return 2 * 3 * 13 * dataset.spec.input_channels * dataset.spec.image_size**2


def expected_windows(dataset: EpisodeDataset, episodes: np.ndarray, transitions: int) -> list[tuple[bytes, bytes]]:
    windows = []
    for index in episodes:
        episode = dataset.episode(int(index))
        for t in range(len(episode.actions) - transitions + 1):
            windows.append(
                (episode.frames[t : t + transitions + 1].tobytes(), episode.actions[t : t + transitions].tobytes())
            )
    return windows


def content(batches) -> list[tuple[bytes, bytes]]:
    return [
        (frames.numpy().tobytes(), actions.numpy().tobytes())
        for batch in batches
        for frames, actions in zip(batch.frames, batch.actions, strict=True)
    ]


@pytest.mark.parametrize("transitions", [0, 1, 3])
@pytest.mark.parametrize("on_disk", [False, True])
def test_every_window_is_read_once(dataset: EpisodeDataset, transitions: int, on_disk: bool) -> None:
    episodes = np.array([1, 4, 5, 9])
    buffer = small_buffer(dataset) if on_disk else None
    loader = make_loader(dataset, episodes, transitions, buffer_bytes=buffer)
    read = content(loader.all_windows())
    expected = expected_windows(dataset, episodes, transitions)
    assert read != expected and sorted(read) == sorted(expected)
    assert content(loader.all_windows()) == read, "the order is always the same"


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_epoch_draws_windows_without_repetition(dataset: EpisodeDataset, on_disk: bool) -> None:
    loader = make_loader(dataset, buffer_bytes=small_buffer(dataset) if on_disk else None)
    assert len(list(loader._cut(loader.episodes))) == (4 if on_disk else 1)
    batches = list(loader.epoch(1))
    assert len(batches) == len(loader) == loader.num_windows // 7
    assert all(batch.frames.shape[:2] == (7, 3) and batch.actions.shape == (7, 2, 2) for batch in batches)
    known = expected_windows(dataset, loader.episodes, 2)
    drawn = content(batches)
    # A few windows may look alike: no window may be drawn more often than it is there.
    assert all(drawn.count(window) <= known.count(window) for window in set(drawn))
    assert set(drawn) <= set(known)
    assert drawn != known[: len(drawn)]


@pytest.mark.parametrize("on_disk", [False, True])
def test_order_depends_on_seed_and_epoch_alone(dataset: EpisodeDataset, on_disk: bool) -> None:
    buffer = small_buffer(dataset) if on_disk else None
    first = content(make_loader(dataset, buffer_bytes=buffer).epoch(3))
    loader = make_loader(dataset, buffer_bytes=buffer)
    list(loader.epoch(1))
    assert content(loader.epoch(3)) == first
    assert content(loader.epoch(4)) != first
    assert content(make_loader(dataset, buffer_bytes=buffer, seed=1).epoch(3)) != first


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_epoch_goes_on_where_it_stopped(dataset: EpisodeDataset, on_disk: bool) -> None:
    loader = make_loader(dataset, buffer_bytes=small_buffer(dataset) if on_disk else None)
    whole = [content([batch]) for batch in loader.epoch(2)]
    for start in range(len(whole) + 1):
        assert [content([batch]) for batch in loader.epoch(2, start)] == whole[start:]


def test_windows_do_not_cross_episodes(dataset: EpisodeDataset) -> None:
    loader = make_loader(dataset, transitions=12)
    assert loader.num_windows == len(dataset.episode_lengths)
    assert make_loader(dataset, transitions=13).num_windows == 0


def test_fewer_windows_than_a_batch(dataset: EpisodeDataset) -> None:
    loader = make_loader(dataset, np.array([0]), transitions=1, batch=13)
    with pytest.raises(DatasetError, match=r"12 windows.*fewer than batch_size = 13"):
        loader.require_windows(13, "batch_size = 13")
    make_loader(dataset, np.array([0]), transitions=1, batch=12).require_windows(12, "batch_size = 12")


@pytest.mark.parametrize("on_disk", [False, True])
def test_windows_of_episodes_of_different_lengths_are_read_where_they_lie(tmp_path: Path, on_disk: bool) -> None:
    """In an order of episodes other than that of the shards, too."""
    dataset = write_dataset(tmp_path / "dots", [5, 3, 9, 4, 7, 2, 6])
    episodes = np.array([6, 0, 5, 2, 1])
    loader = make_loader(dataset, episodes, 2, batch=4, buffer_bytes=2 * 20 * 64 if on_disk else None)
    assert sorted(content(loader.all_windows())) == sorted(expected_windows(dataset, episodes, 2))


def test_windows_do_not_reach_into_a_block_that_the_end_cut(dataset: EpisodeDataset) -> None:
    dataset = copy.copy(dataset)  # which all tests share
    dataset.whole_lengths = dataset.whole_lengths - (np.arange(len(dataset.whole_lengths)) == 4)
    episodes = np.array([1, 4])
    found = content(make_loader(dataset, episodes, 2).all_windows())
    left_out = expected_windows(dataset, np.array([4]), 2)[-1]
    assert left_out not in found
    assert sorted([*found, left_out]) == sorted(expected_windows(dataset, episodes, 2))
    frames = make_loader(dataset, episodes, 0)
    assert frames.num_windows == int((dataset.episode_lengths[episodes] + 1).sum()), "single frames are all real"


def test_episodes_without_a_window_are_named_and_none_left_is_not_blamed_on_the_batch(dataset: EpisodeDataset) -> None:
    dataset = copy.copy(dataset)  # which all tests share
    dataset.whole_lengths = np.where(np.arange(len(dataset.whole_lengths)) == 4, 1, dataset.whole_lengths)
    assert make_loader(dataset, np.array([1, 4]), 2).too_short().tolist() == [4]
    with pytest.raises(DatasetError) as raised:
        make_loader(dataset, np.array([4]), 2).require_windows(7, "batch_size = 7. Lower batch_size")
    assert "batch_size" not in str(raised.value) and "Lower num_transitions" in str(raised.value)
