"""Rows of frames as one picture, and panels of frames side by side as an animated one.

Shapes: T frames, C H W image, uint8; one channel is shown in grey.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepaworld.utils.storage import atomic_write_bytes

_FONT_SIZES = range(14, 8, -1)
_MILLISECONDS, _HOLD = 100, 1000  # of a frame, and added to the last one, so that the end can be seen


def save_png(path: str | Path, picture: Image.Image) -> None:
    """Write a picture as a PNG.

    Raises:
        StorageError: the file cannot be written.
    """
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    atomic_write_bytes(path, buffer.getvalue())


def save_rows(path: Path, rows: Sequence[np.ndarray], scale: int = 2, gap: int = 2) -> None:
    """Write rows of frames as a PNG.

    Args:
        path: The file; its folder exists.
        rows: uint8 (N, C, H, W) each, of equal N.
        scale: Pixels per pixel.
        gap: White pixels between frames.

    Raises:
        StorageError: the file cannot be written.
    """
    lines = [np.concatenate([_tile(frame, scale, gap) for frame in row], axis=1) for row in rows]
    save_png(path, Image.fromarray(_close(np.concatenate(lines), gap)))


def save_animation(
    path: Path, panels: Sequence[np.ndarray], captions: Sequence[str] | None = None, scale: int = 3, gap: int = 2
) -> None:
    """Write panels of frames side by side as an animated WebP, `*.webp`, that runs for ever.

    Lossless WebP keeps every colour, moves in all current browsers (a viewer that knows it only as a picture shows
    its first frame), and is the smallest: of three panels of 61 noisy frames APNG takes 1.4 times the bytes, and GIF,
    which has only 256 colours, 3.8 times.

    Args:
        path: The file; its folder exists.
        panels: uint8 (T, C, H, W) each, of equal H; of different T the shorter ones stop at their last frame, so that
            a goal is a panel of one frame.
        captions: Text above each panel, in the largest size that fits all; what does not fit in the smallest is cut.
        scale: Pixels per pixel.
        gap: White pixels around and between panels.

    Raises:
        StorageError: the file cannot be written.
    """
    assert panels and (captions is None or len(captions) == len(panels))
    length = max(len(panel) for panel in panels)
    head = None
    if captions is not None:
        head = _caption_strip(captions, [panel.shape[-1] * scale for panel in panels], gap)

    def frame(step: int) -> Image.Image:
        shown = np.concatenate([_tile(panel[min(step, len(panel) - 1)], scale, gap) for panel in panels], axis=1)
        shown = _close(shown, gap)
        return Image.fromarray(shown if head is None else np.concatenate([head, shown]))

    rest = (frame(step) for step in range(1, length))  # never all of them in memory
    durations = [_MILLISECONDS] * (length - 1) + [_MILLISECONDS + _HOLD]
    buffer = io.BytesIO()
    settings = {"lossless": True, "quality": 80, "method": 4}  # higher ones take minutes and save a tenth
    frame(0).save(buffer, "WEBP", save_all=True, append_images=rest, duration=durations, loop=0, **settings)
    atomic_write_bytes(path, buffer.getvalue())


def _tile(frame: np.ndarray, scale: int, gap: int) -> np.ndarray:
    """A frame (C, H, W), enlarged, as (H, W, 3) with white above and on the left."""
    colour = np.broadcast_to(frame, (3, *frame.shape[1:])).repeat(scale, axis=1).repeat(scale, axis=2)
    return np.pad(colour.transpose(1, 2, 0), ((gap, 0), (gap, 0), (0, 0)), constant_values=255)


def _close(picture: np.ndarray, gap: int) -> np.ndarray:
    """Tiles side by side with white below and on the right, too."""
    return np.pad(picture, ((0, gap), (0, gap), (0, 0)), constant_values=255)


def _caption_strip(captions: Sequence[str], rooms: Sequence[int], gap: int) -> np.ndarray:
    """Black on white, uint8 (height, widths of all panels and gaps, 3); rooms are the widths of the panels."""
    fonts = [ImageFont.load_default(size) for size in _FONT_SIZES]
    fitting = (f for f in fonts if all(f.getlength(text) <= room for text, room in zip(captions, rooms, strict=True)))
    font = next(fitting, fonts[-1])
    top, bottom = (int(value) for value in font.getbbox("Ag")[1::2])
    strip = Image.new("RGB", (sum(rooms) + gap * (len(rooms) + 1), bottom - top + 2 * gap + 2), "white")
    draw, left = ImageDraw.Draw(strip), gap
    for text, room in zip(captions, rooms, strict=True):
        shown, kept = text, len(text)
        while shown and font.getlength(shown) > room:
            kept -= 1
            shown = f"{text[:kept]}..." if kept else ""
        draw.text((left, gap + 1 - top), shown, fill="black", font=font)
        left += room + gap
    return np.asarray(strip)
