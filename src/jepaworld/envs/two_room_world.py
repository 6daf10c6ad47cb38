"""The world behind `jepaworld/TwoRoom-v0`: geometry, exact collisions and painting, for N lanes at once.

Units are those of `jepaworld.envs.disc`. Everything here is elementwise over lanes, each with a wall of its own, so
that one lane computes the same bits alone as among others.

Shapes: N lanes; states, goals, walls (N, 2) float32; frames (N, 3, 64, 64) uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jepaworld.envs.disc import BACKGROUND, RADIUS, SIZE, WALL_COLOUR, Float32Array, Float64Array, paint_discs

GoalRoom = Literal["any", "other", "same"]

BORDER = 2  # thickness of the outer wall
WALL_HALF = 2  # half the thickness of the wall between the rooms
DOOR_HALF = 6  # half the height of the door
SUCCESS_DISTANCE = 4.5
LOW, HIGH = BORDER + RADIUS, SIZE - BORDER - RADIUS  # where the agent's centre may be, on both axes
WALL_X_LIMITS = (12.0, 52.0)  # both rooms stay wide enough to turn in
DOOR_Y_LIMITS = (BORDER + DOOR_HALF, SIZE - BORDER - DOOR_HALF)  # the whole door is inside the border
DRAWS_PER_RESET = 10  # uniform numbers that one reset of one lane consumes, whatever the settings

_RANDOM_WALL_X = (20, 44)  # drawn as whole pixels, ends included, so that edges stay crisp
_RANDOM_DOOR_Y = (10, 54)


class Geometry(NamedTuple):
    """Faces of the obstacles, grown by the radius, as the agent's centre meets them; each (N,) float64.

    Every face is a float32 number, rounded away from the obstacle. Positions are rounded to float32 after a move, and
    rounding is monotone, so it cannot carry a position across a face.
    """

    low: Float64Array  # inner faces of the border, on both axes
    high: Float64Array
    left: Float64Array  # x of the wall's faces
    right: Float64Array
    door_low: Float64Array  # smallest and largest y in the door
    door_high: Float64Array
    centre: Float64Array  # x of the middle of the wall, where one room's side ends and the other's begins

    @classmethod
    def of(
        cls,
        wall: Float32Array,
        border: tuple[float, float] = (LOW, HIGH),
        reach: float = WALL_HALF + RADIUS,
        opening: float = DOOR_HALF - RADIUS,
    ) -> Geometry:
        """The geometry of walls (N, 2), each wall x and door y; `reach` is half the wall's grown width."""
        x, y = wall.astype(np.float64).T
        return cls(
            *(np.full(len(wall), face) for face in border),
            left=_float32_at_most(x - reach),
            right=-_float32_at_most(-x - reach),
            door_low=-_float32_at_most(opening - y),
            door_high=_float32_at_most(y + opening),
            centre=x,
        )

    def of_lanes(self, lanes: NDArray[np.intp]) -> Geometry:
        """The geometry of some lanes."""
        return Geometry(*(face[lanes] for face in self))

    def may_meet(self, start: Float64Array, end: Float64Array) -> NDArray[np.bool_]:
        """Whether a straight path between centres (N, 2) may touch an obstacle; False is certain, True is not."""
        low, high = np.minimum(start, end), np.maximum(start, end)
        beside = (high[:, 0] < self.left) | (low[:, 0] > self.right)
        in_door = (low[:, 1] > self.door_low) & (high[:, 1] < self.door_high)
        inside = (low > self.low[:, None]).all(axis=1) & (high < self.high[:, None]).all(axis=1)
        return ~((beside | in_door) & inside)

    def in_wall(self, position: Float64Array) -> NDArray[np.bool_]:
        """Whether centres (N, 2) are strictly inside the wall; touching it is not."""
        x, y = position.T
        return (x > self.left) & (x < self.right) & ((y < self.door_low) | (y > self.door_high))

    def is_free(self, position: Float64Array) -> NDArray[np.bool_]:
        """Whether centres (N, 2) are in free space: inside the border and not in the wall."""
        inside = (position >= self.low[:, None]) & (position <= self.high[:, None])
        return inside.all(axis=1) & ~self.in_wall(position)


def _float32_at_most(values: Float64Array) -> Float64Array:
    """The largest float32 numbers that are not above `values`, as float64."""
    nearest = values.astype(np.float32)
    below = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest > values, below, nearest).astype(np.float64)


