"""Any Gymnasium environment as a source of square uint8 frames.

`make_env` builds an environment that can give frames, or says what is missing. `FrameReader` and
`VectorFrameReader` turn its observation or its rendering into frames of the size and the channels that the
model takes.

On Linux without a display, `make_env` sets MUJOCO_GL=egl (rendering on the GPU or in software, without a
window) where MuJoCo is installed and the variable is not set; set it yourself, for example to osmesa, to
choose otherwise.

Shapes: S side of a frame; C channels, 1 or 3; N lanes of a vector environment.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.spaces import Box, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from PIL import Image

from jepaworld.envs.offers import with_state
from jepaworld.errors import EnvironmentNotUsableError

FrameSource = Literal["auto", "observation", "render"]

_SMALLEST_IMAGE = 16  # a smaller uint8 grid is more likely a map of cells (MiniGrid: 7x7x3) than a picture
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


# --- making environments ------------------------------------------------------------------------------------


def make_env(environment_name: str, environment_kwargs: Mapping[str, Any] | None = None) -> gymnasium.Env:
    """Make an environment that can give frames, with `render_mode="rgb_array"` where it has that mode.

    Args:
        environment_name: Gymnasium id, also `module:id`, which imports the module first.
        environment_kwargs: arguments for `gymnasium.make`, `max_episode_steps` among them.

    Returns:
        The environment; its image observation or its `render()` gives frames. Gymnasium's MuJoCo environments and
        Push-T come with state variables and `restore_state` (`jepaworld.envs.offers`).

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
        env.close()
        raise EnvironmentNotUsableError(
            f"environment {environment_name} gives no frames: its render modes are {modes}, without "
            f"'rgb_array', and its observation {env.observation_space} is no image. Give it one of the two."
        )
    return with_state(env)


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
    try:
        env = gymnasium.make_vec(
            environment_name,
            num_envs,
            vectorization_mode="vector_entry_point",
            render_mode="rgb_array",
            **kwargs,
        )
    except Exception as error:  # whatever an environment raises is the user's to know
        raise _not_made(environment_name, spec, kwargs, error) from error
    if getattr(env.unwrapped, "fixed_length", False):
        return env
    env.close()
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
            f"environment_kwargs of {environment_name} set render_mode to {mode!r}, but frames need "
            "'rgb_array', which is set without being asked for. Remove render_mode."
        )
    return kwargs


def _find_spec(environment_name: str) -> EnvSpec:
    module, _, name = environment_name.rpartition(":")
    plugin = _PLUGINS.get(name.partition("/")[0], ("ale_py", "", ""))[0]  # ALE also registers ids without it
    if name not in gymnasium.registry and importlib.util.find_spec(plugin) is not None:
        gymnasium.register_envs(importlib.import_module(plugin))
    if module:
        _import(module, environment_name)
    try:
        return gymnasium.spec(name)
    except (gymnasium.error.Error, ValueError) as error:
        raise EnvironmentNotUsableError(_unknown(environment_name, error)) from error


