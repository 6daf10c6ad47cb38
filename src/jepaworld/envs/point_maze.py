"""`jepaworld/PointMaze-v0`: a disc with inertia in a maze of square cells, seen from above as a 64x64 image.

Forces change its velocity, which a single image does not show. Units are pixels of the image and environment steps,
with x to the right and y downwards; a cell is a square of 8 pixels.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jepaworld.envs.disc import (
    BACKGROUND,
    RADIUS,
    SIZE,
    WALL_COLOUR,
    DiscEnv,
    Float32Array,
    check_choice,
    check_positive,
    frames_to_images,
    paint_discs,
    read_actions,
    read_options,
)

CELL = 8
SUCCESS_DISTANCE = 0.45 * CELL
LAYOUTS = {  # walls are #
    "u": (
        "########",
        "#......#",
        "#......#",
        "#####..#",
        "#####..#",
        "#......#",
        "#......#",
        "########",
    ),
    "medium": (
        "########",
        "#..##..#",
        "#..#...#",
        "##...###",
        "#..#...#",
        "#.#..#.#",
        "#...#..#",
        "########",
    ),
}

_RESTORABLE = ("state", "velocity", "goal")
_DRAWS_PER_RESET = 6
_TOUCH = 1e-6  # pixels: closer is touching, which is not overlapping


class PointMazeEnv(DiscEnv):
    """A disc that is pushed through a maze.

    Observation: uint8 (64, 64, 3) image of walls and disc; the goal is not drawn. `render()` gives the same image.
    Action: Box (2,) in [-1, 1], force (x right, y down); values outside are clipped. In each step the velocity becomes
    `(1 - friction) * velocity + acceleration * action`, so it stays below `acceleration / friction` on each axis, and
    then the disc moves by it, first along x, then along y. It collides as a square of side 5 px that is swept along its
    path; on contact the velocity into the wall is lost.

    Reward: 1.0 in each step that ends within 3.6 px (0.45 of a cell) of the goal, else 0.0. An episode does not end
    there. `gymnasium.make` truncates after 300 steps.

    `info`: "state" x, y of the disc, "velocity" (pixels per step), "goal" x, y: each float32 (2,); "success" bool.

    `reset(options=...)` takes "state", "velocity" and "goal" as given by `info` and restores them exactly. What is left
    out is drawn: start and goal in two different free cells, anywhere where the disc fits into its cell; the velocity
    is zero. For planning there are the methods of `jepaworld.envs.hooks`.

    Args:
        render_mode: "rgb_array" or None.
        layout: "u", two rooms joined by a wide bend, or "medium", a maze with corridors of one cell.
        acceleration: pixels per step and step at action 1; a finite number above 0.
        friction: share of the velocity that is lost in a step; above 0, at most 1.

    Raises:
        ValueError: an argument, action or option is not possible.
    """

    restorable, required = _RESTORABLE, ("state", "velocity")
    success_distance = SUCCESS_DISTANCE

    def __init__(
        self, render_mode: str | None = None, *, layout: str = "u", acceleration: float = 0.5, friction: float = 0.2
    ) -> None:
        super().__init__(render_mode)
        check_choice("layout", layout, tuple(LAYOUTS))
        check_positive("acceleration", acceleration)
        check_positive("friction", friction, most=1)
        self._acceleration, self._friction = float(acceleration), float(friction)
        self._walls = np.array([[cell == "#" for cell in row] for row in LAYOUTS[layout]])  # [y, x]
        self._free = np.argwhere(~self._walls)[:, ::-1]  # x, y of each free cell
        self._maze = _paint(self._walls)
        self._state, self._velocity, self._goal = (np.zeros(2, np.float32) for _ in range(3))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode, drawn or restored; see the class."""
        super().reset(seed=seed)
        given = {name: rows[0] for name, rows in read_options(options or {}, _RESTORABLE).items()}
        for name in given.keys() - {"velocity"}:
            self._check_free(name, given[name])
        # As many numbers whatever is given, so that an option changes nothing else.
        draws = self.np_random.random(_DRAWS_PER_RESET)
        count = len(self._free)
        start = int(draws[0] * count)
        goal = (start + 1 + int(draws[1] * (count - 1))) % count
        self._state = given.get("state", self._in_cell(start, draws[2:4]))
        self._goal = given.get("goal", self._in_cell(goal, draws[4:6]))
        self._velocity = given.get("velocity", np.zeros(2, np.float32))
        return self._image(), self._info()

    def step(self, action: ArrayLike) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Push by one action (2,); see the class."""
        velocity = (1 - self._friction) * self._velocity + self._acceleration * read_actions(action, (2,))
        position = self._state.astype(np.float64)
        for axis in (0, 1):
            self._slide(position, velocity, axis)
        # float32, as info gives it, so that a restored episode goes on bit for bit. Faces of walls are float32
        # numbers, so rounding cannot carry the disc into one.
        self._state, self._velocity = position.astype(np.float32), velocity.astype(np.float32)
        info = self._info()
        return self._image(), float(info["success"]), False, False, info

    def goal_state(self) -> dict[str, Float32Array]:
        """The state variable at the goal: "state"; any velocity will do there."""
        return {"state": self._goal.copy()}

    def _place_goal(self, position: ArrayLike) -> None:
        (goal,) = read_options({"goal": position}, _RESTORABLE)["goal"]
        self._check_free("goal", goal)
        self._goal = goal

    def _slide(self, position: NDArray[np.float64], velocity: NDArray[np.float64], axis: int) -> None:
        """Move along one axis up to the first wall, in place."""
        by = float(velocity[axis])
        if by == 0:
            return
        way = 1 if by > 0 else -1
        edge = position[axis] + way * RADIUS
        walls, across = self._walls.T if axis == 0 else self._walls, _around(position[1 - axis])
        first, last = math.floor((edge - way * _TOUCH) / CELL), math.floor((edge + by) / CELL)
        for cell in range(first + way, last + way, way):
            if walls[cell, across].any():
                position[axis] = (cell if way > 0 else cell + 1) * CELL - way * RADIUS
                velocity[axis] = 0.0
                return
        position[axis] += by

    def _check_free(self, name: str, position: Float32Array) -> None:
        x, y = position.tolist()
        inside = min(x, y) >= RADIUS and max(x, y) <= SIZE - RADIUS
        if not inside or self._walls[np.ix_(_around(y), _around(x))].any():
            raise ValueError(f"options[{name!r}] = {position.tolist()} is not in free space.")

    def _in_cell(self, number: int, draws: NDArray[np.float64]) -> Float32Array:
        offset = (draws - 0.5) * (CELL - 2 * RADIUS)
        return ((self._free[number] + 0.5) * CELL + offset).astype(np.float32)

    def _image(self, position: ArrayLike | None = None) -> NDArray[np.uint8]:
        frame = self._maze.copy()
        paint_discs(frame, np.asarray(self._state if position is None else position)[None])
        return frames_to_images(frame)[0]

    def _variables(self) -> dict[str, Float32Array]:
        return {name: getattr(self, f"_{name}").copy() for name in _RESTORABLE}


def _around(centre: float) -> list[int]:
    """Cells that the disc overlaps by more than touching, along one axis."""
    low, high = centre - RADIUS + _TOUCH, centre + RADIUS - _TOUCH
    return list(range(math.floor(low / CELL), math.floor(high / CELL) + 1))


def _paint(walls: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The maze (8, 8) as a frame (1, 3, 64, 64)."""
    solid = np.kron(walls, np.ones((CELL, CELL), np.bool_))
    colours = np.where(solid, np.reshape(WALL_COLOUR, (3, 1, 1)), np.reshape(BACKGROUND, (3, 1, 1)))
    return np.ascontiguousarray(colours[None], dtype=np.uint8)
