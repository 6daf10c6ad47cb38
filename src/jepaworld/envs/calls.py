"""Calls into an environment, whose code is not ours: how its failures are told."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from jepaworld.errors import EnvironmentFailedError
from jepaworld.utils.outside import failures
from jepaworld.utils.progress import logger

_MUJOCO_RENDERING = re.compile(r"((mujoco|dm_control|gymnasium\.envs\.mujoco)\b.*(render|gl|osmesa)|OpenGL|glfw\b)")


def env_name(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> str:
    """The environment in a message."""
    return f"environment {env.spec.id if env.spec is not None else env}"


@contextmanager
def environment_errors(name: str, call: str, place: str) -> Iterator[None]:
    """Say what of which environment failed and where, with the traceback as a note."""
    try:
        with failures(f"{name}: {call}(){f' in {place}' if place else ''}", EnvironmentFailedError):
            yield
    except EnvironmentFailedError as problem:
        problem.call = call
        problem.args = (f"{problem}{rendering_hint(problem.__cause__)}",)
        raise


def wrong_answer(problem: str, call: str) -> EnvironmentFailedError:
    """The error that a call gave something else than it should."""
    error = EnvironmentFailedError(problem)
    error.call = call
    return error


def rendering_hint(error: BaseException | None) -> str:
    """What to do about an error that comes from MuJoCo's rendering, with a space before it; else nothing."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error and error.__traceback__)]
    if not any(_MUJOCO_RENDERING.match(name) for name in modules):
        return ""
    context = getattr(sys.modules.get("mujoco"), "GLContext", None)
    way = getattr(context, "__module__", "").rpartition(".")[2] or f"MUJOCO_GL={os.environ.get('MUJOCO_GL')}"
    return (
        f" MuJoCo was imported to render by {way}. Without a display it needs MUJOCO_GL=egl or MUJOCO_GL=osmesa, set "
        "before Python starts."
    )


def close(env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> Exception | None:
    """Close an environment; a failure of that is only logged and returned, as what was played is done."""
    try:
        env.close()
    except Exception as error:  # whatever an environment raises
        logger.warning("%s: close() failed: %r. What was played is kept.", env_name(env), error)
        return error
    return None
