"""A causal Transformer that predicts the next latents from several past ones, conditioned on actions by AdaLN-zero.

Shapes: B windows, T transitions, K context frames, N tokens of a latent (1 for a vector), D latent, E action embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepaworld.config.components import component
from jepaworld.config.fields import setting
from jepaworld.models.predictors import Past, Predictor, SequenceSettings, windows

if TYPE_CHECKING:
    from jepaworld.config import Config


KeysValues = tuple[Tensor, Tensor]
SHORT = 16
"""Positions up to which attention on a GPU is computed without torch's kernels."""


class TransformerPredictorSettings(SequenceSettings):
    """The Transformer predictor."""

    depth: int = setting(6, "Blocks of the Transformer predictor.", ge=1)
    heads: int = setting(16, "Attention heads of the Transformer predictor.", ge=1)
    head_dim: int = setting(64, "Width of each of these heads.", ge=1)
    mlp_dim: int = setting(2048, "Hidden width of the MLPs of the Transformer predictor.", ge=1)
    positions: Literal["learned", "rotary"] = setting(
        "learned", "How frames are told apart in time: a learned vector each, or queries and keys that are rotated."
    )

    def contradictions(self, config: Config, prefix: str) -> Iterator[str]:
        """What cannot stand together."""
        if self.positions == "rotary" and self.head_dim % 2:
            yield f"{prefix}head_dim is {self.head_dim}: rotary positions need an even one."
        if self.context_length > config.num_transitions:
            yield (
                f"{prefix}context_length is {self.context_length}: at most num_transitions = {config.num_transitions}, "
                "as later positions would never be trained."
            )


