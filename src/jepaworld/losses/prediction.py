"""How far a prediction is from its target."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

Distance = Literal["mse", "l1", "cosine"]


def prediction_loss(predicted: Tensor, target: Tensor, distance: Distance = "mse") -> Tensor:
    """Mean distance between latents (..., D), a scalar.

    In float32: a bf16 difference of two nearly equal embeddings would be rounding.

    Args:
        predicted: Predicted latents, any float type.
        target: What they are to be, of the same shape.
        distance: mse is the mean squared, l1 the mean absolute difference, cosine 1 minus the cosine.
    """
    predicted, target = predicted.float(), target.float()
    match distance:
        case "mse":
            return (predicted - target).square().mean()
        case "l1":
            return (predicted - target).abs().mean()
        case "cosine":
            return (1.0 - F.cosine_similarity(predicted, target, dim=-1)).mean()
