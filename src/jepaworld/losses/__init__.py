"""Losses: what keeps embeddings from collapsing, what makes them fit for planning, and the objective around a model."""

from jepaworld.losses.barlow_twins import BarlowTwinsLoss
from jepaworld.losses.base import AuxiliaryLoss, Reduction
from jepaworld.losses.dino import DINOLoss
from jepaworld.losses.dynamics import DynamicsLosses
from jepaworld.losses.making import NoAuxiliaryLoss, make_auxiliary_loss
from jepaworld.losses.objective import JEPAObjective, ModelObjective, Objective, make_objective
from jepaworld.losses.sigreg import SIGRegLoss
from jepaworld.losses.vicreg import VICRegLoss

__all__ = [
    "AuxiliaryLoss",
    "BarlowTwinsLoss",
    "DINOLoss",
    "DynamicsLosses",
    "JEPAObjective",
    "ModelObjective",
    "NoAuxiliaryLoss",
    "Objective",
    "Reduction",
    "SIGRegLoss",
    "VICRegLoss",
    "make_auxiliary_loss",
    "make_objective",
]
