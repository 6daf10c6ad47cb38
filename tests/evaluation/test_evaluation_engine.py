"""Evaluating and planning from Python: what is returned, kept and shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from jepaworld import run_training
from jepaworld.config import Config
from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import CheckpointError, ConfigError, PlanningError
from jepaworld.evaluation.encoding import paint
from jepaworld.evaluation.planning import Recording
from jepaworld.evaluation.results import PlanningResults, PlayedTask
from jepaworld.evaluation.videos import time_lapse, write_videos
from jepaworld.evaluation_engine import _read_picture, evaluate_run, plan_with_run
from jepaworld.planning import WorldModelPolicy
from jepaworld.runs.folder import RunFolder
from jepaworld.utils.progress import Progress

SHORT = ["evaluation.num_episodes=3", "evaluation.max_steps=5", "planning.horizon=2", "planning.num_samples=20"]


@pytest.fixture(scope="module")
def run(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("engine")
    config = tiny_config(dataset_dir=str(home / "data"), num_epochs=1, jepa_decoder_training={"enabled": False})
    return run_training(config, home / "run").run_dir


@pytest.fixture
def goal(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), (9, 11, 20)).save(tmp_path / "goal.png")
    return tmp_path / "goal.png"


class Told(Progress):
    def __init__(self) -> None:
        self.bars: list[tuple[str, int]] = []
        self.warnings: list[str] = []
        self.done = 0

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def start(self, description: str, total: int, completed: int = 0) -> None:
        assert completed == 0
        self.bars.append((description, total))

    def advance(self, n: int = 1, note: str = "") -> None:
        assert note
        self.done += n


def test_what_is_returned_is_what_is_written(run: Path) -> None:
    told = Told()
    results = evaluate_run(run, SHORT, told)
    written = PlanningResults.model_validate_json((run / "evaluation" / "planning.json").read_bytes())
    assert results.model_copy(update={"folder": written.folder, "recordings": ()}) == written
    assert results.device == "cpu" and results.num_episodes == 3 and len(results.videos) == len(results.recordings)
    assert told.bars[0] == ("planning", 3) and told.bars[-1][1] == 3
    assert told.done == sum(total for _, total in told.bars)


def test_tuning_and_publishing_share_no_episode(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config(
        dataset_dir=str(tmp_path / "data"),
        num_epochs=1,
        num_episodes_data_collection=16,
        jepa_decoder_training={"enabled": False},
        evaluation={"goals": "recorded", "goal_steps": 3, "success": [{"variable": "state", "distance": 0.1}]},
    )
    run = run_training(config, tmp_path / "run").run_dir
    split = RunFolder.open(run).split(EpisodeDataset.open(tmp_path / "data"))
    played = {}
    for name in ("evaluation", "validation"):
        told = Told()
        results = evaluate_run(run, [*SHORT, "evaluation.num_episodes=8", f"evaluation.split={name}"], told)
        played[name] = {task.episode for task in results.episodes}
        assert played[name] == set(getattr(split, name).tolist())
        assert any("tuning" in warning for warning in told.warnings) == (name == "validation")
        assert ("validation episodes" in results.protocol) == (name == "validation")
    assert not played["evaluation"] & played["validation"]
    assert not (played["evaluation"] | played["validation"]) & set(split.train.tolist())


def test_without_a_progress_nothing_is_printed(run: Path, goal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(run, SHORT)
    assert plan_with_run(run, goal, overrides=SHORT) == run / "plan"
    assert capsys.readouterr() == ("", "")


def test_the_plan_is_the_policys(run: Path, goal: Path, tmp_path: Path) -> None:
    folder = plan_with_run(run, goal, goal, tmp_path / "plan", [*SHORT, "evaluation.seed=3"])
    policy = WorldModelPolicy.from_pretrained(run, ["planning.horizon=2", "planning.num_samples=20"], seed=3)
    with Image.open(goal) as picture:
        image = np.asarray(picture)
    policy.set_goal(image)
    plan = policy.plan(image)
    content = json.loads((folder / "plan.json").read_text())
    np.testing.assert_array_equal(np.array(content["actions"]).reshape(2, 2), plan.actions[0].numpy())
    assert content["cost"] == pytest.approx(float(plan.cost[0]))


def test_nothing_is_said_twice(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (20, 30)).save(tmp_path / "goal.png")
    with caplog.at_level(logging.WARNING):
        plan_with_run(run, tmp_path / "goal.png", out=tmp_path / "plan", overrides=SHORT)
    assert len([record for record in caplog.records if "resized" in record.getMessage()]) == 1


def test_a_goal_picture_is_taken_as_viewers_show_it(run: Path, tmp_path: Path) -> None:
    """Turned by its EXIF orientation, and white where it is transparent, whatever lies below."""
    config, rng = RunFolder.open(run).config, np.random.default_rng(0)
    upright = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    exif, told = Image.Exif(), Told()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(_read_picture(tmp_path / "turned.png", "the goal", config, told), np.asarray(upright))
    assert len(told.warnings) == 1
    clear = np.dstack([np.asarray(upright), np.full((16, 16), 255, np.uint8)])
    clear[:4] = 0, 0, 0, 0
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    seen = _read_picture(tmp_path / "clear.png", "the goal", config, told)
    assert (seen[:4] == 255).all() and len(told.warnings) == 2
    np.testing.assert_array_equal(seen[4:], np.asarray(upright)[4:])
    Image.fromarray(clear[4:], "RGBA").resize((16, 16)).save(tmp_path / "opaque.png")
    _read_picture(tmp_path / "opaque.png", "the goal", config, told)
    assert len(told.warnings) == 2, "an alpha channel that hides nothing is not worth a word"


def test_errors_are_of_their_kind(run: Path, goal: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        evaluate_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"batch_size, seed: cannot"):
        evaluate_run(run, [*SHORT, "seed=3", "batch_size=4"])
    with pytest.raises(PlanningError, match="the start cannot be read"):
        plan_with_run(run, goal, tmp_path / "nowhere.png")


# --- pictures


class Painter(nn.Module):
    """Decodes (N, 1) to a picture whose values are the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        assert not self.training and len(z) <= 256
        return (self.scale * z).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_painting_rounds_and_clamps() -> None:
    z = torch.tensor([-3.0, 0.0, 0.25, 1.0, 2.0]).half().repeat(80)[:, None]
    painted = paint(Painter(), z)  # pyright: ignore[reportArgumentType]
    assert painted.shape == (400, 3, 8, 8) and painted.dtype == np.uint8
    np.testing.assert_array_equal(painted[:5, 0, 0, 0], [0, 0, 64, 255, 255])
    np.testing.assert_array_equal(painted[395:, 2, 3, 3], painted[:5, 0, 0, 0])


