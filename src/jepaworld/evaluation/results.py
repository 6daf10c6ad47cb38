"""The one schema of what is measured: `evaluation/planning.json` of `jepaworld evaluate`, `report.json` of `report`.

Shapes: N frames or windows. Lists by imagined step begin with step 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from jepaworld.errors import CheckpointError
from jepaworld.evaluation.scores import Rate, Spread
from jepaworld.losses.collapse import CollapseDiagnostics
from jepaworld.runs.folder import RunFolder
from jepaworld.utils.records import Number, Record, beside
from jepaworld.utils.storage import atomic_write_text, file_checksum, storage_errors

Outcome = Literal["any", "end", "rest"]
OUTCOMES: tuple[Outcome, ...] = ("any", "end", "rest")
"""At the goal at any time, at the end, and at the end at rest: each stricter than the one before."""

ProbeKind = Literal["linear", "mlp"]


class PlayedTask(Record, allow_inf_nan=False):
    """What became of one task when an agent played it."""

    agent: str
    task: int  # its place in the evaluation
    planner_seed: int = 0  # which stream of the planner's random numbers, of `evaluation.planner_seeds`
    group: str = "all"  # of tasks that it is counted in
    any: bool  # the goal was reached at any time
    end: bool  # the episode ended at the goal
    rest: bool | None = None  # it ended there, and nothing moved; None without `evaluation.rest`
    speeds: tuple[float, ...] = ()  # of each condition of `evaluation.rest` at the end, in its unit
    steps: int | None = None  # environment steps until the goal was first reached; None if it never was
    played: int | None = None  # environment steps of the episode; None in files of 0.1.0
    distances: tuple[float, ...] = ()  # of each condition of `evaluation.success` at the end, in its unit
    episode: int | None = None  # the recorded one that start and goal come from, if they do


class AgentResult(Record, allow_inf_nan=False):
    """Who played the tasks, and what came of it; rates over all tasks ("all") and in each group, if there are several.

    Raises:
        ValueError: it played, but has no rate over all tasks.
    """

    name: str  # "planner", "random" or "recorded"
    label: str  # who it is, in words
    missing: str | None = None  # why it did not play; `any` and `end` are empty then
    any: dict[str, Rate] = Field(default_factory=dict)  # tasks that were at the goal at any time
    end: dict[str, Rate] = Field(default_factory=dict)  # tasks that ended there
    rest: dict[str, Rate] = Field(default_factory=dict)  # and at rest; empty without `evaluation.rest`
    # `any`, `end` and `rest` of all tasks with each stream of the planner's random numbers, if there are several; the
    # rates above are of the first.
    spread: dict[str, Spread] = Field(default_factory=dict)
    median_steps_to_success: float | None = None  # environment steps, of those that reached the goal
    seconds_per_episode: float | None = None  # time for all episodes, over their number
    seconds_per_plan: float | None = None  # time for one plan of one environment

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
        groups = dict.fromkeys(task.group for task in played)
        selections = {group: [task for task in played if task.group == group] for group in groups}
        selections = {"all": played} | (selections if len(groups) > 1 else {})

        def rates(outcome: Outcome) -> dict[str, Rate]:
            return {
                name: Rate.of([getattr(task, outcome) for task in tasks], [task.episode for task in tasks])
                for name, tasks in selections.items()
            }

        steps = [task.steps for task in played if task.steps is not None]
        return cls(
            name=played[0].agent,
            label=label,
            any=rates("any"),
            end=rates("end"),
            rest=rates("rest") if played[0].rest is not None else {},
            median_steps_to_success=float(np.median(steps)) if steps else None,
            seconds_per_episode=seconds / len(played),
            seconds_per_plan=seconds_per_plan,
        )

    def with_spread(self, streams: Sequence[Sequence[PlayedTask]]) -> Self:
        """This result with the spread over streams of random numbers (streams, tasks); none of a single one."""
        if len(streams) < 2:
            return self
        owners = [task.episode for task in streams[0]]
        spread = {
            outcome: Spread.of([[getattr(task, outcome) for task in tasks] for tasks in streams], owners)
            for outcome in OUTCOMES[: 3 if self.rest else 2]
        }
        return self.model_copy(update={"spread": spread})


class RecordedRank(Record, allow_inf_nan=False):
    """Where the recorded actions rank among random ones by how near to the goal the model expects them to end."""

    better_than: float = Field(ge=0.0, le=1.0)  # mean share of random ones that end further away; 0.5 is chance
    interval_95: tuple[float, float] | None  # by bootstrap over recorded episodes; None of a single one
    tasks: int
    random: int  # plans for each task


class PlanningVideo(Record):
    """An animation of one of the planner's episodes, beside planning.json."""

    file: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*\.webp$")
    task: int
    group: str
    success: bool
    caption: str


