"""Square uint8 frames of any environment, from its image observation or its rendering.

Shapes: S side of a frame; C channels, 1 or 3.
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray
from PIL import Image

from jepaworld.envs.calls import env_name
from jepaworld.errors import EnvironmentNotUsableError

Frame = NDArray[np.uint8]
FrameSource = Literal["auto", "observation", "render"]

MOST_DIFFERING = 1e-3  # share of a frame's values that may differ by more where two frames are taken for the same
_LEVELS = 16  # of 255; renderers of two machines do not agree to the last bit
_SMALLEST_IMAGE = 16  # a smaller uint8 grid is more likely a map of cells (MiniGrid: 7x7x3) than a picture


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
    """What an environment gave as a picture.

    Raises:
        EnvironmentNotUsableError: it is no uint8 array (H, W), (H, W, 1) or (H, W, 3).
    """
    is_array = isinstance(image, np.ndarray)
    if is_array and image.dtype == np.uint8 and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))):
        return image
    found = f"{image.dtype} {image.shape}" if is_array else type(image).__name__
    raise EnvironmentNotUsableError(f"{given_by} gives {found}; expected a uint8 array of HxW, HxWx1 or HxWx3.")


class FrameReader:
    """Frames of an environment: `reader(observation)` is the frame that belongs to its current state.

    The environment is rendered only when called, so that frames which frame skipping drops cost nothing. The source
    "auto" is the observation where it is an image, else the rendering.

    Raises:
        EnvironmentNotUsableError: the source is "observation" and that is no image, or "render" and the
            environment was not made with `render_mode="rgb_array"`.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], image_size: int, input_channels: int, frame_source: FrameSource = "auto"
    ) -> None:
        is_image = is_image_space(env.observation_space)
        if frame_source == "auto":
            frame_source = "observation" if is_image else "render"
        self.source: Literal["observation", "render"] = frame_source
        problem = None
        if frame_source == "observation" and not is_image:
            sides = f"HxW, HxWx1 or HxWx3, sides at least {_SMALLEST_IMAGE}"
            problem = f"no image ({env.observation_space}; uint8 from 0 to 255, {sides}, would be). Set render or auto"
        if frame_source == "render" and env.render_mode != "rgb_array":
            problem = f"not there (render_mode {env.render_mode!r}, not 'rgb_array'). Set observation or auto"
        if problem:
            raise EnvironmentNotUsableError(
                f"frame_source is {frame_source}, but that of {env_name(env)} is {problem}."
            )
        self._env, self._image_size, self._channels = env, image_size, input_channels

    def __call__(self, observation: Any) -> Frame:
        """The frame (C, S, S) uint8 of the environment's current state, to which `observation` belongs.

        Raises:
            EnvironmentNotUsableError: rendering gives no picture. Whatever rendering itself raises passes through.
        """
        image: Any = np.asarray(observation) if self.source == "observation" else self._env.render()
        return image_to_frame(
            as_picture(image, f"{env_name(self._env)}: {self.source}"), self._image_size, self._channels
        )
