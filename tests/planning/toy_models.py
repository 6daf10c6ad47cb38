"""World models whose dynamics are known, and the pictures that they see."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

SIDE = 16


def pictures(positions: Tensor) -> Tensor:
    """Frames uint8 (B, 1, S, S) of positions (B, 2) in whole numbers from 0 to 255: the first two pixels."""
    frames = torch.zeros(len(positions), 1, SIDE, SIDE, dtype=torch.uint8)
    frames[:, 0, 0, :2] = positions.to(torch.uint8)
    return frames


class PointModel(nn.Module):
    """A point that moves by the sum of a block's actions; its embedding, its position, has two axes (2, 1).

    Attributes:
        batches: How many plans each call of `rollout` was asked for.
        seen: (K, shape of context_actions) of each call.
    """

    def __init__(self, gain: float = 10.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.batches: list[int] = []
        self.seen: list[tuple[int, tuple[int, ...] | None]] = []

    def encode(self, frames: Tensor) -> Tensor:
        return frames[:, :, 0, 0, :2].float().unsqueeze(-1)

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
        self.batches.append(len(z))
        self.seen.append((z.shape[1], None if context_actions is None else tuple(context_actions.shape)))
        moves = actions.float().unflatten(-1, (-1, 2)).sum(dim=-2)
        return z[:, -1:] + self.gain * moves.cumsum(dim=1).unsqueeze(-1)


class GlidingModel(PointModel):
    """Keeps half the velocity that it reads from two frames, less what the action between them did not explain."""

    context_length = 2

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
        assert (context_actions is None) == (z.shape[1] == 1)
        self.seen.append((z.shape[1], None if context_actions is None else tuple(context_actions.shape)))
        velocity = torch.zeros_like(z[:, -1])
        if context_actions is not None:
            velocity = z[:, -1] - z[:, -2] - self.gain * context_actions[:, -1].unsqueeze(-1)
        position, imagined = z[:, -1], []
        for step in range(actions.shape[1]):
            position = position + velocity + self.gain * actions[:, step].unsqueeze(-1)
            velocity = velocity * 0.5
            imagined.append(position)
        return torch.stack(imagined, dim=1)


class TwoRoomOracle(nn.Module):
    """Reads the agent of jepaworld/TwoRoom-v0 from the picture, and knows how it moves where there are no walls."""

    def __init__(self, max_speed: float = 2.5) -> None:
        super().__init__()
        self.max_speed = max_speed

    def encode(self, frames: Tensor) -> Tensor:
        # The agent is the only thing that is red rather than blue.
        redness = (frames[:, :, 0].float() - frames[:, :, 2].float() - 5.0).clamp(min=0.0)
        weight = redness / redness.sum(dim=(-1, -2), keepdim=True)
        pixel = torch.arange(frames.shape[-1]) + 0.5
        return torch.stack([(weight * pixel).sum(dim=(-1, -2)), (weight * pixel[:, None]).sum(dim=(-1, -2))], dim=-1)

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        moves = actions.unflatten(-1, (-1, 2)).sum(dim=-2)
        return z[:, -1:] + self.max_speed * moves.cumsum(dim=1)


def numpy_frames(*positions: tuple[int, int]) -> np.ndarray:
    """`pictures` as an array."""
    return pictures(torch.tensor(positions)).numpy()
