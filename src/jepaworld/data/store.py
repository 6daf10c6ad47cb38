"""The dataset folder: shards of whole episodes, written so that a kill never damages it.

    dataset.json             the manifest: what was collected and how; see manifest.py
    shard-00000/             written under a temporary name, synced, renamed
        frames.npy           uint8   (F, C, S, S)
        actions.npy          float32 (F, A) for a Box action space, int64 (F, A) for a Discrete one
        rewards.npy          float32 (F,)     summed over the block of frame_skipping environment steps
        terminated.npy       bool    (F,)
        truncated.npy        bool    (F,)
        state.<name>.npy     float32 (F, *shape) for each state variable
        shard.json           episode lengths, and size and checksum of each file

Shapes: `E` episodes, `T` transitions of an episode, `F = sum(T + 1)` frames of a shard, `C` channels, `S`
image side, `A` size of an action block (`frame_skipping * prod(action shape)`). Row `f` of every array
belongs to frame `f`: the action of row `f` is taken at frame `f` and leads to frame `f + 1`; reward and ends
of row `f` are those of that transition. The row of the last frame of an episode is zero padding in all arrays
but frames and states.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

import gymnasium as gym
import numpy as np

from jepaworld.data.manifest import MANIFEST, RECOLLECT, Manifest, checksum, read_manifest, seal, unseal
from jepaworld.envs.spaces import space_from_dict
from jepaworld.errors import DatasetError
from jepaworld.utils.storage import atomic_write_bytes, storage_errors, sync_folder

SHARD_INFO = "shard.json"
_SHARD_NAME = re.compile(r"^shard-(\d{5,})$")
_TEMPORARY_PREFIX = ".writing-shard-"


class Episode(NamedTuple):
    """One episode of `T` transitions. `actions[t]` is taken at `frames[t]` and leads to `frames[t + 1]`."""

    frames: np.ndarray
    """uint8 (T + 1, C, S, S)"""
    actions: np.ndarray
    """(T, A)"""
    rewards: np.ndarray
    """float32 (T,)"""
    terminated: np.ndarray
    """bool (T,)"""
    truncated: np.ndarray
    """bool (T,)"""
    states: dict[str, np.ndarray]
    """name -> float32 (T + 1, *shape)"""


# --- writing


def shard_folder(path: Path, index: int) -> Path:
    """The final folder of shard `index` of the dataset in `path`."""
    return path / f"shard-{index:05d}"


def array_file(name: str) -> str:
    """File name of an array; characters that a file system may refuse are percent-encoded."""
    return f"{quote(name, safe='. ()[],+=')}.npy"


def remove_unfinished(path: Path) -> None:
    """Delete the temporary folders and files that a killed collection left in `path`."""
    with storage_errors(path):
        for leftover in path.glob(f"{_TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover)
        for leftover in path.glob(f".{MANIFEST}.*.tmp"):
            leftover.unlink()


class _ArrayFile:
    """A .npy file that grows by rows: nothing but the row being written needs to be in memory."""

    def __init__(self, path: Path, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self._path, self._dtype, self._row_shape = path, dtype, row_shape
        self._rows = 0
        self._file = path.open("xb")
        try:
            self._write_header()
        except BaseException:
            self._file.close()
            raise

    def _write_header(self) -> None:
        # numpy pads the header so that its length does not depend on the number of rows.
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        assert rows.shape[1:] == self._row_shape, (self._path.name, rows.shape)
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._rows += len(rows)

    def finish(self) -> None:
        """Complete the header."""
        self._file.seek(0)
        self._write_header()
        self._file.flush()

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._file.fileno())

    def describe(self) -> dict[str, Any]:
        """Size and checksum of the finished file."""
        return {"bytes": self._path.stat().st_size, "sha256": file_checksum(self._path)}

    def close(self) -> None:
        self._file.close()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, as `sha256sum` prints it.

    Of the standard library's hashes it is the fastest that also notices deliberate changes: 1.7 GB/s on a
    core with SHA instructions (blake2b 0.86 GB/s), which is 140,000 frames of 64 x 64 pixels a second.
    zlib.crc32 is 2.3 times as fast, but one in four thousand million damages passes unnoticed and anyone can
    forge it.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Writes one shard: `add` episodes, then `commit`. Until then nothing exists under the shard's name.

    Use it as a context manager: leaving without `commit` (an exception) deletes what was written.

    Args:
        path: folder of the dataset.
        index: number of the shard.
        manifest: of the dataset; says which arrays there are.

    Raises:
        StorageError: the disk is full or the folder cannot be written; also from `add` and `commit`.
    """

    def __init__(self, path: Path, index: int, manifest: Manifest) -> None:
        self._final, self._index, self._manifest = shard_folder(path, index), index, manifest
        self._lengths: list[int] = []
        self._files: dict[str, _ArrayFile] = {}
        # The token keeps a worker that outlived its killed parent from writing into the same folder as its
        # successor.
        self._folder = path / f"{_TEMPORARY_PREFIX}{index:05d}-{secrets.token_hex(4)}"
        try:
            with storage_errors(self._folder):
                self._folder.mkdir()
                for name, (dtype, row_shape) in manifest.array_layout.items():
                    self._files[name] = _ArrayFile(self._folder / array_file(name), dtype, row_shape)
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    def add(self, episode: Episode) -> None:
        """Append an episode; its states are those of the manifest."""
        length = len(episode.actions)
        assert length >= 1 and len(episode.frames) == length + 1, "T transitions have T + 1 frames"
        with storage_errors(self._folder):
            self._files["frames"].append(episode.frames)
            for name in ("actions", "rewards", "terminated", "truncated"):
                rows: np.ndarray = getattr(episode, name)
                assert len(rows) == length, f"{name}: {len(rows)} rows for {length} transitions"
                self._files[name].append(rows)
                self._files[name].append(np.zeros_like(rows[:1]))
            for name, rows in episode.states.items():
                assert len(rows) == length + 1, f"state {name}: {len(rows)} rows for {length + 1} frames"
                self._files[f"state.{name}"].append(rows)
        self._lengths.append(length)

    def commit(self) -> None:
        """Sync everything to the disk and give the shard its name."""
        with storage_errors(self._folder):
            for file in self._files.values():
                file.finish()
            # At once, as the disk takes about as long for all files together as for one of them, and the
            # checksums are computed meanwhile.
            with ThreadPoolExecutor(2 * len(self._files)) as pool:
                synced = [pool.submit(file.sync) for file in self._files.values()]
                described = {name: pool.submit(file.describe) for name, file in self._files.items()}
                for future in synced:
                    future.result()
                files = {array_file(name): future.result() for name, future in described.items()}
            for file in self._files.values():
                file.close()
            info = {
                "index": self._index,
                "first_episode": self._index * self._manifest.episodes_per_shard,
                "episode_lengths": self._lengths,
                "files": files,
            }
            atomic_write_bytes(self._folder / SHARD_INFO, seal(info))
            self._folder.rename(self._final)
            sync_folder(self._final.parent)

    def discard(self) -> None:
        """Delete what was written under the temporary name; nothing after `commit`."""
        for file in self._files.values():
            # Closing flushes; on a full disk that fails again, after the first failure was already reported.
            try:
                file.close()
            except OSError:
                continue
        # A successor of a killed collection may be deleting the same folder at the same time.
        shutil.rmtree(self._folder, ignore_errors=True)


