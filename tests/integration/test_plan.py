"""`jepaworld plan`: a plan from a picture to a picture, as numbers and as what the model imagines of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from jepaworld import run_training
from jepaworld.config import Config
from tests.integration.conftest import Command, process, refused, tree

SHORT = "planning.horizon=5", "planning.num_samples=8", "planning.num_iterations=2", "planning.num_elites=3"
SIDE = 16  # of the frames


def picture_of_rooms(path: Path, seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    env = gymnasium.make("jepaworld/TwoRoom-v0", render_mode="rgb_array")
    env.reset(seed=seed)
    Image.fromarray(env.render()).resize(size, Image.Resampling.BOX).save(path)
    env.close()
    return path


@pytest.fixture
def goal(tmp_path: Path) -> Path:
    return picture_of_rooms(tmp_path / "goal.png", seed=3)


def plan_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "plan.json").read_text())


def panels(path: Path) -> list[np.ndarray]:
    """The pictures of a row of doubled frames with gaps of two pixels, (H, W, 3) each."""
    with Image.open(path) as picture:
        row = np.asarray(picture.convert("RGB"))
    step = 2 * SIDE + 2
    assert row.shape[0] == step + 2 and (row.shape[1] - 2) % step == 0
    return [row[2:-2:2, left + 2 : left + step : 2] for left in range(0, row.shape[1] - 2, step)]


def test_a_plan_from_a_picture_to_a_picture(jepaworld: Command, run_copy: Path, goal: Path, tmp_path: Path) -> None:
    start, out = picture_of_rooms(tmp_path / "start.png", seed=4), tmp_path / "new" / "plan"
    before = tree(run_copy)
    outcome = jepaworld("plan", run_copy, *SHORT, "--goal", goal, "--start", start, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "warning" not in outcome.err and f"look at {out}" in outcome.err
    assert sorted(path.name for path in out.iterdir()) == ["plan.json", "plan.png"]
    plan, actions = plan_of(out), np.array(plan_of(out)["actions"])
    assert actions.shape == (5, 1, 2), "plan steps, frame_skipping, entries"
    assert np.abs(actions).max() <= 1.0 and len(np.unique(actions)) > 1
    assert len(plan["imagined_distances"]) == 5
    assert plan["cost"] == pytest.approx(np.mean(plan["imagined_distances"]), rel=1e-4), "mean l2 along the path"
    assert (plan["goal"], plan["start"], plan["planning"]["horizon"]) == (str(goal), str(start), 5)
    pictures = panels(out / "plan.png")
    assert len(pictures) == 1 + 5 + 1
    for shown, file in ((pictures[0], start), (pictures[-1], goal)):
        with Image.open(file) as picture:
            np.testing.assert_array_equal(shown, np.asarray(picture.convert("RGB")))
    assert tree(run_copy) == before, "the run is left alone"


def test_the_same_call_gives_the_same_plan_and_another_seed_another(
    jepaworld: Command, run_copy: Path, goal: Path
) -> None:
    plans = []
    for seed in (0, 0, 1):
        assert jepaworld("plan", run_copy, *SHORT, f"evaluation.seed={seed}", "--goal", goal).code == 0
        plans.append(plan_of(run_copy / "plan"))
    assert plans[0] == plans[1]
    assert plans[0]["actions"] != plans[2]["actions"]


def test_another_goal_has_another_cost(jepaworld: Command, run_copy: Path, goal: Path) -> None:
    other = picture_of_rooms(goal.with_name("other.png"), seed=9)
    costs = []
    for wanted in (goal, other):
        assert jepaworld("plan", run_copy, *SHORT, "--goal", wanted).code == 0
        costs.append(plan_of(run_copy / "plan")["cost"])
    assert costs[0] != costs[1]


def test_without_a_start_the_first_frame_of_an_episode_is_taken(jepaworld: Command, run_copy: Path, goal: Path) -> None:
    assert jepaworld("plan", run_copy, *SHORT, "evaluation.seed=4", "--goal", goal).code == 0
    plan = plan_of(run_copy / "plan")
    assert plan["start"] is None and plan["start_distance"] >= 0
    shown = panels(run_copy / "plan" / "plan.png")[0].astype(int)
    with Image.open(picture_of_rooms(goal.with_name("start.png"), seed=4)) as picture:
        assert np.abs(shown - np.asarray(picture.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("option", ["--goal", "--start"])
def test_a_picture_of_another_size_is_resized_with_one_warning(
    option: str, run_copy: Path, goal: Path, tmp_path: Path
) -> None:
    other = picture_of_rooms(tmp_path / "large.png", seed=3, size=(48, 32))
    pictures = {"--goal": goal, "--start": goal} | {option: other}
    arguments = [word for pair in pictures.items() for word in pair]
    with process("plan", run_copy, *SHORT, *arguments, cwd=tmp_path) as planning:
        _, err = planning.communicate(timeout=60)
    assert planning.returncode == 0, err
    (said,) = [line for line in err.splitlines() if "resized" in line]
    assert str(other) in said and "48 x 32" in said and "16 x 16" in said
    assert len(panels(run_copy / "plan" / "plan.png")) == 7


def test_a_run_without_a_decoder_gets_numbers_and_no_stale_picture(
    jepaworld: Command, run_copy: Path, goal: Path
) -> None:
    assert jepaworld("plan", run_copy, *SHORT, "--goal", goal).code == 0
    (run_copy / "checkpoints" / "best_jepa_decoder.safetensors").unlink()
    outcome = jepaworld("plan", run_copy, *SHORT, "--goal", goal)
    assert outcome.code == 0 and f"jepaworld decode {run_copy}" in outcome.err
    assert [path.name for path in (run_copy / "plan").iterdir()] == ["plan.json"]


@pytest.mark.parametrize("planner", ["icem", "mppi", "gradient", "random_shooting"])
def test_every_planner_can_be_chosen(planner: str, jepaworld: Command, run_copy: Path, goal: Path) -> None:
    outcome = jepaworld("plan", run_copy, *SHORT, f"planning.planner={planner}", "--goal", goal)
    assert outcome.code == 0, outcome.err
    actions = np.array(plan_of(run_copy / "plan")["actions"])
    assert actions.shape == (5, 1, 2) and np.abs(actions).max() <= 1.0


class Lamps(gymnasium.Env):
    """Three actions switch on one of three lamps."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Discrete(3, start=5)
        self.observation_space = gymnasium.spaces.Discrete(3)
        self.lamp = 0

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.lamp = int(self.np_random.integers(3))
        return self.lamp, {}

    def step(self, action):
        self.lamp = int(action) - 5
        return self.lamp, 0.0, False, False, {}

    def render(self):
        image = np.full((16, 18, 3), 20, np.uint8)
        image[:, 6 * self.lamp : 6 * self.lamp + 6] = 250
        return image


