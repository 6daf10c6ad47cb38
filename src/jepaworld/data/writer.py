"""Writing a dataset of what no environment gives: a robot's recordings, a game's replays, another library's files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jepaworld.data.shards import Episode, Shard, ShardWriter, shard_folder
from jepaworld.data.spec import Collected, DatasetSpec, write_description
from jepaworld.envs.frames import Pictures, image_to_frame
from jepaworld.envs.spaces import block_size, check_action_space, element, space_to_dict
from jepaworld.errors import DatasetError, EnvironmentNotUsableError
from jepaworld.utils.outside import version
from jepaworld.utils.storage import storage_errors

_MOST_SHARDS = 512  # a reader keeps a file of each shard open


class DatasetWriter:
    """Writes episodes into a dataset folder that training reads like a collected one.

    A context manager. The folder becomes a dataset when the block ends; after an error in it, what was written is
    deleted. Nothing of an episode that is refused is written, so that the caller may catch the error and go on.

    Args:
        path: a folder that is empty or not there.
        action_space: of one environment step, Box or Discrete. Every action must lie in it.
        image_size: S, side of the stored frames, pixels; pictures of another size are resized.
        input_channels: C, 3 or 1 (luma).
        frame_skipping: k, environment steps between two frames.
        environment_name: the id of the environment to plan in, or any name; the configuration must say the same.
        environment_kwargs: of that environment; the configuration must say the same.
        seed: of the division into training and held-out episodes.
        episodes_per_shard: episodes in a file; at most 512 files are possible.

    Raises:
        DatasetError: the folder is not empty, or `add` was given what it cannot store.
        EnvironmentNotUsableError: the action space is neither Box nor Discrete.
        StorageError: the disk is full or the folder cannot be written.

    Example:
        >>> with DatasetWriter("datasets/robot", Box(-1, 1, (2,)), image_size=64) as writer:
        ...     writer.add(frames, actions, states={"position": positions})
    """

    def __init__(
        self,
        path: str | Path,
        action_space: gymnasium.Space[Any],
        *,
        image_size: int,
        input_channels: Literal[1, 3] = 3,
        frame_skipping: int = 1,
        environment_name: str = "recorded",
        environment_kwargs: Mapping[str, Any] | None = None,
        seed: int = 0,
        episodes_per_shard: int = 64,
    ) -> None:
        check_action_space(action_space)
        for name, value in (
            ("image_size", image_size), ("frame_skipping", frame_skipping), ("episodes_per_shard", episodes_per_shard)
        ):  # fmt: skip
            if value < 1:
                raise DatasetError(f"{name} is {value}; expected an integer of at least 1.")
        if input_channels not in (1, 3):
            raise DatasetError(f"input_channels is {input_channels}; expected 1 or 3.")
        self._path, self._space, self._skip = Path(path), action_space, frame_skipping
        self._image_size, self._channels, self._per_shard = image_size, input_channels, episodes_per_shard
        self._about = (environment_name, dict(environment_kwargs or {}), seed)
        self._pictures = Pictures("")
        self._writer: ShardWriter | None = None
        self._count = self._longest = 0
        self._variables: dict[str, list[int]] = {}
        self._checksums: list[str] = []

    def __enter__(self) -> Self:
        with storage_errors(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            if there := sorted(entry.name for entry in self._path.iterdir()):
                raise DatasetError(f"{self._path}: not empty: it holds {', '.join(there[:5])}. Name another folder.")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._count:
            self._end_shard()
            write_description(self._path, self._spec(complete=True), self._collected())
            return
        if self._writer is not None:
            self._writer.__exit__()
        for index in range(len(self._checksums)):
            shutil.rmtree(shard_folder(self._path, index))
        if kind is None:
            raise DatasetError(f"{self._path}: no episode was added.")

    def add(
        self,
        frames: ArrayLike | Sequence[ArrayLike],
        actions: ArrayLike,
        *,
        rewards: ArrayLike | None = None,
        terminated: bool = False,
        states: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Append an episode of T transitions.

        Args:
            frames: T + 1 pictures, k environment steps apart, of any kind that `jepaworld.envs.frames.Pictures` takes.
            actions: T * k actions of the action space: (T * k, *shape) for Box, (T * k,) for Discrete. `actions[0]` is
                taken at `frames[0]`, and the last one leads to the last frame.
            rewards: (T,) summed over the k steps of a transition; zero where there are none.
            terminated: whether the environment ended the episode, rather than the recording.
            states: (T + 1, *shape) for each state variable, by name; every episode has those of the first one.

        Raises:
            DatasetError: counts, values or names do not fit; the message says in which episode, and at which step.
        """
        where = f"episode {self._count}"
        played = self._actions(where, actions)
        stored = self._frames(where, frames)
        length = len(stored) - 1
        if length < 1 or len(played) != length * self._skip:
            each = f" times frame_skipping {self._skip}" if self._skip > 1 else ""
            raise DatasetError(
                f"{where}: {len(stored)} frames and {len(played)} actions; expected at least 2 frames, and one action "
                f"less than frames{each}: the last frame has no action."
            )
        if stored.any() and stored.max() <= 1:
            raise DatasetError(f"{where}: no value of its frames is above 1 of 255. Give floats, or multiply by 255.")
        given = self._numbers(where, "rewards", np.zeros(length) if rewards is None else rewards, length)
        if given.ndim != 1 or not np.isfinite(given).all():
            raise DatasetError(f"{where}: rewards have the shape {given.shape}; expected {length} finite numbers.")
        ends = np.arange(length) == length - 1
        rows = {
            name: self._numbers(where, f"state {name}", value, length + 1) for name, value in (states or {}).items()
        }
        shapes = {name: list(value.shape[1:]) for name, value in rows.items()}
        if self._count and shapes != self._variables:
            raise DatasetError(f"{where}: its states are {shapes}, those of episode 0 {self._variables}.")
        self._variables, self._longest = shapes, max(self._longest, length * self._skip)
        blocks = played.reshape(length, -1)
        episode = Episode(stored, blocks, given, ends & terminated, ends & (not terminated), rows)
        if self._writer is None:
            if len(self._checksums) == _MOST_SHARDS:
                raise DatasetError(f"{where}: the {_MOST_SHARDS} files are full. Raise episodes_per_shard.")
            self._writer = ShardWriter(self._path, len(self._checksums), self._spec())
        self._writer.add(episode)
        self._count += 1
        if self._count % self._per_shard == 0:
            self._end_shard()

    def _actions(self, where: str, actions: ArrayLike) -> NDArray[Any]:
        """The actions, each an element of the space."""
        values = self._numbers(where, "actions", actions, dtype=None)
        found = []
        for step, value in enumerate(values):
            try:
                found.append(element(value, self._space))
            except ValueError as problem:
                raise DatasetError(
                    f"{where}, step {step}: action {value.tolist()} is not in the space {self._space}: {problem}."
                ) from None
        return np.array(found)

    def _frames(self, where: str, frames: Any) -> NDArray[np.uint8]:
        stored = []
        for step, frame in enumerate(frames):
            try:
                stored.append(image_to_frame(self._pictures(frame), self._image_size, self._channels))
            except EnvironmentNotUsableError as problem:
                raise DatasetError(f"{where}, frame {step}:{problem}") from None
        if not stored:
            raise DatasetError(f"{where}: it has no frames.")
        return np.stack(stored)

    def _numbers(
        self, where: str, what: str, values: ArrayLike, count: int | None = None, dtype: Any = np.float32
    ) -> NDArray[Any]:
        """Values as an array with `count` rows."""
        try:
            array = np.asarray(values, dtype)
        except (TypeError, ValueError) as problem:
            raise DatasetError(f"{where}: {what} are no array of numbers ({problem}).") from None
        if array.ndim == 0 or (count is not None and len(array) != count):
            raise DatasetError(f"{where}: {what} have the shape {array.shape}; expected {count or 'several'} rows.")
        return array

    def _end_shard(self) -> None:
        if self._writer is not None:
            self._writer.commit()
            index, self._writer = len(self._checksums), None
            self._checksums.append(Shard(shard_folder(self._path, index), index, 0, self._spec()).checksum)

    def _spec(self, complete: bool = False) -> DatasetSpec:
        return DatasetSpec(
            action_space=space_to_dict(self._space),
            action_size=block_size(self._space, self._skip),
            frame_skipping=self._skip,
            image_size=self._image_size,
            input_channels=self._channels,
            num_episodes=self._count,
            episodes_per_shard=self._per_shard,
            state_variables=self._variables,
            complete=complete,
            shards=self._checksums if complete else None,
        )

    def _collected(self) -> Collected:
        name, kwargs, seed = self._about
        return Collected(
            environment_name=name,
            environment_kwargs=kwargs,
            frame_source="auto",
            policy="recorded",
            policy_kwargs={},
            policy_path=None,
            policy_checksum=None,
            smoothness=None,
            seed=seed,
            max_steps_per_episode=self._longest,
            versions={name: version(name) for name in ("jepaworld", "gymnasium", "numpy")},
        )
