"""Animations read back: every pixel, every time, every panel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jepaworld.errors import StorageError
from jepaworld.utils.pictures import save_animation, save_rows


def noise(count: int, channels: int = 3, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def animation(folder: Path, panels: list[np.ndarray], **settings) -> tuple[list[np.ndarray], list[int]]:
    """Write and read one: frames (H, W, 3) and the milliseconds of each."""
    save_animation(folder / "video.webp", panels, **settings)
    frames, durations = [], []
    with Image.open(folder / "video.webp") as image:
        assert image.format == "WEBP" and image.info["loop"] == 0
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    return frames, durations


def test_every_pixel_of_every_frame_survives(tmp_path: Path) -> None:
    colour, grey = noise(5), noise(5, channels=1, width=6, seed=1)
    frames, durations = animation(tmp_path, [colour, grey], scale=2, gap=3)
    assert len(frames) == 5 and durations == [100, 100, 100, 100, 1100]
    for step, frame in enumerate(frames):
        assert frame.shape == (16 + 2 * 3, 16 + 12 + 3 * 3, 3)
        np.testing.assert_array_equal(frame[3:19:2, 3:19:2], colour[step].transpose(1, 2, 0))
        np.testing.assert_array_equal(frame[4:19:2, 4:19:2], frame[3:19:2, 3:19:2])  # each pixel is a square
        expected = np.repeat(grey[step].transpose(1, 2, 0), 3, axis=2)
        np.testing.assert_array_equal(frame[3:19:2, 22:34:2], expected)
        white = np.concatenate([frame[:3].ravel(), frame[19:].ravel(), frame[:, :3].ravel(), frame[:, 34:].ravel()])
        assert (white == 255).all() and (frame[:, 19:22] == 255).all()


def test_short_panels_hold_their_last_frame(tmp_path: Path) -> None:
    played, goal, plan = noise(4), noise(1, seed=1), noise(2, seed=2)
    frames, _ = animation(tmp_path, [played, goal, plan], scale=1, gap=0)
    for step, frame in enumerate(frames):
        shown = [played[step], goal[0], plan[min(step, 1)]]
        np.testing.assert_array_equal(frame, np.concatenate(shown, axis=2).transpose(1, 2, 0))


def test_captions_stand_above_their_panels_and_stay_inside_them(tmp_path: Path) -> None:
    panels = [noise(2, height=20, width=40, seed=seed) for seed in range(3)]
    plain, _ = animation(tmp_path, panels, scale=2)
    texts = ["played", "", "a caption that is much too long for this panel"]
    named, _ = animation(tmp_path, panels, scale=2, captions=texts)
    strip = len(named[0]) - len(plain[0])
    assert 10 < strip < 30
    for with_text, without in zip(named, plain, strict=True):
        np.testing.assert_array_equal(with_text[strip:], without)
    head = named[0][:strip].min(axis=(0, 2))  # darkest of each column
    first, second, third = head[2:82], head[84:164], head[166:246]
    assert first.min() < 100 and third.min() < 100
    assert (second == 255).all() and (head[164:166] == 255).all() and (head[246:] == 255).all()
    short, _ = animation(tmp_path, panels, scale=2, captions=["played", "", "end"])
    assert len(short[0]) > len(named[0])  # a larger font, where all captions fit


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/video\.webp: cannot be written"):
        save_animation(tmp_path / "file" / "video.webp", [noise(3)])


def test_one_frame_is_a_picture_that_stands_still(tmp_path: Path) -> None:
    save_animation(tmp_path / "still.webp", [noise(1)], scale=1, gap=0)
    with Image.open(tmp_path / "still.webp") as image:
        assert getattr(image, "n_frames", 1) == 1
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), noise(1)[0].transpose(1, 2, 0))


def test_rows_of_frames_are_a_grid(tmp_path: Path) -> None:
    top, bottom = noise(3), noise(3, channels=1, seed=1)
    save_rows(tmp_path / "rows.png", [top, np.repeat(bottom, 3, axis=1)], scale=1, gap=2)
    with Image.open(tmp_path / "rows.png") as image:
        grid = np.asarray(image)
    assert grid.shape == (2 * 8 + 3 * 2, 3 * 8 + 4 * 2, 3)
    np.testing.assert_array_equal(grid[2:10, 12:20], top[1].transpose(1, 2, 0))
    np.testing.assert_array_equal(grid[12:20, 22:30, 0], bottom[2, 0])
    assert (grid[10:12] == 255).all() and (grid[:, 20:22] == 255).all()
