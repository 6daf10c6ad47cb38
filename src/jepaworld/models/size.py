"""What a module costs: parameters, and memory of a training step, found by running a small batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from jepaworld.data.windows import Batch

FLOAT_BYTES = 4
# Of each trained parameter: the value, its gradient and the two moments of Adam.
TRAINED_COPIES = 4


def count_parameters(module: nn.Module) -> int:
    """Numbers in all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_trained(module: nn.Module) -> int:
    """Numbers in the parameters that training changes by gradients: no target encoder, no frozen backbone."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def step_bytes(objective: nn.Module, module: nn.Module, batch: Batch, batch_size: int) -> int:
    """Bytes of weights, gradients, optimizer state, frames, and what the forward pass keeps for the backward pass.

    Args:
        objective: Maps a batch to the loss and its terms.
        module: What is trained.
        batch: A few windows.
        batch_size: Windows of a real step.
    """
    own = {parameter.data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def give_back(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, give_back):
        loss, _ = objective(batch)
    del loss
    weights = sum(p.numel() * FLOAT_BYTES * (TRAINED_COPIES if p.requires_grad else 1) for p in module.parameters())
    images = batch.frames.numel() * FLOAT_BYTES
    return weights + (sum(kept.values()) + images) * batch_size // len(batch.frames)


def in_words(num_bytes: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{num_bytes / 2**20:,.0f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:,.1f} GiB"