def test_a_time_lapse_shows_what_moves_at_every_step_and_what_stays_once() -> None:
    plans = np.full((4, 5, 3, 8, 6), 10, np.uint8)
    plans[:, :, :, 0] = 90  # a wall
    colour = np.array([255, 200, 0], np.uint8)
    for plan in range(4):
        for step in range(5):
            plans[plan, step, :, 3 + plan, step] = colour
    pictures = time_lapse(plans)
    expected = np.full((4, 3, 8, 6), 10, np.uint8)
    expected[:, :, 0] = 90
    for plan in range(4):
        expected[plan, :, 3 + plan, :5] = colour[:, None]
    np.testing.assert_array_equal(pictures, expected)
    # A plan that stays where it is shows what is there, too.
    plans[2, :, :, 5] = 10
    plans[2, :, :, 5, 1] = colour
    expected[2, :, 5] = 10
    expected[2, :, 5, 1] = colour
    np.testing.assert_array_equal(time_lapse(plans), expected)


def recording(steps: int | None, blocks: int) -> Recording:
    played = PlayedTask(agent="planner", task=7, any=steps is not None, end=False, steps=steps, played=3 * blocks)
    frame = np.zeros((3, 8, 8), np.uint8)
    frames = [np.full_like(frame, 5 * block) for block in range(blocks + 1)]
    return Recording(played, frame, frames, [torch.zeros(2, 1)] * blocks)


@pytest.mark.parametrize(
    ("steps", "frames", "said"),
    [
        (None, 21, "not reached in 60 steps"),
        # Frame 4 is the first at or after step 10, in blocks of 3; four more are shown.
        (10, 9, "reached after 10 steps"),
        (60, 21, "reached after 60 steps"),
    ],
)
def test_a_video_ends_soon_after_the_goal(steps: int | None, frames: int, said: str, tmp_path: Path) -> None:
    painter: Any = Painter()
    (video,) = write_videos(tmp_path, [recording(steps, 20)], painter, 3)
    assert video.model_dump() == {
        "file": "video_0.webp",
        "task": 7,
        "group": "all",
        "success": steps is not None,
        "caption": f"task 7: {said}",
    }
    with Image.open(tmp_path / "video_0.webp") as picture:
        assert picture.n_frames == frames  # pyright: ignore[reportAttributeAccessIssue]
