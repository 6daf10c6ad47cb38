"""A dataset folder, opened for reading: its episodes, its rows, and how it is split."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from jepaworld.data.shards import SHARD_INFO, Episode, Shard, finished_shards, remedy, shard_folder
from jepaworld.data.spec import DATASET_FILE, RECOLLECT, Collected, DatasetSpec, as_content, checksum, read_description
from jepaworld.envs.spaces import space_from_dict
from jepaworld.errors import DatasetError


class Split(NamedTuple):
    """Episode indices of each part: sorted, int64, without common elements."""

    train: np.ndarray
    validation: np.ndarray
    evaluation: np.ndarray


class EpisodeDataset:
    """A dataset folder, opened for reading.

    A dataset whose collection was interrupted opens too, with the episodes of its finished shards;
    `spec.complete` is False then.

    Attributes:
        spec: what it is.
        provenance: where it comes from.
        action_space: of the environment (not of the block of `frame_skipping` actions).
        shards: the shards in order of their episodes.
        episode_lengths: int64 (E,) transitions of each episode.
        whole_lengths: int64 (E,) transitions of each episode whose actions were all played: one less where the end cut
            the last block short.
        episode_starts: int64 (E,) row of each episode's first frame.
        num_frames: rows of all shards together.
        state_variables: name -> shape.

    Example:
        >>> dataset = EpisodeDataset.open("datasets/two_room")
        >>> dataset.episode(0).frames.shape
        (31, 3, 64, 64)
    """

    def __init__(self, path: Path, spec: DatasetSpec, provenance: Collected, shards: list[Shard]) -> None:
        self.path, self.spec, self.provenance, self.shards = path, spec, provenance, shards
        self.action_space: gym.Space[Any] = space_from_dict(spec.action_space)
        self.episode_lengths = np.concatenate([np.zeros(0, np.int64), *(shard.episode_lengths for shard in shards)])
        cut = np.concatenate([np.zeros(0, np.int64), *(shard.cut() for shard in shards)])
        self.whole_lengths = self.episode_lengths - cut.astype(np.int64)
        ends = np.cumsum(self.episode_lengths + 1)
        self.episode_starts = ends - (self.episode_lengths + 1)
        self.num_frames = int(ends[-1]) if len(ends) else 0
        self._shard_starts = np.array([shard.start for shard in shards], np.int64)
        self.state_variables = {name: tuple(shape) for name, shape in sorted(spec.state_variables.items())}

    @classmethod
    def open(cls, path: str | Path, *, verify_checksums: bool = True, allow_missing: bool = False) -> EpisodeDataset:
        """Open a dataset folder.

        Args:
            path: the folder that holds `dataset.json`.
            verify_checksums: read every file once and compare it with its checksum, beside sizes and shapes.
            allow_missing: open the rest of a complete dataset that lacks shards, as the collection does to mend it.

        Raises:
            DatasetError: the folder is missing or no dataset, is of another schema version, or a file of it
                is missing, truncated or altered; the message names the file.
        """
        path = Path(path)
        spec, provenance = read_description(path)
        shards: list[Shard] = []
        start, present, expected = 0, finished_shards(path), range(spec.num_shards)
        for index in present:
            folder = shard_folder(path, index)
            if index not in expected:
                raise DatasetError(
                    f"{folder}: does not belong to this dataset of {len(expected)} shards. Move it away."
                )
            shard = Shard(folder, index, start, spec)
            if spec.shards is not None and shard.checksum != spec.shards[index]:
                raise DatasetError(
                    f"{folder / SHARD_INFO}: not the one that belongs to this dataset (checksum {shard.checksum}, "
                    f"{DATASET_FILE} says {spec.shards[index]}). {RECOLLECT}"
                )
            shards.append(shard)
            start += shard.num_frames
        if spec.complete and not allow_missing and (missing := sorted(set(expected) - set(present))):
            folder = shard_folder(path, missing[0])
            raise DatasetError(f"{folder}: missing. {remedy(folder)}")
        if verify_checksums:
            # Hashing releases the interpreter lock, so threads use all cores.
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for problem in filter(None, pool.map(Shard.find_altered, shards)):
                    raise problem
        return cls(path, spec, provenance, shards)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of `dataset.json` and all checksums: equal exactly for equal datasets."""
        return checksum({**as_content(self.spec, self.provenance), "shards": [shard.checksum for shard in self.shards]})

    def gather(self, name: str, rows: np.ndarray, keep_cached: bool = True) -> np.ndarray:
        """Copies of rows that may lie anywhere in the dataset: (*shape of `rows`, *row shape).

        Args:
            name: "frames", "actions", "rewards", "terminated", "truncated" or the name of a state variable. A state
                variable that is named as one of the arrays is found as "state.<name>".
            rows: int64 of any shape, each 0 to `num_frames` - 1, in any order.
            keep_cached: whether the system should keep frames in its cache, because they will be read again.
        """
        layout = self.spec.array_layout
        key = name if name in layout else f"state.{name}"
        dtype, row_shape = layout[key]
        flat = np.asarray(rows, np.int64).ravel()
        assert not flat.size or (flat.min() >= 0 and flat.max() < self.num_frames), f"rows of {self.num_frames}"
        result = np.empty((flat.size, *row_shape), dtype)
        owners = self._shard_of(flat)
        for number in np.unique(owners):
            here, shard = owners == number, self.shards[number]
            result[here] = shard.gather(key, flat[here] - shard.start, keep_cached)
        return result.reshape(*np.shape(rows), *row_shape)

    def _shard_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._shard_starts, rows, side="right") - 1

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of rows `start` to `stop` (exclusive), (stop - start, *row shape); see `gather`."""
        return self.gather(name, np.arange(start, stop))

    def action_statistics(self, episodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (A,), float64, of the whole action blocks of these episodes."""
        total, squares = np.zeros(self.spec.action_size), np.zeros(self.spec.action_size)
        for start, length in zip(self.episode_starts[episodes], self.whole_lengths[episodes], strict=True):
            # No action is taken at an episode's last frame, nor all of a block that its end cut short.
            actions = self.rows("actions", start, start + length).astype(np.float64)
            total, squares = total + actions.sum(axis=0), squares + np.square(actions).sum(axis=0)
        count = max(1, self.whole_lengths[episodes].sum())
        mean = total / count
        return mean, np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))

    def split(self, validation_split: float, evaluation_split: float, seed: int | None = None) -> Split:
        """Divide the episodes at random; it does not move with the seed of a training.

        Args:
            validation_split: share for validation, 0 to 1; at least one episode if above 0.
            evaluation_split: share that training never sees, 0 to 1; at least one episode if above 0.
            seed: of the division; `None` takes the dataset's own.

        Raises:
            DatasetError: no episode would be left to train on.
        """
        count = len(self.episode_lengths)
        sizes = [max(1, round(share * count)) if share > 0 else 0 for share in (validation_split, evaluation_split)]
        if sum(sizes) >= count:
            raise DatasetError(
                f"{self.path}: has {count} episode(s), but early_stopping.validation_split = {validation_split:g} "
                f"takes {sizes[0]} and evaluation_split = {evaluation_split:g} takes {sizes[1]}: none is left to train "
                "on. Collect more (num_episodes_data_collection) or set these splits to 0."
            )
        order = np.random.default_rng(self.provenance.seed if seed is None else seed).permutation(count)
        validation, evaluation, train = np.split(order, np.cumsum(sizes))
        return Split(np.sort(train), np.sort(validation), np.sort(evaluation))

    def episode_number(self, index: int) -> int:
        """The number of episode `index` in the complete dataset, which its seeds follow from: shards may be missing."""
        shard = self.shards[int(self._shard_of(self.episode_starts[index]))]
        return shard.first_episode + index - int(np.searchsorted(self.episode_starts, shard.start))

    def episode(self, index: int) -> Episode:
        """Episode `index` (0 to E - 1) as copies in memory."""
        start = int(self.episode_starts[index])
        end = start + int(self.episode_lengths[index])
        return Episode(
            frames=self.rows("frames", start, end + 1),
            actions=self.rows("actions", start, end),
            rewards=self.rows("rewards", start, end),
            terminated=self.rows("terminated", start, end),
            truncated=self.rows("truncated", start, end),
            states={name: self.rows(f"state.{name}", start, end + 1) for name in self.state_variables},
        )
