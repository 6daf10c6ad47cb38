"""Who acts while OGBench's cube is collected: random actions hardly ever touch the cube.

Units are metres and radians.
"""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

_SCALE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # of the noise: x, y, z, turn, closing
_TARGETS = ((0.3, -0.3), (0.55, 0.3))  # x and y, lowest and highest; where OGBench places cubes
_ON_TABLE = 0.02  # height of the centre of a cube that lies
_ARM = np.array([[0.25, -0.35, 0.20], [0.6, 0.35, 0.35]])  # where the gripper goes when a cube is placed


class PickAndPlacePolicy:
    """OGBench's scripted oracle with noise: it carries the cube to one random place after another.

    The Markov oracle decides from the observation alone, so it grasps again what the noise lets it drop. The standard
    deviation of the noise is drawn for each episode, uniformly from 0 to `noise`; for the turn it is three times that,
    for the closing ten times. With the default the cube is placed about twice in 200 steps.

    Differs from OGBench's collection: the targets are drawn here, as a policy knows nothing but observations.

    Args:
        action_space: of `jepaworld/Cube-v0`; the noise and the targets are of its generator. Where the gripper goes in
            between is of numpy's global one, which collection seeds for each episode.
        noise: the largest standard deviation, in actions.

    Raises:
        ValueError: the action space is another one, or `noise` is below 0 or not finite.
        ModuleNotFoundError: ogbench is not installed.
    """

    def __init__(self, action_space: Box, noise: float = 0.1) -> None:
        if not (isinstance(action_space, Box) and action_space.shape == (5,) and (action_space.high == 1).all()):
            raise ValueError(f"the action space is {action_space}; this policy is for jepaworld/Cube-v0.")
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise is {noise}; it must be a finite number of at least 0.")
        self._space, self._most_noise = action_space, noise
        oracle: Any = importlib.import_module("ogbench.manipspace.oracles.markov.cube_markov").CubeMarkovOracle
        # All that it asks of an environment.
        self._oracle = oracle(env=SimpleNamespace(unwrapped=SimpleNamespace(_arm_sampling_bounds=_ARM)))
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        self._noise = self._space.np_random.uniform(0.0, self._most_noise)
        self._draw_target()

    def __call__(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        """The action (5,) at an observation (10,) of `jepaworld/Cube-v0`."""
        if self._oracle.done:
            self._draw_target()
        action = self._oracle.select_action(observation, self._seen(observation))
        noise = self._noise * _SCALE * self._space.np_random.standard_normal(5)
        return (action + noise).clip(-1.0, 1.0).astype(np.float32)

    def _draw_target(self) -> None:
        rng = self._space.np_random
        self._target = np.array([*rng.uniform(*_TARGETS), _ON_TABLE])
        self._yaw = rng.uniform(0.0, 2 * math.pi)
        self._oracle.reset(None, {})

    def _seen(self, observation: NDArray[np.float64]) -> dict[str, Any]:
        """An observation and the target by the oracle's names."""
        return {
            "proprio/effector_pos": observation[:3],
            "proprio/effector_yaw": observation[3:4],
            "proprio/gripper_opening": observation[4:5],
            "proprio/gripper_contact": observation[5:6],
            "privileged/block_0_pos": observation[6:9],
            "privileged/block_0_yaw": observation[9:10],
            "privileged/target_block": 0,
            "privileged/target_block_pos": self._target,
            "privileged/target_block_yaw": np.array([self._yaw]),
        }
