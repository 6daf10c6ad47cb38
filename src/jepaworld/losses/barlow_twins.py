"""Barlow Twins on the auto-correlation of one batch of embeddings.

Shapes: N samples, D latent; leading axes are independent batches, such as time steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepaworld.config.components import component
from jepaworld.config.fields import Section, setting
from jepaworld.losses.base import AuxiliaryLoss, gram


class BarlowTwinsSettings(Section):
    """Barlow Twins (arXiv 2103.03230)."""

    lambda_param: float = setting(0.005, "Weight of the redundancy reduction term.", ge=0.0)


@component("auxiliary_loss", "barlow_twins", label="Barlow Twins")
class BarlowTwinsLoss(AuxiliaryLoss):
    """Barlow Twins, Zbontar et al. 2021, arXiv 2103.03230, equations 1 and 2.

    Differs from the paper in: the correlation is of one batch with itself, not between two views, and there is no
    projector. The diagonal is then 1 for every feature that varies at all, whatever its scale: the loss cannot see
    the scale of all embeddings shrink together (`docs/modes_and_losses.md`).

    Args:
        lambda_param: Weight of the redundancy reduction term (lambda in the paper).
        eps: Added to the variance before the square root. It decides below which scale a feature counts as constant.
    """

    Settings = BarlowTwinsSettings

    def __init__(self, lambda_param: float = 0.005, eps: float = 1e-5) -> None:
        super().__init__()
        self.lambda_param = lambda_param
        self.eps = eps

    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance of the auto-correlation matrix from the identity.

        Args:
            z: Embeddings (..., N, D), N >= 2, any float type; computed in float32.

        Returns:
            `(loss, terms)`: `invariance + lambda_param * redundancy` as a scalar, and the unweighted, detached sums
            `invariance` (squared deviations of the diagonal from 1) and `redundancy` (squared off-diagonal
            entries), each averaged over the leading axes.
        """
        assert z.ndim >= 2 and z.shape[-2] > 1, f"expected embeddings (..., N > 1, D), got {tuple(z.shape)}"
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            num_samples = z.shape[-2] * self.reduction.num_devices
            centred = z - self.reduction.mean(z.mean(dim=-2, keepdim=True))
            # The biased variance, so that the diagonal of `z_norm.T @ z_norm / N` is exactly 1 for a varying feature.
            variance = self.reduction.mean(centred.square().mean(dim=-2, keepdim=True))
            z_norm = centred / torch.sqrt(variance + self.eps)
            correlation = self.reduction.sum(gram(z_norm)) / num_samples
            diagonal = correlation.diagonal(dim1=-2, dim2=-1)
            invariance = (diagonal - 1.0).square().sum(dim=-1)
            redundancy = correlation.square().sum(dim=(-2, -1)) - diagonal.square().sum(dim=-1)
            loss = (invariance + self.lambda_param * redundancy).mean()
        return loss, {"invariance": invariance.detach().mean(), "redundancy": redundancy.detach().mean()}
