"""What the built-in worlds share: a disc in a 64x64 image, and what planning can ask of them.

Units are pixels of the image, x to the right and y downwards, with (0, 0) at the outer corner of the first pixel; pixel
(row i, column j) is the square [j, j+1] x [i, i+1].

Shapes: N frames uint8 (N, 3, 64, 64), channels first; images uint8 (64, 64, 3), as Gymnasium has them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import ArrayLike, NDArray

from jepaworld.envs.hooks import require

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

SIZE = 64
RENDER_MODES = (None, "rgb_array")
RADIUS = 2.5  # of the disc that is drawn, and half the side of the square that collides
BACKGROUND = (9, 11, 20)
WALL_COLOUR = (72, 108, 166)
_DISC_COLOUR = (255, 214, 92)
_PATCH = 7  # pixels on a side that hold the disc with its smooth edge, at any fraction of a pixel

# Where the values of a patch are in a flat frame, counted from its first.
_PATCH_OFFSETS = np.add.outer(np.arange(3) * SIZE, np.arange(_PATCH))[..., None] * SIZE + np.arange(_PATCH)


class DiscEnv(gymnasium.Env[NDArray[np.uint8], Float32Array], ABC):
    """Base of `TwoRoomEnv` and `PointMazeEnv`: spaces, rendering, info, and the methods of `jepaworld.envs.hooks`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (Gymnasium's interface)
    restorable: ClassVar[tuple[str, ...]]  # entries of `info` that `reset(options=...)` takes
    required: ClassVar[tuple[str, ...]]  # those that `restore_state` cannot do without
    success_distance: ClassVar[float]  # pixels between disc and goal

    def __init__(self, render_mode: str | None, size: int = SIZE) -> None:
        check_choice("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        self.action_space: Any = Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space: Any = Box(0, 255, (size, size, 3), np.uint8)

    def render(self) -> NDArray[np.uint8] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The observation's image in mode "rgb_array", else None."""
        return self._image() if self.render_mode == "rgb_array" else None

    def restore_state(self, states: Mapping[str, ArrayLike]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Begin an episode at recorded state variables, as `info` gives them; others are not looked at.

        Raises:
            ValueError: one is missing or not possible.
        """
        require(states, *self.required)
        return self.reset(options={name: states[name] for name in self.restorable if name in states})

    def goal_image(self) -> NDArray[np.uint8]:
        """The image with the disc at the goal of this episode; nothing moves."""
        return self._image(self._variables()["goal"])

    def set_goal(self, states: Mapping[str, ArrayLike]) -> dict[str, Any]:
        """Make the disc's position in `states["state"]` the goal of this episode; returns the new info.

        Raises:
            ValueError: it is missing, or not in free space.
        """
        require(states, "state")
        self._place_goal(states["state"])
        return self._info()

    def _info(self) -> dict[str, Any]:
        variables = self._variables()
        success = within(self.success_distance, variables["state"], variables["goal"])
        return variables | {"success": bool(success)}

    @abstractmethod
    def _variables(self) -> dict[str, Float32Array]:
        """The restorable variables of now, copies."""

    @abstractmethod
    def _image(self, position: ArrayLike | None = None) -> NDArray[np.uint8]:
        """The image with the disc at a position, `None` for where it is."""

    @abstractmethod
    def _place_goal(self, position: ArrayLike) -> None:
        """Make a position the goal."""


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}.")


def check_positive(name: str, value: float, most: float = math.inf) -> None:
    """Refuse what is no finite number above 0, or is above `most`."""
    if not (isinstance(value, int | float) and math.isfinite(value) and 0 < value <= most):
        limit = f" and at most {most:g}" if math.isfinite(most) else ""
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0{limit}.")


def read_actions(actions: ArrayLike, shape: tuple[int, ...]) -> Float64Array:
    """Actions as float64, clipped to [-1, 1]; a `ValueError` where they are not finite or of another shape."""
    read = np.asarray(actions, np.float64)
    if read.shape != shape or not np.isfinite(read).all():
        raise ValueError(f"expected finite actions of shape {shape}, got {actions!r}.")
    return np.clip(read, -1, 1)


def read_options(options: Mapping[str, Any], known: Sequence[str], count: int = 1) -> dict[str, Float32Array]:
    """Options of a reset, each two finite numbers or `count` rows of them, as (count, 2)."""
    read = {}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"options[{name!r}] is not known; reset takes {', '.join(known)}.")
        pairs = np.asarray(value, np.float32)
        if pairs.shape not in ((2,), (count, 2)) or not np.isfinite(pairs).all():
            raise ValueError(f"options[{name!r}] is {value!r}; expected finite numbers, (2,) or ({count}, 2).")
        read[name] = np.broadcast_to(pairs, (count, 2)).copy()
    return read


def within(distance: float, position: Float32Array, goal: Float32Array) -> NDArray[np.bool_]:
    """Whether positions (..., 2) are at most `distance` from their goals (..., 2)."""
    away = position.astype(np.float64) - goal
    return np.sqrt((away * away).sum(axis=-1)) <= distance


def paint_discs(frames: NDArray[np.uint8], positions: ArrayLike) -> None:
    """Paint one disc with a smooth edge into each of the frames, in place.

    A pixel is covered by as much as the disc's edge passes its centre, between half a pixel before and behind
    it; so the disc moves with every fraction of a pixel. Frames (N, 3, 64, 64) are C-contiguous; centres (N, 2) may
    be anywhere, also partly or wholly outside the image.
    """
    assert frames.flags.c_contiguous, "others would be painted as a copy"
    centre = np.asarray(positions, dtype=np.float32)
    corner = np.clip(np.floor(centre) - _PATCH // 2, 0, SIZE - _PATCH)  # of the patch that holds the disc
    away = corner[:, :, None] + (np.arange(_PATCH, dtype=np.float32) + np.float32(0.5)) - centre[:, :, None]
    away *= away
    distance = np.sqrt(away[:, 1, :, None] + away[:, 0, None, :])  # (N, rows, columns) from the pixels' centres
    cover = np.clip(np.float32(RADIUS + 0.5) - distance, 0, 1)[:, None]
    column, row = corner.astype(np.intp).T
    # One flat index for all frames is faster than a loop over them.
    first = np.arange(len(frames)) * (3 * SIZE * SIZE) + row * SIZE + column
    indices = first[:, None, None, None] + _PATCH_OFFSETS
    flat = frames.reshape(-1)
    behind = flat[indices].astype(np.float32)
    colour = np.array(_DISC_COLOUR, np.float32).reshape(3, 1, 1)
    flat[indices] = (behind + cover * (colour - behind) + np.float32(0.5)).astype(np.uint8)


def frames_to_images(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames (N, 3, 64, 64) as contiguous images (N, 64, 64, 3)."""
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1))
