"""Calls into an environment, whose code is not ours: how its failures are told."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from jepaworld.errors import EnvironmentFailedError, JepaworldError
from jepaworld.utils.progress import logger


def env_name(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> str:
    """The environment in a message."""
    return f"environment {env.spec.id if env.spec is not None else env}"


@contextmanager
def environment_errors(name: str, call: str, place: str) -> Iterator[None]:
    """Say what of which environment failed and where, with the traceback as a note."""
    try:
        yield
    except JepaworldError:
        raise
    except Exception as error:  # whatever an environment raises is the user's to know
        where = f" in {place}" if place else ""
        hint = ""
        if call == "render" and "mujoco" in sys.modules:
            hint = f" Without a display, MuJoCo needs MUJOCO_GL=egl or osmesa (now {os.environ.get('MUJOCO_GL')!r})."
        problem = EnvironmentFailedError(
            f"{name}: {call}() failed{where}: {type(error).__name__}: {error}. Correct the environment (`jepaworld "
            f"check-env` plays it).{hint}"
        )
        problem.call = call
        problem.add_note(traceback.format_exc())
        raise problem from error


def close(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> None:
    """Close an environment; a failure of that is only logged, as what was played is done."""
    try:
        env.close()
    except Exception as error:  # whatever an environment raises
        logger.warning(
            "%s: close() failed: %s: %s. What was played is kept.", env_name(env), type(error).__name__, error
        )
