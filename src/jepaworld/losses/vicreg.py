"""Variance-Invariance-Covariance Regularization (VICReg).

Shapes: N samples, D latent; leading axes are independent batches, such as time steps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from jepaworld.config.components import component
from jepaworld.config.fields import Section, setting
from jepaworld.losses.base import AuxiliaryLoss, gram


class VICRegSettings(Section):
    """VICReg (arXiv 2105.04906)."""

    sim_coeff: float = setting(
        0.0, "Weight of the invariance term; used only by the two-view forward(x, y), not during JEPA training.", ge=0.0
    )
    std_coeff: float = setting(10.0, "Weight of the variance term.", ge=0.0)
    cov_coeff: float = setting(1.0, "Weight of the covariance term.", ge=0.0)

    def notices(self, _config: object, prefix: str) -> Iterator[str]:
        """What has no effect in training."""
        if self.sim_coeff:
            yield (
                f"{prefix}sim_coeff has no effect in training: the invariance term belongs to the two-view "
                "forward(x, y), while training regularises each embedding by itself."
            )


@component("auxiliary_loss", "vicreg", label="VICReg")
class VICRegLoss(AuxiliaryLoss):
    """VICReg, Bardes, Ponce and LeCun 2022, arXiv 2105.04906, equations 1 to 6.

    During JEPA training `calculate_reg_terms` applies the variance and covariance terms to one batch of embeddings;
    `forward` is the two-view loss of the paper.

    Differs from the paper in: no expander network, the embedding itself is regularised; in `calculate_reg_terms`
    there is no second view and therefore no invariance term.

    Args:
        sim_coeff: Weight of the invariance term (lambda in the paper); used by `forward` only.
        std_coeff: Weight of the variance term (mu).
        cov_coeff: Weight of the covariance term (nu).
        std_target: Standard deviation below which a dimension is penalised (gamma).
        eps: Added to the variance before the square root, so that its gradient is finite at zero variance.
    """

    Settings = VICRegSettings

    def __init__(
        self,
        sim_coeff: float = 25.0,
        std_coeff: float = 25.0,
        cov_coeff: float = 1.0,
        std_target: float = 1.0,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.sim_coeff = sim_coeff
        self.std_coeff = std_coeff
        self.cov_coeff = cov_coeff
        self.std_target = std_target
        self.eps = eps

    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Variance and covariance terms.

        Args:
            z: Embeddings (..., N, D), N >= 2, any float type; computed in float32.

        Returns:
            `(loss, terms)`: `std_coeff * std + cov_coeff * cov` as a scalar, and the unweighted, detached scalars
            `std` (mean hinge on the standard deviation, 0 when every dimension reaches `std_target`) and `cov` (sum
            of squared off-diagonal covariances divided by D), each averaged over the leading axes.
        """
        assert z.ndim >= 2 and z.shape[-2] > 1, f"expected embeddings (..., N > 1, D), got {tuple(z.shape)}"
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            num_samples, dim = z.shape[-2] * self.reduction.num_devices, z.shape[-1]
            centred = z - self.reduction.mean(z.mean(dim=-2, keepdim=True))
            covariance = self.reduction.sum(gram(centred)) / (num_samples - 1)
            variance = covariance.diagonal(dim1=-2, dim2=-1)
            # The hinge lets go of a dimension that is spread enough: there is no reward for growing further.
            std_term = F.relu(self.std_target - torch.sqrt(variance + self.eps)).mean(dim=-1)
            # What is left of the squared covariances without the diagonal, the variances.
            cov_term = (covariance.square().sum(dim=(-2, -1)) - variance.square().sum(dim=-1)) / dim
            loss = (self.std_coeff * std_term + self.cov_coeff * cov_term).mean()
        return loss, {"std": std_term.detach().mean(), "cov": cov_term.detach().mean()}

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The two-view loss of the paper (equation 6) between embeddings of two views.

        Args:
            x: Embeddings of the first view (N, D).
            y: Embeddings of the second view (N, D).

        Returns:
            `(loss, terms)`: `sim_coeff * sim` plus both views' weighted variance and covariance terms. `sim` is the
            mean squared error over all entries; `std` and `cov` are summed over the two views, as equation 6 has it
            (the authors' published code halves the variance terms).
        """
        assert x.shape == y.shape, f"expected two views of one shape, got {tuple(x.shape)} and {tuple(y.shape)}"
        with torch.autocast(x.device.type, enabled=False):
            sim_term = F.mse_loss(x.float(), y.float())
            loss_x, terms_x = self.calculate_reg_terms(x)
            loss_y, terms_y = self.calculate_reg_terms(y)
            loss = self.sim_coeff * sim_term + loss_x + loss_y
        terms = {name: terms_x[name] + terms_y[name] for name in terms_x}
        return loss, {"sim": sim_term.detach(), **terms}
