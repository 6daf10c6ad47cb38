"""The centring component of DINO.

Shapes: N samples, D latent; leading axes are independent batches, such as time steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepaworld.config.components import component
from jepaworld.config.fields import Section, setting
from jepaworld.losses.base import AuxiliaryLoss


class DINOSettings(Section):
    """The centring of DINO (arXiv 2104.14294)."""

    center_ema_decay: float = setting(0.9, "Decay of the running centre.", ge=0.0, le=1.0)


@component("auxiliary_loss", "dino", label="DINO centring")
class DINOLoss(AuxiliaryLoss):
    """Pulls the batch mean towards its running average, after the centring of DINO (Caron et al. 2021, 2104.14294).

    Differs from the paper in: DINO subtracts the centre from the teacher's logits (equation 4) and avoids the other
    collapse by sharpening; here the distance of the batch mean to the centre is itself the loss and there is no
    sharpening. It bounds the drift of the mean and says nothing about the variance (`docs/modes_and_losses.md`).

    Args:
        latent_dim: Size D of the embeddings.
        center_ema_decay: Decay of the running centre, 0 to 1.
    """

    Settings = DINOSettings

    center: Tensor

    def __init__(self, latent_dim: int, center_ema_decay: float = 0.9) -> None:
        super().__init__()
        self.center_ema_decay = center_ema_decay
        self.register_buffer("center", torch.zeros(latent_dim))

    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared Euclidean distance of the batch mean to the centre; in training mode the centre follows after it.

        Args:
            z: Embeddings (..., N, D), any float type; computed in float32.

        Returns:
            `(loss, terms)`: the distance as a scalar, averaged over the leading axes, and the detached scalars
            `center_distance` (the same) and `center_norm` (Euclidean norm of the centre that the loss was computed
            with).
        """
        assert z.ndim >= 2, f"expected embeddings (..., N, D), got {tuple(z.shape)}"
        with torch.autocast(z.device.type, enabled=False):
            batch_mean = self.reduction.mean(z.float().mean(dim=-2))
            # A copy, because the update below is in place and the backward pass still needs the old centre.
            center = self.center.clone()
            loss = (batch_mean - center).square().sum(dim=-1).mean()
        if self.training:
            # Once a step, whatever the number of leading axes: towards the mean of all samples.
            overall = batch_mean.detach().reshape(-1, len(center)).mean(dim=0)
            self.center.lerp_(overall, 1.0 - self.center_ema_decay)
        return loss, {"center_distance": loss.detach(), "center_norm": center.norm()}
