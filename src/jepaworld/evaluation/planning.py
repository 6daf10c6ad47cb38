"""How often plans reach their goals, beside a random policy and the recorded actions.

Shapes: B environments side by side, k environment steps of an action block, C H W image, P plan steps, *D latent.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jepaworld.config import Config
from jepaworld.config.planning import EvaluationConfig
from jepaworld.data.policies import RandomPolicy
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.frames import Frame
from jepaworld.envs.player import Lane
from jepaworld.envs.seeding import kept_random_state
from jepaworld.errors import EnvironmentFailedError
from jepaworld.evaluation.agents import Agent, PlanningAgent, ScriptedAgent
from jepaworld.evaluation.ranking import rank_recorded
from jepaworld.evaluation.results import AgentResult, PlanningResults, PlayedTask
from jepaworld.evaluation.success import Criterion, Rest
from jepaworld.evaluation.task_file import TaskFile
from jepaworld.evaluation.tasks import Task, TaskSet, begin, draw_tasks, make_task_player
from jepaworld.planning import Controller, Planner, WorldModel
from jepaworld.utils.devices import one_thread
from jepaworld.utils.modules import device_of
from jepaworld.utils.progress import Progress

_PLANNERS = 2**32 - 2
"""Keeps the seeds of further planners apart from those of starts and episodes."""

_SMALL_MODEL = 5_000_000
"""Parameters below which one thread plans faster than several on a processor."""


@dataclass
class Recording:
    """What was seen and planned in one of the planner's episodes, for a video."""

    played: PlayedTask
    goal: Frame  # uint8 (C, H, W)
    frames: list[Frame]  # before every block and at the end
    plans: list[torch.Tensor]  # imagined embeddings (P, *D) of the plan that is followed at each frame but the last


def evaluate_planning(
    model: WorldModel,
    config: Config,
    dataset: EpisodeDataset | None,
    episodes: NDArray[np.int64],
    *,
    bf16: bool = False,
    num_recordings: int = 2,
    progress: Progress | None = None,
    tasks_from: Path | None = None,
    tasks_to: Path | None = None,
) -> PlanningResults:
    """Play the same tasks with plans, with a random policy and, where there are any, with the recorded actions.

    Args:
        model: The world model.
        config: Environment, `planning` and `evaluation` are used.
        dataset: Where recorded starts and goals come from; None with goals of the environment.
        episodes: Its held-out episodes, those of `evaluation.split`.
        bf16: Imagine in bf16 autocast.
        num_recordings: Episodes to record for videos: the first so many of each group, and so many that failed.
        progress: What the user sees.
        tasks_from: A task file to play from, in place of drawing tasks; it decides what belongs to them.
        tasks_to: Where the tasks are written before they are played.

    Returns:
        The results with `recordings`; whatever is about a run folder is the caller's to add.

    Raises:
        JepaworldError: as `draw_tasks`, `TaskFile.read`, `begin` and `Controller`; the environment failed.
    """
    progress, began = progress or Progress(), time.perf_counter()
    file = None if tasks_from is None else TaskFile.read(tasks_from, config)
    config = config if file is None else file.settings(config)
    settings = config.evaluation
    num_lanes, skip = min(settings.num_envs, settings.num_episodes), config.frame_skipping
    with kept_random_state(), make_task_player(config, dataset, num_lanes) as player, _threads_for(model):
        lane, space = player.lanes[0], player.action_space
        controller = Controller(model, space, config.planning, frame_skipping=skip, seed=settings.seed, bf16=bf16)
        context = controller.context if settings.history else 1
        if file is None:
            tasks = draw_tasks(config, lane, dataset, episodes, context=context)
        else:
            tasks = _tasks_of(file, config, lane, dataset, episodes, context, progress)
        if tasks_to is not None:
            file = file or TaskFile.of(tasks, config, dataset, context)
            file.write(tasks_to)
        shapes = {name: value.shape for name, value in lane.states().items()}
        rest = None if settings.rest is None else Rest(settings.rest, shapes)
        runner = _TaskRunner(tasks, player.lanes, settings.max_steps, progress, rest)
        found = _play_all(runner, controller, space, config, num_recordings)
    played_from = f"{tasks_from.name} ({file.sha256[:12]})" if tasks_from and file else None
    return PlanningResults(
        **found,
        **_settings_entries(config, tasks),
        protocol=describe_protocol(config, tasks, dataset, rest, played_from),
        tasks_sha256="" if file is None else file.sha256,
        device=str(controller.device),
        duration_seconds=round(time.perf_counter() - began, 1),
    )


