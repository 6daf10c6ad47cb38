"""Square uint8 frames of any environment, from its image observation or its rendering.

Shapes: S side of a frame; C channels, 1 or 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space, Tuple
from numpy.typing import NDArray
from PIL import Image

from jepaworld.envs.calls import env_name
from jepaworld.errors import EnvironmentNotUsableError

Frame = NDArray[np.uint8]
FrameSource = str
"""auto, render, observation, or observation.KEY for the entry KEY of a `Dict` observation (nested: KEY.KEY)."""

MOST_DIFFERING = 1e-3  # share of a frame's values that may differ by more where two frames are taken for the same
_LEVELS = 16  # of 255; renderers of two machines do not agree to the last bit
_SMALLEST_IMAGE = 16  # a smaller uint8 grid is more likely a map of cells (MiniGrid: 7x7x3) than a picture
_LONGEST_STACK = 16  # pictures of the last steps in one observation
_USUAL_NAMES = ("pixels", "image", "rgb")  # of the picture among several in an observation


def is_image_space(space: Space) -> bool:
    """Whether an observation is a picture: uint8 Box over 0..255, HxW, HxWx1 or HxWx3, sides at least 16."""
    if not (isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)):
        return False
    if len(space.shape) == 3 and space.shape[2] not in (1, 3):
        return False
    return min(space.shape[:2]) >= _SMALLEST_IMAGE and bool((space.low == 0).all() and (space.high == 255).all())


def image_to_frame(image: NDArray[np.uint8], image_size: int, input_channels: int) -> Frame:
    """One picture, uint8 (H, W), (H, W, 1) or (H, W, 3), as a frame (C, S, S), contiguous, a copy.

    Colour becomes grey by ITU-R 601 luma (0.299 R + 0.587 G + 0.114 B); grey becomes colour by repeating it.
    Where neither side grows, a new pixel is the average of the old ones whose centres fall into it; otherwise
    sizes change by bilinear interpolation. A picture that is not square is squashed.
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


def differing(frame: Frame, expected: Frame) -> float:
    """Share of the values of a frame that are clearly others than expected; at most `MOST_DIFFERING` for equals."""
    return float((np.abs(frame.astype(np.int16) - expected) > _LEVELS).mean())


def as_picture(image: Any, given_by: str) -> NDArray[np.uint8]:
    """What was given as a single picture, as uint8 (H, W), (H, W, 1) or (H, W, 3); see `Pictures`."""
    return Pictures(given_by)(image)


class Pictures:
    """Pictures of one source, turned into uint8 (H, W), (H, W, 1) or (H, W, 3) where it is certain what they mean.

    Arrays and lists of numbers are taken: grey, colour, opaque RGBA, with channels last or first; the newest of a stack
    (k, H, W) or (k, H, W, C). Bools are black and white, integers 0 to 255 as they are. Floats are 0 to 1 or 0 to 255:
    the first picture that is not black decides for all.

    Args:
        given_by: who gives them, in words, for messages.

    Raises:
        EnvironmentNotUsableError: when called with something else; the message says what was found.
    """

    def __init__(self, given_by: str) -> None:
        self._given_by = given_by
        self._scale: int | None = None  # of floats, once it is known
        self.is_grey = False  # whether the last picture was

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        """The picture; perhaps a view of what was given."""
        try:
            array = np.asarray(image)
        except ValueError:  # a ragged list
            raise self._refused(type(image).__name__, "an array") from None
        if array.dtype.kind not in "biuf" or array.size == 0:
            raise self._refused(f"{array.dtype} {array.shape}" if array.dtype.kind in "biuf" else type(image).__name__)
        picture = _arranged(array)
        if picture is None:
            raise self._refused(f"{array.dtype} {array.shape}")
        self.is_grey = picture.ndim == 2 or picture.shape[2] == 1
        return picture if picture.dtype == np.uint8 else self._in_levels(picture)

    def _in_levels(self, picture: NDArray[Any]) -> NDArray[np.uint8]:
        """The picture in levels of 0 to 255."""
        if picture.dtype == np.bool_:
            return picture.astype(np.uint8) * 255
        low, high = picture.min(), picture.max()
        if not (low >= 0 and high <= 255):  # also where it is not a number
            values = "from 0 to 255" if picture.dtype.kind in "iu" else "from 0 to 1 or from 0 to 255"
            raise self._refused(f"values from {low:g} to {high:g}", f"values {values}: scale them in a wrapper")
        if picture.dtype.kind in "iu":
            return picture.astype(np.uint8)
        if self._scale is None and high > 0:
            self._scale = 255 if high <= 1 else 1
        if self._scale == 255 and high > 1:
            raise self._refused(
                f"floats up to {high:g} after ones up to 1", "one range, from 0 to 1 or from 0 to 255: scale them"
            )
        return np.rint(picture * (self._scale or 1)).astype(np.uint8)

    def _refused(self, found: str, expected: str = "") -> EnvironmentNotUsableError:
        expected = expected or "HxW, HxWx1, HxWx3, opaque HxWx4, channels first, or a stack of such pictures"
        return EnvironmentNotUsableError(f"{self._given_by} gives {found}; expected {expected}.")


