"""Weights on disk: safetensors with one JSON document in the header, so that nothing loaded can run code.

A model checkpoint holds its resolved configuration and action space and rebuilds itself from them. Every file is
written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import safetensors
import safetensors.torch
from pydantic import ValidationError
from torch import Tensor, nn

from jepaworld.config import Config, config_from_dict, load_config
from jepaworld.envs.spaces import space_from_dict, space_to_dict
from jepaworld.errors import CheckpointError, ConfigError
from jepaworld.utils.storage import atomic_write_bytes

FORMAT_VERSION = 1
CONFIG_FILE = "config.yaml"
CHECKPOINT_FOLDER = "checkpoints"
# A single entry, because safetensors does not keep the order of several and equal checkpoints must be equal bytes.
_HEADER = "jepaworld"


class Checkpoint(NamedTuple):
    """A model checkpoint as read from disk.

    Attributes:
        path: The file.
        config: The resolved configuration of the run that wrote it.
        action_space: The environment's action space.
        weights: Tensors by their names in the module.
    """

    path: Path
    config: Config
    action_space: gymnasium.Space
    weights: dict[str, Tensor]


def checkpoint_path(run: Path, config: Config, kind: str, which: str = "best") -> Path:
    """Where a run keeps its checkpoints: `kind` is "jepa" or "jepa_decoder", `which` is "best" or "last"."""
    if which == "last":
        name = f"last_{kind}.safetensors"
    elif kind == "jepa":
        name = config.early_stopping.checkpoint_path_jepa
    else:
        name = config.jepa_decoder_training.checkpoint_path
    return run / CHECKPOINT_FOLDER / name


def save(path: Path, module: nn.Module, kind: str, config: Config, action_space: gymnasium.Space) -> None:
    """Write a module's parameters and buffers with what rebuilds it.

    Raises:
        StorageError: the file cannot be written; an older one of that name is left as it was.
    """
    # Copies, because safetensors refuses tensors that share memory, as those of a layer that stands in two places.
    weights = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in module.state_dict().items()}
    write_tensors(path, kind, weights, {"config": config.to_dict(), "action_space": space_to_dict(action_space)})


def load(path: str | Path, kind: str) -> Checkpoint:
    """Read a model checkpoint.

    Args:
        path: A run folder, whose best checkpoint of that kind is read, or a file.
        kind: "jepa" or "jepa_decoder".

    Raises:
        CheckpointError: there is none, it is damaged, of another kind or format version.
    """
    path = Path(path)
    if path.is_dir():
        path = _best_checkpoint(path, kind)
    header, weights = read_tensors(path, kind)
    try:
        config, action_space = config_from_dict(header["config"]), space_from_dict(header["action_space"])
    except (ConfigError, ValidationError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its configuration or action space cannot be read ({error}). It may come from another version of "
            "jepaworld: use the one that wrote it."
        ) from error
    return Checkpoint(path, config, action_space, weights)


def restore(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's weights into a module.

    Raises:
        CheckpointError: names or shapes differ; the message lists which.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    differences = [
        f"  {name}: checkpoint {found.get(name, 'lacks it')}, model {expected.get(name, 'lacks it')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{checkpoint.path}: belongs to another architecture. These weights differ:\n" + "\n".join(differences)
        )
    module.load_state_dict(checkpoint.weights)


def write_tensors(path: Path, kind: str, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write tensors, on the CPU and each in memory of its own, with a JSON document.

    Raises:
        StorageError: the file cannot be written; an older one of that name is left as it was.
    """
    header = {"format_version": FORMAT_VERSION, "kind": kind, **content}
    # Not sorted for the tree of a resume state alone: its dictionaries keep their order.
    text = json.dumps(header, sort_keys=kind != "state")
    atomic_write_bytes(path, safetensors.torch.save(tensors, {_HEADER: text}))


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or format version.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: does not exist. Name a run folder or a .safetensors file in its checkpoints/.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or no safetensors file ({error}). Use another checkpoint.") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: was not written by jepaworld: its header has no {_HEADER!r} entry.")
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {header.get('format_version')}, this version of jepaworld reads "
            f"{FORMAT_VERSION}. Use the version that wrote it."
        )
    if header.get("kind") != kind:
        raise CheckpointError(f"{path}: holds a {header.get('kind')!r}, expected {kind!r}. Name the other file.")
    return header, tensors


def _best_checkpoint(run: Path, kind: str) -> Path:
    try:
        config = load_config(run / CONFIG_FILE)
    except ConfigError as error:
        raise CheckpointError(
            f"{run}: is no run folder ({error}) Name a folder that `jepaworld train` wrote, or a .safetensors file."
        ) from error
    path = checkpoint_path(run, config, kind)
    if not path.exists():
        phase, other = ("JEPA", "") if kind == "jepa" else ("state decoder", f" or `jepaworld decode {run}`")
        raise CheckpointError(
            f"{run}: has no {path.name} in {CHECKPOINT_FOLDER}/: its {phase} has not finished an epoch. Continue it "
            f"with `jepaworld train --run {run} --resume`{other}."
        )
    return path