def _settings_entries(config: Config, tasks: TaskSet) -> dict[str, Any]:
    """Which tasks were played with which settings, as entries of `PlanningResults`."""
    return {
        "seed": config.evaluation.seed,
        "training_seed": config.seed,
        "environment": config.environment_name,
        "goals": tasks.goals,
        "num_episodes": len(tasks.tasks),
        "max_steps": config.evaluation.max_steps,
        "excluded_solved": tasks.solved,
        "groups": tasks.groups,
        "planning": config.planning.model_dump(mode="json"),
        "evaluation": config.evaluation.model_dump(mode="json"),
    }


def _tasks_of(
    file: TaskFile,
    config: Config,
    lane: Lane,
    dataset: EpisodeDataset | None,
    episodes: NDArray[np.int64],
    context: int,
    progress: Progress,
) -> TaskSet:
    """The tasks of a file, the first of which is begun; tell of those that the model may have learned from."""
    tasks = file.task_set(config, context)
    if dataset is not None and dataset.fingerprint == file.dataset:
        held_out = {dataset.episode_number(int(index)) for index in episodes}
        if seen := sum(task.episode not in held_out for task in tasks.tasks):
            progress.warn(f"{seen} of {len(tasks.tasks)} tasks are of episodes that this run does not hold out.")
    begin(lane, tasks.tasks[0], own_success=tasks.criterion.is_own)
    return tasks


def _threads_for(model: Any) -> AbstractContextManager[None]:
    """One thread for a small model on a processor.

    Its operations are short, and between them an environment is stepped in Python, after which threads have to wake up
    again: 100 environments took 62 to 76 s with two threads and 17.8 s with one.
    """
    size = sum(parameter.numel() for parameter in model.parameters()) if isinstance(model, nn.Module) else 0
    return one_thread() if device_of(model).type == "cpu" and size < _SMALL_MODEL else nullcontext()


# --- the planner and its baselines -----------------------------------------------------------------------------------


def _play_all(
    runner: _TaskRunner, controller: Controller, space: gymnasium.Space[Any], config: Config, num_recordings: int
) -> dict[str, Any]:
    """What the planner, the random policy and the recorded actions reached, as entries of `PlanningResults`."""
    settings, collection = config.evaluation, config.collection
    for note in runner.tasks.notes:
        runner.progress.warn(note)
    planner, played, recordings = _play_planner(runner, controller, config, num_recordings)
    # As smooth as the actions that were collected with, if these were random.
    policy = RandomPolicy(space, collection.smoothness if collection.policy == "smooth_random" else 0.0)
    rank = rank_recorded(controller, runner.tasks.tasks, policy, settings.seed, len(runner.lanes))
    agents = [planner]
    for result, tasks in _play_baselines(runner, policy, settings):
        agents.append(result)
        played += tasks
    return {"agents": agents, "episodes": played, "recorded_rank": rank, "recordings": recordings}


def _play_planner(
    runner: _TaskRunner, controller: Controller, config: Config, num_recordings: int
) -> tuple[AgentResult, list[PlayedTask], tuple[Recording, ...]]:
    """The planner's result, its tasks, and recordings: by seed, then failures."""
    agent, tasks = PlanningAgent(controller), runner.tasks.tasks
    chosen: list[int] = []
    for group in runner.tasks.groups or ["all"]:
        chosen += [number for number, task in enumerate(tasks) if task.group == group][:num_recordings]
    played, seconds, recordings = runner.play(agent, "planning", record=chosen)
    seconds_per_plan = sum(controller.seconds_per_plan) / agent.num_plans
    streams = [played]
    for stream in range(1, config.evaluation.planner_seeds):
        controller.planner.seed = planner_seed(config.evaluation.seed, stream)
        others, _, _ = runner.play(agent, f"planning, random numbers {stream + 1}")
        streams.append([task.model_copy(update={"planner_seed": stream}) for task in others])
    controller.planner.seed = config.evaluation.seed
    label = describe_planner(config, controller.planner)
    result = AgentResult.of(label, played, seconds, seconds_per_plan).with_spread(streams)
    # Which tasks fail is known afterwards only, and frames and plans of all would fill gigabytes: some of those that
    # failed are played once more, with the same random numbers.
    failed = [task.task for task in played if not task.any and task.task not in chosen][:num_recordings]
    again = runner.play(agent, "failures again, for videos", failed, record=failed)[2] if failed else []
    every = [task for stream in streams for task in stream]
    return result, every, (*recordings, *(one for one in again if not one.played.any))


