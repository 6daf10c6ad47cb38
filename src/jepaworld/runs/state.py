"""What a training phase goes on from: how far it has come, weights, optimizer, random numbers, and its settings."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepaworld.models.checkpoints import read_tensors, write_tensors

_TENSOR = "__tensor__"


@dataclass
class PhaseState:
    """How far a phase has come.

    Attributes:
        epoch: The epoch that it is in, from 1.
        batches_done: Of that epoch.
        best: The best value of the metric so far.
        best_epoch: Its epoch; 0 before the first epoch ended.
        finished: Whether the phase has ended.
        seconds: Time of the phase so far.
        train_seconds: Time of the epoch so far, without validation.
        meter: Sums of the losses of the epoch; None between two epochs.
    """

    epoch: int = 1
    batches_done: int = 0
    best: float = math.inf
    best_epoch: int = 0
    finished: bool = False
    seconds: float = 0.0
    train_seconds: float = 0.0
    meter: dict[str, Any] | None = None


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a tree of dictionaries (text keys) and lists with tensors and JSON values as leaves."""
    tensors: dict[str, Tensor] = {}
    tree = _detach_tensors(state, tensors)
    write_tensors(path, "state", tensors, {"tree": tree})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    header, tensors = read_tensors(path, "state")
    state = _attach_tensors(header["tree"], tensors)
    if "objective" in state:
        # In 0.1.0 the losses on dynamics were the objective's `plannable`.
        renamed = {re.sub(r"^plannable\.", "dynamics_losses.", name): t for name, t in state["objective"].items()}
        state["objective"] = renamed
    return state


def random_state() -> dict[str, Any]:
    """The state of every random generator that training can draw from."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def _detach_tensors(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = f"t{len(tensors)}"
        # A copy of its own memory: safetensors refuses tensors that share it.
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: name}
    if isinstance(node, dict):
        assert all(isinstance(key, str) for key in node), f"state keys must be text, got {list(node)}"
        return {key: _detach_tensors(value, tensors) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_detach_tensors(value, tensors) for value in node]
    return node


def _attach_tensors(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if set(node) == {_TENSOR}:
            return tensors[node[_TENSOR]]
        return {key: _attach_tensors(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_attach_tensors(value, tensors) for value in node]
    return node
