"""Action embedding and predictors: from the embedding of this state and the action to that of the next.

Shapes: B windows, T transitions, A numbers of one action block, D latent, E action embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import gymnasium
import torch
from torch import Tensor, nn

from jepaworld.config import components
from jepaworld.config.components import component
from jepaworld.config.fields import Section, setting
from jepaworld.envs.spaces import action_bounds
from jepaworld.errors import ConfigError

if TYPE_CHECKING:
    from jepaworld.config import Config


def action_scale(space: gymnasium.spaces.Box, frame_skipping: int) -> tuple[Tensor, Tensor]:
    """Centre and half range (A,) of each entry of an action block; 0 and 1 where an entry is not bounded."""
    bounds = action_bounds(space, frame_skipping)
    return torch.tensor(bounds.center, dtype=torch.float32), torch.tensor(bounds.half_range, dtype=torch.float32)


@component("action_encoder", "linear")
class ContinuousActionEmbedding(nn.Module):
    """A linear map of the action block, each bounded dimension scaled to [-1, 1] first.

    Args:
        action_space: The environment's action space.
        frame_skipping: Environment steps in an action block.
        action_emb_dim: E.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, action_space: gymnasium.spaces.Box, frame_skipping: int, action_emb_dim: int) -> None:
        super().__init__()
        center, half_range = action_scale(action_space, frame_skipping)
        self.register_buffer("center", center)
        self.register_buffer("half_range", half_range)
        self.linear = nn.Linear(len(center), action_emb_dim)

    def forward(self, actions: Tensor) -> Tensor:
        """Embed actions (B, T, A) as (B, T, E)."""
        return self.linear((actions - self.center) / self.half_range)


@component("action_encoder", "table")
class DiscreteActionEmbedding(nn.Module):
    """A learned vector per action; those of a block are concatenated and mapped to one embedding.

    Args:
        action_space: The environment's action space.
        frame_skipping: Environment steps in an action block.
        action_emb_dim: E.
    """

    def __init__(self, action_space: gymnasium.spaces.Discrete, frame_skipping: int, action_emb_dim: int) -> None:
        super().__init__()
        self.start = int(action_space.start)
        self.table = nn.Embedding(int(action_space.n), action_emb_dim)
        self.block = nn.Linear(frame_skipping * action_emb_dim, action_emb_dim) if frame_skipping > 1 else nn.Identity()

    def forward(self, actions: Tensor) -> Tensor:
        """Embed actions (B, T, A), integers of the action space, as (B, T, E)."""
        return self.block(self.table(actions.long() - self.start).flatten(-2))


def make_action_encoder(config: Config, action_space: gymnasium.Space) -> nn.Module:
    """The action embedding that `action_encoder_type` names: action blocks (B, T, A) to (B, T, E).

    Raises:
        ConfigError: it does not take this kind of actions.
    """
    discrete = isinstance(action_space, gymnasium.spaces.Discrete)
    kind = config.action_encoder_type
    if (kind == "linear" and discrete) or (kind == "table" and not discrete):
        raise ConfigError(f"action_encoder_type is {kind}, but the action space is {action_space}: set it to auto.")
    facts = {"frame_skipping": config.frame_skipping, "action_emb_dim": config.action_emb_dim}
    return components.make("action_encoder", config, discrete, action_space=action_space, **facts)


def make_predictor(config: Config, latent_shape: tuple[int, ...]) -> Predictor:
    """The predictor that `jepa_model.predictor_type` names, for latents (D,) or (N, D)."""
    return components.make(
        "predictor",
        config,
        latent_shape=latent_shape,
        latent_dim=latent_shape[-1],
        action_emb_dim=config.action_emb_dim,
    )


class Predictor(nn.Module, ABC):
    """Next embeddings from embeddings and action embeddings, each from its own past only.

    Attributes:
        context_length: How many steps of the past a prediction looks at, itself included.
    """

    context_length: int

    @abstractmethod
    def forward(self, z: Tensor, action_embedding: Tensor) -> Tensor:
        """Next embeddings (B, T, D) from embeddings (B, T, D) and action embeddings (B, T, E)."""


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
