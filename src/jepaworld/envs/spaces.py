"""Action spaces: which are supported, how wide a stored action is, and their form in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from gymnasium.spaces import Box, Discrete, Space

from jepaworld.errors import EnvironmentNotUsableError

if TYPE_CHECKING:
    from jepaworld.config import Config

UNBOUNDED = 1e6
"""A bound from here on stands for none: spaces without limits often carry the largest float instead of infinity."""


def space_to_dict(space: Space) -> dict[str, Any]:
    """A Box or Discrete space as values that JSON can hold.

    Args:
        space: Box of any shape and dtype, or Discrete.

    Returns:
        `{"type": "Box", "shape", "low", "high", "dtype"}` with the bounds flat in C order and infinities as
        the strings `"inf"` and `"-inf"`, or `{"type": "Discrete", "n", "start"}`.

    Raises:
        EnvironmentNotUsableError: the space is of another kind.
    """
    if isinstance(space, Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "low": [_bound_to_json(bound) for bound in space.low.ravel().tolist()],
            "high": [_bound_to_json(bound) for bound in space.high.ravel().tolist()],
            "dtype": str(space.dtype),
        }
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    raise _unsupported(space)


def space_from_dict(fields: Mapping[str, Any]) -> Box | Discrete:
    """The space that `space_to_dict` described; equal to the original.

    Args:
        fields: what `space_to_dict` returned, also after a round trip through JSON.

    Returns:
        The Box or Discrete space.

    Raises:
        ValueError: an entry is missing, or its value does not describe a space.
    """
    try:
        if fields["type"] == "Box":
            shape, dtype = tuple(fields["shape"]), np.dtype(fields["dtype"])
            low, high = (
                np.array([_bound_from_json(bound) for bound in fields[side]], dtype=dtype).reshape(shape)
                for side in ("low", "high")
            )
            return Box(low=low, high=high, shape=shape, dtype=dtype.type)
        if fields["type"] == "Discrete":
            return Discrete(int(fields["n"]), start=int(fields["start"]))
    except (KeyError, TypeError, ValueError, OverflowError, AssertionError) as error:
        raise ValueError(f"{dict(fields)!r} does not describe a space: {error!r}") from error
    raise ValueError(f"space type {fields['type']!r} is not known; Box and Discrete are.")


class ActionBounds(NamedTuple):
    """Flat float64 arrays over the numbers of an action block (A,), in the environment's units."""

    low: np.ndarray
    """-inf where there is none."""
    high: np.ndarray
    """inf where there is none."""
    center: np.ndarray
    """Middle of the bounds; 0 for an entry that does not have two different ones."""
    half_range: np.ndarray
    """Half their distance; 1 for an entry that does not have two different ones."""


def action_bounds(space: Box, frame_skipping: int = 1) -> ActionBounds:
    """The bounds by which actions are scaled to [-1, 1], everywhere: (action - center) / half_range.

    Args:
        space: of the environment.
        frame_skipping: environment steps in an action block.
    """
    low = np.tile(space.low.astype(np.float64).ravel(), frame_skipping)
    high = np.tile(space.high.astype(np.float64).ravel(), frame_skipping)
    low, high = np.where(low > -UNBOUNDED, low, -np.inf), np.where(high < UNBOUNDED, high, np.inf)
    bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
    with np.errstate(invalid="ignore"):
        center, half_range = np.where(bounded, (low + high) / 2, 0.0), np.where(bounded, (high - low) / 2, 1.0)
    return ActionBounds(low, high, center, half_range)


def check_action_space(space: Space) -> None:
    """Make sure that actions of this space can be stored and embedded.

    Raises:
        EnvironmentNotUsableError: the space is neither Box nor Discrete, or a Box without entries.
    """
    if not isinstance(space, Box | Discrete):
        raise _unsupported(space)
    if isinstance(space, Box) and 0 in space.shape:
        raise EnvironmentNotUsableError(
            f"the action space {space} has no entries (shape {space.shape}). Choose an environment with actions."
        )


def block_size(space: Space, frame_skipping: int) -> int:
    """Width A of one stored action: the actions of `frame_skipping` environment steps side by side.

    Args:
        space: Box or Discrete.
        frame_skipping: environment steps from one stored frame to the next, at least 1.

    Returns:
        `frame_skipping * prod(shape)` for Box, `frame_skipping` for Discrete.

    Raises:
        EnvironmentNotUsableError: the space is not supported.
    """
    check_action_space(space)
    assert frame_skipping >= 1, frame_skipping
    return frame_skipping * (math.prod(space.shape) if isinstance(space, Box) else 1)


@dataclass(frozen=True)
class Spaces:
    """What a model sees and what it does, as `models.build` needs it."""

    frame_shape: tuple[int, int, int]  # (C, H, W) of the uint8 frames
    action_space: Space  # of one environment step, Box or Discrete
    frame_skipping: int = 1  # environment steps in an action block
    # Mean and standard deviation (A,) of the action blocks, where a model is to scale them by these.
    action_statistics: tuple[np.ndarray, np.ndarray] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, config: Config, action_space: Space) -> Self:
        """The spaces of a configured environment.

        Raises:
            EnvironmentNotUsableError: the action space is not supported.
        """
        check_action_space(action_space)
        side = config.image_size
        return cls((config.input_channels, side, side), action_space, config.frame_skipping)

    @property
    def action_size(self) -> int:
        """A, numbers of an action block."""
        return block_size(self.action_space, self.frame_skipping)

    def action_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """What is taken from each number of a `Box`'s action block (A,), and what the rest is divided by."""
        assert isinstance(self.action_space, Box), self.action_space
        if self.action_statistics is not None:
            mean, std = self.action_statistics
            return mean, np.where(std > 0, std, 1.0)  # a number that never changes stays finite
        bounds = action_bounds(self.action_space, self.frame_skipping)
        return bounds.center, bounds.half_range


def _unsupported(space: Space) -> EnvironmentNotUsableError:
    return EnvironmentNotUsableError(
        f"action space {space} is not supported: Box and Discrete are. Wrap the environment so that it "
        "takes one of these (gymnasium.wrappers.TransformAction)."
    )


def _bound_to_json(bound: float) -> float | str:
    return bound if math.isfinite(bound) else str(bound)


def _bound_from_json(bound: float | str) -> float:
    return float(bound) if isinstance(bound, str) else bound
