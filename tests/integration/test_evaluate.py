"""`jepaworld evaluate` on a finished run: what is written, printed and left alone, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import safetensors
import safetensors.torch
from PIL import Image

from jepaworld import load_config
from jepaworld.config import Config, to_commented_yaml
from jepaworld.utils.text import number, percent
from tests.integration.conftest import SHORT_EVALUATION, Command, Outcome, refused, tree

ROOMS = ["goal_room=same", "goal_room=other"]


def planning_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "evaluation" / "planning.json").read_text())


def agent_of(run: Path, name: str) -> dict[str, Any]:
    return next(agent for agent in planning_of(run)["agents"] if agent["name"] == name)


def line_of(table: str, *beginning: str) -> str:
    """The only line that begins with these words."""
    (found,) = [line for line in table.splitlines() if line.split()[: len(beginning)] == list(beginning)]
    return found


# --- what is written and printed


def test_what_is_written(evaluated: tuple[Path, Outcome], finished_run: Path) -> None:
    run, outcome = evaluated
    assert outcome.code == 0, outcome.err
    before, after = tree(finished_run), tree(run)
    changed = {name for name in after if after[name] != before.get(name)}
    videos = {name for name in changed if name.startswith("evaluation/video_")}
    assert changed - videos == {"evaluation", "evaluation/planning.json", "report.html", "report.json"}
    assert {f"evaluation/{video['file']}" for video in planning_of(run)["videos"]} == videos and len(videos) >= 4
    assert str(run / "report.html") in outcome.err


def test_every_video_shows_an_episode_beside_its_goal_and_the_decoded_plan(evaluated: tuple[Path, Outcome]) -> None:
    run, _ = evaluated
    outcomes = {row["task"]: row for row in planning_of(run)["episodes"] if row["agent"] == "planner"}
    for video in planning_of(run)["videos"]:
        outcome = outcomes[video["task"]]
        assert (video["success"], video["group"]) == (outcome["any"], outcome["group"])
        said = f"reached after {outcome['steps']} steps" if outcome["any"] else "not reached in 10 steps"
        assert video["caption"] == f"task {video['task']}, {video['group']}: {said}"
        with Image.open(run / "evaluation" / video["file"]) as picture:
            assert picture.width == 3 * (16 * 3 + 2) + 2, "real frame, goal, imagined plan"
            assert 2 <= picture.n_frames <= 11


def test_the_numbers_count_the_episodes(evaluated: tuple[Path, Outcome]) -> None:
    planning = planning_of(evaluated[0])
    assert planning["groups"] == ROOMS and planning["num_episodes"] == 6 and planning["max_steps"] == 10
    for agent in planning["agents"][:2]:
        rows = [row for row in planning["episodes"] if row["agent"] == agent["name"]]
        assert sorted(row["task"] for row in rows) == list(range(6))
        for group in ("all", *ROOMS):
            chosen = [row for row in rows if group in ("all", row["group"])]
            for key in ("any", "end"):
                rate = agent[key][group]
                assert (rate["successes"], rate["episodes"]) == (sum(row[key] for row in chosen), len(chosen))
                assert rate["low"] <= rate["rate"] <= rate["high"]
    assert agent_of(evaluated[0], "planner")["seconds_per_plan"] > 0
    assert agent_of(evaluated[0], "recorded")["missing"]


def test_the_table_says_what_the_files_say(evaluated: tuple[Path, Outcome]) -> None:
    run, outcome = evaluated
    planning, report = planning_of(run), json.loads((run / "report.json").read_text())
    assert all(len(line) <= 120 for line in outcome.out.splitlines())
    assert planning["protocol"] in " ".join(outcome.out.split())
    lines = iter(outcome.out[outcome.out.index("goals reached") :].splitlines()[1:])
    for name, title in (("planner", "planner"), ("random", "random policy")):
        agent = agent_of(run, name)
        for group in ("all", *ROOMS):
            line = next(lines)
            assert group in line and line.startswith(title if group == "all" else "  ")
            rates = [agent[key][group] for key in ("any", "end")]
            said = [f"{percent(r['rate'])} % ({percent(r['low'])} to {percent(r['high'])})" for r in rates]
            assert line.index(said[0]) < line.rindex(said[1])
            assert line.split()[-1] == str(agent["any"][group]["episodes"])
    assert f"no recorded actions: {agent_of(run, 'recorded')['missing']}" in outcome.out
    assert f"effective rank {number(report['collapse']['effective_rank'])} of 8" in outcome.out
    for probe in report["probes"]:
        if probe["r2"] is not None:
            values = [probe["r2"], probe["mlp"]["r2"], *probe["baselines_r2"].values()]
            assert line_of(outcome.out, probe["variable"]).split()[1:] == list(map(number, values))
    steps = [int(step) for step in line_of(outcome.out, "imagined", "steps").split()[2:]]
    assert steps[:3] == [1, 2, 4] and steps[-1] == report["imagination"]["step"][-1]
    errors = [report["imagination"]["error"][step - 1] for step in steps]
    assert line_of(outcome.out, "embedding", "error").split()[2:] == list(map(number, errors))


def test_the_report_shows_it(evaluated: tuple[Path, Outcome]) -> None:
    run, _ = evaluated
    report, page = json.loads((run / "report.json").read_text()), (run / "report.html").read_text()
    written = planning_of(run)
    assert report["planning"]["created"] == written["created"]
    assert [agent["any"] for agent in report["planning"]["agents"]] == [agent["any"] for agent in written["agents"]]
    assert report["missing"] == []
    assert page.count("data:image/webp;base64,") == len(written["videos"])


def test_settings_are_overridden_for_this_time_only(evaluated: tuple[Path, Outcome], finished_run: Path) -> None:
    run, _ = evaluated
    written = planning_of(run)
    assert written["planning"]["horizon"] == 3 and written["evaluation"]["num_episodes"] == 6
    assert (run / "config.yaml").read_bytes() == (finished_run / "config.yaml").read_bytes()
    assert load_config(run / "config.yaml").planning.horizon != 3


@pytest.mark.usefixtures("unreported")
def test_measuring_again_replaces_what_was_there(
    evaluated: tuple[Path, Outcome], jepaworld: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(evaluated[0], tmp_path / "run")
    first = planning_of(run)
    shutil.copy(run / "evaluation" / "video_0.webp", run / "evaluation" / "video_99.webp")
    assert jepaworld("evaluate", run, *SHORT_EVALUATION).code == 0
    again = planning_of(run)
    assert again["episodes"] == first["episodes"], "the same seed and settings: the same episodes"
    assert jepaworld("evaluate", run, *SHORT_EVALUATION, "evaluation.num_episodes=2", "evaluation.seed=7").code == 0
    other = planning_of(run)
    assert (other["seed"], other["num_episodes"], len(other["videos"])) == (7, 2, 2)
    there = {path.name for path in (run / "evaluation").iterdir()}
    assert there == {"planning.json", *(video["file"] for video in other["videos"])}


@pytest.mark.usefixtures("unreported")
def test_a_run_without_a_decoder(jepaworld: Command, run_copy: Path) -> None:
    (run_copy / "checkpoints" / "best_jepa_decoder.safetensors").unlink()
    assert jepaworld("evaluate", run_copy, *SHORT_EVALUATION).code == 0
    video = planning_of(run_copy)["videos"][0]
    with Image.open(run_copy / "evaluation" / video["file"]) as picture:
        assert picture.width == 2 * (16 * 3 + 2) + 2, "real frame and goal"


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("restore", ["state", "replay"])
def test_recorded_goals_have_a_ceiling(restore: str, jepaworld: Command, run_copy: Path) -> None:
    recorded = "evaluation.goals=recorded", "evaluation.goal_steps=6", f"evaluation.restore={restore}"
    near = "evaluation.success=[{variable: state, distance: 0.5}]"
    outcome = jepaworld("evaluate", run_copy, *SHORT_EVALUATION, *recorded, near)
    assert outcome.code == 0, outcome.err
    assert agent_of(run_copy, "recorded")["end"]["all"]["rate"] == 1.0
    assert "100 %" in line_of(outcome.out.partition("\ntime ")[0], "recorded", "actions", "all")
    assert "reset_options has no effect" in outcome.err
    rows = [row for row in planning_of(run_copy)["episodes"] if row["agent"] == "recorded"]
    assert len(rows) == 6 and all(0 <= row["distances"][0] <= 0.01 for row in rows)


def test_results_of_another_checkpoint_are_not_shown(
    evaluated: tuple[Path, Outcome], jepaworld: Command, tmp_path: Path
) -> None:
    run = shutil.copytree(evaluated[0], tmp_path / "run")
    spoil_weights(run, lambda weight: weight * 1.01)
    assert jepaworld("report", run).code == 0
    report, page = json.loads((run / "report.json").read_text()), (run / "report.html").read_text()
    assert report["planning"] is None
    (missing,) = report["missing"]
    assert "another model" in missing and f"`jepaworld evaluate {run}`" in missing
    assert "data:image/webp" not in page


@pytest.mark.usefixtures("unreported")
def test_a_run_whose_dataset_is_gone(jepaworld: Command, run_copy: Path, tmp_path: Path) -> None:
    info = json.loads((run_copy / "run.json").read_text())
    info["dataset"]["path"] = str(tmp_path / "gone")
    (run_copy / "run.json").write_text(json.dumps(info))
    outcome = jepaworld("evaluate", run_copy, *SHORT_EVALUATION)
    assert outcome.code == 0 and str(tmp_path / "gone") in outcome.err, "the environment's goals need no dataset"
    outcome = jepaworld("evaluate", run_copy, *SHORT_EVALUATION, "evaluation.goals=recorded")
    refused(outcome, "evaluation.goals", "dataset", "Restore it")


# --- what training left open, and what not


@pytest.mark.usefixtures("unreported")
def test_a_run_is_resumed_with_other_settings_of_planning_but_not_of_training(
    jepaworld: Command, run_copy: Path
) -> None:
    resume = "train", "--run", run_copy, "--resume"
    outcome = jepaworld(*resume[:1], run_copy / "config.yaml", "planning.horizon=4", *SHORT_EVALUATION[:1], *resume[1:])
    assert outcome.code == 0, outcome.err
    config = load_config(run_copy / "config.yaml")
    assert (config.planning.horizon, config.evaluation.num_episodes) == (4, 6)
    refused(jepaworld("train", run_copy / "config.yaml", "learning_rate=0.5", *resume[1:]), "learning_rate", "new run")
    assert load_config(run_copy / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "mentioned"),
    [
        pytest.param("latent_dim=4", ["latent_dim", "was trained with another", "planning, evaluation"], id="training"),
        pytest.param("environment_kwargs={random_wall: true}", ["environment_kwargs"], id="environment"),
        pytest.param("planning.horizn=4", ["planning.horizn", "planning.horizon"], id="misspelt"),
        pytest.param("horizon=4", ["horizon", "unknown"], id="without its section"),
        pytest.param("planning.horizon=0", ["planning.horizon", "at least 1"], id="out of range"),
        pytest.param("planning.planner=dreamer", ["planning.planner", "dreamer", "cem"], id="no such planner"),
        pytest.param("planning.planner=categorical_cem", ["planning.planner", "Box"], id="planner of other actions"),
        pytest.param("planning.context=5", ["planning.context", "5"], id="more context than the model's"),
        pytest.param("planning.replan_every=20", ["planning.replan_every", "planning.horizon"], id="plan too short"),
        pytest.param("planning.num_elites=100", ["planning.num_elites", "planning.num_samples"], id="elites"),
        pytest.param("device=tpu", ["device", "tpu"], id="device"),
        pytest.param("evaluation.success=[{variable: mood}]", ["evaluation.success", "mood"], id="no such variable"),
    ],
)
def test_overrides_that_are_refused(override: str, mentioned: list[str], jepaworld: Command, run_copy: Path) -> None:
    before = tree(run_copy)
    refused(jepaworld("evaluate", run_copy, *SHORT_EVALUATION, override), *mentioned)
    Image.new("RGB", (16, 16)).save(run_copy.parent / "goal.png")
    if not override.startswith("evaluation"):
        goal = "--goal", run_copy.parent / "goal.png"
        refused(jepaworld("plan", run_copy, *SHORT_EVALUATION, override, *goal), *mentioned)
    assert tree(run_copy) == before


@pytest.mark.parametrize(
    ("override", "mentioned"),
    [
        ("evaluation.goal_steps=50", ["evaluation.goal_steps", "50", "at most"]),
        ("evaluation.num_episodes=5000", ["evaluation.num_episodes", "5000", "Lower"]),
        ("evaluation.success=[{variable: state, indices: [7]}]", ["evaluation.success", "state", "7"]),
    ],
)
def test_recorded_tasks_that_there_are_not(
    override: str, mentioned: list[str], jepaworld: Command, run_copy: Path
) -> None:
    recorded = "evaluation.goals=recorded", "evaluation.goal_steps=6"
    before = tree(run_copy)
    refused(jepaworld("evaluate", run_copy, *SHORT_EVALUATION, *recorded, override), *mentioned)
    assert tree(run_copy) == before


# --- runs that cannot be planned with


def spoil_weights(run: Path, change: Callable[[Any], Any]) -> None:
    path = run / "checkpoints" / "best_jepa.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    changed = {name: change(weight) if weight.is_floating_point() else weight for name, weight in weights.items()}
    path.write_bytes(safetensors.torch.save(changed, metadata))


def no_checkpoint(run: Path) -> list[object]:
    (run / "checkpoints" / "best_jepa.safetensors").unlink()
    return [run, "best_jepa.safetensors", f"jepaworld train --run {run} --resume"]


def damaged_checkpoint(run: Path) -> list[object]:
    path = run / "checkpoints" / "best_jepa.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return [path, "damaged", "another checkpoint"]


def damaged_decoder(run: Path) -> list[object]:
    path = run / "checkpoints" / "best_jepa_decoder.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return [path, "damaged"]


def nan_weights(run: Path) -> list[object]:
    spoil_weights(run, lambda weight: weight * float("nan"))
    return ["NaN"]


def no_folder(run: Path) -> list[object]:
    shutil.rmtree(run)
    return [run, "Name a folder"]


def no_configuration(run: Path) -> list[object]:
    (run / "config.yaml").unlink()
    return [run, "config.yaml"]


def damaged_configuration(run: Path) -> list[object]:
    (run / "config.yaml").write_text("seed: [")
    return [run / "config.yaml", "not valid YAML"]


SPOILT = [no_checkpoint, damaged_checkpoint, damaged_decoder, nan_weights, no_folder, no_configuration]


@pytest.mark.parametrize("spoil", [*SPOILT, damaged_configuration])
def test_runs_that_cannot_be_planned_with(
    spoil: Callable[[Path], list[object]], jepaworld: Command, run_copy: Path, tmp_path: Path
) -> None:
    mentioned = spoil(run_copy)
    Image.new("RGB", (16, 16)).save(tmp_path / "goal.png")
    before = tree(tmp_path)
    refused(jepaworld("evaluate", run_copy, *SHORT_EVALUATION), *mentioned)
    refused(jepaworld("plan", run_copy, *SHORT_EVALUATION, "--goal", tmp_path / "goal.png"), *mentioned)
    assert tree(tmp_path) == before


def test_a_file_in_place_of_a_run(jepaworld: Command, finished_run: Path, tmp_path: Path) -> None:
    checkpoint = finished_run / "checkpoints" / "best_jepa.safetensors"
    Image.new("RGB", (16, 16)).save(tmp_path / "goal.png")
    for command in (["evaluate", checkpoint], ["plan", checkpoint, "--goal", tmp_path / "goal.png"]):
        refused(jepaworld(*command), checkpoint, "folder")


@pytest.mark.usefixtures("unreported")
def test_a_dataset_of_another_training(jepaworld: Command, run_copy: Path) -> None:
    info = json.loads((run_copy / "run.json").read_text())
    info["dataset"]["fingerprint"] = "0" * 64
    (run_copy / "run.json").write_text(json.dumps(info))
    refused(jepaworld("evaluate", run_copy, *SHORT_EVALUATION), "not the dataset", "000000000000", "Restore")


# --- an environment that cannot be begun anew


class Restless(gymnasium.Env):
    """A dot that starts elsewhere in each episode, whatever the seed, and cannot be put anywhere."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
        self.place = np.zeros(2)

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.place = np.random.default_rng().uniform(0.2, 0.8, 2)
        return self._seen()

    def step(self, action):
        self.place = np.clip(self.place + 0.05 * np.asarray(action), 0.1, 0.9)
        observation, info = self._seen()
        return observation, 0.0, False, False, info

    def render(self):
        image = np.zeros((32, 32, 3), np.uint8)
        x, y = (32 * self.place).astype(int)
        image[y - 3 : y + 3, x - 3 : x + 3] = 255
        return image

    def _seen(self):
        return self.place.astype(np.float32), {"place": self.place.copy()}


