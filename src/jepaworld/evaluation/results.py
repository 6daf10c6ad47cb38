"""`evaluation/planning.json`, which `jepaworld evaluate` writes into a run: how often plans reach their goals."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jepaworld.data.store import file_checksum
from jepaworld.errors import CheckpointError
from jepaworld.runs.folder import RunFolder


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class SuccessRate(_Record):
    """Share of episodes that succeeded, 0 to 1, with Wilson's 95 % interval."""

    successes: int = Field(ge=0)
    episodes: int = Field(ge=1)
    rate: float = Field(ge=0.0, le=1.0)
    low: float = Field(ge=0.0, le=1.0)
    high: float = Field(ge=0.0, le=1.0)


class PlanningAgent(_Record):
    """Who played the tasks, and what came of it.

    `any` counts episodes that were at the goal at any time, `end` those that ended there; over all tasks ("all") and
    in each group. Both are empty if `missing` says why there is no such agent.
    """

    name: str
    label: str
    missing: str | None = None
    any: dict[str, SuccessRate] = {}
    end: dict[str, SuccessRate] = {}
    median_steps_to_success: float | None = None
    seconds_per_episode: float | None = None
    seconds_per_plan: float | None = None


class PlanningVideo(_Record):
    """An animation of one of the planner's episodes, beside planning.json."""

    file: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*\.webp$")
    task: int
    group: str
    success: bool
    caption: str


class PlanningReport(_Record):
    """What the report shows of planning.json."""

    schema_version: Literal[1] = Field(alias="schema")
    checkpoint_sha256: str
    created: str
    seed: int
    environment: str
    protocol: str
    goals: str
    num_episodes: int
    max_steps: int
    excluded_solved: int
    groups: list[str] = []
    agents: list[PlanningAgent]
    videos: list[PlanningVideo] = []
    duration_seconds: float | None = None
    folder: Path = Field(default=Path(), exclude=True)
    """Where the videos are; not in the file."""

    def agent(self, name: str) -> PlanningAgent | None:
        """The agent of that name, if it is listed."""
        return next((agent for agent in self.agents if agent.name == name), None)


def read_planning(run: RunFolder) -> tuple[PlanningReport | None, str | None]:
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
        content = PlanningReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "content"
        raise CheckpointError(
            f"{path}: damaged, or written by another version of jepaworld ({where}: {first['msg']}). Delete it, or "
            f"measure again with {remedy}."
        ) from error
    for agent in content.agents:
        if agent.missing is None and not ("all" in agent.any and "all" in agent.end):
            raise CheckpointError(
                f"{path}: damaged (agent {agent.name!r} has no success over all goals). Delete it, or measure again "
                f"with {remedy}."
            )
    here = file_checksum(checkpoint) if checkpoint.is_file() else "no checkpoint"
    if here != content.checkpoint_sha256:
        return None, (
            f"{path.parent.name}/{path.name} is about another model than the best one that is now in this folder "
            f"({content.checkpoint_sha256[:12]}, here {here[:12]}), so that it is not shown. {remedy} measures again."
        )
    return content.model_copy(update={"folder": path.parent}), None