# --- reading


class Shard:
    """The arrays of one shard; frames are a memory map, the small arrays lie in memory. All are read-only.

    Attributes:
        index: number of the shard.
        first_episode: number of its first episode in the complete dataset.
        start: row of its first frame among all rows of the opened dataset.
        num_frames: F.
        episode_lengths: int64 (E,) transitions.
        checksum: of its `shard.json`, and with it of all its files.
        frames, actions, rewards, terminated, truncated: see the module.
        states: name -> float32 (F, *shape).
    """

    def __init__(self, folder: Path, index: int, start: int, manifest: Manifest) -> None:
        self._folder = folder
        info = unseal(folder / SHARD_INFO)
        self.checksum = checksum(info)
        if info.get("index") != index:
            raise DatasetError(f"{folder}: holds shard {info.get('index')}, a renamed folder. Rename it back.")
        self._files: dict[str, dict[str, Any]] = info["files"]
        self.index, self.start = index, start
        self.first_episode: int = info["first_episode"]
        self.episode_lengths = np.array(info["episode_lengths"], dtype=np.int64)
        self.num_frames = int((self.episode_lengths + 1).sum())
        self._check_sizes()
        # Only frames are memory-mapped: each map keeps a file descriptor open, and systems allow a thousand
        # or so.
        arrays = {
            name: self._load(name, dtype, (self.num_frames, *row_shape), memory_map=name == "frames")
            for name, (dtype, row_shape) in manifest.array_layout.items()
        }
        self.frames = arrays["frames"]
        self.actions = arrays["actions"]
        self.rewards = arrays["rewards"]
        self.terminated = arrays["terminated"]
        self.truncated = arrays["truncated"]
        self.states = {name: arrays[f"state.{name}"] for name in manifest.state_variables}

    def _check_sizes(self) -> None:
        for name, entry in self._files.items():
            path = self._folder / name
            if not path.is_file():
                raise DatasetError(f"{path}: missing. {_mend(self._folder)}")
            size = path.stat().st_size
            if size != entry["bytes"]:
                word = "truncated" if size < entry["bytes"] else "altered"
                raise DatasetError(
                    f"{path}: {word}: {size} bytes, {entry['bytes']} were written. {_mend(self._folder)}"
                )

    def _load(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], memory_map: bool) -> np.ndarray:
        path = self._folder / array_file(name)
        try:
            array: np.ndarray = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: cannot be read ({error}). {_mend(self._folder)}") from error
        if array.shape != shape or array.dtype != dtype:
            raise DatasetError(
                f"{path}: holds {array.dtype} {array.shape}, expected {dtype} {shape}. {_mend(self._folder)}"
            )
        array.flags.writeable = False
        return array

    def find_altered(self) -> str | None:
        """Compare every file with its checksum; a sentence about the first that differs, or `None`."""
        for name, entry in self._files.items():
            found = file_checksum(self._folder / name)
            if found != entry["sha256"]:
                return (
                    f"{self._folder / name}: altered after it was written (sha256 {found}, {entry['sha256']} "
                    f"was written). {_mend(self._folder)}"
                )
        return None


