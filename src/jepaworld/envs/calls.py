"""Calls into an environment, whose code is not ours: how its failures are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from jepaworld.errors import EnvironmentFailedError
from jepaworld.utils.outside import failures
from jepaworld.utils.progress import logger


def env_name(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> str:
    """The environment in a message."""
    return f"environment {env.spec.id if env.spec is not None else env}"


@contextmanager
def environment_errors(name: str, call: str, place: str) -> Iterator[None]:
    """Say what of which environment failed and where, with the traceback as a note."""
    hint = ""
    if call == "render" and "mujoco" in sys.modules:
        gl = os.environ.get("MUJOCO_GL")
        hint = f" (without a display, MuJoCo needs MUJOCO_GL=egl or osmesa; it is {gl!r})"
    try:
        with failures(f"{name}{hint}: {call}(){f' in {place}' if place else ''}", EnvironmentFailedError):
            yield
    except EnvironmentFailedError as problem:
        problem.call = call
        raise


def close(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> None:
    """Close an environment; a failure of that is only logged, as what was played is done."""
    try:
        env.close()
    except Exception as error:  # whatever an environment raises
        logger.warning("%s: close() failed: %r. What was played is kept.", env_name(env), error)
