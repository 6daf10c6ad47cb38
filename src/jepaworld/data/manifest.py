"""`dataset.json`: what a dataset is and how it came about, sealed with a checksum of itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from jepaworld.errors import DatasetError
from jepaworld.utils.storage import atomic_write_bytes

SCHEMA_VERSION = 1
MANIFEST = "dataset.json"
RECOLLECT = "Collect the dataset again into an empty folder, or restore it from a copy."


@dataclass(frozen=True)
class Manifest:
    """What a dataset is, as `dataset.json` says it.

    Everything but `complete`, `shards` and `versions` follows from the settings, before the first episode.
    """

    schema_version: int
    environment_name: str
    environment_kwargs: dict[str, Any]
    action_space: dict[str, Any]
    """The environment's action space, as `envs.spaces.space_to_dict` writes it."""
    action_size: int
    """A, the length of a stored action block."""
    frame_skipping: int
    """Environment steps in a transition."""
    image_size: int
    input_channels: int
    frame_source: str
    policy: str
    policy_kwargs: dict[str, Any]
    policy_path: str | None
    policy_checksum: str | None
    """SHA-256 of the file at `policy_path`, so that another model under the same name is noticed."""
    smoothness: float | None
    """Of `smooth_random`; `None` for every other policy."""
    seed: int
    num_episodes: int
    max_steps_per_episode: int
    """Environment steps."""
    episodes_per_shard: int
    state_variables: dict[str, list[int]]
    """Name and shape of each state variable."""
    versions: dict[str, str]
    complete: bool
    """False while a collection runs, and after one was interrupted."""
    shards: list[str] | None
    """Checksum of each `shard.json`, once complete."""

    @property
    def num_shards(self) -> int:
        """Shards of the complete dataset."""
        return -(-self.num_episodes // self.episodes_per_shard)

    @property
    def array_layout(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Name, element type and shape of one row of every array of a shard."""
        side = self.image_size
        kind = np.int64 if self.action_space["type"] == "Discrete" else np.float32
        layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            "frames": (np.dtype(np.uint8), (self.input_channels, side, side)),
            "actions": (np.dtype(kind), (self.action_size,)),
            "rewards": (np.dtype(np.float32), ()),
            "terminated": (np.dtype(np.bool_), ()),
            "truncated": (np.dtype(np.bool_), ()),
        }
        states = sorted(self.state_variables.items())
        return layout | {f"state.{name}": (np.dtype(np.float32), tuple(shape)) for name, shape in states}


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write or replace `dataset.json` in the folder `path`.

    Raises:
        StorageError: it cannot be written; an old one is untouched.
    """
    atomic_write_bytes(path / MANIFEST, seal(asdict(manifest)))


def read_manifest(path: Path) -> Manifest:
    """Read and check `dataset.json` of the folder `path`.

    Raises:
        DatasetError: the folder is missing or no dataset, or the manifest is of another schema version or
            altered.
    """
    if not path.is_dir():
        raise DatasetError(
            f"{path}: no such dataset folder. Collect one (`jepaworld collect`), or correct the path in "
            "dataset_dir or load_dataset_path."
        )
    if not (path / MANIFEST).is_file():
        raise DatasetError(f"{path}: not a dataset: it has no {MANIFEST}. Give the folder that `collect` wrote.")
    content = unseal(path / MANIFEST, check_schema=True)
    known = {field.name for field in fields(Manifest)}
    if set(content) != known:
        raise DatasetError(
            f"{path / MANIFEST}: its entries are not those of a dataset (differing: "
            f"{sorted(set(content) ^ known)}). {RECOLLECT}"
        )
    return Manifest(**content)


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able mapping in a canonical form (sorted keys, no blanks), in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON text that carries the checksum of its own content, so that an edit is noticed."""
    return (json.dumps({**content, "checksum": checksum(content)}, indent=1, sort_keys=True) + "\n").encode()


def unseal(path: Path, check_schema: bool = False) -> dict[str, Any]:
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
    if check_schema and version != SCHEMA_VERSION:
        raise DatasetError(
            f"{path}: schema_version is {version!r}, this version of jepaworld reads {SCHEMA_VERSION}. Use "
            f"the version that wrote it (versions: {content.get('versions')}), or collect the dataset again "
            "into another folder."
        )
    expected = content.pop("checksum")
    if checksum(content) != expected:
        raise DatasetError(
            f"{path}: altered after it was written (its checksum is {checksum(content)}, it says "
            f"{expected}). Undo the edit. {RECOLLECT}"
        )
    return content
