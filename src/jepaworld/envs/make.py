"""Making an environment that can give frames, or saying what is missing.

On Linux without a display, `make_env` sets MUJOCO_GL=egl (rendering on the GPU or in software, without a window) where
MuJoCo is installed and the variable is not set; set it yourself, for example to osmesa, to choose otherwise.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from jepaworld.envs import register
from jepaworld.envs.calls import close
from jepaworld.envs.frames import is_image_space
from jepaworld.envs.hooks import hook
from jepaworld.envs.mujoco import MujocoState, is_mujoco
from jepaworld.envs.push_t import PushTState, is_push_t
from jepaworld.errors import EnvironmentNotUsableError
from jepaworld.utils.outside import import_module

_EXTRAS = {  # part of an entry point or of an id -> what to install
    "mujoco": 'pip install "jepaworld[mujoco]"',
    "box2d": 'pip install "jepaworld[box2d]"',
    "ale_py": 'pip install "jepaworld[atari]"',
    "classic_control": 'pip install "gymnasium[classic-control]"',
    "toy_text": 'pip install "gymnasium[toy-text]"',
    "pusht": 'pip install "jepaworld[pusht]"',
}
_PLUGINS = {  # namespace of ids -> the package whose import registers them, and what to install
    "ALE": ("ale_py", "ale-py", _EXTRAS["ale_py"]),
    "gym_pusht": ("gym_pusht", "gym-pusht", _EXTRAS["pusht"]),
}


def make_env(environment_name: str, environment_kwargs: Mapping[str, Any] | None = None) -> gymnasium.Env:
    """Make an environment that can give frames, with `render_mode="rgb_array"` where it has that mode.

    Args:
        environment_name: Gymnasium id, also `module:id`, which imports the module first.
        environment_kwargs: arguments for `gymnasium.make`, `max_episode_steps` among them.

    Returns:
        The environment; its image observation or its `render()` gives frames. Gymnasium's MuJoCo environments and
        Push-T come with state variables and `restore_state` (`jepaworld.envs.hooks`).

    Raises:
        EnvironmentNotUsableError: the id is unknown, a dependency is missing, an argument is refused, or
            there is neither an image observation nor an "rgb_array" rendering. The message says what to do.
    """
    kwargs = _checked_kwargs(environment_name, environment_kwargs)
    spec = _find_spec(environment_name)
    _prefer_headless_mujoco()
    # Asked for where it is missing, gymnasium.make warns, and some environments refuse the argument.
    modes = _render_modes(spec)
    if "rgb_array" in modes:
        kwargs["render_mode"] = "rgb_array"
    try:
        env = gymnasium.make(environment_name, **kwargs)
    except Exception as error:  # whatever an environment raises is the user's to know
        raise _not_made(environment_name, spec, kwargs, error) from error
    if env.render_mode != "rgb_array" and not is_image_space(env.observation_space):
        close(env)
        raise EnvironmentNotUsableError(
            f"environment {environment_name} gives no frames: its render modes are {modes}, without "
            f"'rgb_array', and its observation {env.observation_space} is no image. Give it one of the two."
        )
    if hook(env, "restore_state") is not None:
        return env
    if is_mujoco(env.unwrapped):
        return MujocoState(env)
    return PushTState(env) if is_push_t(env.unwrapped) else env


def make_vector_env(
    environment_name: str, environment_kwargs: Mapping[str, Any] | None, num_envs: int
) -> VectorEnv | None:
    """The environment's own vector version, where its lanes all end together and never reset themselves.

    Args:
        environment_name: as of `make_env`.
        environment_kwargs: as of `make_env`.
        num_envs: lanes.

    Returns:
        The vector environment, or None: the environment has no version of its own, or that one does not
        declare `fixed_length = True` and `metadata["autoreset_mode"] = AutoresetMode.DISABLED`.

    Raises:
        EnvironmentNotUsableError: as `make_env`.
    """
    kwargs = _checked_kwargs(environment_name, environment_kwargs)
    spec = _find_spec(environment_name)
    if not _plays_side_by_side(spec):
        return None
    settings: Any = kwargs | {"vectorization_mode": "vector_entry_point", "render_mode": "rgb_array"}
    try:
        env = gymnasium.make_vec(environment_name, num_envs, **settings)
    except Exception as error:  # whatever an environment raises is the user's to know
        raise _not_made(environment_name, spec, kwargs, error) from error
    if getattr(env.unwrapped, "fixed_length", False):
        return env
    close(env)
    return None


def _plays_side_by_side(spec: EnvSpec) -> bool:
    """Whether the vector version's class says that it may; others need not even take our keyword arguments."""
    entry = spec.vector_entry_point
    if entry is None:
        return False
    try:
        kind = load_env_creator(entry) if isinstance(entry, str) else entry
    except (ImportError, AttributeError):
        return False  # the environment's ordinary version may well be there
    disabled = getattr(kind, "metadata", {}).get("autoreset_mode") is AutoresetMode.DISABLED
    return disabled and "fixed_length" in inspect.get_annotations(kind)


