"""MuJoCo environments of Gymnasium with their state beside the frames, and with a camera that stands still."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from jepaworld.envs.hooks import StateVariables, require
from jepaworld.envs.state import States


def is_mujoco(base: Any) -> bool:
    """Whether an unwrapped environment is one of Gymnasium's MuJoCo environments."""
    # By its members, so that MuJoCo need not be installed to ask.
    return hasattr(getattr(base, "data", None), "qpos") and all(
        hasattr(base, name) for name in ("set_state", "_get_obs", "_get_reset_info")
    )


class MujocoState(StateVariables):
    """Adds `qpos` and `qvel`, generalised positions and velocities, to `info`, restores them, and fixes the camera.

    Without it, a free camera looks at the middle of the bodies as they are when the first picture is made, so that
    each process and each environment of a dataset would see the world from another place. Here it looks at their
    middle in the model's reference position, unless `default_camera_config` says where (`lookat`).

    Restored variables come back as float32, a relative error of 6e-8: after 50 steps of Reacher, 1e-6 rad. Where
    MuJoCo's full state holds more (activations of muscles, mocap bodies), where contacts amplify such errors (after 50
    steps of HalfCheetah, 0.1 m or rad), or where bit-exact starts matter, replay the episode instead
    (`evaluation.restore=replay`). Positions of bodies, and what observations and pictures make of them, are those of
    the restored variables; in a running episode MuJoCo's are one substep old.

    Args:
        env: an environment of `gymnasium.envs.mujoco`, wrapped or not.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        mujoco: Any = importlib.import_module("mujoco")
        model: Any = getattr(env.unwrapped, "model")  # noqa: B009 (not part of Gymnasium's interface)
        reference = mujoco.MjData(model)
        mujoco.mj_forward(model, reference)
        self._middle = np.median(reference.geom_xpos, axis=0)

    def render(self) -> Any:
        """As the environment, from a camera that does not depend on when it was first asked."""
        renderer = getattr(self.unwrapped, "mujoco_renderer", None)
        if renderer is not None and self.render_mode == "rgb_array":
            viewer = renderer._get_viewer(self.render_mode)
            # The renderer takes its context for current, which another environment's may be.
            viewer.make_context_current()
            if "lookat" not in (renderer.default_cam_config or {}):
                viewer.cam.lookat[:] = self._middle
        return self.env.render()

    def restore_state(self, states: States) -> tuple[Any, dict[str, Any]]:
        """Set positions and velocities from `states["qpos"]` and `states["qvel"]`.

        Raises:
            ValueError: they are missing.
        """
        require(states, "qpos", "qvel")
        base: Any = self.unwrapped
        base.set_state(states["qpos"].astype(np.float64), states["qvel"].astype(np.float64))
        return base._get_obs(), base._get_reset_info() | self._variables()

    def _variables(self) -> dict[str, NDArray[np.float64]]:
        data: Any = getattr(self.unwrapped, "data")  # noqa: B009 (not part of Gymnasium's interface)
        return {"qpos": data.qpos.copy(), "qvel": data.qvel.copy()}
