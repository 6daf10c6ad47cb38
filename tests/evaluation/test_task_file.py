"""Tasks in a file: what is played from it is what was drawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import PlanningError
from jepaworld.evaluation.planning import evaluate_planning
from jepaworld.evaluation.results import PlanningResults
from jepaworld.evaluation.task_file import TaskFile
from jepaworld.evaluation.tasks import Task, draw_tasks, make_task_player
from jepaworld.utils.progress import Progress
from tests.planning.toy_models import TwoRoomOracle

HELD_OUT = np.array([1, 4, 6])
NOBODY = np.empty(0, np.int64)


class Looking(TwoRoomOracle):
    context_length = 3

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Believes to be where the past, weighed little, says."""
        return super().rollout(z, actions) + 0.05 * z.sum(dim=1, keepdim=True)


class Warned(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def collected(
    tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, EpisodeDataset]:
    config = tiny_config(
        image_size=64,
        frame_skipping=3,
        encoder_type="mlp",
        dataset_dir=str(tmp_path_factory.mktemp("task_file") / "dataset"),
        max_steps_per_episode_data_collection=45,
        collection={"smoothness": 0.95},
        jepa_model={"predictor_context_length": 3},
        num_transitions=4,
        planning={"horizon": 3, "num_samples": 20, "num_iterations": 2, "num_elites": 4},
        evaluation={
            "num_episodes": 4,
            "max_steps": 12,
            "goals": "recorded",
            "goal_steps": 9,
            "seed": 5,
            "success": [{"variable": "state", "distance": 3.0}],
            "rest": [{"variable": "state", "limit": 500.0}],
        },
    )
    return config, collect(config)


def changed(config: Config, **evaluation: Any) -> Config:
    return Config.model_validate(config.to_dict() | {"evaluation": config.evaluation.model_dump() | evaluation})


def outcomes(results: PlanningResults) -> list[dict[str, Any]]:
    return [task.model_dump() for task in results.episodes]


@pytest.mark.parametrize("restore", ["state", "replay"])
def test_whoever_plays_from_a_file_plays_the_same(
    collected: tuple[Config, EpisodeDataset], restore: str, tmp_path: Path
) -> None:
    config, dataset = collected
    file, config = tmp_path / "new" / "tasks.json", changed(config, restore=restore)
    drawn = evaluate_planning(Looking(), config, dataset, HELD_OUT, tasks_to=file)
    other = changed(config, seed=1, max_steps=3, num_episodes=2, success=None, rest=None, goals="auto", num_envs=3)
    again = evaluate_planning(Looking(), other, None, NOBODY, tasks_from=file)
    assert outcomes(again) == outcomes(drawn) and len(drawn.episodes) == 12
    assert again.tasks_sha256 == drawn.tasks_sha256 == json.loads(file.read_text())["sha256"]
    assert (again.seed, again.max_steps, again.num_episodes) == (5, 12, 4)
    assert "tasks.json" in again.protocol and "tasks.json" not in drawn.protocol
    warned = Warned()
    evaluate_planning(Looking(), config, dataset, HELD_OUT[:1], tasks_from=file, num_recordings=0, progress=warned)
    assert any("of 4 tasks are of episodes" in warning for warning in warned.warnings)


def entries(task: Task) -> dict[str, Any]:
    """Every field of a task and of its start, those of tomorrow among them."""
    found = {field.name: getattr(task, field.name) for field in fields(task)}
    start = found.pop("start")
    frames, blocks = found.pop("history") or ((), ())
    # Of no frames before a start there is no shape to come back.
    found |= {"history": [frame.tolist() for frame in frames], "blocks": np.asarray(blocks).ravel()}
    return found | {f"start.{field.name}": getattr(start, field.name) for field in fields(start)}


@pytest.mark.parametrize("goals", ["recorded", "environment"])
def test_every_entry_of_a_task_comes_back(collected: tuple[Config, EpisodeDataset], goals: str, tmp_path: Path) -> None:
    config, dataset = collected
    options = [{"goal_room": "other"}] if goals == "environment" else []
    config = changed(config, goals=goals, reset_options=options, ignored_variables=["wall"])
    with make_task_player(config, dataset) as player:
        drawn = draw_tasks(config, player.lanes[0], dataset, HELD_OUT, context=3)
    written = TaskFile.of(drawn, config, dataset, 3)
    written.write(tmp_path / "tasks.json")
    file = TaskFile.read(tmp_path / "tasks.json", config)
    found = file.task_set(file.settings(config), 3)
    assert file.sha256 == written.sha256
    assert (found.goals, found.restore, found.solved) == (drawn.goals, drawn.restore, drawn.solved)
    assert str(found.criterion) == str(drawn.criterion)
    assert file.dataset == (dataset.fingerprint if goals == "recorded" else None)
    for one, other in zip(found.tasks, drawn.tasks, strict=True):
        np.testing.assert_equal(entries(one), entries(other))
        assert one.actions is None or one.actions.dtype == np.asarray(other.actions).dtype
    if goals == "recorded":
        lengths = [[len(task.history[0]) for task in file.task_set(config, n).tasks if task.history] for n in (1, 2)]
        assert set(lengths[0]) == {0} and max(lengths[1]) == 1
        assert "would see 4" in file.task_set(config, 5).notes[0]
        skipping = config.model_copy(update={"frame_skipping": 1})
        assert all(task.history and not len(task.history[0]) for task in file.task_set(skipping, 3).tasks)


def test_another_environment_and_an_altered_file_are_refused(
    collected: tuple[Config, EpisodeDataset], tmp_path: Path
) -> None:
    config, dataset = collected
    path = tmp_path / "tasks.json"
    with make_task_player(config, dataset) as player:
        TaskFile.of(draw_tasks(config, player.lanes[0], dataset, HELD_OUT), config, dataset, 1).write(path)
    for change, said in (
        ({"environment_name": "jepaworld/PointMaze-v0"}, "PointMaze"),
        ({"environment_kwargs": {"random_wall": True}}, "random_wall"),
        ({"image_size": 32}, "image_size 64, the run has 32"),
    ):
        with pytest.raises(PlanningError, match=said):
            TaskFile.read(path, config.model_copy(update=change))
    content = json.loads(path.read_text())
    content["tasks"][0]["goal_state"]["state"][0] += 1e-6
    path.write_text(json.dumps(content))
    with pytest.raises(PlanningError, match="altered"):
        TaskFile.read(path, config)
    for text in ("[]", "{}", "no JSON", '{"sha256": 3}'):
        path.write_text(text)
        with pytest.raises(PlanningError, match=r"no task file|altered"):
            TaskFile.read(path, config)
    with pytest.raises(PlanningError, match="cannot be read"):
        TaskFile.read(tmp_path / "nowhere.json", config)
