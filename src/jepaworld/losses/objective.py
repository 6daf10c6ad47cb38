"""What training minimises: the configured losses around a JEPA, or the loss that a model brings itself.

Shapes: B windows, T transitions, D latent, A action block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.losses.base import AuxiliaryLoss
from jepaworld.losses.dynamics import DynamicsLosses
from jepaworld.losses.making import make_auxiliary_loss
from jepaworld.losses.prediction import Distance, prediction_loss
from jepaworld.models.jepa import JEPA, JEPAOutput

Terms = dict[str, Tensor]
"""Named scalars for the log, detached."""


class Objective(nn.Module, ABC):
    """What a training phase minimises; its parameters and buffers are in the resume state.

    Attributes:
        loss_name: Name of the scalar in the metrics.
    """

    loss_name: str = "loss_jepa"

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """The scalar to minimise, and what it is made of."""

    def update_targets(self) -> None:
        """What follows each optimizer step; nothing, unless there are targets that follow the weights."""


class JEPAObjective(Objective):
    """`L_pred + auxiliary_loss.weight * L_aux`, and the losses on dynamics where those are switched on.

    `L_pred` is the distance between predictions and targets, mean squared by default. `L_aux` is the auxiliary loss of
    the mode's online embeddings: `online_s_t`, and `online_s_t_plus_1` where there is one.

    Args:
        model: The JEPA.
        auxiliary_loss: Regularises batches of embeddings.
        weight: `auxiliary_loss.weight`.
        dynamics_losses: Further losses, off where left out; their inverse-dynamics head is trained with the model.
        per_step: Take the batch statistics for each time step by itself instead of over all steps together.
        distance: `jepa_model.prediction_loss`.
        prediction_weight: `jepa_model.prediction_weight`.

    Example:
        ```
        objective = JEPAObjective(model, VICRegLoss(sim_coeff=0.0), weight=0.1)
        loss, terms = objective(Batch(frames, actions))
        ```
    """

    def __init__(
        self,
        model: JEPA,
        auxiliary_loss: AuxiliaryLoss,
        weight: float,
        dynamics_losses: DynamicsLosses | None = None,
        per_step: bool = False,
        *,
        distance: Distance = "mse",
        prediction_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.auxiliary_loss = auxiliary_loss
        self.weight = weight
        self.dynamics_losses = dynamics_losses or DynamicsLosses()
        self.per_step = per_step
        self.distance: Distance = distance
        self.prediction_weight = prediction_weight

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Total loss and terms of a batch of windows."""
        output = self.model(batch.frames, batch.actions)
        prediction = prediction_loss(output.predicted, output.target, self.distance)
        auxiliary, auxiliary_terms = self.auxiliary_loss.calculate_reg_terms(self.samples(output))
        further, further_terms = self.dynamics_losses(self.model, output, batch.actions)
        total = self.prediction_weight * prediction + self.weight * auxiliary
        for loss in further:
            total = total + loss
        return total, {
            "prediction_loss": prediction.detach(),
            "auxiliary_loss": auxiliary.detach(),
            **{f"auxiliary/{name}": term for name, term in auxiliary_terms.items()},
            **further_terms,
        }

    def samples(self, output: JEPAOutput) -> Tensor:
        """The online embeddings as the batches (..., N, D) whose statistics the auxiliary loss takes.

        All in one call, so that a loss with a running average moves it once a step. Tokens count as samples.
        """
        if self.per_step:
            return output.online.transpose(0, 1).flatten(1, -2)  # (T + 1, B, D), in mode vjepa2 (T, B, D)
        if output.online_s_t_plus_1 is None:
            return output.online_s_t.flatten(0, -2)  # (B * T, D)
        # s_t and s_t+1 are batches of their own, as the specification has it: (2, B * T, D).
        return torch.stack([output.online_s_t, output.online_s_t_plus_1]).flatten(1, -2)

    def update_targets(self) -> None:
        """Let the target encoder follow."""
        self.model._update_target_encoder_ema()


class ModelObjective(Objective):
    """The loss of a model that brings its own: `training_loss(batch) -> (loss, terms)`.

    Args:
        model: The model; its `update_targets()`, if it has one, follows each step.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """The model's own loss and terms of a batch of windows."""
        loss, terms = self.model.training_loss(batch)
        return loss, {name: term.detach() for name, term in terms.items()}

    def update_targets(self) -> None:
        """What the model wants to follow each step."""
        if hasattr(self.model, "update_targets"):
            self.model.update_targets()


def make_objective(config: Config, model: Any, spaces: Spaces) -> Objective:
    """What a model is trained on, on its device: its own loss if it has one, else the configured losses."""
    if hasattr(model, "training_loss"):
        return ModelObjective(model)
    objective = JEPAObjective(
        model,
        make_auxiliary_loss(config),
        config.auxiliary_loss.weight,
        DynamicsLosses.from_config(config, model.latent_shape, spaces),
        per_step=config.auxiliary_loss.statistics == "per_step",
        distance=config.jepa_model.prediction_loss,
        prediction_weight=config.jepa_model.prediction_weight,
    )
    return objective.to(next(model.parameters()).device)
