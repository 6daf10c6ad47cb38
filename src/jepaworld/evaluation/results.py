"""The one schema of what is measured: `evaluation/planning.json` of `jepaworld evaluate`, `report.json` of `report`.

Shapes: N frames or windows. Lists by imagined step begin with step 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jepaworld.errors import CheckpointError
from jepaworld.evaluation.rates import Rate
from jepaworld.losses.collapse import CollapseDiagnostics
from jepaworld.runs.folder import RunFolder
from jepaworld.utils.records import Number, Record, beside
from jepaworld.utils.storage import atomic_write_text, file_checksum, storage_errors

ProbeKind = Literal["linear", "mlp"]


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


# --- report.json: what `jepaworld report` measures and shows ---------------------------------------------------------

Interval = tuple[float, float] | None
"""Of 95 %; None where there are too few episodes to resample."""


class Reading(Record):
    """What a probe reads of one entry of the state on held-out episodes.

    Attributes:
        r2: Share of the held-out variance that is read, at most 1; None if the entry is constant.
        interval_95: By bootstrap over held-out episodes.
        baselines_r2: R² of the same kind of probe on something else than the trained embedding, by name.
        prediction: (N, 1) what it read, (N, 2) sine and cosine of an angle. Not written.
    """

    r2: float | None
    interval_95: Interval = None
    baselines_r2: dict[str, float | None] = Field(default_factory=dict)
    prediction: np.ndarray = beside()


class MLPReading(Reading):
    """What an MLP reads, beside the linear probe on the same frames.

    Attributes:
        gain: How much larger its R² is than the linear probe's.
        gain_interval_95: Of that, from resamples that both share.
    """

    gain: float | None = None
    gain_interval_95: Interval = None


class Probe(Reading):
    """What a linear probe reads of one entry of the state, and an MLP beside it.

    Attributes:
        variable: Name of the entry: `position[0]`, `pose[2] (angle)`, `reward` (the one that follows the frame).
        state: Name of the variable that it is an entry of.
        angle: Whether sine and cosine were probed in its place; R² is then that of both together.
        ridge: Largest ridge strength of its columns, chosen by leave-one-out on the training frames.
        mlp: The same by an MLP, if one was asked for.
        truth: As `prediction`. Not written.
        owners: (N,) episode of each held-out frame. Not written.
    """

    variable: str
    state: str
    angle: bool = False
    ridge: Number = math.nan
    mlp: MLPReading | None = None
    num_train_episodes: int = 0
    num_train_frames: int = 0
    num_heldout_episodes: int = 0
    num_heldout_frames: int = 0
    truth: np.ndarray = beside()
    owners: np.ndarray = beside()


class HeadlineProbe(Record):
    """Mean R² over the entries of the variable that stands for all."""

    variable: str
    r2: float | None
    interval_95: Interval
    mlp_r2: float | None
    mlp_interval_95: Interval


class StateError(Record):
    """Distance between the true state and the one that a probe reads, by imagined step.

    Attributes:
        variable: Name of the state variable.
        name: With its entries, if not all are read.
        entries: Which are.
        probe: What reads them, `linear` or `mlp`.
        imagined: Mean Euclidean distance over these entries from imagined embeddings, in the variable's own unit; of
            angles the short way round.
        encoded: The same read from the embeddings of the real frames: what the probe itself gets wrong.
        copied: Distance of the state at the first frame: how far things moved.
    """

    variable: str
    name: str
    entries: list[int]
    probe: ProbeKind
    imagined: list[Number]
    imagined_low_95: list[Number]
    imagined_high_95: list[Number]
    encoded: list[Number]
    copied: list[Number]


class Imagination(Record):
    """Imagination error by step; NaN where no window is long enough.

    Attributes:
        context_frames: Real frames that imagination begins with, as many as the predictor uses.
        step: From 1.
        error: Mean squared embedding error over the variance of the target embeddings: 0 is perfect, 1 is as good as
            always predicting the mean.
        error_low_95: By bootstrap over episodes; NaN with fewer than two.
        copy_error: The same error if the embedding of the first frame is kept.
        num_windows: Windows that reach this step.
        num_episodes: Episodes that reach it.
        target_variance: Mean variance of a dimension of the target embeddings; 0 leaves every error NaN.
        states: Error in each state variable that a probe was given for.
        windows: What was imagined. Not written.
        window_errors: (N,) error of each window, mean over its steps. Not written.
    """

    context_frames: int
    step: list[int]
    error: list[Number]
    error_low_95: list[Number]
    error_high_95: list[Number]
    copy_error: list[Number]
    num_windows: list[int]
    num_episodes: list[int]
    target_variance: float
    states: list[StateError] = Field(default_factory=list)
    windows: Any = beside()
    window_errors: np.ndarray = beside()

    @property
    def better_steps(self) -> list[int]:
        """Steps at which the error, with its interval, is below both the copy and the mean embedding."""
        upper = [
            high if math.isfinite(high) else error for error, high in zip(self.error, self.error_high_95, strict=True)
        ]
        return [s for s, high, copy in zip(self.step, upper, self.copy_error, strict=True) if high < min(copy, 1.0)]


class Reconstruction(Record):
    """How well the decoder paints held-out frames; pixels in [0, 1]."""

    mean_squared_error: float
    mean_image_squared_error: float
    """Of always painting the mean of these frames."""
    num_frames: int

    @property
    def painted(self) -> float | None:
        """Share of the pixel variance that is painted, at most 1; None if all frames are equal."""
        return 1.0 - self.mean_squared_error / self.mean_image_squared_error if self.mean_image_squared_error else None


class DatasetSummary(Record):
    """What the run was trained on."""

    path: str
    fingerprint: str
    environment: str
    policy: str | None
    seed: int | None
    complete: bool
    episodes: int
    transitions: int
    frames: int
    shortest_episode: int
    median_episode: float
    longest_episode: int
    image: str
    frame_skipping: int
    action_space: str
    state_variables: dict[str, list[int]]
    train_episodes: int
    validation_episodes: int
    evaluation_episodes: int


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
    dataset: DatasetSummary | None = None
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
