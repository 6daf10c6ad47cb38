"""Auxiliary losses that keep embeddings from collapsing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from jepaworld.config import components
from jepaworld.config.components import component
from jepaworld.losses.barlow_twins import BarlowTwinsLoss
from jepaworld.losses.base import AuxiliaryLoss
from jepaworld.losses.dino import DINOLoss
from jepaworld.losses.vicreg import VICRegLoss

if TYPE_CHECKING:
    from jepaworld.config import Config

__all__ = ["AuxiliaryLoss", "BarlowTwinsLoss", "DINOLoss", "NoAuxiliaryLoss", "VICRegLoss", "make_auxiliary_loss"]


@component("auxiliary_loss", "none")
class NoAuxiliaryLoss(AuxiliaryLoss):
    """Zero, for the experiment that shows collapse."""

    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A zero scalar that is connected to no graph, and no terms."""
        return z.new_zeros(()), {}


def make_auxiliary_loss(config: Config) -> AuxiliaryLoss:
    """The loss that `auxiliary_loss.type` names, with its parameters; `auxiliary_loss.weight` is left to the objective."""
    return components.make("auxiliary_loss", config, latent_dim=config.latent_dim)