@pytest.fixture
def restless() -> Iterator[str]:
    gymnasium.register("trouble/Restless-v0", entry_point=Restless, disable_env_checker=True)
    yield "trouble/Restless-v0"
    gymnasium.registry.pop("trouble/Restless-v0")


@pytest.mark.usefixtures("unreported")
def test_an_environment_without_state_and_determinism(
    restless: str, jepaworld: Command, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    path, run = tmp_path / "config.yaml", tmp_path / "run"
    config = tiny_config(
        environment_name=restless,
        dataset_dir=str(tmp_path / "data"),
        num_epochs=1,
        jepa_decoder_training={"enabled": False},
    )
    path.write_text(to_commented_yaml(config))
    assert jepaworld("train", path, "--run", run).code == 0
    evaluate = "evaluate", run, *SHORT_EVALUATION[:3], *SHORT_EVALUATION[4:], "evaluation.goal_steps=6"
    refused(jepaworld(*evaluate), "evaluation.success", restless, "place")
    near = "evaluation.success=[{variable: place, distance: 0.05}]"
    outcome = jepaworld(*evaluate, near)
    refused(outcome, "not deterministic", "No protocol remains", "restore_state", "goal_image")
    refused(jepaworld(*evaluate, near, "evaluation.restore=state"), "evaluation.restore", "restore_state", "replay")
    refused(jepaworld(*evaluate, near, "evaluation.goals=environment"), "evaluation.goals", "goal_image", "recorded")
    assert not (run / "evaluation").exists()
