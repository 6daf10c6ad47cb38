"""Embeddings of stored frames: which rows of a dataset, in which order, through which encoder.

Shapes: N frames, C H W image, *latent is (D,) or (tokens, D).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from jepaworld.data.store import EpisodeDataset
from jepaworld.models.protocol import WorldModel
from jepaworld.utils.modules import device_of, in_eval_mode

MAX_PROBED = 1024


def sample_rows(
    dataset: EpisodeDataset, episodes: np.ndarray, max_frames: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames of some episodes (E,), drawn without replacement if there are more than `max_frames`.

    The last frame of an episode is left out: no action and no reward follow it.

    Returns:
        `rows`, int64 (N,) global rows in rising order, and `owners`, int64 (N,) the episode of each.
    """
    episodes = np.sort(np.asarray(episodes, dtype=np.int64))
    lengths = dataset.episode_lengths[episodes]
    owners = np.repeat(episodes, lengths)
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = dataset.episode_starts[owners] + within
    if len(rows) > max_frames:
        keep = np.sort(np.random.default_rng(seed).choice(len(rows), size=max_frames, replace=False))
        rows, owners = rows[keep], owners[keep]
    return rows, owners


def paint(decoder: nn.Module, z: Tensor) -> np.ndarray:
    """Decode embeddings (N, *latent), on any device, to pictures uint8 (N, C, H, W); in eval mode."""
    device = device_of(decoder)
    with torch.no_grad(), in_eval_mode(decoder):
        images = (decoder(part.to(device).float()).clamp(0.0, 1.0) for part in z.split(256))
        return torch.cat([image.mul(255.0).round().byte().cpu() for image in images]).numpy()


def encode_frames(
    model: WorldModel,
    dataset: EpisodeDataset,
    rows: np.ndarray,
    *,
    encode: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
) -> Tensor:
    """Encode stored frames one by one, without gradients and in eval mode.

    Args:
        model: The world model.
        dataset: The stored episodes.
        rows: int64 (N,) global rows, at least one.
        encode: Which of the model's encodings; None takes `model.encode`, which the predictor takes.
        batch_size: Frames at once.

    Returns:
        (N, *latent) float32 on the CPU, in the order of `rows`.
    """
    assert len(rows), "no frames to encode"
    encode, device, parts = encode or model.encode, device_of(model), []
    with torch.no_grad(), in_eval_mode(model):
        for first in range(0, len(rows), batch_size):
            frames = torch.from_numpy(dataset.gather("frames", rows[first : first + batch_size]))
            parts.append(encode(frames.to(device).unsqueeze(1))[:, 0].float().cpu())
    return torch.cat(parts)


def probed(z: Tensor) -> Tensor:
    """What probes take of latents (N, *latent): all numbers if there are at most 1,024, else the mean of the tokens.

    Where something is in the picture is in the tokens' order, which the mean loses; but a ridge regression on many
    tokens has more weights than frames.
    """
    return z.flatten(1) if z[0].numel() <= MAX_PROBED else z.flatten(1, -2).mean(dim=1)
