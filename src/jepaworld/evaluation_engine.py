"""What is done with a trained run: measure how well it plans, and plan once to a goal image.

The measuring is in `evaluation.planning`, the searching in `planning`; here are setup, checks and what is kept.

Shapes: T blocks, P plan steps, C H W image, D latent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from jepaworld.config import Config, load_config
from jepaworld.data.store import EpisodeDataset, file_checksum
from jepaworld.envs.frames import image_to_frame
from jepaworld.envs.player import Player
from jepaworld.errors import PlanningError
from jepaworld.evaluation.encoding import paint
from jepaworld.evaluation.planning import AgentResult, Outcome, Recording, evaluate_planning
from jepaworld.models import checkpoints, load, load_decoder
from jepaworld.models.state_decoder import JEPAStateDecoder
from jepaworld.planning import WorldModelPolicy
from jepaworld.runs.folder import RunFolder
from jepaworld.runs.settings import EVALUATION, require_equal
from jepaworld.utils.devices import resolve_device, use_bf16
from jepaworld.utils.pictures import save_animation, save_rows
from jepaworld.utils.progress import Progress
from jepaworld.utils.storage import atomic_write_text, storage_errors

SCHEMA = 1
# Blocks that a video goes on after the goal was reached.
AFTER_SUCCESS = 4
# Of Pillow, which would cut their values off at 255.
_MORE_THAN_8_BITS = ("I", "F")


def evaluate_run(
    run_dir: str | Path, overrides: Sequence[str] = (), progress: Progress | None = None
) -> dict[str, Any]:
    """Measure the planning success of a run's best model; write `evaluation/planning.json` and videos into the run.

    Args:
        run_dir: A run folder with a finished JEPA epoch.
        overrides: `key.path=value` each, of the sections `planning` and `evaluation`, of `device` and
            `mixed_precision`; the run's config.yaml is not changed.
        progress: What the user sees; None only logs.

    Returns:
        The content of planning.json.

    Raises:
        JepaworldError: a subclass for each problem that the user can mend.
    """
    progress, folder, began = progress or Progress(), RunFolder.open(run_dir), time.perf_counter()
    config = _config(folder, overrides)
    device = resolve_device(config.device)
    checkpoint = checkpoints.load(folder.path, "jepa").path
    with torch.random.fork_rng(devices=[]):  # models draw their first weights; the caller's numbers go on as before
        model = load(folder.path, device)
        decoder = _decoder(folder, device)  # before minutes of playing, as it may be damaged
    dataset, episodes = _heldout(folder, progress)
    bf16 = use_bf16(config.mixed_precision, device, model)
    result = evaluate_planning(model, config, dataset, episodes, bf16=bf16, progress=progress)
    target = folder.planning_file.parent
    with storage_errors(target):
        target.mkdir(exist_ok=True)
        for old in (folder.planning_file, *target.glob("video_*.webp")):
            old.unlink(missing_ok=True)
    videos = _write_videos(target, result.recordings, decoder, config)
    content = {
        "schema": SCHEMA,
        "checkpoint_sha256": file_checksum(checkpoint),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": config.evaluation.seed,
        "environment": config.environment_name,
        "protocol": result.protocol,
        "goals": result.tasks.goals,
        "num_episodes": len(result.tasks.tasks),
        "max_steps": config.evaluation.max_steps,
        "excluded_solved": result.tasks.solved,
        "groups": result.groups,
        "agents": [agent.to_dict() for agent in result.agents],
        "planning": config.planning.model_dump(mode="json"),
        "evaluation": config.evaluation.model_dump(mode="json"),
        "device": str(device),
        "episodes": [_episode(agent, outcome) for agent in result.agents for outcome in agent.outcomes],
        "videos": videos,
        "duration_seconds": round(time.perf_counter() - began, 1),
    }
    atomic_write_text(folder.planning_file, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


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
    changed = [
        f"planning={json.dumps(config.planning.model_dump(mode='json'))}",
        f"mixed_precision={config.mixed_precision}",
    ]
    policy = WorldModelPolicy.from_pretrained(folder.path, changed, device=config.device, seed=config.evaluation.seed)
    goal_image = _read_picture(Path(goal), "the goal", config, progress)
    start_image = _first_frame(config) if start is None else _read_picture(Path(start), "the start", config, progress)
    decoder = _decoder(folder, policy.controller.device)
    policy.set_goal(goal_image)
    plan = policy.plan(start_image)
    target = Path(out) if out is not None else folder.plan_folder
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in ("plan.json", "plan.png"):  # the picture of an earlier plan must not stand beside this one
            (target / name).unlink(missing_ok=True)
    distances = (plan.imagined[0] - plan.goal[0]).square().flatten(1).mean(dim=1)
    content = {
        "actions": policy.controller.space.split(plan.actions)[0].tolist(),
        "shape": "plan step, environment step of its block, entries of the action",
        "cost": float(plan.cost[0]),
        "goal": str(goal),
        "start": None if start is None else str(start),
        "seed": config.evaluation.seed,
        "start_distance": float((plan.start[0] - plan.goal[0]).square().mean()),
        "imagined_distances": distances.tolist(),
        "planning": config.planning.model_dump(mode="json"),
    }
    atomic_write_text(target / "plan.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    if decoder is None:
        progress.warn(
            f"the run has no state decoder, so the plan is not painted; `jepaworld decode {folder.path}` trains one"
        )
    else:
        imagined = paint(decoder, plan.imagined[0])
        ends = [image.transpose(2, 0, 1) for image in (start_image, goal_image)]
        save_rows(target / "plan.png", [np.stack([ends[0], *imagined, ends[1]])])
    return target


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


# --- setup ---------------------------------------------------------------------------------------------------------


def _config(folder: RunFolder, overrides: Sequence[str]) -> Config:
    """The run's configuration with what may be changed of it."""
    config = load_config(folder.config_file, overrides)
    require_equal(folder.config, config, EVALUATION, f"What can be changed here: {', '.join(EVALUATION)}.")
    return config


