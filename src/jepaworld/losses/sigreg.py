"""Sketched isotropic Gaussian regularisation (SIGReg).

Shapes: N samples, D latent, M directions, K knots; leading axes are independent batches, such as time steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from jepaworld.config.components import component
from jepaworld.config.fields import Section, setting
from jepaworld.losses.base import AuxiliaryLoss


class SIGRegSettings(Section):
    """SIGReg (LeJEPA, arXiv 2511.08544)."""

    num_directions: int = setting(1024, "Random directions that embeddings are looked at along, anew each step.", ge=1)
    num_knots: int = setting(17, "Points at which the characteristic function is compared.", ge=2)
    largest_knot: float = setting(3.0, "The last of these points; the first is 0.", gt=0.0)


@component("auxiliary_loss", "sigreg", label="SIGReg")
class SIGRegLoss(AuxiliaryLoss):
    """Makes every one-dimensional view of the embeddings a standard normal distribution.

    Along a random direction the empirical characteristic function of the batch is compared with that of a standard
    normal, `exp(-t^2 / 2)`: the Epps-Pulley statistic. If all directions agree, the embedding is an isotropic Gaussian
    of unit variance, which is neither constant nor flat: scale, mean and correlations are held by one term.

    Source: Balestriero and LeCun 2025, LeJEPA, arXiv 2511.08544; the knots, their weights and the number of directions
    as LeWM (arXiv 2603.19312) publishes them. LeWM takes it by time step: `auxiliary_loss.statistics: per_step`, weight
    0.09 in its code, 0.1 in its paper.

    Args:
        num_directions: M.
        num_knots: K.
        largest_knot: Last knot; they are evenly spaced from 0.

    Example:
        ```
        loss, terms = SIGRegLoss().calculate_reg_terms(torch.randn(256, 64))
        ```
    """

    Settings = SIGRegSettings

    knots: Tensor
    normal: Tensor
    weights: Tensor

    def __init__(self, num_directions: int = 1024, num_knots: int = 17, largest_knot: float = 3.0) -> None:
        super().__init__()
        self.num_directions = num_directions
        knots = torch.linspace(0.0, largest_knot, num_knots)
        normal = torch.exp(-knots.square() / 2)  # the characteristic function of a standard normal
        # Trapezoids of the integral from -largest_knot on: both halves are equal, hence 2, and the ends count half.
        weights = torch.full_like(knots, 2 * largest_knot / (num_knots - 1))
        weights[0] = weights[-1] = largest_knot / (num_knots - 1)
        for name, values in (("knots", knots), ("normal", normal), ("weights", weights * normal)):
            self.register_buffer(name, values, persistent=False)

    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The Epps-Pulley statistic, averaged over directions and leading axes.

        Args:
            z: Embeddings (..., N, D), any float type; computed in float32.

        Returns:
            `(loss, terms)`: N times the weighted squared distance of the characteristic functions, as a scalar, and the
            same detached as `statistic`. About 1 for samples of a standard normal, in proportion to N for others.
        """
        assert z.ndim >= 2, f"expected embeddings (..., N, D), got {tuple(z.shape)}"
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            num_samples = z.shape[-2] * self.reduction.num_devices
            angles = (z @ self.draw_directions(z).T).unsqueeze(-1) * self.knots  # (..., N, M, K)
            # Real and imaginary part; the normal distribution is symmetric, so that its own imaginary part is 0.
            real = self.reduction.mean(angles.cos().mean(dim=-3)) - self.normal
            imaginary = self.reduction.mean(angles.sin().mean(dim=-3))
            statistic = (real.square() + imaginary.square()) @ self.weights  # (..., M)
            loss = num_samples * statistic.mean()
        return loss, {"statistic": loss.detach()}

    def draw_directions(self, z: Tensor) -> Tensor:
        """Unit vectors (M, D), uniform over the sphere and new at each call, so that all directions get their turn."""
        # A sum of normal vectors is one too: several devices, each with random numbers of its own, share directions.
        drawn = torch.randn(self.num_directions, z.shape[-1], device=z.device)
        return F.normalize(self.reduction.sum(drawn), dim=-1)
