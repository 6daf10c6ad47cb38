"""Action encoders: from the action block that leads from one frame to the next to its embedding.

Shapes: B windows, T transitions, A numbers of one action block, E action embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gymnasium
import torch
from torch import Tensor, nn

from jepaworld.config import components
from jepaworld.config.components import component
from jepaworld.config.fields import Section, setting
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import ConfigError

if TYPE_CHECKING:
    from jepaworld.config import Config


class ScaledActions(nn.Module):
    """What takes the actions of a `Box`, scaled as `Spaces.action_scale` says.

    Its numbers are buffers, so that a checkpoint carries them.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        center, half_range = (torch.tensor(values, dtype=torch.float32) for values in spaces.action_scale())
        self.register_buffer("center", center)
        self.register_buffer("half_range", half_range)

    def scaled(self, actions: Tensor) -> Tensor:
        """Scaled action blocks (..., A), from the environment's units."""
        return (actions - self.center) / self.half_range


@component("action_encoder", "linear")
class ContinuousActionEmbedding(ScaledActions):
    """A linear map of the scaled action block.

    Args:
        spaces: With the environment's action space.
        action_emb_dim: E.
    """

    def __init__(self, spaces: Spaces, action_emb_dim: int) -> None:
        super().__init__(spaces)
        self.linear = nn.Linear(spaces.action_size, action_emb_dim)

    def forward(self, actions: Tensor) -> Tensor:
        """Embed actions (B, T, A) as (B, T, E)."""
        return self.linear(self.scaled(actions))


class ActionMLPSettings(Section):
    """MLP on the action block."""

    bottleneck_dim: int = setting(10, "Width of the linear map that comes first.", ge=1)
    hidden_dim: int = setting(768, "Width of the hidden layer.", ge=1)


@component("action_encoder", "mlp")
class ActionMLP(ScaledActions):
    """A linear map of the scaled action block to a few numbers, and an MLP with one hidden layer.

    Source: the action encoder of LeWM (arXiv 2603.19312), whose first layer is a convolution of kernel 1 over time,
    which is a linear map of each block.

    Args:
        spaces: With the environment's action space.
        action_emb_dim: E.
        settings: As in `ActionMLPSettings`.
    """

    Settings = ActionMLPSettings

    def __init__(self, spaces: Spaces, action_emb_dim: int, settings: ActionMLPSettings) -> None:
        super().__init__(spaces)
        self.layers = nn.Sequential(
            nn.Linear(spaces.action_size, settings.bottleneck_dim),
            nn.Linear(settings.bottleneck_dim, settings.hidden_dim),
            nn.SiLU(),
            nn.Linear(settings.hidden_dim, action_emb_dim),
        )

    def forward(self, actions: Tensor) -> Tensor:
        """Embed actions (B, T, A) as (B, T, E)."""
        return self.layers(self.scaled(actions))


@component("action_encoder", "table")
class DiscreteActionEmbedding(nn.Module):
    """A learned vector per action; those of a block are concatenated and mapped to one embedding.

    Args:
        spaces: With the environment's action space.
        action_emb_dim: E.
    """

    def __init__(self, spaces: Spaces, action_emb_dim: int) -> None:
        super().__init__()
        assert isinstance(spaces.action_space, gymnasium.spaces.Discrete), spaces.action_space
        self.start, steps = int(spaces.action_space.start), spaces.frame_skipping
        self.table = nn.Embedding(int(spaces.action_space.n), action_emb_dim)
        self.block = nn.Linear(steps * action_emb_dim, action_emb_dim) if steps > 1 else nn.Identity()

    def forward(self, actions: Tensor) -> Tensor:
        """Embed actions (B, T, A), integers of the action space, as (B, T, E)."""
        return self.block(self.table(actions.long() - self.start).flatten(-2))


def make_action_encoder(config: Config, spaces: Spaces) -> nn.Module:
    """The action embedding that `action_encoder_type` names: action blocks (B, T, A) to (B, T, E).

    Raises:
        ConfigError: it does not take this kind of actions.
    """
    discrete = isinstance(spaces.action_space, gymnasium.spaces.Discrete)
    kind = config.action_encoder_type
    if (kind in ("linear", "mlp") and discrete) or (kind == "table" and not discrete):
        raise ConfigError(
            f"action_encoder_type is {kind}, but the action space is {spaces.action_space}: set it to auto."
        )
    return components.make(
        "action_encoder",
        config,
        discrete,
        spaces=spaces,
        action_space=spaces.action_space,
        frame_skipping=spaces.frame_skipping,
        action_emb_dim=config.action_emb_dim,
    )