def _checked_kwargs(environment_name: str, environment_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    kwargs = dict(environment_kwargs or {})
    mode = kwargs.pop("render_mode", "rgb_array")
    if mode != "rgb_array":
        raise EnvironmentNotUsableError(
            f"environment_kwargs of {environment_name} set render_mode to {mode!r}, but frames need 'rgb_array'. "
            "Remove render_mode."
        )
    return kwargs


def _find_spec(environment_name: str) -> EnvSpec:
    register()
    module, _, name = environment_name.rpartition(":")
    plugin = _PLUGINS.get(name.partition("/")[0], ("ale_py", "", ""))[0]  # ALE also registers ids without it
    if name not in gymnasium.registry and importlib.util.find_spec(plugin) is not None:
        gymnasium.register_envs(importlib.import_module(plugin))
    if module:
        import_module(module, f"environment {environment_name}", EnvironmentNotUsableError)  # it registers the id
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ValueError) as error:
        raise EnvironmentNotUsableError(_unknown(environment_name, error)) from error


def _unknown(environment_name: str, error: Exception) -> str:
    package, project, command = _PLUGINS.get(environment_name.partition("/")[0], ("", "", ""))
    if package and importlib.util.find_spec(package) is None:
        return f"environment_name is {environment_name!r}: needs {project}, which is not installed: {command}."
    # Also compared without namespace and version, so that "tworoom" finds jepaworld/TwoRoom-v0.
    known = {name.lower(): name for name in gymnasium.registry}
    known |= {name.rsplit("/", 1)[-1].rsplit("-v", 1)[0]: known[name] for name in sorted(known)}
    close = difflib.get_close_matches(environment_name.lower(), known, n=4, cutoff=0.5)
    hint = f" Close ids: {', '.join(dict.fromkeys(known[name] for name in close))}." if close else ""
    return (
        f"environment {environment_name} is not known ({str(error).rstrip('.')}).{hint} "
        "An environment of your own is found as module:id, where importing the module registers the id."
    )


def _render_modes(spec: EnvSpec) -> list[str]:
    """Render modes that the environment declares; for a function, which cannot, what its arguments tell."""
    creator: Any = spec.entry_point
    try:
        if isinstance(creator, str):
            creator = load_env_creator(creator)
    except (ImportError, AttributeError, gymnasium.error.Error) as error:
        raise _not_made(spec.id, spec, {}, error) from error
    metadata = getattr(creator, "metadata", None)
    if isinstance(metadata, Mapping):
        return list(metadata.get("render_modes", []))
    parameters = inspect.signature(creator).parameters.values()
    takes_mode = any(p.name == "render_mode" or p.kind is p.VAR_KEYWORD for p in parameters)
    return ["rgb_array"] if takes_mode else []


def _not_made(
    environment_name: str, spec: EnvSpec, kwargs: Mapping[str, Any], error: Exception
) -> EnvironmentNotUsableError:
    reason = str(error).rstrip(".")
    if isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
        home = f"{spec.entry_point} {environment_name}".lower()
        extra = next((command for part, command in _EXTRAS.items() if part in home), "the package that it names")
        return EnvironmentNotUsableError(
            f"environment_name is {environment_name!r}: lacks a dependency: {reason}. Install it: {extra}."
        )
    given = {name: value for name, value in kwargs.items() if name != "render_mode"}
    return EnvironmentNotUsableError(
        f"environment {environment_name} cannot be made with environment_kwargs {given}: {type(error).__name__}: "
        f"{reason}."
    )


def _prefer_headless_mujoco() -> None:
    """Let MuJoCo render without a window where there is no display; its own default would fail there."""
    has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if sys.platform == "linux" and not has_display and importlib.util.find_spec("mujoco") is not None:
        os.environ.setdefault("MUJOCO_GL", "egl")
