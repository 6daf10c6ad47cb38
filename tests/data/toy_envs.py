"""Tiny environments and policies whose behaviour the tests know exactly.

`toy_envs:toy/Echo-v0`: the frame shows the action that led to it. Pixel values (16, 16, 3): the number of the
step, and both entries of the last action, quantised by `shade`. Reward of step n is n.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

DISCRETE_START = 5


def shade(action: np.ndarray) -> np.ndarray:
    return np.round((np.asarray(action) + 1.0) * 100.0).astype(np.uint8)


class Echo(gym.Env):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        render_mode: str | None = None,
        length: int = 6,
        random_length: bool = False,
        space: str = "box",
        delay: float = 0.0,
        fail_at: int | None = None,
        first_seed: int | None = None,
        oddity: str = "",
    ) -> None:
        self.render_mode, self.length, self.random_length = render_mode, length, random_length
        self.delay, self.fail_at, self.first_seed, self.oddity = delay, fail_at, first_seed, oddity
        spaces = {
            "box": Box(-1.0, 1.0, (2,), np.float32),
            "discrete": Discrete(4, start=DISCRETE_START),
            "binary": MultiBinary(3),
            "dict": Dict({"a": Discrete(2)}),
        }
        self.action_space = spaces[space]
        self.observation_space = Box(0, 255, (16, 16, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):  # noqa: ARG002
        super().reset(seed=seed)
        self.is_first = seed == self.first_seed
        self.end = int(self.np_random.integers(2, self.length + 1)) if self.random_length else self.length
        self.count, self.last = 0, np.zeros(2)
        return self._see(), self._info()

    def step(self, action):
        if self.delay:
            time.sleep(self.delay)
        if self.fail_at == self.count and not self.is_first:
            raise ValueError("the joint is stuck")
        self.count += 1
        if isinstance(self.action_space, Discrete):
            assert self.action_space.contains(action), action
            self.last = np.array([(action - DISCRETE_START) / 4.0, 0.0])
        else:
            assert self.action_space.contains(action), action
            self.last = np.array(action)
        reward = float("nan") if self.oddity == "nan reward" else float(self.count)
        if self.oddity == "writes into the action":
            action[...] = 7.0
        return self._see(), reward, self.count >= self.end, False, self._info()

    def render(self):
        return self._see()

    def _see(self):
        image = np.empty((16, 16, 3), np.uint8)
        image[...] = (self.count, *shade(self.last))
        if self.oddity in ("frozen", "dim"):
            image[...] = 0 if self.oddity == "frozen" else self.count % 2
        return image

    def _info(self):
        info: dict[str, Any] = {"count": self.count, "last": self.last.copy(), "name": "echo"}
        if self.count == 0:
            info["only at reset"] = 1.0
        if not (self.oddity == "missing state" and not self.is_first):
            info["extra"] = 2.0
        if self.oddity == "reshaped state":
            info["extra"] = 2.0 if self.is_first else [1.0, 2.0]
        if self.oddity == "long state":
            info["joints"] = np.zeros(300)
        if self.oddity == "mask":
            info["action_mask"] = np.arange(4) != self.count % 4
        if self.oddity == "empty mask":
            info["action_mask"] = np.zeros(4, np.int8)
        if self.oddity == "depth map":
            info["depth"] = np.ones((50, 40), np.float32)
        if self.oddity == "global generators":
            info["extra"] = random.random() + np.random.random()  # noqa: NPY002
        return info


class Hidden(Echo):
    """Like Echo, but its observation is no image and it cannot render."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.observation_space = Box(-1.0, 1.0, (3,), np.float32)


class Crasher(Echo):
    """Ends its process without a word."""

    def step(self, action):
        if not self.is_first:
            import os

            os._exit(7)
        return super().step(action)


class Importer(Echo):
    """Its state says whether the process has imported what workers should not."""

    def _info(self):
        import sys

        heavy = ("torch" in sys.modules) + ("matplotlib" in sys.modules)
        return {"heavy": float(heavy), "worker": float("__mp_main__" in sys.modules)}


for _name in ("Echo", "Hidden", "Crasher", "Importer"):
    if f"toy/{_name}-v0" not in gym.registry:
        gym.register(
            id=f"toy/{_name}-v0",
            entry_point=f"toy_envs:{_name}",
            disable_env_checker=True,
            order_enforce=False,
        )


# --- policies


def always_right(_observation):
    assert _observation.shape == (16, 16, 3)
    return [0.5, -0.5]


class Stepper:
    """Plays 0.1, 0.2, ... on the first axis; knows when an episode begins."""

    def __init__(self, action_space, gain: float = 0.1) -> None:
        self.space, self.gain, self.steps = action_space, gain, 0

    def reset(self) -> None:
        self.steps = 0

    def __call__(self, _observation):
        self.steps += 1
        return np.array([self.gain * self.steps, 0.0])


class Sampler:
    def __init__(self, action_space) -> None:
        self.space = action_space

    def __call__(self, _observation):
        return self.space.sample()


class Moody:
    """Draws its action from numpy's global generator when an episode begins."""

    def __init__(self, _action_space) -> None:
        self.reset()

    def reset(self) -> None:
        self.action = np.random.uniform(-1, 1, 2)  # noqa: NPY002

    def __call__(self, _observation):
        return self.action


class FakeAlgorithm:
    """The part of a Stable-Baselines3 algorithm that is used."""

    def __init__(self, value: float) -> None:
        self.value = value

    @classmethod
    def load(cls, path: str, scale: float = 1.0) -> FakeAlgorithm:
        return cls(float(Path(path).read_text()) * scale)

    def predict(self, _observation, deterministic: bool = False):
        return np.array([self.value, float(deterministic)], np.float32), None


not_callable = 3


def too_far(_observation):
    return [0.0, 1.1]


def wrong_shape(_observation):
    return [0.0]


def not_a_number(_observation):
    return [0.0, float("nan")]


def words(_observation):
    return "left"


def fraction(_observation):
    return 1.5


def out_of_range(_observation):
    return DISCRETE_START - 1


def rounded_over(_observation):
    return np.array([1.0 + 1e-7, -1.0 - 1e-7])


def raises(_observation):
    raise KeyError("no plan")
