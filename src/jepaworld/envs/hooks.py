"""What an environment can offer for planning beside Gymnasium's interface.

Four methods, all optional, are looked for from the outermost wrapper to the environment itself:

    restore_state(states) -> (observation, info)   begin at a recorded state
    goal_image() -> uint8 (H, W, 3)                what it would show at its goal
    goal_state() -> states                         state variables at its goal
    set_goal(states) -> info                       let its own success mean this goal

`states` maps names of state variables (numeric entries of `info`, and the vector observation as "observation";
`jepaworld.envs.state`) to float32 arrays, as a dataset stores them. After `restore_state` the frame must be the
recorded one, and every variable that its `info` holds must have the recorded value; so what is no state, such as a
count of steps, is to be left out of it. A method that takes other arguments is not one of these.

`make_env` gives such methods to environments of others that lack them: Gymnasium's MuJoCo environments and Push-T.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

Hook = Literal["restore_state", "goal_image", "goal_state", "set_goal"]

OWN_SUCCESS = ("success", "is_success")
"""Entries of `info` that are taken as the environment's own success, the first that is there."""


_ARGUMENTS: dict[Hook, int] = {"restore_state": 1, "goal_image": 0, "goal_state": 0, "set_goal": 1}


def hook(env: gymnasium.Env[Any, Any], name: Hook) -> Callable[..., Any] | None:
    """The method of that name of the environment or one of its wrappers.

    `None` where none has it, or where it is no method with these arguments: others use such names for something else.
    """
    found = env.get_wrapper_attr(name) if env.has_wrapper_attr(name) else None
    if not callable(found):
        return None
    try:
        inspect.signature(found).bind(*[None] * _ARGUMENTS[name])
    except TypeError:
        return None
    except ValueError:  # written in C, it has no signature that could be read: what it takes is found out by calling it
        return found
    return found


def require(states: Mapping[str, Any], *names: str) -> None:
    """Refuse state variables that lack one of the names, by a `ValueError`."""
    if missing := [name for name in names if name not in states]:
        raise ValueError(f"states lack {' and '.join(missing)}; there are {', '.join(states)}.")


class StateVariables(gymnasium.Wrapper[Any, Any, Any, Any], ABC):
    """Base of wrappers that add state variables to `info`: a subclass has them in `_variables()`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment, with the variables."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, info | self._variables()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment, with the variables."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, info | self._variables()

    @abstractmethod
    def _variables(self) -> dict[str, NDArray[np.float64]]:
        """The state variables of now, copies."""
