"""OGBench's cube: a robot arm with a gripper and one cube on a table.

Units are metres and radians: x away from the arm's foot, y to the right of the picture, z upwards. Needs the extra
`ogbench`. Source: Park et al. 2024, "OGBench: Benchmarking Offline Goal-Conditioned RL" (arXiv 2410.20092).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from jepaworld.envs.disc import check_positive, read_actions
from jepaworld.envs.hooks import require

_SHADOW_SIZE = 1024  # OGBench's 4096 look the same at 128 pixels and take three times as long to draw without a GPU

Variables = dict[str, NDArray[np.float64]]


class CubeEnv(gymnasium.Env[NDArray[np.float64], NDArray[np.float32]]):
    """`jepaworld/Cube-v0`: OGBench's `cube-single-v0` as its data are collected, with exact states.

    Arm and cube begin anywhere on the table; there is no goal, no reward and no end before the limit of 200 steps of
    0.05 s. The arm is half transparent, as in OGBench's pixel data, and the camera stands still.

    Action: Box (5,) in [-1, 1]: the gripper's way in x, y and z (1 is 0.05 m), its turn about z (0.3 rad) and its
    closing (1 closes an open gripper in one step).
    Observation: float64 (10,): x, y, z of the point between the fingers; the gripper's yaw, closing and contact, both 0
    to 1; the cube's x, y, z and yaw.
    `info`: "effector_position" (3,), "cube_position" (3,), "cube_orientation" (4,), a quaternion w, x, y, z,
    "qpos" (21,) and "qvel" (20,): positions and velocities of the arm's 6 joints, the gripper's 8, and the cube.

    Differs from OGBench in: positions of bodies, in pictures too, are those of `qpos`, where MuJoCo leaves those of the
    last substep, 2 ms before; so a restored state and a played one are the same.

    Args:
        render_mode: "rgb_array" or None.
        size: side of the picture, pixels.

    Raises:
        ModuleNotFoundError: ogbench is not installed.
        ValueError: `size` is not a number above 0.

    Example:
        >>> env = gymnasium.make("jepaworld/Cube-v0", render_mode="rgb_array", size=96)
        >>> observation, info = env.reset(seed=0)
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's interface)

    def __init__(self, render_mode: str | None = None, size: int = 96) -> None:
        check_positive("size", size)
        self.render_mode = render_mode
        self.action_space = Box(-1.0, 1.0, (5,), np.float32)
        self.observation_space = Box(-np.inf, np.inf, (10,), np.float64)
        kind: Any = importlib.import_module("ogbench.manipspace.envs.cube_env").CubeEnv
        self._mujoco: Any = importlib.import_module("mujoco")
        self._world: Any = kind(
            "single",
            mode="data_collection",
            ob_type="pixels",  # sets colours and camera
            visualize_info=False,  # the target of OGBench's own is drawn otherwise
            terminate_at_goal=False,
            width=size,
            height=size,
        )
        # It would draw a picture at every step, also at those that frame skipping drops.
        self._world.compute_observation = lambda: None
        self._world.reset(seed=0)  # builds the model, before anything is drawn
        self._world.model.vis.quality.shadowsize = _SHADOW_SIZE

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Place arm and cube at random; `options` has no entries."""
        super().reset(seed=seed, options=options)
        self._world.reset(seed=seed)
        return self._found()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Move the gripper for 0.05 s; values of the action (5,) outside [-1, 1] are clipped."""
        self._world.step(read_actions(action, (5,)))
        # MuJoCo leaves the bodies where they were a substep ago; contact forces stay those of the step.
        self._mujoco.mj_kinematics(self._world.model, self._world.data)
        observation, info = self._found()
        return observation, 0.0, False, False, info

    def render(self) -> Any:
        """The picture, uint8 (size, size, 3)."""
        return self._world.render()

    def restore_state(self, states: Mapping[str, NDArray[np.float32]]) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Set positions and velocities from `states["qpos"]` and `states["qvel"]`.

        They come back as float32, which contacts amplify: 25 steps later the cube was up to 5 mm (in the median less
        than 0.001) from where it went without. Replaying an episode is exact.

        Raises:
            ValueError: one of them is missing.
        """
        require(states, "qpos", "qvel")
        self._world.set_state(states["qpos"].astype(np.float64), states["qvel"].astype(np.float64))
        return self._found()

    def close(self) -> None:
        """Free the renderer."""
        if self._world._renderer is not None:
            self._world._renderer.close()
            self._world._renderer = None

    def _found(self) -> tuple[NDArray[np.float64], Variables]:
        """Observation and `info` of now."""
        found: Variables = self._world.compute_ob_info()
        effector, cube = found["proprio/effector_pos"], found["privileged/block_0_pos"]
        parts = ("effector_yaw", "gripper_opening", "gripper_contact")
        proprioception = [found[f"proprio/{name}"] for name in parts]
        observation = np.concatenate([effector, *proprioception, cube, found["privileged/block_0_yaw"]])
        return observation, {
            "effector_position": effector,
            "cube_position": cube,
            "cube_orientation": found["privileged/block_0_quat"],
            "qpos": found["qpos"],
            "qvel": found["qvel"],
        }
