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

UNBOUNDED = 1e6  # from here on a bound is none: spaces without limits often carry the largest float, not infinity


def space_to_dict(space: Space) -> dict[str, Any]:
    """A Box or Discrete space as values that JSON can hold.

    Returns:
        `{"type": "Box", "shape", "low", "high", "dtype"}` with the bounds flat in C order and infinities as
        the strings `"inf"` and `"-inf"`, or `{"type": "Discrete", "n", "start"}`.

    Raises:
        EnvironmentNotUsableError: as `check_action_space`.
    """
    check_action_space(space)
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    assert isinstance(space, Box)
    low, high = (
        [bound if math.isfinite(bound) else str(bound) for bound in bounds.ravel().tolist()]
        for bounds in (space.low, space.high)
    )
    return {"type": "Box", "shape": list(space.shape), "low": low, "high": high, "dtype": str(space.dtype)}


def space_from_dict(fields: Mapping[str, Any]) -> Box | Discrete:
    """The space that `space_to_dict` described, also after a round trip through JSON; equal to the original.

    Raises:
        ValueError: an entry is missing, or its value does not describe a space.
    """
    try:
        if fields["type"] == "Box":
            shape, dtype = tuple(fields["shape"]), np.dtype(fields["dtype"])
            low, high = (
                # Only infinities are strings; whole numbers stay whole, which float64 could not hold.
                np.array([float(b) if isinstance(b, str) else b for b in fields[side]], dtype=dtype).reshape(shape)
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

    low: np.ndarray  # -inf where there is none
    high: np.ndarray  # inf where there is none
    center: np.ndarray  # middle of the bounds; 0 for an entry that does not have two different ones
    half_range: np.ndarray  # half their distance; 1 for an entry that does not have two different ones


def action_bounds(space: Box, frame_skipping: int = 1) -> ActionBounds:
    """The bounds by which actions are scaled to [-1, 1], everywhere: (action - center) / half_range."""
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
        remedy = "Wrap the environment so that it takes one of these (gymnasium.wrappers.TransformAction)."
        raise EnvironmentNotUsableError(f"action space {space} is not supported: Box and Discrete are. {remedy}")
    if isinstance(space, Box) and 0 in space.shape:
        raise EnvironmentNotUsableError(f"action space {space} has no entries. Choose an environment with actions.")


def element(value: np.ndarray, space: Space) -> Any:
    """An action as an element of a supported space: an array for Box, an int for Discrete.

    Raises:
        ValueError: it is none, by more than the rounding of floats; says why.
    """
    if isinstance(space, Discrete):
        if value.dtype.kind not in "iu" or value.size != 1:
            raise ValueError("an integer is needed")
        if not space.start <= int(value.item()) < space.start + space.n:
            raise ValueError(f"it is out of range: {space.start} to {space.start + space.n - 1}")
        return int(value.item())
    assert isinstance(space, Box)
    if value.dtype.kind not in ("iu" if np.issubdtype(space.dtype, np.integer) else "iuf"):
        raise ValueError(f"its dtype is {value.dtype}")
    if value.shape != space.shape:
        raise ValueError(f"its shape is {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError("it is not finite")
    clipped = np.clip(value, space.low.astype(np.float64), space.high.astype(np.float64))
    if (np.abs(clipped - value) > 1e-6 * np.maximum(1.0, np.abs(clipped))).any():
        raise ValueError("it is out of bounds")
    return clipped.astype(space.dtype)


def block_size(space: Space, frame_skipping: int) -> int:
    """Width A of one stored action: the actions of `frame_skipping` environment steps side by side.

    `frame_skipping * prod(shape)` numbers for Box, `frame_skipping` for Discrete.

    Raises:
        EnvironmentNotUsableError: as `check_action_space`.
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
        """The spaces of a configured environment; raises as `check_action_space`."""
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
