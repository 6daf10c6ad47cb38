"""Which starts and goals are planned for: from held-out episodes, or as the environment draws them.

Shapes: k environment steps from start to goal, T action blocks of A numbers, C channels, S side of a frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from jepaworld.config import Config
from jepaworld.config.planning import EvaluationConfig
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs import restore
from jepaworld.envs.frames import Frame
from jepaworld.envs.player import Lane, Player
from jepaworld.envs.restore import DrawnStart, RecordedStart, RestoreMethod
from jepaworld.envs.seeding import episode_seeds, kept_random_state
from jepaworld.envs.state import States, extract_state
from jepaworld.errors import ConfigError, EnvironmentFailedError, EnvironmentNotUsableError, PlanningError
from jepaworld.evaluation.success import Criterion, own_success
from jepaworld.planning import History, PlanSpace

_STREAM = 2**32 - 1
"""Keeps the seeds of drawn starts apart from those of episodes, which are numbered from 0."""
_MOST_SOLVED = 20
"""Solved starts for each one wanted, after which drawing ends: nearly all are solved."""


@dataclass(frozen=True, eq=False)
class Task:
    """A start and a goal."""

    group: str  # of tasks that are counted together: "all", or the reset options in words ("goal_room=other")
    goal_frame: Frame  # uint8 (C, S, S), what is seen at the goal
    goal_state: States  # at the goal, as far as it is known
    actions: NDArray[Any] | None  # (k, *action shape) that were recorded from start to goal; None of a drawn start
    start: RecordedStart | DrawnStart
    history: History | None = None  # what was recorded before the start; None of a drawn one

    @property
    def episode(self) -> int | None:
        """The recorded episode that start and goal come from, if they do."""
        return self.start.episode if isinstance(self.start, RecordedStart) else None


@dataclass(frozen=True, eq=False)
class TaskSet:
    """What `draw_tasks` drew."""

    tasks: tuple[Task, ...]  # in the order in which they were drawn
    criterion: Criterion
    goals: Literal["recorded", "environment"]
    restore: RestoreMethod | None  # how recorded starts are restored
    solved: int  # starts that were drawn, found to be solved already, and left out
    notes: tuple[str, ...]  # sentences for the user

    @property
    def groups(self) -> list[str]:
        """Groups of tasks that are counted apart; empty if there is only one."""
        groups = list(dict.fromkeys(task.group for task in self.tasks))
        return groups if len(groups) > 1 else []


class StartError(PlanningError):
    """A start could not be brought about, by none of the methods `tried`; the message says which protocol remains."""

    def __init__(self, reason: str, lane: Lane, tried: Collection[RestoreMethod]) -> None:
        recorded = "evaluation.goals=recorded with evaluation.restore"
        protocols = [
            ("evaluation.goals=environment", tried and lane.has("goal_image")),
            (f"{recorded}=state", "state" not in tried and lane.has("restore_state")),
            (f"{recorded}=replay, if it is deterministic", "replay" not in tried),
        ]
        left = ", or ".join(protocol for protocol, possible in protocols if possible)
        nothing = "No protocol remains: let it draw from self.np_random only, or add restore_state() or goal_image()."
        super().__init__(f"{reason} {f'What remains: {left}.' if left else nothing}")
        self.reason = reason


def make_task_player(config: Config, dataset: EpisodeDataset | None, num_lanes: int = 1) -> Player:
    """Lanes of the environment to plan in: with the frames that the model knows, those of the dataset if there is one.

    Raises:
        EnvironmentNotUsableError: As `Player`.
    """
    return Player(
        config.environment_name,
        # Without Gymnasium's limit: a replayed start would leave fewer steps the later in its episode it is.
        config.environment_kwargs | {"max_episode_steps": -1},
        num_lanes,
        image_size=config.image_size,
        input_channels=config.input_channels,
        frame_source=config.collection.frame_source if dataset is None else dataset.provenance.frame_source,
    )


def begin(lane: Lane, task: Task, *, own_success: bool = False) -> None:
    """Bring a lane to the start of a task; the random generators of Python, numpy and torch are left as they were.

    Args:
        lane: Of a player from `make_task_player`.
        task: The task.
        own_success: Whether the environment tells success itself, so that it must take a recorded goal.

    Raises:
        StartError: What is found there is not what the task says, or the environment failed.
    """
    start = task.start
    tried = (start.method,) if isinstance(start, RecordedStart) else ()
    with kept_random_state(), _start_errors(lane, tried):
        restore.restore(lane, start)
        if isinstance(start, DrawnStart):
            restore.require_same(f"goal of {lane.place}", restore.goal_frame(lane, start.frame), task.goal_frame)
        elif lane.has("set_goal"):
            try:
                lane.set_goal(task.goal_state)
            except EnvironmentFailedError:
                if own_success:
                    raise
                lane.forget("set_goal")  # it means something else, and conditions tell success
                restore.restore(lane, start)


def draw_tasks(
    config: Config,
    lane: Lane,
    dataset: EpisodeDataset | None,
    episodes: Sequence[int] | NDArray[np.int64],
    *,
    context: int = 1,
) -> TaskSet:
    """Draw `evaluation.num_episodes` tasks whose starts are not solved; the same for the same settings and data.

    Each start is brought about once, so that what cannot be restored is known before anything is planned.

    Args:
        config: All settings; the section `evaluation` decides.
        lane: Of a player from `make_task_player`; it is played.
        dataset: Holds the recorded episodes, and says which seeds were collected with; may be None with goals
            environment, where those of the settings are taken.
        episodes: Indices of held-out episodes, for recorded goals: those of `evaluation.split`.
        context: Frames that the model looks at; one fewer are kept of what was recorded before a start.

    Raises:
        ConfigError: `goal_steps` does not fit the data, or `success` not the state variables.
        PlanningError: The environment cannot give such starts or goals, or success cannot be told; the message says
            what remains.
    """
    settings = config.evaluation
    shows_goal = lane.has("goal_image")
    if settings.goals == "environment" and not shows_goal:
        raise PlanningError(
            f"evaluation.goals is environment, but {lane.name} shows no goal: give it goal_image(), or set "
            "evaluation.goals to recorded."
        )
    tells_success = settings.success is None or lane.has("goal_state")
    drawn = shows_goal and tells_success if settings.goals == "auto" else settings.goals == "environment"
    with kept_random_state():
        if drawn:
            try:
                return _draw_from_environment(config, lane, dataset)
            except StartError as error:
                # What is called goal_image may be something else.
                is_ours = not isinstance(error.__cause__, restore.GoalImageError)
                if is_ours or settings.goals != "auto" or settings.success is None or dataset is None:
                    raise
        if dataset is None:
            raise PlanningError(
                "evaluation.goals: recorded goals need the run's dataset, which is not there. Restore it, or set "
                "evaluation.goals to environment if it shows its goal (goal_image())."
            )
        if len(episodes) == 0:
            share = "early_stopping.validation_split" if settings.split == "validation" else "evaluation_split"
            raise PlanningError(
                f"evaluation.split is {settings.split}, but the run has no such held-out episodes for recorded goals. "
                f"Set {share} above 0 before training, or evaluation.goals to environment."
            )
        return _draw_recorded(settings, lane, dataset, np.asarray(episodes, np.int64), context)


def _unsolved(
    lane: Lane, kinds: Sequence[Iterator[Task]], criterion: Criterion, wanted: int
) -> tuple[tuple[Task, ...], int]:
    """Tasks of each kind in turn, and how many were left out because they are solved at their start."""
    tasks: list[Task] = []
    solved = 0
    while len(tasks) < wanted:
        task = next(kinds[len(tasks) % len(kinds)], None)
        if task is None or solved >= _MOST_SOLVED * wanted:
            raise PlanningError(
                f"evaluation.num_episodes is {wanted}, but only {len(tasks)} starts were found that are not solved "
                f"already ({solved} were, by: {criterion}). Lower it, make evaluation.success stricter, raise "
                "evaluation.goal_steps, or hold out more episodes (evaluation_split)."
            )
        begin(lane, task, own_success=criterion.is_own)
        if criterion.judge(lane.states(), lane.info, task.goal_state)[0]:
            solved += 1
        else:
            tasks.append(task)
    return tuple(tasks), solved


@contextmanager
def _start_errors(lane: Lane, tried: Collection[RestoreMethod] = ()) -> Iterator[None]:
    """Say of an environment that fails, or does not come back, which protocols remain."""
    try:
        yield
    except EnvironmentNotUsableError as error:
        raise StartError(f"evaluation.{'restore' if tried else 'goals'}: {error}", lane, tried) from error


# --- recorded starts and goals ------------------------------------------------------------------------------


def _draw_recorded(
    settings: EvaluationConfig, lane: Lane, dataset: EpisodeDataset, episodes: NDArray[np.int64], context: int
) -> TaskSet:
    criterion = Criterion(settings.success, dataset.state_variables)
    if criterion.is_own and not lane.has("set_goal"):
        raise PlanningError(
            f"evaluation.success is null, but {lane.name} cannot be told a recorded goal (it has no set_goal()): set "
            f"it to conditions on its state variables ({', '.join(dataset.state_variables) or 'there are none'})."
        )
    can_restore = lane.has("restore_state")
    if settings.restore == "state" and not can_restore:
        raise PlanningError(
            f"evaluation.restore is state, but {lane.name} has no restore_state(): give it the method, or set "
            "evaluation.restore to replay."
        )
    methods: list[RestoreMethod] = ["state", "replay"] if can_restore else ["replay"]
    if settings.restore != "auto":
        methods = [settings.restore]
    notes: list[str] = []
    if settings.reset_options:
        notes.append("evaluation.reset_options has no effect, as starts and goals are recorded.")
    if settings.split == "validation":
        notes.append("Tasks are drawn from validation episodes, for tuning: publish with evaluation.split=evaluation.")
    failed: list[StartError] = []
    for method in methods:
        kinds = [_recorded_tasks(settings, dataset, episodes, method, context)]
        try:
            tasks, solved = _unsolved(lane, kinds, criterion, settings.num_episodes)
        except StartError as error:
            failed.append(error)
        else:
            notes += [f"Starts are replayed. {error.reason}" for error in failed]
            return TaskSet(tasks, criterion, "recorded", method, solved, tuple(notes))
    raise StartError(" ".join(error.reason for error in failed), lane, methods) from failed[-1]


def _recorded_tasks(
    settings: EvaluationConfig,
    dataset: EpisodeDataset,
    episodes: NDArray[np.int64],
    method: RestoreMethod,
    context: int,
) -> Iterator[Task]:
    """Every pair of start and goal, in an order that the seed draws: one of each episode before a second of any.

    Tasks of one episode are alike, so that they tell less than those of several; see `Rate`.
    """
    blocks = _goal_blocks(settings.goal_steps, dataset, episodes)
    space = PlanSpace.of(dataset.action_space, dataset.spec.frame_skipping)

    def environment_actions(blocks: NDArray[Any]) -> NDArray[Any]:
        """Blocks (T, A) as environment actions (T * frame_skipping, *shape)."""
        actions = space.split(torch.tensor(blocks))
        return actions.reshape(-1, *actions.shape[2:])

    rng = np.random.default_rng(settings.seed)
    # The last frame of an episode is no goal: its block of actions may have been cut short by the end.
    counts = np.maximum(dataset.episode_lengths[episodes] - blocks, 0)
    numbers, starts = np.repeat(episodes, counts), np.concatenate([rng.permutation(count) for count in counts])
    rounds = np.concatenate([np.arange(count) for count in counts])
    for pair in np.lexsort((rng.permutation(len(rounds)), rounds)):
        first, number = int(starts[pair]), int(numbers[pair])
        last, episode = first + blocks, dataset.episode(number)
        start = RecordedStart(
            method=method,
            seed=dataset.provenance.seed,
            episode=dataset.episode_number(number),
            actions=environment_actions(episode.actions[:first]),
            frame=episode.frames[first],
            states={name: rows[first] for name, rows in episode.states.items()},
            ignored=settings.ignored_variables,
        )
        goal_state = {name: rows[last] for name, rows in episode.states.items()}
        before = slice(max(0, first - (context - 1)), first)
        history = episode.frames[before], episode.actions[before]
        there = environment_actions(episode.actions[first:last])
        yield Task("all", episode.frames[last], goal_state, there, start, history)


def _goal_blocks(goal_steps: int, dataset: EpisodeDataset, episodes: NDArray[np.int64]) -> int:
    skip = dataset.spec.frame_skipping
    longest = (int(dataset.episode_lengths[episodes].max()) - 1) * skip
    if longest < skip:
        raise PlanningError(
            f"evaluation.goals: the held-out episodes of {dataset.path} are single transitions, too short for a start "
            "and a goal. Collect longer episodes (max_steps_per_episode_data_collection)."
        )
    if goal_steps % skip or goal_steps > longest:
        below = min(goal_steps, longest) // skip * skip
        nearest = [str(steps) for steps in (below, below + skip) if 0 < steps <= longest]
        raise ConfigError(
            f"evaluation.goal_steps is {goal_steps}: must be a multiple of {skip} (frame_skipping), at most {longest}, "
            f"as many as the held-out episodes of {dataset.path} have; nearest is {' or '.join(nearest)}."
        )
    return goal_steps // skip


# --- starts and goals of the environment --------------------------------------------------------------------


def _draw_from_environment(config: Config, lane: Lane, dataset: EpisodeDataset | None) -> TaskSet:
    settings = config.evaluation
    collected, num_collected = config.dataset_seed, config.num_episodes_data_collection
    if dataset is not None:
        collected, num_collected = dataset.provenance.seed, dataset.spec.num_episodes
    used = {episode_seeds(collected, episode).environment for episode in range(num_collected)}
    seeds = (seed for index in count() if (seed := _drawn_seed(settings.seed, index)) not in used)
    criterion = _criterion_for_drawn(settings, lane, next(seeds))

    def drawn(options: Mapping[str, Any]) -> Iterator[Task]:
        words = ", ".join(f"{name}={value}" for name, value in options.items()) or "default"
        group = words if settings.reset_options else "all"
        for seed in seeds:
            with _start_errors(lane):
                start = restore.draw_start(lane, seed, options)
                task = Task(group, restore.goal_frame(lane, start.frame), _goal_state(lane), None, start)
            yield task

    kinds = [drawn(options) for options in settings.reset_options or [{}]]
    tasks, solved = _unsolved(lane, kinds, criterion, settings.num_episodes)
    note = "evaluation.split has no effect, as the environment draws starts and goals: tune with another seed."
    notes = (note,) if settings.split == "validation" else ()
    return TaskSet(tasks, criterion, "environment", None, solved, notes)


def _criterion_for_drawn(settings: EvaluationConfig, lane: Lane, seed: int) -> Criterion:
    with _start_errors(lane):
        restore.draw_start(lane, seed, {})
    if settings.success is not None and not lane.has("goal_state"):
        raise PlanningError(
            f"evaluation.success is set, but {lane.name} does not tell the state at the goal that it draws: give it "
            "goal_state(), set evaluation.success to null for its own success, or evaluation.goals to recorded."
        )
    if settings.success is None and own_success(lane.info) is None:
        raise PlanningError(
            f"evaluation.success is null, but {lane.name} gives neither success nor is_success in info after reset(): "
            "add it, or set evaluation.goals to recorded and evaluation.success to conditions on its state variables "
            f"({', '.join(lane.states()) or 'there are none'})."
        )
    return Criterion(settings.success, {name: value.shape for name, value in _goal_state(lane).items()})


def _goal_state(lane: Lane) -> States:
    return extract_state(None, lane.call("goal_state")) if lane.has("goal_state") else {}


def _drawn_seed(seed: int, index: int) -> int:
    """Below 2**31, as the seeds of episodes."""
    return int(np.random.SeedSequence(seed, spawn_key=(_STREAM, index)).generate_state(1)[0]) >> 1