class PlanningResults(Record, allow_inf_nan=False):
    """How often goals were reached: what `evaluate_planning` returns, and the content of planning.json."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    checkpoint_sha256: str = ""  # of the model's weights; empty for a model that is in no file
    created: str = ""  # ISO 8601
    seed: int  # of starts, goals, planners and the random policy (`evaluation.seed`)
    training_seed: int | None = None  # of the model's run (`seed`); None in files of 0.1.0
    environment: str
    protocol: str  # what was done, in a sentence
    tasks_sha256: str = ""  # of the task file that was written or played from, if there was one
    goals: str  # "recorded" or "environment"
    num_episodes: int  # tasks that each agent played
    max_steps: int  # environment steps of an episode, at most
    excluded_solved: int  # starts that were solved already and drawn again
    groups: list[str] = Field(default_factory=list)  # of tasks that are counted apart; empty if there is only one
    agents: list[AgentResult]
    recorded_rank: RecordedRank | None = None  # with recorded goals; None in older files
    planning: dict[str, Any] = Field(default_factory=dict)  # the settings, as `evaluation`
    evaluation: dict[str, Any] = Field(default_factory=dict)
    device: str = "cpu"  # where the model planned
    episodes: list[PlayedTask] = Field(default_factory=list)
    videos: list[PlanningVideo] = Field(default_factory=list)
    duration_seconds: float | None = None  # of the whole evaluation
    folder: Path = Field(default=Path(), exclude=True)  # where the videos are; not in the file
    recordings: tuple[Any, ...] = Field(default=(), exclude=True, repr=False)  # for videos; not in the file

    def agent(self, name: str) -> AgentResult | None:
        """The agent of that name, if it played."""
        return next((agent for agent in self.agents if agent.name == name and agent.missing is None), None)

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
        problem = f"How well this model plans has not been measured: {remedy} does it."
        return None, problem if checkpoint.is_file() else None
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
            f"{path.parent.name}/{path.name} is not shown, as it is about another model than the best one in this "
            f"folder ({content.checkpoint_sha256[:12]}, here {here[:12]}). {remedy} measures again."
        )
    return content.model_copy(update={"folder": path.parent}), None


# --- report.json: what `jepaworld report` measures and shows ---------------------------------------------------------

Interval = tuple[float, float] | None
"""Of 95 %; None where there are too few episodes to resample."""


class Reading(Record):
    """What a probe reads of one entry of the state on held-out episodes."""

    r2: float | None  # share of the held-out variance that is read, at most 1; None if the entry is constant
    interval_95: Interval = None  # by bootstrap over held-out episodes
    baselines_r2: dict[str, float | None] = Field(default_factory=dict)  # the same on something else, by its name
    prediction: np.ndarray = beside()  # (N, 1) what it read, (N, 2) sine and cosine of an angle


class MLPReading(Reading):
    """What an MLP reads, beside the linear probe on the same frames."""

    gain: float | None = None  # how much larger its R² is than the linear probe's
    gain_interval_95: Interval = None  # of that, from resamples that both share


class Probe(Reading):
    """What a linear probe reads of one entry of the state, and an MLP beside it."""

    variable: str  # name of the entry: `position[0]`, `pose[2] (angle)`, `reward` (the one that follows the frame)
    state: str  # name of the variable that it is an entry of
    angle: bool = False  # sine and cosine were probed in its place; R² is that of both together
    ridge: Number = math.nan  # largest ridge strength of its columns, chosen by leave-one-out on the training frames
    mlp: MLPReading | None = None  # if one was asked for
    num_train_episodes: int = 0
    num_train_frames: int = 0
    num_heldout_episodes: int = 0
    num_heldout_frames: int = 0
    truth: np.ndarray = beside()  # as `prediction`
    owners: np.ndarray = beside()  # (N,) episode of each held-out frame


class HeadlineProbe(Record):
    """Mean R² over the entries of the variable that stands for all."""

    variable: str
    r2: float | None
    interval_95: Interval
    mlp_r2: float | None
    mlp_interval_95: Interval


class StateError(Record):
    """Distance between the true state and the one that a probe reads, by imagined step.

    Means of the Euclidean distance over the entries, in the variable's own unit, of angles the short way round.
    """

    variable: str
    name: str  # of the variable, with its entries if not all are read
    entries: list[int]
    probe: ProbeKind  # what reads them
    imagined: list[Number]  # read from imagined embeddings
    imagined_low_95: list[Number]
    imagined_high_95: list[Number]
    encoded: list[Number]  # read from the embeddings of the real frames: what the probe itself gets wrong
    copied: list[Number]  # distance of the state at the first frame: how far things moved


class Imagination(Record):
    """Imagination error by step; NaN where no window is long enough."""

    context_frames: int  # real frames that imagination begins with, as many as the predictor uses
    step: list[int]  # from 1
    error: list[Number]  # mean squared, over the variance of the target embeddings: 0 is perfect, 1 the mean embedding
    error_low_95: list[Number]  # by bootstrap over episodes; NaN with fewer than two
    error_high_95: list[Number]
    copy_error: list[Number]  # the same error if the embedding of the first frame is kept
    num_windows: list[int]  # that reach this step
    num_episodes: list[int]  # that reach it
    target_variance: float  # mean over the dimensions of the target embeddings; 0 leaves every error NaN
    states: list[StateError] = Field(default_factory=list)  # of each state variable that a probe was given for
    windows: Any = beside()  # what was imagined
    window_errors: np.ndarray = beside()  # (N,) mean over the steps of each window

    @property
    def shown(self) -> list[int]:
        """Places of the steps that tables show: 1, 2, 4, 8 and so on, and the last."""
        return [i for i, step in enumerate(self.step) if step.bit_count() == 1 or step == self.step[-1]]

    @property
    def better_steps(self) -> list[int]:
        """Steps at which the error, with its interval, is below both the copy and the mean embedding."""
        upper = np.where(np.isfinite(self.error_high_95), self.error_high_95, self.error)
        return np.array(self.step)[upper < np.minimum(self.copy_error, 1.0)].tolist()


class Reconstruction(Record):
    """How well the decoder paints held-out frames; pixels in [0, 1]."""

    mean_squared_error: float
    mean_image_squared_error: float  # of always painting the mean of these frames
    num_frames: int

    @property
    def painted(self) -> float | None:
        """Share of the pixel variance that is painted, at most 1; None if all frames are equal."""
        return 1.0 - self.mean_squared_error / self.mean_image_squared_error if self.mean_image_squared_error else None


class Heldout(Record):
    """Which episodes were measured on."""

    split: str
    episodes: int

    @property
    def label(self) -> str:
        """For people: only evaluation episodes are held out of everything."""
        return "held-out (evaluation)" if self.split == "evaluation" else self.split


class Badge(Record):
    """A verdict in two words; kind is `good`, `warn`, `bad` or empty."""

    kind: str
    text: str


class Card(Record):
    """A key number."""

    label: str
    value: str
    note: str


class Results(Record):
    """All that the page and the terminal show of a run; a part that is missing is None or empty, `missing` says why."""

    model_config = ConfigDict(frozen=False)

    environment: str = ""
    description: str = ""
    path: str = ""
    finished: bool = False
    missing: list[str] = Field(default_factory=list)
    findings: list[str] = Field(default_factory=list)
    badges: list[Badge] = Field(default_factory=list)
    cards: list[Card] = Field(default_factory=list)
    heldout: Heldout | None = None
    best_epoch: dict[str, Any] | None = None
    collapse: CollapseDiagnostics | None = None
    headline_probe: HeadlineProbe | None = None
    planning: PlanningResults | None = None
    probes: list[Probe] = Field(default_factory=list)
    imagination: Imagination | None = None
    reconstruction: Reconstruction | None = None
    epochs: dict[str, list[dict[str, Any]]] = Field(default_factory=dict)
    dataset: dict[str, Any] | None = None  # what the run was trained on
    run: dict[str, Any] = Field(default_factory=dict)
    notices: list[str] = Field(default_factory=list)
    config: dict[str, Any] = Field(default_factory=dict)

    def to_json(self) -> str:
        """The content of report.json."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"

    @property
    def headline_probes(self) -> list[Probe]:
        """Probes of the variable that stands for all."""
        headline = self.headline_probe
        return [] if headline is None else [probe for probe in self.probes if probe.state == headline.variable]
