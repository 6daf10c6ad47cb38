"""What is done with a trained run: measure how well it plans, and plan once to a goal image.

The measuring is in `evaluation.planning`, the searching in `planning`; here are setup, checks and what is kept.

Shapes: P plan steps, C H W image.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from jepaworld.config import Config, load_config
from jepaworld.config.changes import EVALUATION, require_equal
from jepaworld.envs.frames import image_to_frame
from jepaworld.envs.player import Player
from jepaworld.envs.seeding import kept_random_state
from jepaworld.errors import PlanningError
from jepaworld.evaluation.encoding import paint
from jepaworld.evaluation.planning import evaluate_planning
from jepaworld.evaluation.results import PlanningResults
from jepaworld.evaluation.videos import write_videos
from jepaworld.models import load, load_decoder
from jepaworld.models.state_decoder import JEPAStateDecoder
from jepaworld.planning import WorldModelPolicy
from jepaworld.runs.folder import RunFolder
from jepaworld.utils.devices import resolve_device, use_bf16
from jepaworld.utils.pictures import save_rows
from jepaworld.utils.progress import Progress
from jepaworld.utils.storage import atomic_write_text, file_checksum, storage_errors

_MORE_THAN_8_BITS = ("I", "F")  # modes of Pillow, which would cut their values off at 255


def evaluate_run(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    tasks_from: str | Path | None = None,
    tasks_to: str | Path | None = None,
) -> PlanningResults:
    """Measure the planning success of a run's best model; write `evaluation/planning.json` and videos into the run.

    Args:
        run_dir: A run folder with a finished JEPA epoch.
        overrides: `key.path=value` each, of the sections `planning` and `evaluation`, of `device` and
            `mixed_precision`; the run's config.yaml is not changed.
        progress: What the user sees; None only logs.
        tasks_from: A task file to play from; it decides seed, steps and success.
        tasks_to: File for the tasks that are drawn.

    Returns:
        The content of planning.json.

    Raises:
        JepaworldError: a subclass for each problem that the user can mend.
    """
    progress, folder, began = progress or Progress(), RunFolder.open(run_dir), time.perf_counter()
    config = _config(folder, overrides)
    device = resolve_device(config.device)
    with torch.random.fork_rng(devices=[]):  # models draw their first weights; the caller's numbers go on as before
        model = load(folder.path, device)
        decoder = _decoder(folder, device)  # before minutes of playing, as it may be damaged
    dataset, episodes = folder.open_dataset(), np.empty(0, np.int64)
    if dataset is not None:
        episodes = getattr(folder.split(dataset), config.evaluation.split)
    else:
        progress.warn(
            f"{folder.dataset_path}: the run's dataset is missing. Goals that the environment draws need none; for "
            "recorded ones restore it."
        )
    bf16 = use_bf16(config.mixed_precision, device, model)
    source, target = (None if path is None else Path(path) for path in (tasks_from, tasks_to))
    results = evaluate_planning(
        model, config, dataset, episodes, bf16=bf16, progress=progress, tasks_from=source, tasks_to=target
    )
    target = folder.planning_file.parent
    with storage_errors(target):
        target.mkdir(exist_ok=True)
        for old in (folder.planning_file, *target.glob("video_*.webp")):
            old.unlink(missing_ok=True)
        videos = write_videos(target, results.recordings, decoder, config.frame_skipping)
    about = {
        "checkpoint_sha256": file_checksum(folder.checkpoint("jepa")),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "videos": videos,
        "duration_seconds": round(time.perf_counter() - began, 1),
        "folder": target,
    }
    results = results.model_copy(update=about)
    results.write(folder.planning_file)
    return results


def plan_with_run(
    run_dir: str | Path,
    goal: str | Path,
    start: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Plan once, and show what the model imagines of it.

    Args:
        run_dir: A run folder with a finished JEPA epoch.
        goal: Picture of the goal; one of another size than the model's frames is resized, with a warning.
        start: Picture to begin at; None takes the first frame of an episode with the seed `evaluation.seed`.
        out: Where the results go; None makes RUN/plan.
        overrides: As of `evaluate_run`.
        progress: What the user sees; None only logs.

    Returns:
        The folder: `plan.json` with the actions, their cost and the imagined distances to the goal, and, if the run has
        a state decoder, `plan.png`: the start, the decoded embedding after each block, and the goal.

    Raises:
        JepaworldError: a subclass for each problem that the user can mend.
    """
    progress, folder = progress or Progress(), RunFolder.open(run_dir)
    config = _config(folder, overrides)
    settings, seed = config.planning.model_dump(mode="json"), config.evaluation.seed
    changed = [f"planning={json.dumps(settings)}", f"mixed_precision={config.mixed_precision}"]
    policy = WorldModelPolicy.from_pretrained(folder.path, changed, device=config.device, seed=seed)
    goal_image = _read_picture(Path(goal), "the goal", config, progress)
    start_image = _first_frame(config) if start is None else _read_picture(Path(start), "the start", config, progress)
    decoder = _decoder(folder, policy.controller.device)
    policy.set_goal(goal_image)
    plan = policy.plan(start_image)
    target = folder.plan_folder if out is None else Path(out)
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in ("plan.json", "plan.png"):  # the picture of an earlier plan must not stand beside this one
            (target / name).unlink(missing_ok=True)
    content = {
        "actions": policy.controller.space.split(plan.actions)[0].tolist(),
        "shape": "plan step, environment step of its block, entries of the action",
        "cost": float(plan.cost[0]),
        "goal": str(goal),
        "start": None if start is None else str(start),
        "seed": seed,
        "start_distance": float((plan.start[0] - plan.goal[0]).square().mean()),
        "imagined_distances": (plan.imagined[0] - plan.goal[0]).square().flatten(1).mean(dim=1).tolist(),
        "planning": settings,
    }
    atomic_write_text(target / "plan.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    if decoder is None:
        progress.warn(
            f"the run has no state decoder, so the plan is not painted; `jepaworld decode {folder.path}` trains one"
        )
    else:
        first, last = (image.transpose(2, 0, 1) for image in (start_image, goal_image))
        save_rows(target / "plan.png", [np.stack([first, *paint(decoder, plan.imagined[0]), last])])
    return target


# --- setup ---------------------------------------------------------------------------------------------------------


def _config(folder: RunFolder, overrides: Sequence[str]) -> Config:
    """The run's configuration with what may be changed of it."""
    config = load_config(folder.config_file, overrides)
    require_equal(folder.config, config, EVALUATION, f"What can be changed here: {', '.join(EVALUATION)}.")
    return config


def _decoder(folder: RunFolder, device: torch.device) -> JEPAStateDecoder | None:
    path = folder.checkpoint("jepa_decoder")
    return load_decoder(path, device) if path.is_file() else None


def _read_picture(path: Path, what: str, config: Config, progress: Progress) -> NDArray[np.uint8]:
    """A picture as the model sees it, (H, W, C)."""
    try:
        with Image.open(path) as picture:
            if picture.mode in _MORE_THAN_8_BITS or picture.mode.startswith("I;"):
                raise ValueError(f"its values have more than 8 bits, mode {picture.mode}")
            image = np.asarray(_as_seen(picture, path, what, progress))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all of them Pillow's
        raise PlanningError(
            f"{path}: {what} cannot be read as a picture ({error}). Give a PNG or JPEG file with 8 bits per channel."
        ) from error
    side, (height, width) = config.image_size, image.shape[:2]
    if (height, width) != (side, side):
        progress.warn(
            f"{path}: {what} is {width} x {height} pixels and is resized to the model's {side} x {side}; it should "
            f"show what a frame of {config.environment_name} shows."
        )
    return image_to_frame(image, side, config.input_channels).transpose(1, 2, 0)


def _as_seen(picture: Image.Image, path: Path, what: str, progress: Progress) -> Image.Image:
    """A picture as viewers show it, in RGB: turned as a camera noted, transparent places white."""
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        progress.warn(f"{path}: {what} is turned upright, as its EXIF orientation says.")
        picture = ImageOps.exif_transpose(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    if picture.getchannel("A").getextrema() != (255, 255):
        progress.warn(f"{path}: {what} has transparent places, which are shown on white. Save it without transparency.")
    # What lies below transparent places is anything, often black.
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _first_frame(config: Config) -> NDArray[np.uint8]:
    """The first frame of an episode, (H, W, C)."""
    with Player.of(config) as player, kept_random_state():
        player.lanes[0].reset(config.evaluation.seed)
        return player.lanes[0].frame().transpose(1, 2, 0)