def _heldout(run: RunFolder, progress: Progress) -> tuple[EpisodeDataset | None, NDArray[np.int64]]:
    """The run's dataset, None if it is gone, and its held-out episodes."""
    dataset = run.open_dataset()
    if dataset is None:
        progress.warn(
            f"{run.dataset_path}: the run's dataset is missing. Goals that the environment draws need none; for "
            "recorded ones restore it."
        )
        return None, np.empty(0, np.int64)
    return dataset, run.split(dataset).evaluation


def _decoder(folder: RunFolder, device: torch.device) -> JEPAStateDecoder | None:
    path = folder.checkpoint("jepa_decoder")
    return load_decoder(path, device) if path.is_file() else None


def _read_picture(path: Path, what: str, config: Config, progress: Progress) -> NDArray[np.uint8]:
    """A picture as the model sees it, (H, W, C)."""
    try:
        with Image.open(path) as picture:
            if picture.mode in _MORE_THAN_8_BITS or picture.mode.startswith("I;"):
                raise ValueError(f"its values have more than 8 bits, mode {picture.mode}")
            image = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all of them Pillow's
        raise PlanningError(
            f"{path}: {what} cannot be read as a picture ({error}). Give a PNG or JPEG file with 8 bits per channel."
        ) from error
    height, width = image.shape[:2]
    if (height, width) != (config.image_size, config.image_size):
        progress.warn(
            f"{path}: {what} is {width} x {height} pixels and is resized to the model's {config.image_size} x "
            f"{config.image_size}; it should show what a frame of {config.environment_name} shows."
        )
    return image_to_frame(image, config.image_size, config.input_channels).transpose(1, 2, 0)


def _first_frame(config: Config) -> NDArray[np.uint8]:
    """The first frame of an episode, (H, W, C)."""
    with Player.of(config) as player:
        player.lanes[0].reset(config.evaluation.seed)
        return player.lanes[0].frame().transpose(1, 2, 0)


# --- what is kept --------------------------------------------------------------------------------------------------


def _episode(agent: AgentResult, outcome: Outcome) -> dict[str, Any]:
    return {
        "agent": agent.name,
        "task": outcome.task,
        "group": outcome.group,
        "any": outcome.reached,
        "end": outcome.at_end,
        "steps": outcome.steps,
        "distances": list(outcome.distances),
    }


def _write_videos(
    target: Path, recordings: Sequence[Recording], decoder: JEPAStateDecoder | None, config: Config
) -> list[dict[str, Any]]:
    """A video of each recording: the real frame, the goal and, if there is a decoder, the plan as it is imagined."""
    videos = []
    for number, recording in enumerate(recordings):
        outcome, name = recording.outcome, f"video_{number}.webp"
        frames = recording.frames
        if outcome.steps is not None:
            frames = frames[: -(-outcome.steps // config.frame_skipping) + 1 + AFTER_SUCCESS]
        panels, captions = [np.stack(frames), recording.goal[None]], ["real", "goal"]
        if decoder is not None:
            plans = torch.stack(recording.plans[: len(frames)])  # (T, P, *D)
            imagined = paint(decoder, plans.flatten(0, 1))
            steps = imagined.reshape(*plans.shape[:2], *imagined.shape[1:])
            panels.append(time_lapse(steps))
            captions.append("imagined plan")
        save_animation(target / name, panels, captions=captions)
        said = f"reached after {outcome.steps} steps" if outcome.reached else f"not reached in {outcome.played} steps"
        group = "" if outcome.group == "all" else f", {outcome.group}"
        videos.append(
            {
                "file": name,
                "task": outcome.task,
                "group": outcome.group,
                "success": outcome.reached,
                "caption": f"task {outcome.task}{group}: {said}",
            }
        )
    return videos
