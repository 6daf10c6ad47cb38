"""Rows of frames as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jepaworld.storage import atomic_write_bytes


def save_rows(path: Path, rows: Sequence[np.ndarray], scale: int = 2, gap: int = 2) -> None:
    """Write rows of frames as a PNG.

    Args:
        path: The file; its folder exists.
        rows: uint8 (N, C, H, W) each, of equal N; one channel is shown in grey.
        scale: Pixels per pixel.
        gap: White pixels between frames.

    Raises:
        StorageError: the file cannot be written.
    """
    grid = np.stack([np.asarray(row) for row in rows])  # (rows, N, C, H, W)
    grid = np.broadcast_to(grid, (*grid.shape[:2], 3, *grid.shape[3:])).repeat(scale, axis=-2).repeat(scale, axis=-1)
    grid = np.pad(grid, ((0, 0), (0, 0), (0, 0), (gap, 0), (gap, 0)), constant_values=255)
    num_rows, num_frames, channels, height, width = grid.shape
    picture = grid.transpose(0, 3, 1, 4, 2).reshape(num_rows * height, num_frames * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(np.pad(picture, ((0, gap), (0, gap), (0, 0)), constant_values=255)).save(buffer, format="PNG")
    atomic_write_bytes(path, buffer.getvalue())
