"""Small helpers around torch modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def device_of(model: Any) -> torch.device:
    """Where the model's parameters or buffers are; the CPU if it has none."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """Every submodule in eval mode; afterwards each is back in the mode it had. Gradients stay as they are."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
