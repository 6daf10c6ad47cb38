"""Who acts while Two Rooms by the published rules is collected: walks that drift, a third of them through the door."""

from __future__ import annotations

import math

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from jepaworld.envs.disc import check_positive
from jepaworld.envs.two_room_published import HIGH, LOW, RULES, SIZE, WALL_HALF

_NEAR = 1.8  # pixels, the longest step: a way point that is so near is reached
_FROM_WALLS = 2.0  # of way points; a step that misses one still meets no wall


class DoorPolicy:
    """Walks as the published data has them: drifting, and a given share of the episodes made to cross the wall.

    The length of a step is normal, 1.0 ± 0.4 pixels, drawn again where it is outside 0.2 to 1.8. The direction turns in
    each step by a von Mises number of concentration 5 (0.47 radians), starting anywhere. An episode that is made to
    cross scatters its steps in the same way around the direction to a point before the door, then behind it, then
    anywhere in the other room; from there it drifts. The place of disc, wall and door is read off the picture.

    Differs from the published data: there such an episode is a drifting walk that is laid through a point in the door,
    so that it reaches the door at any of its steps; and walks of which a step meets a wall wait there, while here the
    environment throws them back.

    Args:
        action_space: of `jepaworld/TwoRoom-v0` with `rules="published"`; all random numbers are its generator's.
        crossing_share: of the episodes, 0 to 1.
        concentration: of the von Mises distribution; more is straighter.

    Raises:
        ValueError: the action space, or later the observation, is of another environment.
    """

    def __init__(self, action_space: Box, crossing_share: float = 0.35, concentration: float = 5.0) -> None:
        if not (isinstance(action_space, Box) and action_space.shape == (2,) and (action_space.high == 1).all()):
            raise ValueError(f"the action space is {action_space}; this policy is for jepaworld/TwoRoom-v0.")
        if not 0 <= crossing_share <= 1:
            raise ValueError(f"crossing_share is {crossing_share}; it must be in [0, 1].")
        check_positive("concentration", concentration)
        self._space, self._crossing_share, self._concentration = action_space, crossing_share, concentration
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        self._heading: float | None = None  # radians; None before the first step
        self._way: list[NDArray[np.float64]] = []  # points still to be reached

    def __call__(self, observation: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The action (2,) at an observation (65, 65, 3)."""
        rng = self._space.np_random
        if self._heading is None:
            if np.shape(observation) != (SIZE, SIZE, 3):
                raise ValueError(f"the observation is {np.shape(observation)}; this policy needs rules: published.")
            self._heading = rng.uniform(-math.pi, math.pi)
            if rng.random() < self._crossing_share:
                self._way = _through_door(observation, rng)
        if self._way:
            away = self._way[0] - _disc(observation)
            if math.hypot(*away) < _NEAR:
                del self._way[0]
            else:
                self._heading = math.atan2(away[1], away[0])
        self._heading += rng.vonmises(0.0, self._concentration)
        length = rng.normal(1.0, 0.4)
        while not 0.2 <= length <= 1.8:
            length = rng.normal(1.0, 0.4)
        direction = np.array([math.cos(self._heading), math.sin(self._heading)])
        return (length / RULES.max_speed * direction).astype(np.float32)


def _disc(observation: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The disc's x and y: the mean of what is red."""
    red, pixels = observation[..., 0].astype(np.float64), np.arange(SIZE)
    return np.array([red.sum(axis=0) @ pixels, red.sum(axis=1) @ pixels]) / red.sum()


def _through_door(observation: NDArray[np.uint8], rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Points before the door, behind it, and in the other room."""
    inside = np.arange(int(LOW) + 1, int(HIGH))
    walls = observation[inside][:, inside, 1] > 0
    columns = walls.mean(axis=0) > 0.5  # those of the wall, of which the door takes 9 of 55 pixels
    wall_x, door_y = inside[columns].mean(), inside[~walls[:, columns].all(axis=1)].mean()
    side = 1.0 if _disc(observation)[0] < wall_x else -1.0  # towards the other room
    height = door_y + rng.uniform(-2.0, 2.0)
    low, high = LOW + _FROM_WALLS, HIGH - _FROM_WALLS
    before, behind = (wall_x + way * side * (WALL_HALF + _FROM_WALLS) for way in (-1.0, 1.0))
    goal_x = behind + rng.random() * ((high if side > 0 else low) - behind)
    return [np.array(point) for point in ((before, height), (behind, height), (goal_x, rng.uniform(low, high)))]
