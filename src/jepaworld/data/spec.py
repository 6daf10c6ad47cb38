"""`dataset.json`: what a dataset is and where it comes from, sealed with a checksum of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jepaworld.envs.frames import FrameSource
from jepaworld.errors import DatasetError
from jepaworld.utils.storage import atomic_write_bytes

SCHEMA_VERSION = 1
DATASET_FILE = "dataset.json"
RECOLLECT = "Collect the dataset again into an empty folder, or restore it from a copy."

Row = tuple[np.dtype[Any], tuple[int, ...]]
"""Element type and shape of one row of an array."""


@dataclass(frozen=True)
class DatasetSpec:
    """What a dataset is: all that training, probes and imagination ask for.

    Everything but `complete` and `shards` is known before the first episode.

    Example:
        >>> EpisodeDataset.open("datasets/two_room").spec.frame_shape
        (3, 64, 64)
    """

    action_space: dict[str, Any]  # of the environment (not of an action block), by `envs.spaces.space_to_dict`
    action_size: int  # A, numbers of a stored action block
    frame_skipping: int  # environment steps in a transition
    image_size: int  # S
    input_channels: int  # C
    num_episodes: int  # of the complete dataset
    episodes_per_shard: int  # the last shard may have fewer
    state_variables: dict[str, list[int]]  # name and shape of each
    complete: bool = False  # not while it is written, nor after that was interrupted
    shards: list[str] | None = None  # checksum of each `shard.json`, once complete

    @property
    def num_shards(self) -> int:
        """Shards of the complete dataset."""
        return -(-self.num_episodes // self.episodes_per_shard)

    def episodes_of(self, shard: int) -> range:
        """Numbers of the episodes of a shard."""
        first = shard * self.episodes_per_shard
        return range(first, min(first + self.episodes_per_shard, self.num_episodes))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """C, S, S."""
        return (self.input_channels, self.image_size, self.image_size)

    @property
    def array_layout(self) -> dict[str, Row]:
        """Element type and row shape of every array of a shard, by name."""
        kind = np.int64 if self.action_space["type"] == "Discrete" else np.float32
        layout: dict[str, Row] = {
            "frames": (np.dtype(np.uint8), self.frame_shape),
            "actions": (np.dtype(kind), (self.action_size,)),
            "rewards": (np.dtype(np.float32), ()),
            "terminated": (np.dtype(np.bool_), ()),
            "truncated": (np.dtype(np.bool_), ()),
        }
        states = sorted(self.state_variables.items())
        return layout | {f"state.{name}": (np.dtype(np.float32), tuple(shape)) for name, shape in states}


@dataclass(frozen=True)
class Collected:
    """Where a dataset comes from: the environment and all else that its episodes can be played again from.

    Example:
        >>> EpisodeDataset.open("datasets/two_room").provenance.environment_name
        'jepaworld/TwoRoom-v0'
    """

    environment_name: str  # Gymnasium id
    environment_kwargs: dict[str, Any]  # arguments for `gymnasium.make`
    frame_source: FrameSource  # see `envs.frames.FrameReader`
    policy: str  # who acted, see `policies.make_policy`
    policy_kwargs: dict[str, Any]
    policy_path: str | None  # file that the policy was loaded from
    policy_checksum: str | None  # SHA-256 of that file, so that another model under the same name is noticed
    smoothness: float | None  # of `smooth_random`; `None` for every other policy
    seed: int  # of episodes and, unless another one is asked for, of the split
    max_steps_per_episode: int  # environment steps
    versions: dict[str, str]  # of the packages that the data depend on


def as_content(spec: DatasetSpec, provenance: Collected) -> dict[str, Any]:
    """What `dataset.json` holds: the entries of both side by side."""
    return {"schema_version": SCHEMA_VERSION, **asdict(spec), **asdict(provenance)}


def write_description(path: Path, spec: DatasetSpec, provenance: Collected) -> None:
    """Write or replace `dataset.json` in the folder `path`; a StorageError leaves an old one untouched."""
    atomic_write_bytes(path / DATASET_FILE, seal(as_content(spec, provenance)))


def read_description(path: Path) -> tuple[DatasetSpec, Collected]:
    """Read and check `dataset.json` of the folder `path`.

    Raises:
        DatasetError: the folder is missing or no dataset, or the file is of another schema version or altered.
    """
    file = path / DATASET_FILE
    if not path.is_dir():
        raise DatasetError(
            f"{path}: no such dataset folder. Collect one (`jepaworld collect`), or correct load_dataset_path."
        )
    if not file.is_file():
        raise DatasetError(f"{path}: not a dataset: it has no {DATASET_FILE}. Give the folder that `collect` wrote.")
    content = unseal(file)
    of_spec, of_provenance = ([field.name for field in fields(kind)] for kind in (DatasetSpec, Collected))
    if differing := set(content) ^ {*of_spec, *of_provenance, "schema_version"}:
        raise DatasetError(
            f"{file}: its entries are not those of a dataset (differing: {sorted(differing)}). {RECOLLECT}"
        )
    spec = DatasetSpec(**{name: content[name] for name in of_spec})
    return spec, Collected(**{name: content[name] for name in of_provenance})


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able mapping in a canonical form (sorted keys, no blanks), in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON text that carries the checksum of its own content, so that an edit is noticed."""
    return (json.dumps({**content, "checksum": checksum(content)}, indent=1, sort_keys=True) + "\n").encode()


def unseal(path: Path) -> dict[str, Any]:
    """Read what `seal` wrote.

    Raises:
        DatasetError: missing, not such a file, of another schema version, or altered.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}). {RECOLLECT}") from error
    if not isinstance(content, dict) or "checksum" not in content:
        raise DatasetError(f"{path}: not a file of a jepaworld dataset. {RECOLLECT}")
    version = content.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:  # before the checksum, which another version may compute otherwise
        raise DatasetError(
            f"{path}: schema_version is {version!r}, this version of jepaworld reads {SCHEMA_VERSION}. Use the version "
            f"that wrote it (versions: {content.get('versions')}), or collect anew into another folder."
        )
    written = content.pop("checksum")
    if (found := checksum(content)) != written:
        raise DatasetError(
            f"{path}: altered after it was written (checksum {found}, it says {written}). Undo the edit. {RECOLLECT}"
        )
    return content
