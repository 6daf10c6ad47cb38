"""Small environments with one fault each; importing this module registers them."""

# ruff: noqa: ARG002 (arguments of Gymnasium's interface)

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode

from jepaworld.envs.two_room import TwoRoomVectorEnv


class Grey(gymnasium.Env):
    """A 20x24 grey picture of a counter; the base of the others."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.action_space = Discrete(3)
        self.observation_space = Box(0, 255, (20, 24), np.uint8)
        self.count = 0

    def picture(self):
        return np.full((20, 24), self.count % 256, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.picture(), {}

    def step(self, action):
        self.count += 1
        return self.picture(), 0.0, False, False, {}

    def render(self):
        return np.repeat(self.picture()[..., None], 3, axis=2)


class Still(Grey):
    """Nothing ever moves."""

    def picture(self):
        return np.zeros((20, 24), np.uint8)


class Restless(Grey):
    """Another picture after every reset, and a number that is there only after steps."""

    resets = 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        return super().reset(seed=seed)

    def picture(self):
        return np.full((20, 24), (self.resets * 60 + self.count) % 256, np.uint8)

    def step(self, action):
        return (*super().step(action)[:4], {"count": self.count, "picky": np.zeros(1)})

    def goal_image(self):
        return self.render()


class Returning(Grey):
    """Can be set to a state, or says so; shows its goal."""

    right = True

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], self.info()

    def step(self, action):
        return (*super().step(action)[:4], self.info())

    def info(self):
        return {"count": self.count, "is_success": False}

    def restore_state(self, states):
        self.count = int(states["count"]) + (0 if self.right else 100)
        return self.picture(), self.info()

    def goal_image(self):
        return self.render()


class Unreturning(Returning):
    """Comes back to another state."""

    right = False


class Crashing(Grey):
    """Steps raise."""

    def step(self, action):
        raise RuntimeError("motor is on fire")


class Blind(Grey):
    """Neither picture nor rendering."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self):
        super().__init__()
        self.observation_space = Box(-1, 1, (2,), np.float32)

    def picture(self):
        return np.zeros(2, np.float32)


class Unrendering(Grey):
    """A vector to observe, and a rendering that fails in the way that it is told to."""

    def __init__(self, render_mode=None, gives: Any = "error"):
        super().__init__(render_mode)
        self.observation_space = Box(-1, 1, (2,), np.float32)
        self.gives = gives

    def picture(self):
        return np.zeros(2, np.float32)

    def render(self):
        if self.gives == "error":
            raise RuntimeError("no OpenGL")
        return {"none": None, "float": np.zeros((20, 20, 3)), "rgba": np.zeros((20, 20, 4), np.uint8)}[self.gives]


class ManyButtons(Grey):
    """An action space that is not supported."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.action_space = MultiDiscrete([2, 2])


class ResettingVector(TwoRoomVectorEnv):
    """All lanes end together, but they would reset themselves."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}


def plain_function():
    """An entry point that takes no render_mode."""
    return Grey()


def function_with_mode(render_mode=None):
    """An entry point that takes one."""
    return Grey(render_mode)


def needs_missing_package():
    """An entry point whose package is not there."""
    raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")


def asserting(size=1):
    """An entry point that fails without a word."""
    assert not size


def mujoco_arm_without_sensor():
    """An environment called after MuJoCo that lacks something else."""
    import no_such_sensor  # noqa: F401 # pyright: ignore


for _kind in (Grey, Still, Restless, Returning, Unreturning, Crashing, Blind, Unrendering, ManyButtons):
    gymnasium.register(f"broken/{_kind.__name__}-v0", entry_point=_kind, disable_env_checker=True)
gymnasium.register("broken/Function-v0", entry_point=plain_function)
gymnasium.register("broken/FunctionWithMode-v0", entry_point=function_with_mode)
gymnasium.register("broken/mujoco-v0", entry_point=needs_missing_package)
gymnasium.register("broken/Asserting-v0", entry_point=asserting)
gymnasium.register("broken/mujoco_arm-v0", entry_point=mujoco_arm_without_sensor)
gymnasium.register("broken/NoModule-v0", entry_point="no_such_module_here:Env")
gymnasium.register("broken/ResettingVector-v0", entry_point=Grey, vector_entry_point=ResettingVector)
gymnasium.register("broken/Vector-v0", entry_point=Grey, vector_entry_point="no_such_module_here:Env")
