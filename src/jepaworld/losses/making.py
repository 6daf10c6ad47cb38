"""From settings to an auxiliary loss, and the one that does nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from jepaworld.config import components
from jepaworld.config.components import component
from jepaworld.losses.base import AuxiliaryLoss

if TYPE_CHECKING:
    from jepaworld.config import Config


@component("auxiliary_loss", "none", label="no auxiliary loss")
class NoAuxiliaryLoss(AuxiliaryLoss):
    """Zero, for the experiment that shows collapse."""

    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A zero scalar that is connected to no graph, and no terms."""
        return z.new_zeros(()), {}


def make_auxiliary_loss(config: Config) -> AuxiliaryLoss:
    """The loss that `auxiliary_loss.type` names, with its parameters; its weight is left to the objective."""
    return components.make("auxiliary_loss", config, latent_dim=config.latent_dim)
