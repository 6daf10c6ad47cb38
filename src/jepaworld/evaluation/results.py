"""`evaluation/planning.json`, which `jepaworld evaluate` writes into a run: how often plans reach their goals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jepaworld.data.store import file_checksum
from jepaworld.errors import CheckpointError
from jepaworld.evaluation.rates import Rate
from jepaworld.runs.folder import RunFolder
from jepaworld.utils.storage import atomic_write_text, storage_errors


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)


class PlayedTask(_Record):
    """What became of one task when an agent played it.

    Attributes:
        agent: Who played.
        task: Its place in the evaluation.
        group: The group of tasks that it is counted in.
        any: Whether the goal was reached at any time.
        end: Whether the episode ended at the goal.
        steps: Environment steps after which the goal was reached for the first time; None if it never was.
        played: Environment steps of the episode; None in files of 0.1.0.
        distances: How far each condition of `evaluation.success` was from holding at the end, in its unit.
        episode: The recorded episode that start and goal come from, if they do.
    """

    agent: str
    task: int
    group: str = "all"
    any: bool
    end: bool
    steps: int | None = None
    played: int | None = None
    distances: tuple[float, ...] = ()
    episode: int | None = None


class AgentResult(_Record):
    """Who played the tasks, and what came of it.

    Attributes:
        name: "planner", "random" or "recorded".
        label: Who it is, in words.
        missing: Why there is no such agent; `any` and `end` are empty then.
        any: Tasks that were at the goal at any time: over all ("all") and in each group, if there are several.
        end: Tasks that ended there.
        median_steps_to_success: Environment steps, of those that reached the goal.
        seconds_per_episode: Time for all episodes, over their number.
        seconds_per_plan: Time for one plan of one environment.
    """

    name: str
    label: str
    missing: str | None = None
    any: dict[str, Rate] = {}
    end: dict[str, Rate] = {}
    median_steps_to_success: float | None = None
    seconds_per_episode: float | None = None
    seconds_per_plan: float | None = None

    @model_validator(mode="after")
    def _counts_something(self) -> Self:
        if self.missing is None and not ("all" in self.any and "all" in self.end):
            raise ValueError(f"agent {self.name!r} has no success over all goals")
        return self

    @classmethod
    def of(
        cls, label: str, played: Sequence[PlayedTask], seconds: float, seconds_per_plan: float | None = None
    ) -> Self:
        """The result of the tasks that one agent played in `seconds`."""
        selections = {"all": played}
        groups = list(dict.fromkeys(task.group for task in played))
        if len(groups) > 1:
            selections |= {group: [task for task in played if task.group == group] for group in groups}
        owners = {name: [task.episode for task in tasks] for name, tasks in selections.items()}
        steps = [task.steps for task in played if task.steps is not None]
        return cls(
            name=played[0].agent,
            label=label,
            any={name: Rate.of([task.any for task in tasks], owners[name]) for name, tasks in selections.items()},
            end={name: Rate.of([task.end for task in tasks], owners[name]) for name, tasks in selections.items()},
            median_steps_to_success=float(np.median(steps)) if steps else None,
            seconds_per_episode=seconds / len(played),
            seconds_per_plan=seconds_per_plan,
        )


class PlanningVideo(_Record):
    """An animation of one of the planner's episodes, beside planning.json."""

    file: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*\.webp$")
    task: int
    group: str
    success: bool
    caption: str


class PlanningResults(_Record):
    """How often goals were reached: what `evaluate_planning` returns, and the content of planning.json.

    Attributes:
        schema_version: "schema" in the file.
        checkpoint_sha256: Of the model's weights; empty for a model that is in no file.
        created: When, ISO 8601.
        seed: Of starts, goals, planners and the random policy (`evaluation.seed`).
        training_seed: Of the model's run (`seed`); None in files of 0.1.0.
        environment: Its id.
        protocol: What was done, in a sentence.
        goals: "recorded" or "environment".
        num_episodes: Tasks that each agent played.
        max_steps: Environment steps of an episode, at most.
        excluded_solved: Starts that were solved already and drawn again.
        groups: Groups of tasks that are counted apart; empty if there is only one.
        agents: The planner, the random policy, the recorded actions.
        planning: The settings.
        evaluation: The settings.
        device: Where the model planned.
        episodes: What became of each task.
        videos: Beside the file.
        duration_seconds: Of the whole evaluation.
        folder: Where the videos are; not in the file.
        recordings: `Recording`s that videos are made of; not in the file.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    checkpoint_sha256: str = ""
    created: str = ""
    seed: int
    training_seed: int | None = None
    environment: str
    protocol: str
    goals: str
    num_episodes: int
    max_steps: int
    excluded_solved: int
    groups: list[str] = []
    agents: list[AgentResult]
    planning: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    device: str = "cpu"
    episodes: list[PlayedTask] = []
    videos: list[PlanningVideo] = []
    duration_seconds: float | None = None
    folder: Path = Field(default=Path(), exclude=True)
    recordings: tuple[Any, ...] = Field(default=(), exclude=True, repr=False)

    def agent(self, name: str) -> AgentResult | None:
        """The agent of that name, if it is listed."""
        return next((agent for agent in self.agents if agent.name == name), None)

    def write(self, path: Path) -> None:
        """Write planning.json."""
        with storage_errors(path):
            atomic_write_text(path, self.model_dump_json(by_alias=True, indent=1) + "\n")


def read_planning(run: RunFolder) -> tuple[PlanningResults | None, str | None]:
    """Read how well plans of the run's best model do.

    Returns:
        The results, and None; or None and, if there could be some, a sentence on why there are none to show: nobody
        measured them, or they are of another model than the one that is now in the folder.

    Raises:
        CheckpointError: the file is damaged.
    """
    path, checkpoint = run.planning_file, run.checkpoint("jepa")
    remedy = f"`jepaworld evaluate {run.path}`"
    if not path.is_file():
        if not checkpoint.is_file():
            return None, None
        return None, f"How well this model plans has not been measured: {remedy} does it."
    try:
        content = PlanningResults.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise CheckpointError(
            f"{path}: damaged, or written by another version of jepaworld ({where}: {first['msg']}). Delete it, or "
            f"measure again with {remedy}."
        ) from error
    here = file_checksum(checkpoint) if checkpoint.is_file() else "no checkpoint"
    if here != content.checkpoint_sha256:
        return None, (
            f"{path.parent.name}/{path.name} is about another model than the best one that is now in this folder "
            f"({content.checkpoint_sha256[:12]}, here {here[:12]}), so that it is not shown. {remedy} measures again."
        )
    return content.model_copy(update={"folder": path.parent}), None