def test_grey_frames_discrete_actions_and_blocks(
    jepaworld: Command, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    gymnasium.register("trouble/Lamps-v0", entry_point=Lamps, disable_env_checker=True)
    try:
        config = tiny_config(
            environment_name="trouble/Lamps-v0",
            input_channels=1,
            frame_skipping=2,
            collection={"policy": "random"},
            dataset_dir=str(tmp_path / "data"),
            num_epochs=1,
        )
        run = run_training(config, tmp_path / "run").run_dir
        Image.fromarray(np.full((16, 16), 99, np.uint8)).save(tmp_path / "goal.png")
        outcome = jepaworld("plan", run, *SHORT, "--goal", tmp_path / "goal.png")
    finally:
        gymnasium.registry.pop("trouble/Lamps-v0")
    assert outcome.code == 0, outcome.err
    actions = np.array(plan_of(run / "plan")["actions"])
    assert actions.shape == (5, 2) and actions.dtype.kind == "i" and set(actions.ravel()) <= {5, 6, 7}
    assert len(panels(run / "plan" / "plan.png")) == 7


# --- what is refused


def no_picture(path: Path) -> None:
    path.write_text("a drawing of a cat")


def empty(path: Path) -> None:
    path.touch()


def cut_short(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def broken_inside(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (256, 256, 3), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = bytes(4)
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.mkdir()


def missing(path: Path) -> None:
    assert not path.exists()


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 40_000, np.uint16)).save(path)


@pytest.mark.parametrize("spoil", [no_picture, empty, cut_short, broken_inside, a_folder, missing, sixteen_bits])
@pytest.mark.parametrize("option", ["--goal", "--start"])
def test_pictures_that_are_none(
    spoil: Callable[[Path], None], option: str, jepaworld: Command, run_copy: Path, goal: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.png"
    spoil(wrong)
    before = tree(run_copy)
    arguments = ["--goal", wrong] if option == "--goal" else ["--goal", goal, "--start", wrong]
    refused(jepaworld("plan", run_copy, *SHORT, *arguments), wrong, f"the {option[2:]} cannot be read", "PNG or JPEG")
    assert tree(run_copy) == before


def test_a_picture_that_would_fill_the_memory(
    jepaworld: Command, run_copy: Path, goal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(jepaworld("plan", run_copy, *SHORT, "--goal", goal), goal, "cannot be read")


def test_a_goal_is_needed(jepaworld: Command, finished_run: Path) -> None:
    outcome = jepaworld("plan", finished_run)
    assert outcome.code == 2 and "--goal" in outcome.words


def test_a_file_in_place_of_the_folder(jepaworld: Command, run_copy: Path, goal: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(jepaworld("plan", run_copy, *SHORT, "--goal", goal, "--out", out), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
