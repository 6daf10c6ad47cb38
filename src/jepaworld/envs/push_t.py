"""Push-T, where a disc pushes a T-shaped block: exact states and relative actions.

`gym_pusht/PushT-v0` takes the place that the disc is to move to. A plan of such actions is a sequence of leaps, and
the disc rams the block at speeds that no data hold. `jepaworld/PushT-v0` is the same world with actions relative to
the disc, which bounds its speed.

Units are pixels of the 512x512 board, x to the right and y downwards, and radians. Needs the extra `pusht`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from jepaworld.envs.disc import check_positive
from jepaworld.envs.hooks import StateVariables, require

_BOARD = 512.0


def make_push_t(render_mode: str | None = None, reach: float = 50.0, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """`jepaworld/PushT-v0`: Push-T with actions relative to the disc.

    Action: Box (2,) in [-1, 1]. The disc is drawn to the point `reach` times the action away from it (as far as that is
    on the board); kept up, action 1 gives 0.41 `reach` in a step, 20 pixels for the default.
    Everything else is as in `gym_pusht/PushT-v0`: the observation (5,) is the disc's x and y, the block's x, y and
    angle; an episode ends when the block covers 95 % of the green T; `info` has "pos_agent" (2,), "vel_agent" (2,) in
    pixels per second, "block_pose" (3,) with x, y and angle. Of the picture 256x256 pixels are enough for frames of 64.

    Args:
        render_mode: "rgb_array" or None.
        reach: pixels from the disc to where action 1 draws it.
        kwargs: for gym_pusht's environment, such as `visualization_width`.

    Raises:
        ModuleNotFoundError: gym-pusht is not installed.
        ValueError: `reach` is not a number above 0.
    """
    check_positive("reach", reach)
    kwargs = {"visualization_width": 256, "visualization_height": 256} | kwargs
    kind: Any = importlib.import_module("gym_pusht.envs").PushTEnv
    return RelativeActions(kind(render_mode=render_mode, **kwargs), reach)


class RelativeActions(gymnasium.ActionWrapper[Any, Any, Any]):
    """Push-T with actions relative to the disc; see `make_push_t`."""

    def __init__(self, env: gymnasium.Env[Any, Any], reach: float) -> None:
        super().__init__(env)
        self._reach = reach
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)

    def action(self, action: Any) -> NDArray[np.float64]:
        """The point on the board that an action (2,) in [-1, 1] means now; values outside are clipped."""
        position: Any = getattr(self.unwrapped, "agent").position  # noqa: B009 (not part of Gymnasium's interface)
        offset = self._reach * np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        return np.clip(np.asarray(position, np.float64) + offset, 0.0, _BOARD)


def is_push_t(base: Any) -> bool:
    """Whether an unwrapped environment is gym_pusht's."""
    return type(base).__module__.startswith("gym_pusht.")


class PushTState(StateVariables):
    """Push-T with `restore_state`, with the block's velocity in `info`, and without the mark of the last action.

    Its `render()` marks where the last action pointed with a red cross, which would show a world model the
    action, and put a mark into goals. The option `reset_to_state` of its `reset` turns the block after placing it,
    which moves it, and lets the physics run for a step; here every body is placed as it was.

    What the physics engine keeps of past contacts is not restored: after 25 steps of pushing from a restored start, the
    block was up to 0.7 px (in the median less than 0.001) from where it went without. Replaying an episode is exact.

    Args:
        env: the environment, wrapped or not.
    """

    def render(self) -> Any:
        """The board without the mark of the last action."""
        base: Any = self.unwrapped
        base._last_action = None  # nothing but the mark is made of it
        return self.env.render()

    def restore_state(self, states: Mapping[str, NDArray[np.float32]]) -> tuple[Any, dict[str, Any]]:
        """Place disc and block from "pos_agent", "vel_agent", "block_pose" and "block_velocity".

        Raises:
            ValueError: one of them is missing.
        """
        names = ("pos_agent", "vel_agent", "block_pose", "block_velocity")
        require(states, *names)
        position, velocity, pose, speed = (states[name].astype(np.float64).tolist() for name in names)
        base: Any = self.unwrapped
        base._setup()  # a space without contacts of before, which would be drawn and act
        base.agent.position, base.agent.velocity = position, velocity
        # The angle first: turning moves the position, as the centre of gravity stays.
        base.block.angle = pose[2]
        base.block.position = pose[:2]
        base.block.velocity, base.block.angular_velocity = speed[:2], speed[2]
        for body in (base.agent, base.block):
            base.space.reindex_shapes_for_body(body)
        info = base._get_info() | self._variables()
        del info["n_contacts"]  # of the step before, which is not known
        return base.get_obs(), info

    def _variables(self) -> dict[str, NDArray[np.float64]]:
        block: Any = getattr(self.unwrapped, "block")  # noqa: B009 (not part of Gymnasium's interface)
        return {"block_velocity": np.array([*block.velocity, block.angular_velocity])}