def move(start: Float64Array, displacement: Float64Array, geometry: Geometry) -> tuple[Float64Array, Float64Array]:
    """Move straight up to the first contact, then slide along what was hit with the motion that is left.

    The path from `start` (N, 2) in free space by `displacement` (N, 2), of any length, is swept exactly, so nothing is
    jumped over. On a slide only the motion along the surface is left; it ends at the next obstacle.

    Returns:
        The point of first contact (the end, where nothing was hit) and the end, both (N, 2).
    """
    contact = start + displacement
    end = contact.copy()
    meeting = np.flatnonzero(geometry.may_meet(start, contact))
    if len(meeting):  # most moves meet nothing
        obstacles = geometry.of_lanes(meeting)
        contact[meeting], blocked, left = straight(start[meeting], displacement[meeting], obstacles)
        along = np.where(blocked, 0.0, left[:, None] * displacement[meeting])
        end[meeting], _, _ = straight(contact[meeting], along, obstacles)
    return contact, end


def straight(
    start: Float64Array, displacement: Float64Array, geometry: Geometry
) -> tuple[Float64Array, NDArray[np.bool_], Float64Array]:
    """One straight leg up to the first contact: where it ends (N, 2), the axis blocked (N, 2), the share left (N,)."""
    time, axis, face = _first_contact(start, displacement, geometry)
    hit = time < 1
    end = start + np.minimum(time, 1)[:, None] * displacement
    blocked = hit[:, None] & (axis[:, None] == np.arange(2))
    end = np.where(blocked, face[:, None], end)
    return _clear_of_rounding(end, geometry), blocked, np.where(hit, 1 - time, 0)


def _first_contact(
    start: Float64Array, displacement: Float64Array, geometry: Geometry
) -> tuple[Float64Array, NDArray[np.intp], Float64Array]:
    """First contact: time (fraction of the displacement, inf for never), axis, face coordinate; each (N,)."""
    (x, y), (dx, dy) = start.T, displacement.T
    borders = np.where(displacement.T > 0, geometry.high, geometry.low)
    # The wall's faces in the order in which the agent meets them.
    near, far = np.where(dx > 0, [geometry.left, geometry.right], [geometry.right, geometry.left])
    between = (x > geometry.left) & (x < geometry.right)
    enter_x = np.where(dx != 0, _time_to(near, x, dx), np.where(between, -np.inf, np.inf))
    leave_x = _time_to(far, x, dx)
    times, faces = [*_time_to(borders, start.T, displacement.T)], [*borders]
    axes = [np.zeros(len(x), np.intp), np.ones(len(x), np.intp)]
    # The wall is two blocks: above the door (y < door_low) and below it (y > door_high).
    for edge, towards in ((geometry.door_low, dy < 0), (geometry.door_high, dy > 0)):
        outward = y < edge if edge is geometry.door_low else y > edge
        to_edge = _time_to(edge, y, dy)
        enter_y = np.where(towards, to_edge, np.where(outward, -np.inf, np.inf))
        leave_y = np.where(towards, np.inf, to_edge)
        time = np.maximum(enter_x, enter_y)
        # An agent that touches a face and leaves it has its whole interval in the past.
        is_hit = (time < np.minimum(leave_x, leave_y)) & (time >= 0)
        along_x = enter_x >= enter_y
        times.append(np.where(is_hit, time, np.inf))
        axes.append(np.where(along_x, 0, 1))
        faces.append(np.where(along_x, near, edge))
    first, lanes = np.argmin(times, axis=0), np.arange(len(x))
    return np.stack(times)[first, lanes], np.stack(axes)[first, lanes], np.stack(faces)[first, lanes]


def _time_to(face: Float64Array, coordinate: Float64Array, velocity: Float64Array) -> Float64Array:
    """When `coordinate` reaches `face`; inf at rest."""
    moving = velocity != 0
    with np.errstate(over="ignore"):  # a face that takes more than 1e308 moves to reach is never reached
        return np.where(moving, (face - coordinate) / np.where(moving, velocity, 1), np.inf)


def _clear_of_rounding(position: Float64Array, geometry: Geometry) -> Float64Array:
    """Put positions that float arithmetic left less than 1e-9 px inside an obstacle onto its nearest face."""
    position = np.clip(position, geometry.low[:, None], geometry.high[:, None])
    inside = geometry.in_wall(position)
    if not inside.any():
        return position
    x, y = position.T
    door_edge = np.where(y < geometry.door_low, geometry.door_low, geometry.door_high)
    candidates = np.stack([geometry.left, geometry.right, door_edge])
    nearest = np.argmin(np.abs(candidates - np.stack([x, x, y])), axis=0)
    x = np.where(inside & (nearest < 2), np.where(nearest == 0, geometry.left, geometry.right), x)
    return np.stack([x, np.where(inside & (nearest == 2), door_edge, y)], axis=1)


# --- drawing starts, goals and walls ------------------------------------------------------------------------