def planner_seed(seed: int, stream: int) -> int:
    """Seed of a stream of the planner's random numbers: `evaluation.seed` itself for the first, 0."""
    if stream == 0:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(_PLANNERS, stream)).generate_state(1)[0])


def _play_baselines(
    runner: _TaskRunner, policy: RandomPolicy, settings: EvaluationConfig
) -> Iterator[tuple[AgentResult, list[PlayedTask]]]:
    """What the agents beside the planner reached, and their tasks."""
    recorded = "the recorded actions"

    def draw(number: int, task: Task) -> NDArray[Any]:  # noqa: ARG001 (whatever the task is)
        return policy.sequence(np.random.default_rng((settings.seed, number)), settings.max_steps)

    label = "random actions" + (f" (smoothness {policy.smoothness:g})" if policy.smoothness else "")
    agents = [(ScriptedAgent("random", draw), label)]
    if runner.tasks.goals == "recorded":
        agents.append((ScriptedAgent("recorded", lambda _, task: np.asarray(task.actions)), recorded))
    for agent, label in agents:
        try:
            played, seconds, _ = runner.play(agent, label)
        except EnvironmentFailedError as error:  # what the planner did is not lost by that
            runner.progress.warn(f"no {label}: {error}")
            yield AgentResult(name=agent.name, label=label, missing=str(error)), []
        else:
            yield AgentResult.of(label, played, seconds), played
    if runner.tasks.goals == "environment":
        missing = "the environment drew the goals, nobody went there"
        yield AgentResult(name="recorded", label=recorded, missing=missing), []


# --- playing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Attempt:
    """A task while an agent plays it in a lane, and what is recorded of it."""

    lane: Lane
    number: int
    task: Task
    recorded: bool
    steps: int | None = None
    at_end: bool = False
    played: int = 0
    distances: tuple[float, ...] = ()
    frames: list[Frame] = field(default_factory=list)
    plans: list[torch.Tensor] = field(default_factory=list)

    def observe(self) -> Frame:
        """What is seen now."""
        frame = self.lane.frame()
        self.frames += [frame] if self.recorded else []
        return frame

    def play(self, actions: NDArray[Any], criterion: Criterion, max_steps: int) -> bool:
        """Play actions; whether the episode has ended."""
        for action in actions:
            ended = self.lane.step(self.lane.possible(action))  # neither plans nor random draws know of masks
            self.played += 1
            now = self.lane.states(), self.lane.info
            self.at_end, self.distances = criterion.judge(*now, self.task.goal_state)
            if self.at_end and self.steps is None:
                self.steps = self.played
            if ended or self.played == max_steps:
                return True
        return not len(actions)

    def result(self, agent: str, rest: Rest | None) -> PlayedTask:
        """What became of it; the lane is where the episode ended."""
        speeds = () if rest is None else rest.speeds(self.lane.states())
        return PlayedTask(
            agent=agent,
            task=self.number,
            group=self.task.group,
            any=self.steps is not None,
            end=self.at_end,
            rest=None if rest is None else self.at_end and rest.holds(speeds),
            speeds=speeds,
            steps=self.steps,
            played=self.played,
            distances=self.distances,
            episode=self.task.episode,
        )