def _import(module: str, environment_name: str) -> None:
    """Import a module, which registers its environments."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.split(".")[0] != error.name.split(".")[0]:
            remedy = f"Install {error.name}, which it imports."
        else:
            remedy = (
                "Install the package that has this module, start in the folder that holds it (this is "
                f"{Path.cwd()}), or correct the part before the colon."
            )
        raise EnvironmentNotUsableError(f"environment {environment_name}: {error}. {remedy}") from error
    except Exception as error:  # whatever a user's module raises is the user's to know
        problem = EnvironmentNotUsableError(
            f"environment {environment_name}: importing {module} failed: {type(error).__name__}: {error}. Correct the "
            "module."
        )
        problem.add_note(traceback.format_exc())
        raise problem from error


def _unknown(environment_name: str, error: Exception) -> str:
    package, project, command = _PLUGINS.get(environment_name.partition("/")[0], ("", "", ""))
    if package and importlib.util.find_spec(package) is None:
        return f"environment {environment_name} needs {project}, which is not installed: {command}."
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
    creator = spec.entry_point
    try:
        if isinstance(creator, str):
            creator = load_env_creator(creator)
    except (ImportError, AttributeError, gymnasium.error.Error) as error:
        raise _not_made(spec.id, spec, {}, error) from error
    metadata = getattr(creator, "metadata", None)
    if isinstance(metadata, Mapping):
        return list(metadata.get("render_modes", []))
    assert callable(creator), creator
    parameters = inspect.signature(creator).parameters.values()
    takes_mode = any(p.name == "render_mode" or p.kind is p.VAR_KEYWORD for p in parameters)
    return ["rgb_array"] if takes_mode else []


def _not_made(
    environment_name: str, spec: EnvSpec, kwargs: Mapping[str, Any], error: Exception
) -> EnvironmentNotUsableError:
    if isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
        home = f"{spec.entry_point} {environment_name}".lower()
        extra = next((command for part, command in _EXTRAS.items() if part in home), None)
        remedy = f"Install it: {extra}." if extra else "Install the package that it names."
        return EnvironmentNotUsableError(
            f"environment {environment_name} lacks a dependency: {str(error).rstrip('.')}. {remedy}"
        )
    given = {name: value for name, value in kwargs.items() if name != "render_mode"}
    remedy = f"Correct environment_kwargs, which are {given}." if given else "It was given no environment_kwargs."
    return EnvironmentNotUsableError(
        f"environment {environment_name} cannot be made: {type(error).__name__}: {str(error).rstrip('.')}. {remedy}"
    )


def _prefer_headless_mujoco() -> None:
    """Let MuJoCo render without a window where there is no display; its own default would fail there."""
    has_display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if sys.platform == "linux" and not has_display and importlib.util.find_spec("mujoco") is not None:
        os.environ.setdefault("MUJOCO_GL", "egl")


# --- frames -------------------------------------------------------------------------------------------------


def is_image_space(space: Space) -> bool:
    """Whether an observation is a picture: uint8 Box over 0..255, HxW, HxWx1 or HxWx3, sides at least 16."""
    if not (isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)):
        return False
    if len(space.shape) == 3 and space.shape[2] not in (1, 3):
        return False
    return min(space.shape[:2]) >= _SMALLEST_IMAGE and bool((space.low == 0).all() and (space.high == 255).all())


def image_to_frame(image: NDArray[np.uint8], image_size: int, input_channels: Literal[1, 3]) -> NDArray[np.uint8]:
    """One picture as a frame.

    Colour becomes grey by ITU-R 601 luma (0.299 R + 0.587 G + 0.114 B); grey becomes colour by repeating it.
    Where neither side grows, a new pixel is the average of the old ones whose centres fall into it; otherwise
    sizes change by bilinear interpolation. A picture that is not square is squashed.

    Args:
        image: uint8 (H, W), (H, W, 1) or (H, W, 3).
        image_size: S, pixels.
        input_channels: C.

    Returns:
        uint8 (C, S, S), contiguous.
    """
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2:] == (1,) else image))
    if input_channels == 1 and picture.mode != "L":
        picture = picture.convert("L")
    if picture.size != (image_size, image_size):
        grows = min(picture.size) < image_size
        resampling = Image.Resampling.BILINEAR if grows else Image.Resampling.BOX
        picture = picture.resize((image_size, image_size), resampling)
    if input_channels == 3 and picture.mode != "RGB":
        picture = picture.convert("RGB")
    pixels = np.asarray(picture)
    return pixels[None].copy() if input_channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


class FrameReader:
    """Frames of an environment: `reader(observation)` is the frame that belongs to its current state.

    The environment is rendered only when called, so that frames which frame skipping drops cost nothing.

    Args:
        env: environment from `make_env`.
        image_size: S, pixels.
        input_channels: C, 1 (luma) or 3.
        frame_source: "observation", "render", or "auto" for the observation where it is an image.

    Attributes:
        source: "observation" or "render".

    Raises:
        EnvironmentNotUsableError: the source is "observation" and that is no image, or "render" and the
            environment was not made with `render_mode="rgb_array"`.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        image_size: int,
        input_channels: Literal[1, 3],
        frame_source: FrameSource = "auto",
    ) -> None:
        is_image = is_image_space(env.observation_space)
        if frame_source == "auto":
            frame_source = "observation" if is_image else "render"
        if frame_source == "observation" and not is_image:
            raise EnvironmentNotUsableError(
                f"frame_source is observation, but the observation {env.observation_space} of {_name(env)} "
                f"is no image (uint8 from 0 to 255, HxW, HxWx1 or HxWx3, sides at least {_SMALLEST_IMAGE}). "
                "Set frame_source to render or auto."
            )
        if frame_source == "render" and env.render_mode != "rgb_array":
            raise EnvironmentNotUsableError(
                f"frame_source is render, but {_name(env)} has render_mode {env.render_mode!r}, not "
                f"'rgb_array'. "
                "Set frame_source to observation, or use an environment that renders rgb_array."
            )
        self.source: Literal["observation", "render"] = "observation" if frame_source == "observation" else "render"
        self._env, self._image_size = env, image_size
        self._channels: Literal[1, 3] = input_channels

    def __call__(self, observation: Any) -> NDArray[np.uint8]:
        """The frame (C, S, S) uint8 of the environment's current state, to which `observation` belongs.

        Raises:
            EnvironmentNotUsableError: rendering fails, or gives no picture.
        """
        image = np.asarray(observation) if self.source == "observation" else self._render()
        return image_to_frame(image, self._image_size, self._channels)

    def _render(self) -> NDArray[np.uint8]:
        try:
            image: Any = self._env.render()
        except Exception as error:  # whatever a renderer raises is the user's to know
            raise EnvironmentNotUsableError(
                f"{_name(self._env)} cannot render: {type(error).__name__}: {error}. Without a display, "
                f"MuJoCo needs "
                f"MUJOCO_GL=egl or osmesa (now {os.environ.get('MUJOCO_GL')!r}) and its libraries."
            ) from error
        is_picture = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3)
        if not is_picture or (image.ndim == 3 and image.shape[2] not in (1, 3)):
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise EnvironmentNotUsableError(
                f"{_name(self._env)} renders {found}; expected a uint8 array of HxW, HxWx1 or HxWx3. "
                "Correct its render(), or set frame_source to observation."
            )
        return image


