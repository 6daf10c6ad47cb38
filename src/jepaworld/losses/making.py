"""From settings to an auxiliary loss."""

from __future__ import annotations

from torch import Tensor

from jepaworld.config import Config
from jepaworld.losses.barlow_twins import BarlowTwinsLoss
from jepaworld.losses.base import AuxiliaryLoss
from jepaworld.losses.dino import DINOLoss
from jepaworld.losses.vicreg import VICRegLoss


class NoAuxiliaryLoss(AuxiliaryLoss):
    """Zero, for the experiment that shows collapse."""

    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A zero scalar that is connected to no graph, and no terms."""
        return z.new_zeros(()), {}


def make_auxiliary_loss(config: Config) -> AuxiliaryLoss:
    """The loss that `auxiliary_loss.type` names, with its parameters; `auxiliary_loss.weight` is left to the loop."""
    params = config.auxiliary_loss.params
    match config.auxiliary_loss.type:
        case "vicreg":
            return VICRegLoss(**params.vicreg.model_dump())
        case "barlow_twins":
            return BarlowTwinsLoss(**params.barlow_twins.model_dump())
        case "dino":
            return DINOLoss(config.latent_dim, **params.dino.model_dump())
        case "none":
            return NoAuxiliaryLoss()
