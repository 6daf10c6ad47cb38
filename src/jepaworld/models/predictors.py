"""Predictors: from the embeddings of this state and of the action to the embedding of the next state.

Shapes: B windows, T transitions, K context frames, D latent, E action embedding. Latents of N tokens are (N, D).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from jepaworld.config import components
from jepaworld.config.components import component
from jepaworld.config.fields import Section, setting

if TYPE_CHECKING:
    from jepaworld.config import Config


def make_predictor(config: Config, latent_shape: tuple[int, ...]) -> Predictor:
    """The predictor that `jepa_model.predictor_type` names, for latents (D,) or (N, D)."""
    return components.make(
        "predictor",
        config,
        latent_shape=latent_shape,
        latent_dim=latent_shape[-1],
        action_emb_dim=config.action_emb_dim,
    )


class Past(NamedTuple):
    """What a predictor has seen in a rollout.

    Attributes:
        z: The latest latents, at most K (B, K, *latent).
        action_embeddings: Those taken at them (B, K, E).
        cache: What a predictor keeps of its own.
    """

    z: Tensor
    action_embeddings: Tensor
    cache: list[Any]


class Predictor(nn.Module, ABC):
    """Next embeddings from embeddings and action embeddings, each from its own past only.

    Attributes:
        context_length: How many steps of the past a prediction looks at, itself included.
    """

    context_length: int

    @abstractmethod
    def forward(self, z: Tensor, action_embedding: Tensor) -> Tensor:
        """Next embeddings (B, T, D) from embeddings (B, T, D) and action embeddings (B, T, E)."""

    def advance(self, z: Tensor, action_embeddings: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """One step of a rollout.

        Args:
            z: The latents that have come since the last step (B, t, *latent), t >= 1.
            action_embeddings: Those of the actions taken at them (B, t, E).
            past: What the last step gave; None at the beginning.

        Returns:
            The next latent (B, *latent), as `forward` gives it for the latest K, and the past of the next step.
        """
        if past is not None and (kept := self.context_length - z.shape[1]) > 0:
            z = torch.cat([past.z[:, -kept:], z], dim=1)
            action_embeddings = torch.cat([past.action_embeddings[:, -kept:], action_embeddings], dim=1)
        return self(z, action_embeddings)[:, -1], Past(z, action_embeddings, [])


class SequenceSettings(Section):
    """What every predictor has."""

    dropout_rate: float = setting(0.0, "Dropout in the predictor.", ge=0.0, lt=1.0)
    context_length: int = setting(
        1,
        "How many of the latest embeddings and actions a prediction is made from; 2 shows velocities that a single "
        "frame hides.",
        unit="frames",
        ge=1,
    )


class MLPPredictorSettings(SequenceSettings):
    """The predictor MLP."""

    def notices(self, config: Config, prefix: str) -> Iterator[str]:
        """What is allowed, as earlier releases did, and useless."""
        if self.context_length > config.num_transitions:
            yield (
                f"{prefix}context_length is {self.context_length} but num_transitions is {config.num_transitions}: "
                "training never shows the predictor a whole context. Raise num_transitions."
            )

    hidden_dim: int = setting(256, "Hidden width of the predictor MLP.", ge=1)
    num_layers: int = setting(2, "Hidden layers of the predictor MLP.", ge=1)
    residual: bool = setting(False, "Let the predictor give the change of the embedding instead of the next embedding.")


@component("predictor", "mlp", label="MLP")
class MLPPredictor(Predictor):
    """An MLP with dropout on the concatenation of embeddings and action embeddings of the latest steps.

    At the beginning of a sequence the first embedding stands for those before it, with action embeddings of zero.

    A residual one starts from the embedding and gives its change: a step that changes little is then easy to predict.

    Args:
        latent_dim: D, also the size of the output.
        action_emb_dim: E.
        hidden_dim: Width of the hidden layers.
        num_layers: Number of hidden layers.
        dropout_rate: Dropout after each hidden layer.
        residual: Whether the output is added to the embedding.
        context_length: Steps that a prediction is made from; 1 is Markov.
    """

    Settings = MLPPredictorSettings

    def __init__(
        self,
        latent_dim: int,
        action_emb_dim: int,
        hidden_dim: int,
        num_layers: int,
        dropout_rate: float,
        residual: bool = False,
        context_length: int = 1,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.context_length = context_length
        layers: list[nn.Module] = []
        features = context_length * (latent_dim + action_emb_dim)
        for _ in range(num_layers):
            layers += [nn.Linear(features, hidden_dim), nn.LayerNorm(hidden_dim), nn.GELU(), nn.Dropout(dropout_rate)]
            features = hidden_dim
        layers.append(nn.Linear(features, latent_dim))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, action_embedding: Tensor) -> Tensor:
        """Next latents (B, T, *latent) from latents (B, T, *latent) and action embeddings (B, T, E)."""
        if z.ndim > action_embedding.ndim:  # each token is predicted from its own past, and all see the action
            tokens = z.shape[-2]
            action_embedding = action_embedding.unsqueeze(-2).expand(*action_embedding.shape[:-1], tokens, -1)
        inputs = [z, action_embedding]
        for steps in range(1, self.context_length):
            inputs += [_earlier(z, steps, z[:, :1]), _earlier(action_embedding, steps, z.new_zeros(()))]
        change = self.layers(torch.cat(inputs, dim=-1))
        return z + change if self.residual else change


def _earlier(sequence: Tensor, steps: int, before: Tensor) -> Tensor:
    """A sequence (B, T, ...) `steps` earlier; `before` fills what was before its beginning."""
    filled = min(steps, sequence.shape[1])
    beginning = before.to(sequence.dtype).expand_as(sequence[:, :filled])
    return torch.cat([beginning, sequence[:, : sequence.shape[1] - filled]], dim=1)


def windows(sequence: Tensor, length: int) -> Tensor:
    """Every run of `length` entries of sequences (B, T, ...), as (B * (T - length + 1), length, ...)."""
    return sequence.unfold(1, length, 1).movedim(-1, 2).flatten(0, 1)