def _arranged(array: NDArray[Any]) -> NDArray[Any] | None:
    """(H, W), (H, W, 1) or (H, W, 3) of an array of numbers, or None where it is not certain."""
    if array.ndim == 4:
        picture = _arranged(array[-1]) if len(array) <= _LONGEST_STACK else None
        return None if picture is None or picture.ndim == 2 else picture  # a stack of stacks could be anything
    if array.ndim != 3:
        return array if array.ndim == 2 else None
    first, _, last = array.shape
    if last in (1, 3):
        return array
    opaque = 255 if array.dtype.kind in "iu" or array.max() > 1 else 1
    if last == 4:  # the four last grey pictures look alike, but are not white
        return array[..., :3] if (array[..., 3] == opaque).all() else None
    if first in (1, 3) or (first == 4 and (array[3] == opaque).all()):
        return np.moveaxis(array[:3], 0, 2)
    return array[-1] if 2 <= first <= _LONGEST_STACK else None


def pictures_in(space: Space, name: str = "observation") -> dict[str, str | None]:
    """Whether the parts of an observation can be pictures: by name, why not, or None for one that can.

    A `Box` is "observation", the entries of a `Dict` or a `Tuple` are "observation.KEY", nested ones too.
    """
    if isinstance(space, Dict | Tuple):
        parts = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        return {key: found for part, inner in parts for key, found in pictures_in(inner, f"{name}.{part}").items()}
    if not isinstance(space, Box):
        return {name: "is no array"}
    shape = space.shape
    sides = [shape[-3:-1], shape[-2:]] if len(shape) == 4 else [shape[:2], shape[1:]] if len(shape) == 3 else [shape]
    if len(shape) not in (2, 3, 4) or not any(min(two) >= _SMALLEST_IMAGE for two in sides):
        return {name: f"is {space.dtype} {shape}, no picture with sides of at least {_SMALLEST_IMAGE}"}
    if _arranged(np.ones(shape, np.bool_)) is None:
        return {name: f"is {shape}: neither channels nor a stack of pictures can be told"}
    if space.dtype.kind in "iu" and not ((space.low >= 0).all() and (space.high == 255).all()):
        return {name: f"has values from {space.low.min()} to {space.high.max()}, not from 0 to 255"}
    return {name: None}


def _part(observation: Any, name: str) -> Any:
    """The part of an observation that `pictures_in` gave the name."""
    found = dict(_parts(observation, "observation"))
    if name not in found:
        raise EnvironmentNotUsableError(f"frame_source is {name}, which the observation lacks: {', '.join(found)}.")
    return found[name]


def _parts(observation: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, observation
    if isinstance(observation, Mapping | tuple):
        for part, inner in observation.items() if isinstance(observation, Mapping) else enumerate(observation):
            yield from _parts(inner, f"{name}.{part}")


class FrameReader:
    """Frames of an environment: `reader(observation)` is the frame that belongs to its current state.

    The environment is rendered only when called, so that frames which frame skipping drops cost nothing. The source
    "auto" is the observation where it is a uint8 image, else the rendering, else a picture that the observation holds.

    Attributes:
        source: "render", "observation", or "observation.KEY".

    Raises:
        EnvironmentNotUsableError: the source is "observation" and that holds no picture or several, or "render" and the
            environment was not made with `render_mode="rgb_array"`.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], image_size: int, input_channels: int, frame_source: FrameSource = "auto"
    ) -> None:
        renders, space = env.render_mode == "rgb_array", env.observation_space
        self.source = frame_source
        if frame_source == "auto":
            self.source = "render" if renders and not is_image_space(space) else "observation"
        if self.source == "observation":
            self.source = _the_picture(env)
        elif self.source == "render" and not renders:
            raise EnvironmentNotUsableError(
                f"frame_source is render, but {env_name(env)} has no rendering (render_mode is {env.render_mode!r}, "
                "not 'rgb_array'). Set observation or auto."
            )
        self._env, self._image_size, self._channels = env, image_size, input_channels
        self._pictures = Pictures(f"{env_name(env)}: {self.source}")

    @property
    def is_grey(self) -> bool:
        """Whether the last picture had no colour."""
        return self._pictures.is_grey

    def __call__(self, observation: Any) -> Frame:
        """The frame (C, S, S) uint8 of the environment's current state, to which `observation` belongs.

        Raises:
            EnvironmentNotUsableError: what is there is no picture. Whatever rendering itself raises passes through.
        """
        image = self._env.render() if self.source == "render" else _part(observation, self.source)
        return image_to_frame(self._pictures(image), self._image_size, self._channels)


def _the_picture(env: gymnasium.Env[Any, Any]) -> str:
    """The name of the picture in the observation; of several the one with a usual name."""
    found = pictures_in(env.observation_space)
    names = [name for name, problem in found.items() if problem is None]
    usual = [name for name in names if name.rpartition(".")[2].lower() in _USUAL_NAMES]
    if len(names) == 1 or len(usual) == 1:
        return (usual if len(usual) == 1 else names)[0]
    here = f"frame_source is observation, but that of {env_name(env)}"
    if names:
        raise EnvironmentNotUsableError(f"{here} holds several pictures. Set one of {', '.join(names)}.")
    reasons = "; ".join(f"{name} {problem}" for name, problem in found.items())
    raise EnvironmentNotUsableError(f"{here} holds no picture ({reasons}). Set render or auto.")