def _mend(folder: Path) -> str:
    return (
        f"Restore it from a copy, or delete the folder {folder.name} and run `jepaworld collect` with the "
        "settings of this dataset: only what is missing is collected again."
    )


class EpisodeDataset:
    """A dataset folder, opened for reading.

    A dataset whose collection was interrupted opens too, with the episodes of its finished shards;
    `manifest.complete` is False then.

    Attributes:
        path: the folder.
        manifest: what it is.
        action_space: of the environment (not of the block of `frame_skipping` actions).
        shards: the shards in order of their episodes.
        episode_lengths: int64 (E,) transitions of each episode.
        episode_starts: int64 (E,) row of each episode's first frame.
        num_frames: rows of all shards together.
        state_variables: name -> shape.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: list[Shard]) -> None:
        self.path, self.manifest, self.shards = path, manifest, shards
        self.action_space: gym.Space[Any] = space_from_dict(manifest.action_space)
        lengths = [shard.episode_lengths for shard in shards]
        self.episode_lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        ends = np.cumsum(self.episode_lengths + 1)
        self.episode_starts = ends - (self.episode_lengths + 1)
        self.num_frames = int(ends[-1]) if len(ends) else 0
        self.state_variables = {name: tuple(shape) for name, shape in sorted(manifest.state_variables.items())}

    @classmethod
    def open(cls, path: str | Path, *, verify_checksums: bool = True, allow_missing: bool = False) -> EpisodeDataset:
        """Open a dataset folder.

        Args:
            path: the folder that holds `dataset.json`.
            verify_checksums: read every file once and compare it with its checksum; sizes, shapes and the
                manifest are checked in any case.
            allow_missing: open the rest of a complete dataset that lacks shards, as the collection does to
                mend it.

        Raises:
            DatasetError: the folder is missing or no dataset, is of another schema version, or a file of it
                is missing, truncated or altered; the message names the file.
        """
        path = Path(path)
        manifest = read_manifest(path)
        shards: list[Shard] = []
        start = 0
        for index in _shard_indices(path, manifest, allow_missing):
            shard = Shard(shard_folder(path, index), index, start, manifest)
            if manifest.shards is not None and shard.checksum != manifest.shards[index]:
                raise DatasetError(
                    f"{shard_folder(path, index) / SHARD_INFO}: not the one that belongs to this dataset "
                    f"(checksum {shard.checksum}, {MANIFEST} says {manifest.shards[index]}). {RECOLLECT}"
                )
            shards.append(shard)
            start += shard.num_frames
        if verify_checksums:
            # Hashing releases the interpreter lock, so threads use all cores.
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for problem in pool.map(Shard.find_altered, shards):
                    if problem is not None:
                        raise DatasetError(problem)
        return cls(path, manifest, shards)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the manifest and all checksums: equal exactly for equal datasets."""
        return checksum({**asdict(self.manifest), "shards": [shard.checksum for shard in self.shards]})

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of rows `start` to `stop` (exclusive) of an array; they may span shards.

        Args:
            name: "frames", "actions", "rewards", "terminated", "truncated" or the name of a state variable. A
                state variable that is named as one of the arrays is found as "state.<name>".
            start: first row, at least 0.
            stop: row after the last one, at most `num_frames`.

        Returns:
            (stop - start, *row shape).
        """
        assert 0 <= start <= stop <= self.num_frames, f"rows {start} to {stop} of {self.num_frames}"
        layout = self.manifest.array_layout
        key = name if name in layout else f"state.{name}"
        dtype, row_shape = layout[key]
        result = np.empty((stop - start, *row_shape), dtype)
        for shard in self.shards:
            first, last = max(start, shard.start), min(stop, shard.start + shard.num_frames)
            if first < last:
                source = shard.states[key[6:]] if key.startswith("state.") else getattr(shard, key)
                result[first - start : last - start] = source[first - shard.start : last - shard.start]
        return result

    def episode_number(self, index: int) -> int:
        """The number of episode `index` in the complete dataset, which its seeds follow from.

        It is another one where shards are missing before it.
        """
        for shard in self.shards:
            if index < len(shard.episode_lengths):
                return shard.first_episode + index
            index -= len(shard.episode_lengths)
        raise IndexError("no such episode")

    def episode(self, index: int) -> Episode:
        """Episode `index` (0 to E - 1) as copies in memory."""
        length, start = int(self.episode_lengths[index]), int(self.episode_starts[index])
        end = start + length
        return Episode(
            frames=self.rows("frames", start, end + 1),
            actions=self.rows("actions", start, end),
            rewards=self.rows("rewards", start, end),
            terminated=self.rows("terminated", start, end),
            truncated=self.rows("truncated", start, end),
            states={name: self.rows(f"state.{name}", start, end + 1) for name in self.state_variables},
        )


def finished_shards(path: Path) -> Iterator[int]:
    """Numbers of the shards in the folder `path`, in order."""
    matches = (_SHARD_NAME.match(entry.name) for entry in path.iterdir())
    yield from sorted(int(match[1]) for match in matches if match)


def _shard_indices(path: Path, manifest: Manifest, allow_missing: bool) -> list[int]:
    indices = list(finished_shards(path))
    expected = range(manifest.num_shards)
    surplus = sorted(set(indices) - set(expected))
    if surplus:
        raise DatasetError(
            f"{shard_folder(path, surplus[0])}: does not belong to this dataset of {manifest.num_shards} "
            "shards. Move it away."
        )
    missing = sorted(set(expected) - set(indices))
    if manifest.complete and missing and not allow_missing:
        raise DatasetError(f"{shard_folder(path, missing[0])}: missing. {_mend(shard_folder(path, missing[0]))}")
    return indices
