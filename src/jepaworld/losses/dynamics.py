"""Losses on dynamics, for planning: temporal similarity, variance over time, inverse dynamics, several imagined steps.

Shapes: B windows, T transitions, A action block. A latent is one vector (D,) or tokens (N, D).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepaworld.config import Config
from jepaworld.envs.spaces import Spaces
from jepaworld.losses.inverse_dynamics import InverseDynamicsHead
from jepaworld.losses.prediction import Distance, prediction_loss
from jepaworld.models.jepa import JEPA, JEPAOutput
from jepaworld.models.predictors import windows


class DynamicsLosses(nn.Module):
    """The weighted sum of those losses that are switched on.

    Sources: temporal similarity, variance over time and inverse dynamics as in PLDM (arXiv 2502.14819), the loss of
    several imagined steps as in V-JEPA 2-AC (arXiv 2506.09985). Differs from the latter in: the imagined steps begin at
    every frame of the window that has enough frames after it.

    Args:
        similarity_weight: Weight of `temporal_similarity_loss`.
        inverse_dynamics_weight: Weight of the head's loss.
        rollout_weight: Weight of `rollout_loss`.
        rollout_steps: Steps that are imagined.
        head: Reads actions from pairs of embeddings; its parameters are trained with the model. Needed only if its
            weight is above 0.
        time_variance_weight: Weight of `time_variance_loss`.
        distance: Of imagined and real embeddings, as `jepa_model.prediction_loss`.
    """

    def __init__(
        self,
        similarity_weight: float = 0.0,
        inverse_dynamics_weight: float = 0.0,
        rollout_weight: float = 0.0,
        rollout_steps: int = 1,
        head: InverseDynamicsHead | None = None,
        *,
        time_variance_weight: float = 0.0,
        distance: Distance = "mse",
    ) -> None:
        super().__init__()
        assert head is not None or not inverse_dynamics_weight, "inverse dynamics needs its head"
        self.similarity_weight, self.time_variance_weight = similarity_weight, time_variance_weight
        self.inverse_dynamics_weight = inverse_dynamics_weight
        self.rollout_weight = rollout_weight
        self.rollout_steps = rollout_steps
        self.head = head
        self.distance: Distance = distance

    @classmethod
    def from_config(cls, config: Config, latent_shape: tuple[int, ...], spaces: Spaces) -> Self:
        """The losses of the section `dynamics_losses`; without a head where it has no weight."""
        settings = config.dynamics_losses
        head = None
        if settings.inverse_dynamics_weight:
            head = InverseDynamicsHead(latent_shape, settings.inverse_dynamics_hidden_dim, spaces)
        return cls(
            similarity_weight=settings.temporal_similarity_weight,
            time_variance_weight=settings.time_variance_weight,
            inverse_dynamics_weight=settings.inverse_dynamics_weight,
            rollout_weight=settings.rollout_weight,
            rollout_steps=settings.rollout_steps,
            head=head,
            distance=config.jepa_model.prediction_loss,
        )

    def forward(self, model: JEPA, output: JEPAOutput, actions: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The weighted losses that are on, and the unweighted ones by name, detached.

        Args:
            model: The model, for its rollout.
            output: What it made of a batch of windows.
            actions: The windows' action blocks (B, T, A).
        """
        losses: dict[str, tuple[float, Tensor]] = {}
        z = output.online
        if self.similarity_weight:
            losses["temporal_similarity_loss"] = self.similarity_weight, temporal_similarity_loss(z)
        if self.time_variance_weight:
            losses["time_variance_loss"] = self.time_variance_weight, time_variance_loss(z)
        if self.head is not None:
            read = self.head.loss(z[:, :-1], z[:, 1:], actions[:, : z.shape[1] - 1])
            losses["inverse_dynamics_loss"] = self.inverse_dynamics_weight, read
        if self.rollout_weight:
            imagined = rollout_loss(model, output, actions, self.rollout_steps, self.distance)
            losses["rollout_loss"] = self.rollout_weight, imagined
        weighted = [weight * loss for weight, loss in losses.values()]
        return weighted, {name: loss.detach() for name, (_, loss) in losses.items()}


def temporal_similarity_loss(z: Tensor) -> Tensor:
    """Mean squared step from one latent to the next: (B, T, *latent) with T >= 2 to a scalar."""
    assert z.shape[1] >= 2, f"a step needs two frames, got {tuple(z.shape)}"
    return (z[:, 1:].float() - z[:, :-1].float()).square().mean()


def time_variance_loss(z: Tensor, eps: float = 1e-4) -> Tensor:
    """Mean hinge on the standard deviation over a window's time steps, 0 from 1 on: (B, T, *latent) to a scalar."""
    assert z.shape[1] >= 2, f"a variance over time needs two frames, got {tuple(z.shape)}"
    # The root has no gradient at a variance of 0.
    return F.relu(1.0 - torch.sqrt(z.float().var(dim=1) + eps)).mean()


def rollout_loss(model: JEPA, output: JEPAOutput, actions: Tensor, steps: int, distance: Distance = "mse") -> Tensor:
    """Distance to the real ones of `steps` imagined embeddings, begun at every frame that has as many after it.

    Each imagined embedding is the input of the next step, and gradients flow through all of them. A predictor that uses
    K frames begins with K real ones.

    Args:
        model: The model.
        output: What it made of the windows.
        actions: (B, T, A) with T >= steps + K - 1.
        steps: Imagined steps.
        distance: As `jepa_model.prediction_loss`.
    """
    context = model.context_length
    # Every frame with K - 1 real frames before it and `steps` after it is a beginning.
    starts = actions.shape[1] - steps - context + 2
    assert starts >= 1, f"{steps} steps after {context} frames do not fit into {actions.shape[1]} transitions"
    # From what the predictor takes in this mode: in `default` that is the target encoder's, not the online embedding.
    z = windows(output.predictor_input[:, : starts + context - 1], context)
    past = windows(actions[:, : starts + context - 2], context - 1) if context > 1 else None
    imagined = model.rollout(z, windows(actions[:, context - 1 :], steps), past)
    real = windows(output.target[:, context - 1 :], steps)
    return prediction_loss(imagined, real, distance)
