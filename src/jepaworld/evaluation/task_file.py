"""Tasks as a file, so that others play the same: starts, goals, pictures and what counts as success.

A file is JSON and stands for itself: no dataset is needed to play from it. Pictures are PNG in base64, state variables
and actions lists of numbers (null where a state variable is not known). Its last entry is the SHA-256 of all others.

Shapes: C channels, S side of a frame.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from jepaworld.config import Config
from jepaworld.config.planning import EvaluationConfig
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.frames import Frame
from jepaworld.envs.restore import DrawnStart, RecordedStart, RestoreMethod
from jepaworld.envs.state import States
from jepaworld.errors import PlanningError
from jepaworld.evaluation.success import Criterion
from jepaworld.evaluation.tasks import Task, TaskSet
from jepaworld.utils.records import Record
from jepaworld.utils.storage import atomic_write_text, storage_errors

_PROTOCOL = ("seed", "max_steps", "goal_steps", "success", "rest", "restore", "split", "ignored_variables")
"""Settings of `evaluation` that belong to the tasks; the number of envs or of planner seeds does not."""
_SAME = ("environment_name", "environment_kwargs", "image_size", "input_channels")
"""Settings that a model which plays from the file must have."""


class _Task(Record):
    group: str
    seed: int  # of the environment's `reset`; of the collection with a recorded start
    episode: int | None  # of the complete dataset, whose seed then follows from both
    options: dict[str, Any]
    method: RestoreMethod | None  # how a recorded start is brought about
    start_frame: str
    start_state: dict[str, Any]
    goal_frame: str
    goal_state: dict[str, Any]
    before: list[Any]  # environment actions from the episode's beginning to the start, for a replay
    actions: list[Any] | None  # those that were recorded from start to goal
    history_frames: list[str]
    history_actions: list[Any]  # action blocks


class TaskFile(Record):
    """The content of a task file, without its hash."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    environment_name: str
    environment_kwargs: dict[str, Any]
    image_size: int
    input_channels: int
    frame_skipping: int  # environment steps between two frames of a history
    context: int  # frames of the model that it was drawn for; a history has one fewer at most
    dataset: str | None  # fingerprint of the dataset that recorded tasks come from
    goals: Literal["recorded", "environment"]
    solved: int  # starts that were left out
    evaluation: dict[str, Any]  # settings that belong to the tasks
    action_dtype: str
    tasks: list[_Task]
    # Kept and not computed anew: a later version that knows of further entries would find another one.
    sha256: str = Field(default="", exclude=True)

    @classmethod
    def of(cls, tasks: TaskSet, config: Config, dataset: EpisodeDataset | None, context: int) -> Self:
        """What `draw_tasks` drew, as a file.

        Args:
            tasks: At least one.
            config: The settings that they were drawn with.
            dataset: The one of recorded tasks.
            context: Frames that the model looks at.
        """
        actions = next((task.actions for task in tasks.tasks if task.actions is not None), np.empty(0, np.float32))
        made = cls(
            **{name: getattr(config, name) for name in (*_SAME, "frame_skipping")},
            context=context,
            dataset=dataset.fingerprint if dataset is not None and tasks.goals == "recorded" else None,
            goals=tasks.goals,
            solved=tasks.solved,
            evaluation=config.evaluation.model_dump(mode="json", include=set(_PROTOCOL)),
            action_dtype=str(actions.dtype),
            tasks=[_written(task) for task in tasks.tasks],
        )
        return made.model_copy(update={"sha256": _checksum(made.model_dump(mode="json", by_alias=True))})

    @classmethod
    def read(cls, path: Path, config: Config) -> Self:
        """What a file holds.

        Raises:
            PlanningError: It is not there or no task file, was altered, or is of another environment than `config`.
        """
        try:
            content = json.loads(path.read_bytes())
            told = content.pop("sha256")
            if _checksum(content) != told:
                raise PlanningError(f"{path}: altered; its content does not have the SHA-256 that it tells.")
            found = cls.model_validate(content | {"sha256": told})
        except OSError as error:
            raise PlanningError(f"{path}: cannot be read ({error.strerror}).") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise PlanningError(f"{path}: no task file, as `jepaworld evaluate --write-tasks` writes them.") from error
        for name in _SAME:
            if getattr(found, name) != getattr(config, name):
                raise PlanningError(
                    f"{path}: its tasks have {name} {getattr(found, name)}, the run has {getattr(config, name)}."
                )
        return found

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            StorageError: it cannot be written.
        """
        content = self.model_dump(mode="json", by_alias=True) | {"sha256": self.sha256}
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def settings(self, config: Config) -> Config:
        """A configuration with what the file decides in `evaluation`: whoever plays from it plays the same."""
        decided = self.evaluation | {"goals": self.goals, "num_episodes": len(self.tasks)}
        evaluation = EvaluationConfig.model_validate(config.evaluation.model_dump(mode="json") | decided)
        return config.model_copy(update={"evaluation": evaluation})

    def task_set(self, config: Config, context: int) -> TaskSet:
        """The tasks for a model that looks at `context` frames, with the settings of `settings`."""
        notes, keep = [], context - 1
        if self.goals == "recorded" and keep and self.frame_skipping != config.frame_skipping:
            notes.append(f"frame_skipping of the task file is {self.frame_skipping}: nothing before a start is shown.")
            keep = 0
        elif self.goals == "recorded" and self.context < context:
            notes.append(f"The task file has {self.context - 1} frames before a start, the model would see {keep}.")
        ignored = config.evaluation.ignored_variables
        tasks = tuple(_read(task, np.dtype(self.action_dtype), keep, ignored) for task in self.tasks)
        shapes = {name: value.shape for name, value in tasks[0].goal_state.items()}
        restore = self.tasks[0].method
        return TaskSet(
            tasks, Criterion(config.evaluation.success, shapes), self.goals, restore, self.solved, tuple(notes)
        )


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _written(task: Task) -> _Task:
    start, (frames, blocks) = task.start, task.history or ((), np.empty(0))
    recorded = isinstance(start, RecordedStart)
    return _Task(
        group=task.group,
        seed=start.seed,
        episode=start.episode if recorded else None,
        options={} if recorded else dict(start.options),
        method=start.method if recorded else None,
        start_frame=_png(start.frame),
        start_state=_numbers(start.states) if recorded else {},
        goal_frame=_png(task.goal_frame),
        goal_state=_numbers(task.goal_state),
        before=start.actions.tolist() if recorded else [],
        actions=None if task.actions is None else task.actions.tolist(),
        history_frames=[_png(frame) for frame in frames],
        history_actions=blocks.tolist(),
    )


def _read(task: _Task, dtype: np.dtype[Any], keep: int, ignored: Sequence[str]) -> Task:
    """The task, with at most `keep` frames before its start, at which the variables in `ignored` may be others."""
    frame = _frame(task.start_frame)
    start, history = DrawnStart(task.seed, task.options, frame), None
    if task.episode is not None and task.method is not None:
        before = np.array(task.before, dtype)
        states = _states(task.start_state)
        start = RecordedStart(task.method, task.seed, task.episode, before, frame, states, ignored)
        first = max(0, len(task.history_frames) - keep)
        frames = [_frame(picture) for picture in task.history_frames[first:]]
        history = np.array(frames, np.uint8), np.array(task.history_actions[first:])
    actions = None if task.actions is None else np.array(task.actions, dtype)
    return Task(task.group, _frame(task.goal_frame), _states(task.goal_state), actions, start, history)


def _png(frame: Frame) -> str:
    picture, stream = Image.fromarray(frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)), io.BytesIO()
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _frame(text: str) -> Frame:
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        image: NDArray[np.uint8] = np.asarray(picture)
    return image[None].copy() if image.ndim == 2 else np.ascontiguousarray(image.transpose(2, 0, 1))


def _numbers(states: States) -> dict[str, Any]:
    def known(values: Any) -> Any:
        if isinstance(values, list):
            return [known(value) for value in values]
        return values if math.isfinite(values) else None  # JSON has no NaN

    return {name: known(value.tolist()) for name, value in states.items()}


def _states(numbers: dict[str, Any]) -> States:
    return {name: np.array(value, np.float32) for name, value in numbers.items()}
