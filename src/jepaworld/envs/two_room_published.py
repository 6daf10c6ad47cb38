"""Two Rooms by the rules that PLDM and eb_jepa publish figures for: `jepaworld/TwoRoom-v0` with `rules="published"`.

Units are pixels of the 65x65 image with the centres of pixels at whole numbers, as there: x to the right, y downwards,
(0, 0) at the centre of the first pixel.

Shapes: N lanes; states, goals, walls (N, 2); frames (N, 3, 65, 65) uint8.

Source: github.com/facebookresearch/eb_jepa (`eb_jepa/datasets/two_rooms`) and github.com/vladisai/PLDM. Differs: there
a frame has two channels, disc and walls; here these are red and green of a colour image, and blue is empty. There the
planner shortens actions to the longest step, here the environment does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jepaworld.envs.disc import Float32Array, Float64Array
from jepaworld.envs.two_room_world import Geometry, Rules, straight

SIZE = 65
LOW, HIGH = 4.0, 60.0  # the border, which is one pixel wide
WALL_HALF, DOOR_HALF = 1.0, 4.0  # a point meets the faces themselves: the wall is 2 wide for it, and painted 3 wide
DISC_STD = 1.3  # of the Gaussian that is drawn

_MARGIN = 2 * DISC_STD  # of starts and goals from every wall
_BOUNCE_STD = 0.5
_CLEARANCE = 0.3  # from a wall that a bounce would have passed


def obstacles(wall: Float32Array) -> Geometry:
    """The obstacles that walls (N, 2) make for a point."""
    return Geometry.of(wall, (LOW, HIGH), WALL_HALF, DOOR_HALF)


def move(
    start: Float64Array,
    displacement: Float64Array,
    geometry: Geometry,
    normals: Callable[[NDArray[np.intp]], Float64Array],
) -> Float64Array:
    """Move straight; a move that meets a wall ends there and is thrown back, without sliding.

    The throw is |N(0, 0.5)| pixels away from the face that was hit and N(0, 0.5) along it. What would pass another wall
    ends 0.3 pixels before that, so the end (N, 2) is always in free space, on the side of the wall that was hit.

    Args:
        start: (N, 2) in free space.
        displacement: (N, 2) pixels.
        geometry: obstacles of the N lanes.
        normals: standard normal numbers (M, 2) for M lanes, asked for only those that hit something.
    """
    end = start + displacement
    meeting = np.flatnonzero(geometry.may_meet(start, end))
    if len(meeting):
        end[meeting], blocked, _ = straight(start[meeting], displacement[meeting], geometry.of_lanes(meeting))
        hit = blocked.any(axis=1)
        lanes, away = meeting[hit], blocked[hit]
        if len(lanes):
            throw = _BOUNCE_STD * normals(lanes)
            throw = np.where(away, -np.sign(displacement[lanes]) * np.abs(throw), throw)
            end[lanes] = _bounced(end[lanes], throw, geometry.of_lanes(lanes))
    return end


def _bounced(contact: Float64Array, throw: Float64Array, geometry: Geometry) -> Float64Array:
    """Where throws (N, 2) from contacts (N, 2) end."""
    x = contact[:, 0]
    # In the door the throw may leave to both rooms, at a height of the door; elsewhere it stays in its room.
    in_door = (x > geometry.left) & (x < geometry.right)
    low_x = np.where(x >= geometry.right, geometry.right, LOW)
    high_x = np.where(x <= geometry.left, geometry.left, HIGH)
    low = np.stack([low_x, np.where(in_door, geometry.door_low, LOW)], axis=1)
    high = np.stack([high_x, np.where(in_door, geometry.door_high, HIGH)], axis=1)
    end = contact + throw
    return np.where(end <= low, low + _CLEARANCE, np.where(end >= high, high - _CLEARANCE, end))


def draw_positions(draws: Float64Array, geometry: Geometry, on_left: NDArray[np.bool_] | None = None) -> Float32Array:
    """Positions (N, 2) from uniform numbers (N, 4): uniform in a room, 2.6 pixels from its walls.

    `on_left` (N,) says which room, None either with equal chance.
    """
    on_left = draws[:, 0] < 0.5 if on_left is None else on_left
    x_low = np.where(on_left, LOW, geometry.right) + _MARGIN
    x_high = np.where(on_left, geometry.left, HIGH) - _MARGIN
    x = x_low + draws[:, 2] * (x_high - x_low)
    y = LOW + _MARGIN + draws[:, 3] * (HIGH - LOW - 2 * _MARGIN)
    return np.stack([x, y], axis=1).astype(np.float32)


def paint_walls(wall: Float32Array) -> NDArray[np.uint8]:
    """Frames (N, 3, 65, 65) of the rooms without a disc: pixels of walls and border are green."""
    pixels = np.arange(SIZE)
    x, y = wall[:, 0, None], wall[:, 1, None]
    solid = (np.abs(pixels - x) <= WALL_HALF)[:, None, :] & (np.abs(pixels - y) > DOOR_HALF)[:, :, None]
    edge = (pixels == LOW) | (pixels == HIGH)
    frames = np.zeros((len(wall), 3, SIZE, SIZE), np.uint8)
    frames[:, 1] = np.where(solid | edge | edge[:, None], 255, 0)
    return frames


def paint_discs(frames: NDArray[np.uint8], positions: ArrayLike) -> None:
    """Paint one disc into the red of each frame (N, 3, 65, 65), in place: a Gaussian of 1.3 pixels at (N, 2)."""
    away = np.arange(SIZE, dtype=np.float32) - np.asarray(positions, np.float32)[:, :, None]
    column, row = np.exp(-0.5 * (away / np.float32(DISC_STD)) ** 2).transpose(1, 0, 2)
    frames[:, 0] = np.float32(255) * row[:, :, None] * column[:, None, :]


RULES = Rules(
    size=SIZE,
    max_speed=2.45,
    by_length=True,
    random_wall=True,
    goal_rooms=("other",),
    fixed_wall=(32.0, 10.0),  # PLDM's, without random walls
    wall_limits=((20.0, 44.0), (10.0, 54.0)),
    geometry=obstacles,
    draw_positions=draw_positions,
    paint_walls=paint_walls,
    paint_discs=paint_discs,
    move=move,
)
