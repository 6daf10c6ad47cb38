"""The inverse-dynamics head: which action led from one embedding to the next.

Shapes: B windows, T transitions, D latent, A numbers of one action block.
"""

from __future__ import annotations

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepaworld.envs.spaces import Spaces
from jepaworld.models.protocol import pool


class InverseDynamicsHead(nn.Module):
    """An MLP that reads the action from the embeddings before and after it.

    Source: Pathak et al. 2017 (arXiv 1705.05363), equation 2; PLDM (arXiv 2502.14819) trains JEPAs with it. Differs
    from the former in: actions of a `Box` are regressed, scaled as in the action encoder.

    Args:
        latent_shape: (D,), or (N, D) of tokens, which are averaged before they are read.
        hidden_dim: Width of the hidden layer.
        spaces: The environment's action space, and how many of its actions are in a block.
    """

    center: Tensor
    half_range: Tensor

    def __init__(self, latent_shape: tuple[int, ...], hidden_dim: int, spaces: Spaces) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        outputs, space = spaces.action_size, spaces.action_space
        self.choices: int | None = None
        if isinstance(space, gymnasium.spaces.Discrete):
            self.choices, self.start = int(space.n), int(space.start)
            outputs *= self.choices
        else:
            assert isinstance(space, gymnasium.spaces.Box), f"block_size lets only Box and Discrete pass, got {space}"
            center, half_range = (torch.tensor(values, dtype=torch.float32) for values in spaces.action_scale())
            self.register_buffer("center", center)
            self.register_buffer("half_range", half_range)
        self.layers = nn.Sequential(
            nn.Linear(2 * latent_shape[-1], hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, outputs),
        )

    def forward(self, z: Tensor, z_next: Tensor) -> Tensor:
        """Read actions from latents (B, T, *latent) before and after them.

        Returns:
            (B, T, A) scaled actions for `Box`, (B, T, A, n) logits for `Discrete`.
        """
        pair = [pool(latent, self.latent_shape) for latent in (z, z_next)]
        read = self.layers(torch.cat(pair, dim=-1))
        return read if self.choices is None else read.unflatten(-1, (-1, self.choices))

    def loss(self, z: Tensor, z_next: Tensor, actions: Tensor) -> Tensor:
        """Mean squared error of the scaled actions (B, T, A), or cross-entropy of discrete ones, in float32."""
        read = self(z, z_next).float()
        if self.choices is None:
            return F.mse_loss(read, (actions.float() - self.center) / self.half_range)
        return F.cross_entropy(read.flatten(0, -2), (actions.long() - self.start).flatten())
