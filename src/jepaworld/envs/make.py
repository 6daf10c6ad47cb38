"""Making an environment that can give frames, or saying what is missing.

On Linux without a display, MUJOCO_GL=egl (rendering on the GPU or in software, without a window) is set before anything
of an environment is imported, where MuJoCo is installed and the variable is not set; set it yourself, for example to
osmesa, to choose otherwise.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from jepaworld.envs import register
from jepaworld.envs.calls import close, rendering_hint
from jepaworld.envs.frames import pictures_in
from jepaworld.envs.hooks import hook
from jepaworld.envs.mujoco import MujocoState, is_mujoco
from jepaworld.envs.push_t import PushTState, is_push_t
from jepaworld.errors import EnvironmentNotUsableError
from jepaworld.utils.outside import import_module, in_words, prepare_rendering

_EXTRAS = {  # part of an entry point of Gymnasium, or a package -> what to install
    "envs.cube": "jepaworld[ogbench]",
    "mujoco": "jepaworld[mujoco]",
    "box2d": "jepaworld[box2d]",
    "ale_py": "jepaworld[atari]",
    "gym_pusht": "jepaworld[pusht]",
    "push_t": "jepaworld[pusht]",
    "classic_control": "gymnasium[classic-control]",
    "toy_text": "gymnasium[toy-text]",
}
_PLUGINS = {"ALE": "ale_py", "gym_pusht": "gym_pusht"}  # namespace of ids -> the package whose import registers them


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
    spec, kwargs = _looked_up(environment_name, environment_kwargs)
    with _making(environment_name, spec, kwargs):
        modes = _render_modes(spec)
        # Asked for where it is missing, gymnasium.make warns, and some environments refuse the argument.
        mode: dict[str, Any] = {"render_mode": "rgb_array"} if "rgb_array" in modes else {}
        env = gymnasium.make(environment_name, **kwargs, **mode)
    pictures = pictures_in(env.observation_space)
    if env.render_mode != "rgb_array" and None not in pictures.values():
        close(env)
        reasons = "; ".join(f"{name} {problem}" for name, problem in pictures.items())
        raise EnvironmentNotUsableError(
            f"environment {environment_name} gives no frames: its render modes are {modes}, without "
            f"'rgb_array', and its observation is no image ({reasons}). Give it one of the two."
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

    Returns:
        The vector environment, or None: the environment has no version of its own, or that one does not
        declare `fixed_length = True` and `metadata["autoreset_mode"] = AutoresetMode.DISABLED`.

    Raises:
        EnvironmentNotUsableError: as `make_env`.
    """
    spec, kwargs = _looked_up(environment_name, environment_kwargs)
    if not _plays_side_by_side(spec):
        return None
    settings: Any = kwargs | {"vectorization_mode": "vector_entry_point", "render_mode": "rgb_array"}
    with _making(environment_name, spec, kwargs):
        env = gymnasium.make_vec(environment_name, num_envs, **settings)
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


def _looked_up(environment_name: str, environment_kwargs: Mapping[str, Any] | None) -> tuple[EnvSpec, dict[str, Any]]:
    """The registered environment, and its arguments without `render_mode`."""
    kwargs = dict(environment_kwargs or {})
    mode = kwargs.pop("render_mode", "rgb_array")
    if mode != "rgb_array":
        raise EnvironmentNotUsableError(
            f"environment_kwargs of {environment_name} set render_mode to {mode!r}, but frames need 'rgb_array'. "
            "Remove render_mode."
        )
    register()
    prepare_rendering()
    module, _, name = environment_name.rpartition(":")
    plugin = _PLUGINS.get(name.partition("/")[0], "ale_py")  # ALE also registers ids without its namespace
    if name not in gymnasium.registry and importlib.util.find_spec(plugin) is not None:
        gymnasium.register_envs(importlib.import_module(plugin))
    if module:
        import_module(module, f"environment {environment_name}", EnvironmentNotUsableError)  # it registers the id
    try:
        return gymnasium.spec(name), kwargs
    except (gymnasium.error.Error, ValueError) as error:
        raise EnvironmentNotUsableError(_unknown(environment_name, error)) from error


def _unknown(environment_name: str, error: Exception) -> str:
    package = _PLUGINS.get(environment_name.partition("/")[0])
    if package and importlib.util.find_spec(package) is None:
        return (
            f"environment_name is {environment_name!r}: needs {package}, which is not installed: {_install(package)}."
        )
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
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    metadata = getattr(creator, "metadata", None)
    if isinstance(metadata, Mapping):
        return list(metadata.get("render_modes", []))
    parameters = inspect.signature(creator).parameters.values()
    takes_mode = any(p.name == "render_mode" or p.kind is p.VAR_KEYWORD for p in parameters)
    return ["rgb_array"] if takes_mode else []


@contextmanager
def _making(environment_name: str, spec: EnvSpec, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Say why an environment cannot be made, and what to install."""
    try:
        yield
    except Exception as error:  # whatever an environment raises is the user's to know
        problem = f"cannot be made with environment_kwargs {dict(kwargs)}: {in_words(error)}."
        remedy = ""
        if isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
            entry = str(spec.entry_point)
            # An environment of one's own may be called after MuJoCo and lack something else.
            known = entry.startswith(("gymnasium.", "jepaworld."))
            missing = (getattr(error, "name", None) or "").partition(".")[0]
            other = f"pip install {missing}" if missing else "what it names"
            install = _install(entry if known else missing or str(error)) or other
            problem, remedy = f"lacks a dependency: {str(error).rstrip('.')}.", f" Install it: {install}."
        raise EnvironmentNotUsableError(
            f"environment_name is {environment_name!r}: {problem}{remedy}{rendering_hint(error)}"
        ) from error


def _install(home: str) -> str:
    extra = next((extra for part, extra in _EXTRAS.items() if part in home.lower()), None)
    return f'pip install "{extra}"' if extra else ""
