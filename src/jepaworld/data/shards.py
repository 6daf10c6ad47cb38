"""Shards of a dataset folder: whole episodes, written so that a kill never damages it.

    dataset.json             what it is and where it comes from; see spec.py
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
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np

from jepaworld.data.spec import DATASET_FILE, DatasetSpec, checksum, seal, unseal
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
        for leftover in path.glob(f".{DATASET_FILE}.*.tmp"):
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
        spec: of the dataset; says which arrays there are.

    Raises:
        StorageError: the disk is full or the folder cannot be written; also from `add` and `commit`.
    """

    def __init__(self, path: Path, index: int, spec: DatasetSpec) -> None:
        self._final, self._index, self._spec = shard_folder(path, index), index, spec
        self._lengths: list[int] = []
        self._files: dict[str, _ArrayFile] = {}
        # The token keeps a worker that outlived its killed parent from writing into the same folder as its
        # successor.
        self._folder = path / f"{_TEMPORARY_PREFIX}{index:05d}-{secrets.token_hex(4)}"
        try:
            with storage_errors(self._folder):
                self._folder.mkdir()
                for name, (dtype, row_shape) in spec.array_layout.items():
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
        """Append an episode; its states are those of the spec."""
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
                "first_episode": self._index * self._spec.episodes_per_shard,
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


def finished_shards(path: Path) -> Iterator[int]:
    """Numbers of the shards in the folder `path`, in order."""
    matches = (_SHARD_NAME.match(entry.name) for entry in path.iterdir())
    yield from sorted(int(match[1]) for match in matches if match)


class Shard:
    """The arrays of one shard; frames are a memory map, the small arrays lie in memory. All are read-only.

    Attributes:
        index: number of the shard.
        first_episode: number of its first episode in the complete dataset.
        start: row of its first frame among all rows of the opened dataset.
        num_frames: F.
        episode_lengths: int64 (E,) transitions.
        checksum: of its `shard.json`, and with it of all its files.
        arrays: name (a state variable's with the prefix "state.") -> (F, *row shape), see the module.
    """

    def __init__(self, folder: Path, index: int, start: int, spec: DatasetSpec) -> None:
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
        self.arrays = {
            name: self._load(name, dtype, (self.num_frames, *row_shape), memory_map=name == "frames")
            for name, (dtype, row_shape) in spec.array_layout.items()
        }

    def _check_sizes(self) -> None:
        for name, entry in self._files.items():
            path = self._folder / name
            if not path.is_file():
                raise DatasetError(f"{path}: missing. {remedy(self._folder)}")
            size = path.stat().st_size
            if size != entry["bytes"]:
                word = "truncated" if size < entry["bytes"] else "altered"
                raise DatasetError(
                    f"{path}: {word}: {size} bytes, {entry['bytes']} were written. {remedy(self._folder)}"
                )

    def _load(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], memory_map: bool) -> np.ndarray:
        path = self._folder / array_file(name)
        try:
            array: np.ndarray = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path}: cannot be read ({error}). {remedy(self._folder)}") from error
        if array.shape != shape or array.dtype != dtype:
            raise DatasetError(
                f"{path}: holds {array.dtype} {array.shape}, expected {dtype} {shape}. {remedy(self._folder)}"
            )
        array.flags.writeable = False
        return array

    def gather(self, name: str, rows: np.ndarray, keep_cached: bool = True) -> np.ndarray:
        """Copies of some rows of an array, int64 (N,) local rows in any order -> (N, *row shape).

        Frames are read as a file in runs of neighbouring rows. A process whose memory is limited pays for the pages of
        a memory map as for its own: each step would first have to drive them out.

        Args:
            name: of the array.
            rows: numbers of rows in this shard.
            keep_cached: whether the system should keep the frames' pages, because they will be read again.
        """
        array = self.arrays[name]
        if not isinstance(array, np.memmap):
            return array[rows]
        target = np.empty((len(rows), *array.shape[1:]), array.dtype)
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        view = target.reshape(-1).view(np.uint8).data
        path = self._folder / array_file(name)
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)  # where a run of neighbours begins
        with path.open("rb", buffering=0) as file:
            for first, last in pairwise([*begins.tolist(), len(rows)]):
                start, done, end = array.offset + int(rows[first]) * row_bytes, first * row_bytes, last * row_bytes
                file.seek(start)
                while done < end:
                    count = file.readinto(view[done:end])
                    if not count:
                        raise DatasetError(f"{path}: became shorter while it was read. {remedy(self._folder)}")
                    done += count
                if not keep_cached and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), start, (last - first) * row_bytes, os.POSIX_FADV_DONTNEED)
        return target

    def find_altered(self) -> str | None:
        """Compare every file with its checksum; a sentence about the first that differs, or `None`."""
        for name, entry in self._files.items():
            found = file_checksum(self._folder / name)
            if found != entry["sha256"]:
                return (
                    f"{self._folder / name}: altered after it was written (sha256 {found}, {entry['sha256']} "
                    f"was written). {remedy(self._folder)}"
                )
        return None


def remedy(folder: Path) -> str:
    """What to do about a damaged or missing shard."""
    return (
        f"Restore it from a copy, or delete the folder {folder.name} and run `jepaworld collect` with the "
        "settings of this dataset: only what is missing is collected again."
    )
