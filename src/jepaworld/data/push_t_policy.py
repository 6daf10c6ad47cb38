"""Who acts while Push-T is collected: random actions hardly ever push the block.

Units are pixels of the 512x512 board, x to the right and y downwards, and radians.
"""

from __future__ import annotations

import math

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

_BOARD = 512.0
_BLOCK_CENTRE = 45.0  # from the origin of the block along its stem to its centre of gravity


class NearBlockPolicy:
    """Moves the disc around and through the block: most of its episodes push it, few of random actions do.

    The disc runs to a point drawn uniformly from a circle around the block's centre, at a speed drawn for the point,
    and to the next point when it is near or after 12 steps. Wide circles and low speeds leave the block alone at
    times; narrow and fast ones squeeze it out of the board.

    Args:
        action_space: of `jepaworld/PushT-v0`; all random numbers are those of its generator.
        radius: of the circle, pixels.

    Raises:
        ValueError: the action space is another one.
    """

    def __init__(self, action_space: Box, radius: float = 150.0) -> None:
        if not (isinstance(action_space, Box) and action_space.shape == (2,) and (action_space.high == 1).all()):
            raise ValueError(f"the action space is {action_space}; this policy is for jepaworld/PushT-v0.")
        self._space, self._radius = action_space, radius
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        self._target, self._speed, self._steps_left = np.zeros(2), 1.0, 0

    def __call__(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        """The action (2,) at an observation (5,): disc x, y, block x, y, angle."""
        disc, block, angle = observation[:2], observation[2:4], float(observation[4])
        if self._steps_left == 0 or np.hypot(*(self._target - disc)) < 10.0:
            centre = block + _BLOCK_CENTRE * np.array([-math.sin(angle), math.cos(angle)])
            rng = self._space.np_random
            turn, distance = rng.uniform(0.0, 2 * math.pi), self._radius * math.sqrt(rng.uniform())
            self._target = np.clip(centre + distance * np.array([math.cos(turn), math.sin(turn)]), 20.0, _BOARD - 20.0)
            self._speed, self._steps_left = rng.uniform(0.15, 0.6), 12
        self._steps_left -= 1
        away = self._target - disc
        action = away / max(float(np.abs(away).max()), 50.0) * self._speed
        return (action + 0.1 * self._space.np_random.standard_normal(2)).clip(-1.0, 1.0).astype(np.float32)
