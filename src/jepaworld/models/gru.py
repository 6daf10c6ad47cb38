"""A recurrent predictor whose hidden state is the latent itself."""

from __future__ import annotations

from torch import Tensor, nn

from jepaworld.config.components import component
from jepaworld.models.predictors import Predictor


@component("predictor", "gru", label="GRU")
class GRUPredictor(Predictor):
    """One step of a gated recurrent unit: the action is its input, the latent its hidden state before and after.

    Source: the predictor of PLDM (arXiv 2502.14819) and of eb_jepa's Two Rooms. It remembers nothing beside the latent,
    so that its context is one frame. Tokens are predicted each by itself.

    Args:
        latent_dim: D.
        action_emb_dim: E.

    Example:
        ```
        GRUPredictor(512, 32)(torch.randn(8, 16, 512), torch.randn(8, 16, 32))  # (8, 16, 512)
        ```
    """

    context_length = 1

    def __init__(self, latent_dim: int, action_emb_dim: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(action_emb_dim, latent_dim)

    def forward(self, z: Tensor, action_embedding: Tensor) -> Tensor:
        """Next latents (B, T, *latent) from latents (B, T, *latent) and action embeddings (B, T, E)."""
        action_embedding = action_embedding.view(*action_embedding.shape[:2], *[1] * (z.ndim - 3), -1)
        inputs = action_embedding.expand(*z.shape[:-1], -1)
        return self.cell(inputs.flatten(0, -2), z.flatten(0, -2)).view(z.shape)
