"""The state decoder: shows what an embedding knows by painting the frame from it.

Shapes: N embeddings, L tokens of a latent, D latent, Q queries (one per patch of the image), M memory tokens, E token
width, p patch side, C H W image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepaworld.models.encoders import initialize_blocks


class JEPAStateDecoder(nn.Module):
    """Transformer decoder whose learned queries, one per image patch, attend to the embedding.

    It is trained on frozen embeddings and is no part of the JEPA: nothing flows back from it. What all frames share is
    a learned background image, and the queries begin by painting nothing over it: a small moving object is then all
    that the error is about from the first steps on.

    Args:
        latent_shape: (D,), or (L, D) of tokens.
        image_size: H = W, a multiple of `patch_size`.
        input_channels: C.
        patch_size: Side p of the patch that each query paints.
        dim: Token width E, a multiple of `heads`.
        depth: Transformer blocks.
        heads: Attention heads.
        mlp_dim: Hidden width of the blocks' MLPs.
        memory_tokens: Tokens M that a single embedding is unfolded into, so that each query can choose what it reads. A
            latent of tokens is its own memory, with a learned position each: attention alone does not see their order.
        dropout: Dropout inside the blocks.
    """

    def __init__(
        self,
        latent_shape: tuple[int, ...],
        image_size: int,
        input_channels: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        memory_tokens: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patches_per_side = image_size // patch_size
        self.patch_size = patch_size
        self.input_channels = input_channels
        self.memory_tokens = memory_tokens if len(latent_shape) == 1 else 1
        self.memory = nn.Linear(latent_shape[-1], self.memory_tokens * dim)
        self.queries = nn.Parameter(torch.randn(1, self.patches_per_side**2, dim))
        block = nn.TransformerDecoderLayer(
            dim, heads, mlp_dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerDecoder(block, depth, nn.LayerNorm(dim))
        initialize_blocks(self.blocks)
        self.head = nn.Linear(dim, input_channels * patch_size**2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.background = nn.Parameter(torch.zeros(1, input_channels, image_size, image_size))
        self.positions = nn.Parameter(torch.randn(1, latent_shape[0], dim) * 0.02) if len(latent_shape) == 2 else None

    def forward(self, z: Tensor) -> Tensor:
        """Paint embeddings.

        Args:
            z: Embeddings (N, D), or (N, L, D) of tokens.

        Returns:
            Images (N, C, H, W), trained towards [0, 1] and not clamped to it.
        """
        memory = self.memory(z).reshape(len(z), -1, self.queries.shape[-1])  # (N, M, E), of tokens (N, L, E)
        if self.positions is not None:
            memory = memory + self.positions
        tokens = self.blocks(self.queries.expand(len(z), -1, -1), memory)  # (N, Q, E)
        side, p = self.patches_per_side, self.patch_size
        patches = self.head(tokens).view(-1, side, side, self.input_channels, p, p)
        painted = patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, self.input_channels, side * p, side * p)
        return self.background + painted
