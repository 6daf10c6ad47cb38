"""Shards of a dataset folder: whole episodes, written so that a kill never damages it.

    dataset.json             what it is and where it comes from; see spec.py
    shard-00000/             written under a temporary name, synced, renamed
        frames.npy           uint8   (F, C, S, S)
        actions.npy          float32 (F, A) for a Box action space, int64 (F, A) for a Discrete one
        rewards.npy          float32 (F,)     summed over the block of frame_skipping environment steps
        terminated.npy       bool    (F,)
        truncated.npy        bool    (F,)
        state.<name>.npy     float32 (F, *shape) for each state variable
        shard.json           episode lengths, environment steps of each episode's last block where a block has
                             several, and size and checksum of each file

Shapes: `E` episodes, `T` transitions of an episode, `F = sum(T + 1)` frames of a shard, `C` channels, `S` image side,
`A` size of an action block (`frame_skipping * prod(action shape)`). Row `f` of every array belongs to frame `f`: its
action, reward and ends are those of the transition to frame `f + 1`. The row of the last frame of an episode is zero
padding in all arrays but frames and states.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

import numpy as np

from jepaworld.data.spec import DATASET_FILE, DatasetSpec, checksum, seal, unseal
from jepaworld.errors import DatasetError
from jepaworld.utils.storage import atomic_write_bytes, file_checksum, storage_errors, sync_folder

SHARD_INFO = "shard.json"
_SHARD_NAME = re.compile(r"^shard-(\d{5,})$")
_TEMPORARY_PREFIX = ".writing-shard-"


class Episode(NamedTuple):
    """One episode of `T` transitions. `actions[t]` is taken at `frames[t]` and leads to `frames[t + 1]`."""

    frames: np.ndarray  # uint8 (T + 1, C, S, S)
    actions: np.ndarray  # (T, A)
    rewards: np.ndarray  # float32 (T,)
    terminated: np.ndarray  # bool (T,)
    truncated: np.ndarray  # bool (T,)
    states: dict[str, np.ndarray]  # name -> float32 (T + 1, *shape)
    last_steps: int | None = None  # environment steps that the last block was played for; None for all of them


def shard_folder(path: Path, index: int) -> Path:
    """The final folder of shard `index` of the dataset in `path`."""
    return path / f"shard-{index:05d}"


def finished_shards(path: Path) -> list[int]:
    """Numbers of the shards in the folder `path`, in order."""
    return sorted(int(match[1]) for entry in path.iterdir() if (match := _SHARD_NAME.match(entry.name)))


def array_file(name: str) -> str:
    """File name of an array; characters that a file system may refuse are percent-encoded."""
    return f"{quote(name, safe='. ()[],+=')}.npy"


def remove_unfinished(path: Path) -> None:
    """Delete the temporary folders and files that a killed collection left in `path`."""
    with storage_errors(path):
        for leftover in path.glob(f"{_TEMPORARY_PREFIX}*"):
            shutil.rmtree(leftover)
        for leftover in path.glob(f".{DATASET_FILE}.*.tmp"):
            leftover.unlink()


def remedy(folder: Path) -> str:
    """What to do about a damaged or missing shard."""
    return (
        f"Restore it from a copy, or delete the folder {folder.name} and run `jepaworld collect` with the settings of "
        "this dataset, which collects only what is missing."
    )


class ShardWriter:
    """Writes one shard: `add` episodes, then `commit`. Until then nothing exists under the shard's name.

    Use it as a context manager: leaving without `commit` (an exception) deletes what was written.

    Args:
        path: folder of the dataset.
        index: number of the shard.
        spec: of the dataset; says which arrays there are.

    Raises:
        StorageError: the disk is full or the folder cannot be written; also from `add` and `commit`.

    Example:
        >>> with ShardWriter(folder, 0, spec) as writer:
        ...     writer.add(episode)
        ...     writer.commit()
    """

    def __init__(self, path: Path, index: int, spec: DatasetSpec) -> None:
        self._final, self._index, self._spec = shard_folder(path, index), index, spec
        self._layout = spec.array_layout
        self._lengths: list[int] = []
        self._last_steps: list[int] = []
        self._files: dict[str, BinaryIO] = {}
        # The token keeps a worker that outlived its killed parent from writing into its successor's folder.
        self._folder = path / f"{_TEMPORARY_PREFIX}{index:05d}-{secrets.token_hex(4)}"
        try:
            with storage_errors(self._folder):
                self._folder.mkdir()
                for name in self._layout:
                    self._files[name] = (self._folder / array_file(name)).open("xb")
                    self._write_header(name)
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._discard()

    def _write_header(self, name: str) -> None:
        """The header of a .npy file; numpy pads it, so that its length does not depend on the number of rows."""
        dtype, row_shape = self._layout[name]
        shape = (sum(self._lengths) + len(self._lengths), *row_shape)
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._files[name], header)

    def add(self, episode: Episode) -> None:
        """Append an episode; its states are those of the spec."""
        length = len(episode.actions)
        arrays = episode._asdict()
        last_steps = arrays.pop("last_steps") or self._spec.frame_skipping
        arrays |= {f"state.{name}": rows for name, rows in arrays.pop("states").items()}
        assert length >= 1 and arrays.keys() == self._layout.keys(), (length, list(arrays))
        with storage_errors(self._folder):
            for name, (dtype, row_shape) in self._layout.items():
                rows, has_last = arrays[name], name == "frames" or name.startswith("state.")
                assert rows.shape == (length + has_last, *row_shape), (name, rows.shape, length)
                self._files[name].write(np.ascontiguousarray(rows, dtype).data)
                if not has_last:  # every array has a row for every frame
                    self._files[name].write(np.zeros((1, *row_shape), dtype).data)
        self._lengths.append(length)
        self._last_steps.append(last_steps)

    def commit(self) -> None:
        """Sync everything to the disk and give the shard its name."""
        with storage_errors(self._folder):
            for name, file in self._files.items():
                file.seek(0)
                self._write_header(name)
                file.flush()
            names = {array_file(name): self._folder / array_file(name) for name in self._files}
            # At once, as the disk takes about as long for all files together as for one of them, and the
            # checksums are computed meanwhile.
            with ThreadPoolExecutor(2 * len(names)) as pool:
                synced = [pool.submit(os.fsync, file.fileno()) for file in self._files.values()]
                checksums = pool.map(file_checksum, names.values())
                for future in synced:
                    future.result()
            info = {
                "index": self._index,
                "first_episode": self._index * self._spec.episodes_per_shard,
                "episode_lengths": self._lengths,
                "files": {
                    name: {"bytes": path.stat().st_size, "sha256": sha256}
                    for (name, path), sha256 in zip(names.items(), checksums, strict=True)
                },
            }
            if self._spec.frame_skipping > 1:
                info["last_block_steps"] = self._last_steps
            for file in self._files.values():
                file.close()
            atomic_write_bytes(self._folder / SHARD_INFO, seal(info))
            self._folder.rename(self._final)
            sync_folder(self._final.parent)

    def _discard(self) -> None:
        """Delete what was written under the temporary name; nothing after `commit`."""
        for file in self._files.values():
            # Closing flushes; on a full disk that fails again, after the first failure was already reported.
            with contextlib.suppress(OSError):
                file.close()
        # A successor of a killed collection may be deleting the same folder at the same time.
        shutil.rmtree(self._folder, ignore_errors=True)


class Shard:
    """The arrays of one shard; frames are a memory map, the small arrays lie in memory. All are read-only.

    Raises:
        DatasetError: a file is missing, or is not as it was written (checksums are compared by `find_altered`).
    """

    def __init__(self, folder: Path, index: int, start: int, spec: DatasetSpec) -> None:
        self._folder = folder
        self.start = start  # row of its first frame among all rows of the opened dataset
        info = unseal(folder / SHARD_INFO)
        if info.get("index") != index:
            raise DatasetError(f"{folder}: holds shard {info.get('index')}, a renamed folder. Rename it back.")
        self.checksum = checksum(info)  # and with it of all its files
        self._files: dict[str, dict[str, Any]] = info["files"]
        self.first_episode: int = info["first_episode"]  # its number in the complete dataset
        self.episode_lengths = np.array(info["episode_lengths"], dtype=np.int64)  # (E,) transitions
        self.num_frames = int((self.episode_lengths + 1).sum())
        self._last_steps: list[int] | None = info.get("last_block_steps")
        self._skip = spec.frame_skipping
        for name, entry in self._files.items():
            if not (folder / name).is_file():
                raise self._damaged(name, "missing")
            if (size := (folder / name).stat().st_size) != entry["bytes"]:
                word = "truncated" if size < entry["bytes"] else "altered"
                raise self._damaged(name, f"{word}: {size} bytes, {entry['bytes']} were written")
        # By name, a state variable's with the prefix "state.": (F, *row shape).
        self.arrays = {name: self._load(name, *row) for name, row in spec.array_layout.items()}

    def _damaged(self, name: str, problem: str) -> DatasetError:
        return DatasetError(f"{self._folder / name}: {problem}. {remedy(self._folder)}")

    def _load(self, name: str, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> np.ndarray:
        file, shape = array_file(name), (self.num_frames, *row_shape)
        # Only frames are memory-mapped: each map keeps a file descriptor open, and systems allow a thousand or so.
        mode = "r" if name == "frames" else None
        try:
            array: np.ndarray = np.load(self._folder / file, mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self._damaged(file, f"cannot be read ({error})") from error
        if array.shape != shape or array.dtype != dtype:
            raise self._damaged(file, f"holds {array.dtype} {array.shape}, expected {dtype} {shape}")
        array.flags.writeable = False
        return array

    def cut(self) -> np.ndarray:
        """Bool (E,): episodes whose last block the end cut short, so that not all of its actions were played."""
        if self._skip == 1:
            return np.zeros(len(self.episode_lengths), np.bool_)
        if self._last_steps is not None:
            return np.array(self._last_steps) < self._skip
        # Of 0.1.0, which did not mark them: a cut block was filled up with its last action. One that happens to repeat
        # its last action is taken for cut too, as a transition too few does no harm.
        ends = np.cumsum(self.episode_lengths + 1) - 2
        steps = self.arrays["actions"][ends].reshape(len(ends), self._skip, -1)
        return (steps[:, -1] == steps[:, -2]).all(axis=1)

    def gather(self, name: str, rows: np.ndarray, keep_cached: bool = True) -> np.ndarray:
        """Copies of some rows of an array, int64 (N,) local rows in any order -> (N, *row shape).

        `keep_cached` says whether the system should keep the frames' pages, because they will be read again.
        """
        array = self.arrays[name]
        if not isinstance(array, np.memmap):
            return array[rows]
        # Frames are read as a file, in runs of neighbouring rows. A process whose memory is limited pays for the pages
        # of a memory map as for its own: each step would first have to drive them out.
        target = np.empty((len(rows), *array.shape[1:]), array.dtype)
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        view = target.reshape(-1).view(np.uint8).data
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)  # where a run of neighbours begins
        with (self._folder / array_file(name)).open("rb", buffering=0) as file:
            for first, last in pairwise([*begins.tolist(), len(rows)]):
                start, done, end = array.offset + int(rows[first]) * row_bytes, first * row_bytes, last * row_bytes
                file.seek(start)
                while done < end:  # a read may give less than was asked for
                    count = file.readinto(view[done:end])
                    if not count:
                        raise self._damaged(array_file(name), "became shorter while it was read")
                    done += count
                if not keep_cached and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), start, (last - first) * row_bytes, os.POSIX_FADV_DONTNEED)
        return target

    def find_altered(self) -> DatasetError | None:
        """Compare every file with its checksum; the error of the first that differs."""
        for name, entry in self._files.items():
            if (found := file_checksum(self._folder / name)) != (written := entry["sha256"]):
                return self._damaged(name, f"altered after it was written (sha256 {found}, {written} was written)")
        return None
