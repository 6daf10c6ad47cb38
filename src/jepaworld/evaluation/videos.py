"""Videos of planned episodes: the real frames, the goal, and the plan as the model imagines it.

Shapes: T blocks, P plan steps, C H W image, *D latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from jepaworld.evaluation.encoding import paint
from jepaworld.evaluation.planning import Recording
from jepaworld.evaluation.results import PlanningVideo
from jepaworld.models.state_decoder import JEPAStateDecoder
from jepaworld.utils.pictures import save_animation

AFTER_SUCCESS = 4  # blocks that a video goes on after the goal was reached


def write_videos(
    folder: Path, recordings: Sequence[Recording], decoder: JEPAStateDecoder | None, frame_skipping: int
) -> list[PlanningVideo]:
    """Write a video of each recording, the imagined plan in it if there is a decoder."""
    videos = []
    for number, recording in enumerate(recordings):
        played, frames, name = recording.played, recording.frames, f"video_{number}.webp"
        if played.steps is not None:
            frames = frames[: -(-played.steps // frame_skipping) + 1 + AFTER_SUCCESS]
        panels, captions = [np.stack(frames), recording.goal[None]], ["real", "goal"]
        if decoder is not None:
            plans = torch.stack(recording.plans[: len(frames)])  # (T, P, *D)
            imagined = paint(decoder, plans.flatten(0, 1))
            panels.append(time_lapse(imagined.reshape(*plans.shape[:2], *imagined.shape[1:])))
            captions.append("imagined plan")
        save_animation(folder / name, panels, captions=captions)
        said = f"reached after {played.steps} steps" if played.any else f"not reached in {played.played} steps"
        group = "" if played.group == "all" else f", {played.group}"
        about = {"task": played.task, "group": played.group, "success": played.any}
        videos.append(PlanningVideo(file=name, caption=f"task {played.task}{group}: {said}", **about))
    return videos


def time_lapse(imagined: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All steps of a plan in one picture: of each pixel the value that differs most from what is usually there.

    Args:
        imagined: (T, P, C, H, W), the plans of an episode.

    Returns:
        (T, C, H, W): what moves is seen at every step of its plan, what stays once.
    """
    values = imagined.astype(np.int16)
    usual = np.median(values, axis=(0, 1)).astype(np.int16)
    chosen = np.abs(values - usual).sum(axis=2).argmax(axis=1)  # (T, H, W)
    return np.take_along_axis(imagined, chosen[:, None, None], axis=1)[:, 0]