@runtime_checkable
class _PaintsChannelsFirst(Protocol):
    def frames_chw(self, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]: ...


class VectorFrameReader:
    """Frames of all lanes of a vector environment from `make_vector_env`.

    They come from `frames_chw()` where the environment has it, else from its image observations.

    Args:
        env: vector environment.
        image_size: S, pixels.
        input_channels: C, 1 (luma) or 3.

    Raises:
        EnvironmentNotUsableError: there is neither `frames_chw()` nor an image observation.
    """

    def __init__(self, env: VectorEnv, image_size: int, input_channels: Literal[1, 3]) -> None:
        self._painter = env.unwrapped if isinstance(env.unwrapped, _PaintsChannelsFirst) else None
        if self._painter is None and not is_image_space(env.single_observation_space):
            raise EnvironmentNotUsableError(
                f"{env} has neither frames_chw() nor image observations ({env.single_observation_space}). "
                "Collect from the environment without its vector version."
            )
        self._image_size = image_size
        self._channels: Literal[1, 3] = input_channels

    def __call__(self, observations: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The frames (N, C, S, S) uint8 of the current states.

        `observations` are looked at only where the environment has no `frames_chw()`.
        """
        if self._painter is not None:
            frames = self._painter.frames_chw()
            if frames.shape[1:] == (self._channels, self._image_size, self._image_size):
                return frames
            observations = frames.transpose(0, 2, 3, 1)
        assert observations is not None
        return np.stack([image_to_frame(image, self._image_size, self._channels) for image in observations])


def _name(env: gymnasium.Env) -> str:
    return f"environment {env.spec.id}" if env.spec is not None else f"environment {env}"
