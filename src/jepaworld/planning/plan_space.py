"""Action blocks as planners see them: every bounded entry scaled to [-1, 1].

Shapes: B environments, S candidate plans, P plan steps, k = frame_skipping environment steps of a block, a entries of
one environment action, A = k * a numbers of one action block (k of `Discrete`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from jepaworld.envs.spaces import action_bounds, block_size, check_action_space


@dataclass(frozen=True, eq=False)
class PlanSpace:
    """Bounds and units of an action block; made by `PlanSpace.of`.

    Normalised coordinates of `Box`: an entry with both bounds is -1 at its low and 1 at its high, every other entry is
    its own value (centre 0, scale 1). Those of `Discrete`: the zero-based index, 0 to n - 1.
    """

    action_space: Box | Discrete
    frame_skipping: int  # k
    device: torch.device
    # float32 (A,), empty for `Discrete`; where an entry has no bound it is infinite.
    low: Tensor
    high: Tensor
    center: Tensor  # the value of normalised 0
    half_range: Tensor  # the length of a normalised unit
    normalised_low: Tensor  # -1, or -inf where there is none
    normalised_high: Tensor

    @classmethod
    def of(cls, action_space: gymnasium.Space, frame_skipping: int = 1, device: str | torch.device = "cpu") -> Self:
        """The plan space of an environment.

        Args:
            action_space: `Box` of any shape, with or without bounds, or `Discrete`.
            frame_skipping: Environment steps in an action block, at least 1.
            device: Where plans are searched.

        Raises:
            EnvironmentNotUsableError: the action space is of another kind, or has no entries.
        """
        check_action_space(action_space)
        assert isinstance(action_space, Box | Discrete)
        arrays = [np.empty(0)] * 6
        if isinstance(action_space, Box):
            low, high, center, half_range = action_bounds(action_space, frame_skipping)
            arrays = [low, high, center, half_range, (low - center) / half_range, (high - center) / half_range]
        tensors = (torch.tensor(array, dtype=torch.float32, device=device) for array in arrays)
        return cls(action_space, frame_skipping, torch.device(device), *tensors)

    @property
    def discrete(self) -> bool:
        """Whether the actions are those of a `Discrete` space."""
        return isinstance(self.action_space, Discrete)

    @property
    def width(self) -> int:
        """A."""
        return block_size(self.action_space, self.frame_skipping)

    @property
    def entries(self) -> int:
        """a; 1 for `Discrete`."""
        return self.width // self.frame_skipping

    @property
    def num_actions(self) -> int:
        """How many actions a `Discrete` space has."""
        assert isinstance(self.action_space, Discrete)
        return int(self.action_space.n)

    def clip(self, normalised: Tensor) -> Tensor:
        """Normalised actions (..., A) of a `Box` space within their bounds; entries without bounds as they are."""
        return normalised.clamp(self.normalised_low, self.normalised_high)

    def to_real(self, normalised: Tensor) -> Tensor:
        """What the environment takes.

        Args:
            normalised: (..., A): floats for `Box`, which are clipped; integer indices for `Discrete`.

        Returns:
            (..., A): float32 within the bounds (whole numbers for an integer `Box`), or int64 with `start` added.
            Gradients flow to `normalised` where it is within its bounds, through the rounding of an integer `Box` too.
        """
        if isinstance(self.action_space, Discrete):
            return normalised.long() + int(self.action_space.start)
        exact = torch.addcmul(self.center, self.clip(normalised), self.half_range)
        real = exact.detach()
        if np.issubdtype(self.action_space.dtype, np.integer):
            real = real.round()
        real = real.clamp(self.low, self.high)  # the sum above may round to just beyond a bound
        return exact + (real - exact.detach()) if exact.requires_grad else real

    def normalise(self, real: Tensor) -> Tensor:
        """The inverse of `to_real`: (..., A) actions of the environment as float32; for `Discrete` the index."""
        if isinstance(self.action_space, Discrete):
            return (real - int(self.action_space.start)).float()
        return (real - self.center) / self.half_range

    def split(self, blocks: Tensor) -> np.ndarray:
        """The environment actions of action blocks (..., A), as from `to_real`, in the order in which they are played.

        Returns:
            (..., k, *shape) in the space's dtype and within its bounds; (..., k) int64 for `Discrete`.
        """
        space, values = self.action_space, blocks.detach().cpu().numpy()
        if isinstance(space, Discrete):
            return values.astype(np.int64)
        actions = values.reshape(*values.shape[:-1], self.frame_skipping, *space.shape)
        # In the space's own precision: a float32 bound may lie just beyond a float64 one.
        return np.clip(actions.astype(space.dtype), space.low, space.high)