def draw_walls(draws: Float64Array) -> Float32Array:
    """Walls (N, 2) from uniform numbers (N, 2): whole-pixel wall x in [20, 44] and door y in [10, 54]."""
    ranges = np.array([_RANDOM_WALL_X, _RANDOM_DOOR_Y], dtype=np.float64)
    low, count = ranges[:, 0], ranges[:, 1] - ranges[:, 0] + 1
    return (low + np.floor(draws * count)).astype(np.float32)


def draw_positions(draws: Float64Array, geometry: Geometry, on_left: NDArray[np.bool_] | None = None) -> Float32Array:
    """Positions (N, 2) from uniform numbers (N, 4), uniform over the free space or over one side of the wall's middle.

    `on_left` (N,) says which side, None both.
    """
    height = HIGH - LOW
    half_door = (geometry.centre - geometry.left) * (geometry.door_high - geometry.door_low)
    left_area, right_area = (geometry.left - LOW) * height, (HIGH - geometry.right) * height
    if on_left is None:
        on_left = draws[:, 0] * (left_area + right_area + 2 * half_door) < left_area + half_door
    in_door = draws[:, 1] * (np.where(on_left, left_area, right_area) + half_door) < half_door
    # Strictly less than half of the door's depth, so that rounding cannot put the point on the other side.
    depth = 0.999 * (geometry.centre - geometry.left)
    left, right = geometry.left, geometry.right
    x_low = np.where(on_left, np.where(in_door, left, LOW), np.where(in_door, right - depth, right))
    x_high = np.where(on_left, np.where(in_door, left + depth, left), np.where(in_door, right, HIGH))
    y_low, y_high = np.where(in_door, geometry.door_low, LOW), np.where(in_door, geometry.door_high, HIGH)
    x, y = x_low + draws[:, 2] * (x_high - x_low), y_low + draws[:, 3] * (y_high - y_low)
    return np.stack([x, y], axis=1).astype(np.float32)


# --- painting -----------------------------------------------------------------------------------------------


def paint_walls(wall: Float32Array) -> NDArray[np.uint8]:
    """Frames (N, 3, 64, 64) of the rooms without an agent; a wall between pixels is drawn by area."""
    pixels = np.arange(SIZE, dtype=np.float32)

    def overlap(low: Float32Array, high: Float32Array) -> Float32Array:
        return np.clip(np.minimum(pixels + 1, high[:, None]) - np.maximum(pixels, low[:, None]), 0, 1)

    x, y = wall.T
    solid = overlap(x - WALL_HALF, x + WALL_HALF)[:, None, :] * (1 - overlap(y - DOOR_HALF, y + DOOR_HALF))[:, :, None]
    edge = (pixels < BORDER) | (pixels >= SIZE - BORDER)
    solid = np.where(edge | edge[:, None], np.float32(1), solid)[:, None]
    floor, colour = (np.array(c, np.float32).reshape(3, 1, 1) for c in (BACKGROUND, WALL_COLOUR))
    return (floor + solid * (colour - floor) + np.float32(0.5)).astype(np.uint8)


# --- the rules ----------------------------------------------------------------------------------------------


class Rules(NamedTuple):
    """What differs between the rules by which two rooms are played."""

    size: int  # S
    max_speed: float  # pixels a step
    by_length: bool  # whether that bounds the length of a step, or each of its axes
    random_wall: bool  # unless the argument says otherwise
    goal_rooms: tuple[GoalRoom, ...]  # possible ones, the usual one first
    fixed_wall: tuple[float, float]  # wall x, door y
    wall_limits: tuple[tuple[float, float], tuple[float, float]]  # of wall x and door y
    geometry: Callable[[Float32Array], Geometry]
    draw_positions: Callable[[Float64Array, Geometry, NDArray[np.bool_] | None], Float32Array]
    paint_walls: Callable[[Float32Array], NDArray[np.uint8]]
    paint_discs: Callable[[NDArray[np.uint8], ArrayLike], None]
    # Start, displacement, obstacles, and what draws standard normal numbers (M, 2) for M of the lanes -> end.
    move: Callable[[Float64Array, Float64Array, Geometry, Callable[[NDArray[np.intp]], Float64Array]], Float64Array]


RULES = Rules(
    size=SIZE,
    max_speed=2.5,
    by_length=False,
    random_wall=False,
    goal_rooms=("any", "other", "same"),
    fixed_wall=(32.0, 32.0),
    wall_limits=(WALL_X_LIMITS, DOOR_Y_LIMITS),
    geometry=Geometry.of,
    draw_positions=draw_positions,
    paint_walls=paint_walls,
    paint_discs=paint_discs,
    move=lambda start, displacement, geometry, _: move(start, displacement, geometry)[1],
)