@dataclass
class _TaskRunner:
    """Lets agents play the tasks, as many at a time as there are lanes.

    In groups: an episode goes on after its goal was reached, so that those of a group end together.
    """

    tasks: TaskSet
    lanes: Sequence[Lane]
    max_steps: int
    progress: Progress
    rest: Rest | None = None

    def play(
        self, agent: Agent, title: str, numbers: Sequence[int] | None = None, record: Collection[int] = ()
    ) -> tuple[list[PlayedTask], float, list[Recording]]:
        """Play the tasks of these numbers, or all.

        Returns:
            What became of each task, the seconds that they took, and the recordings of `record` in the order of the
            tasks.
        """
        tasks, began = self.tasks.tasks, time.perf_counter()
        numbers = range(len(tasks)) if numbers is None else numbers
        played, recordings = [], []
        self.progress.start(title, len(numbers))
        try:
            for first in range(0, len(numbers), len(self.lanes)):
                places = zip(self.lanes, numbers[first : first + len(self.lanes)], strict=False)
                group = [_Attempt(lane, number, tasks[number], number in record) for lane, number in places]
                self._play_group(agent, group)
                for attempt in group:
                    played.append(attempt.result(agent.name, self.rest))
                    if attempt.recorded:
                        recordings.append(Recording(played[-1], attempt.task.goal_frame, attempt.frames, attempt.plans))
                self.progress.advance(len(group), f"reached {sum(task.any for task in played)}")
        finally:
            self.progress.finish()
        return played, time.perf_counter() - began, recordings

    def _play_group(self, agent: Agent, group: Sequence[_Attempt]) -> None:
        for attempt in group:
            begin(attempt.lane, attempt.task, own_success=self.tasks.criterion.is_own)
        agent.reset([attempt.number for attempt in group], [attempt.task for attempt in group])
        frames = np.stack([attempt.observe() for attempt in group])  # of those that have ended, the last
        playing = list(range(len(group)))
        while playing:
            actions = agent.act(frames)
            recorded = [place for place in playing if group[place].recorded]
            if recorded and isinstance(agent, PlanningAgent):
                for place, plan in zip(recorded, agent.expected(recorded), strict=True):
                    group[place].plans.append(plan)
            ended = {n for n in playing if group[n].play(actions[n], self.tasks.criterion, self.max_steps)}
            for place in playing:
                frames[place] = group[place].observe()
            playing = [place for place in playing if place not in ended]


# --- in words --------------------------------------------------------------------------------------------------------


def describe_planner(config: Config, planner: Planner) -> str:
    """The planner in a few words."""
    planning, skip = config.planning, config.frame_skipping
    steps = f"{planning.horizon} steps" + (f" of {skip} actions" if skip > 1 else "")
    # Some cap or ignore what the settings say; one from outside has attributes of its own.
    searched = getattr(planner, "settings", planner)
    samples = getattr(searched, "num_samples", planning.num_samples)
    name = getattr(planner, "name", type(planner).__name__).replace("_", " ")
    return f"{name}, {steps}, {getattr(searched, 'num_iterations', 1)} x {samples} candidates"


def describe_protocol(
    config: Config,
    tasks: TaskSet,
    dataset: EpisodeDataset | None,
    rest: Rest | None = None,
    file: str | None = None,
) -> str:
    """What was done, in a sentence."""
    settings, still = config.evaluation, f"; at rest is {rest}" if rest else ""
    if tasks.goals == "environment":
        unseen = "no collected episode had" if dataset is not None else "the run's settings do not collect with"
        where = "start and goal drawn by the environment" + ("" if file else f", from seeds that {unseen}")
    else:
        how = "setting the state" if tasks.restore == "state" else "replaying seed and actions"
        held_out = "held-out" if settings.split == "evaluation" else "validation"
        where = (
            f"start and, {settings.goal_steps} environment steps later, goal of {held_out} episodes, restored by {how}"
        )
        before = max((len(task.history[0]) for task in tasks.tasks if task.history is not None), default=0)
        if before:
            where += f", with up to {before} recorded frames before the start"
    where += f", as in the task file {file}" if file else ""
    return (
        f"{len(tasks.tasks)} episodes of at most {settings.max_steps} environment steps, "
        f"{min(settings.num_envs, len(tasks.tasks))} side by side: {where}; success is "
        f"{tasks.criterion}{still}; starts that were solved already and drawn again: "
        f"{tasks.solved}; seed {settings.seed}"
    )