@component("predictor", "transformer", label="Transformer")
class TransformerPredictor(Predictor):
    """Blocks of causal attention over the latest K frames; each frame's action shifts, scales and gates its block.

    Source: the predictor of LeWM (arXiv 2603.19312); AdaLN-zero from DiT (Peebles and Xie 2023, arXiv 2212.09748).
    At the beginning all gates are 0, so that it starts as the final norm of its input. Differs from LeWM in: latents of
    several tokens are taken too; all tokens of a frame see each other and those of the frames before, as in DINO-WM.

    Args:
        latent_shape: (D,) or (N, D).
        action_emb_dim: E.
        settings: As in `TransformerPredictorSettings`; `context_length` is K.

    Example:
        ```
        predictor = TransformerPredictor((192,), 192, TransformerPredictorSettings(context_length=3))
        predictor(torch.randn(8, 3, 192), torch.randn(8, 3, 192))  # (8, 3, 192)
        ```
    """

    Settings = TransformerPredictorSettings

    def __init__(
        self, latent_shape: tuple[int, ...], action_emb_dim: int, settings: TransformerPredictorSettings
    ) -> None:
        super().__init__()
        self.context_length, self.is_vector = settings.context_length, len(latent_shape) == 1
        width, tokens = latent_shape[-1], 1 if self.is_vector else latent_shape[0]
        learned = settings.positions == "learned"
        self.frame_positions = nn.Parameter(torch.randn(1, settings.context_length, 1, width)) if learned else None
        # Tokens are told apart by their place; a single one has nobody to be told from.
        self.token_positions = None if self.is_vector else nn.Parameter(torch.randn(1, 1, tokens, width) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, action_emb_dim, settings) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, z: Tensor, action_embedding: Tensor) -> Tensor:
        """Next latents (B, T, *latent) from latents (B, T, *latent) and action embeddings (B, T, E)."""
        length = self.context_length
        if z.shape[1] <= length:
            return self._predict(z, action_embedding)[0]
        # Further frames slide a window of K along, the same window that a rollout has when it comes there.
        later, _ = self._predict(windows(z[:, 1:], length), windows(action_embedding[:, 1:], length))
        first, _ = self._predict(z[:, :length], action_embedding[:, :length])
        return torch.cat([first, later[:, -1].unflatten(0, (len(z), -1))], dim=1)

    def advance(self, z: Tensor, action_embeddings: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """As `Predictor.advance`; frames before the new ones are not computed again while all fit into K."""
        known = 0 if past is None else past.z.shape[1]
        if known + z.shape[1] > self.context_length:
            # The window slides: all frames get other positions, and the oldest is no longer seen by the others.
            return super().advance(z, action_embeddings, past)
        predicted, cache = self._predict(z, action_embeddings, known, past.cache if past else [])
        if past is not None:
            z = torch.cat([past.z, z], dim=1)
            action_embeddings = torch.cat([past.action_embeddings, action_embeddings], dim=1)
        return predicted[:, -1], Past(z, action_embeddings, cache)

    def _predict(
        self, z: Tensor, action_embedding: Tensor, known: int = 0, cache: list[KeysValues] | None = None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Next latents of frames after `known` others, and the keys and values of all of them, block by block."""
        x = z.unsqueeze(2) if self.is_vector else z  # (B, T, N, D)
        if self.frame_positions is not None:
            x = x + self.frame_positions[:, known : known + x.shape[1]]
        x = x if self.token_positions is None else x + self.token_positions
        kept = []
        for number, block in enumerate(self.blocks):
            x, keys_values = block(x, action_embedding.unsqueeze(2), cache[number] if cache else None)
            kept.append(keys_values)
        x = self.norm(x)
        return x.squeeze(2) if self.is_vector else x, kept


class _Block(nn.Module):
    """Attention and MLP, each on a normalised input that the action shifts and scales, with a gate on what it adds."""

    def __init__(self, width: int, action_emb_dim: int, settings: TransformerPredictorSettings) -> None:
        super().__init__()
        linear = nn.Linear(action_emb_dim, 6 * width)
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)  # "zero": the block adds nothing until it has learned to
        self.modulation = nn.Sequential(nn.SiLU(), linear)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.attention = _Attention(width, settings)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, settings.mlp_dim),
            nn.GELU(),
            nn.Dropout(settings.dropout_rate),
            nn.Linear(settings.mlp_dim, width),
            nn.Dropout(settings.dropout_rate),
        )

    def forward(self, x: Tensor, action: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """Latents (B, T, N, D) and action embeddings (B, T, 1, E) to (B, T, N, D), and what attention looked at."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(action).chunk(6, dim=-1)
        attended, keys_values = self.attention(self.norms[0](x) * (1 + scale_1) + shift_1, past)
        x = x + gate_1 * attended
        return x + gate_2 * self.mlp(self.norms[1](x) * (1 + scale_2) + shift_2), keys_values


class _Attention(nn.Module):
    """Multi-head attention in which the tokens of a frame see that frame and those before it."""

    def __init__(self, width: int, settings: TransformerPredictorSettings) -> None:
        super().__init__()
        inner = settings.heads * settings.head_dim
        self.heads, self.dropout_rate, self.rotary = (
            settings.heads,
            settings.dropout_rate,
            settings.positions == "rotary",
        )
        self.norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * inner, bias=False)
        self.output = nn.Sequential(nn.Linear(inner, width), nn.Dropout(settings.dropout_rate))

    def forward(self, x: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """Attend.

        Args:
            x: New frames (B, T, N, D).
            past: Keys and values of the frames before them, each (B, heads, t * N, head_dim), or None.

        Returns:
            (B, T, N, D), and `past` with the new frames.
        """
        frames, tokens = x.shape[1:3]
        known = 0 if past is None else past[0].shape[2] // tokens
        qkv = self.queries_keys_values(self.norm(x).flatten(1, 2))  # (B, T * N, 3 * heads * head_dim)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        frame = torch.arange(known, known + frames, device=x.device).repeat_interleave(tokens)
        if self.rotary:
            q, k = _rotated(q, frame), _rotated(k, frame)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        every = torch.arange(known + frames, device=x.device).repeat_interleave(tokens)
        seen = frame.unsqueeze(1) >= every  # causal by frame and not by token
        dropout = self.dropout_rate if self.training else 0.0
        short = x.device.type == "cuda" and seen.shape[1] <= SHORT
        attend = short_attention if short else F.scaled_dot_product_attention
        attended = attend(q, k, v, attn_mask=seen, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).flatten(2)).unflatten(1, (frames, tokens)), (k, v)


def short_attention(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, dropout_p: float) -> Tensor:
    """As torch's `scaled_dot_product_attention`, by plain products.

    On a GPU its kernels work on tiles of 64 or more positions, and a rollout takes five times as long for 3. On a
    processor they are the faster ones.
    """
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~attn_mask, float("-inf")).softmax(dim=-1)
    return F.dropout(weights, dropout_p).to(v.dtype) @ v


def _rotated(x: Tensor, frame: Tensor) -> Tensor:
    """Queries or keys (..., L, head_dim), pairs of numbers rotated by angles that grow with the frame (L,).

    Products of queries and keys then depend on how far their frames are apart. Source: RoFormer (arXiv 2104.09864).
    """
    half = x.shape[-1] // 2
    angles = frame.unsqueeze(-1) * 10_000.0 ** (-torch.arange(half, device=x.device) / half)  # (L, half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
