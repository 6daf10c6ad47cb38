"""How often plans reach their goals, beside a random policy and the recorded actions.

Shapes: B environments side by side, k environment steps of an action block, C H W image, P plan steps, *D latent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jepaworld.config import Config
from jepaworld.data.policies import RandomPolicy
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.frames import Frame
from jepaworld.envs.player import Lane
from jepaworld.envs.seeding import kept_random_state
from jepaworld.errors import EnvironmentFailedError
from jepaworld.evaluation.results import AgentResult, PlanningResults, PlayedTask
from jepaworld.evaluation.success import Criterion
from jepaworld.evaluation.tasks import Task, TaskSet, begin, draw_tasks, make_task_player
from jepaworld.planning import Controller, Planner, WorldModel
from jepaworld.utils.devices import one_thread
from jepaworld.utils.modules import device_of
from jepaworld.utils.progress import Progress

Actions = Sequence[NDArray[Any]]
"""For each environment the actions (steps, *shape) to play next; none at all if it has none left."""

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
) -> PlanningResults:
    """Play the same tasks with plans, with a random policy and, where there are any, with the recorded actions.

    Args:
        model: The world model.
        config: Environment, `planning` and `evaluation` are used.
        dataset: The dataset that recorded starts and goals come from; None with goals of the environment.
        episodes: Its held-out episodes, those of `evaluation.split`.
        bf16: Imagine in bf16 autocast.
        num_recordings: Episodes to record for videos: the first so many of each group, and so many that failed.
        progress: What the user sees.

    Returns:
        The results with `recordings`; whatever is about a run folder is the caller's to add.

    Raises:
        JepaworldError: as `draw_tasks`, `begin` and `Controller`; an environment that fails while the planner plays.
    """
    progress, settings, began = progress or Progress(), config.evaluation, time.perf_counter()
    num_lanes, skip = min(settings.num_envs, settings.num_episodes), config.frame_skipping
    with kept_random_state(), make_task_player(config, dataset, num_lanes) as player, _threads_for(model):
        space = player.action_space
        controller = Controller(model, space, config.planning, frame_skipping=skip, seed=settings.seed, bf16=bf16)
        tasks = draw_tasks(config, player.lanes[0], dataset, episodes)
        for note in tasks.notes:
            progress.warn(note)
        stage = _Stage(tasks, player.lanes, settings.max_steps, progress)
        planner, played, recordings = _play_planner(stage, controller, config, num_recordings)
        agents = [planner]
        for result, found in _play_baselines(stage, config, space):
            agents.append(result)
            played += found
    return PlanningResults(
        seed=settings.seed,
        training_seed=config.seed,
        environment=config.environment_name,
        protocol=describe_protocol(config, tasks, dataset),
        goals=tasks.goals,
        num_episodes=len(tasks.tasks),
        max_steps=settings.max_steps,
        excluded_solved=tasks.solved,
        groups=tasks.groups,
        agents=agents,
        planning=config.planning.model_dump(mode="json"),
        evaluation=settings.model_dump(mode="json"),
        device=str(controller.device),
        episodes=played,
        duration_seconds=round(time.perf_counter() - began, 1),
        recordings=recordings,
    )


def _threads_for(model: Any) -> AbstractContextManager[None]:
    """One thread for a small model on a processor.

    Its operations are short, and between them an environment is stepped in Python, after which threads have to wake up
    again: 100 environments took 62 to 76 s with two threads and 17.8 s with one.
    """
    size = sum(parameter.numel() for parameter in model.parameters()) if isinstance(model, nn.Module) else 0
    return one_thread() if device_of(model).type == "cpu" and size < _SMALL_MODEL else nullcontext()


# --- who plays -------------------------------------------------------------------------------------------------------


class PlanningAgent:
    """Plays the first block of a plan, then plans again; see `Controller`."""

    name = "planner"

    def __init__(self, controller: Controller) -> None:
        self.controller, self.num_plans = controller, 0

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:
        """Set the goals. A task's number decides its random numbers, whatever is played beside it."""
        self.controller.reset(np.stack([task.goal_frame for task in tasks]), numbers)

    def act(self, frames: NDArray[np.uint8]) -> Actions:
        """The actions of the next block of each environment."""
        blocks = self.controller.act(frames)
        self.num_plans += len(frames) if self.controller.steps_played == 1 else 0  # it was the first of new plans
        return list(self.controller.space.split(blocks))

    def expected(self, envs: Sequence[int]) -> torch.Tensor:
        """What the model expects to see from now on in some environments, (b, P, *D) in half precision.

        A plan that is played over several blocks ends sooner, and rests at its end.
        """
        imagined = self.controller.imagine(envs).imagined.half().cpu()
        played, length = self.controller.steps_played - 1, imagined.shape[1]
        return imagined[:, torch.arange(played, played + length).clamp(max=length - 1)]


class ScriptedAgent:
    """Plays actions that stand fixed before a task begins, once."""

    def __init__(self, name: str, actions_of: Callable[[int, Task], NDArray[Any]]) -> None:
        self.name, self.actions_of = name, actions_of
        self.actions: Actions = []

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:
        """Find the tasks' actions."""
        self.actions = list(map(self.actions_of, numbers, tasks))

    def act(self, frames: NDArray[np.uint8]) -> Actions:  # noqa: ARG002 (it does not look)
        """All actions at first, nothing afterwards."""
        actions, self.actions = self.actions, [one[:0] for one in self.actions]
        return actions


Agent = PlanningAgent | ScriptedAgent


def _play_planner(
    stage: _Stage, controller: Controller, config: Config, num_recordings: int
) -> tuple[AgentResult, list[PlayedTask], tuple[Recording, ...]]:
    """The planner's result, its tasks, and recordings: by seed, then failures."""
    agent, tasks = PlanningAgent(controller), stage.tasks.tasks
    chosen: list[int] = []
    for group in stage.tasks.groups or ["all"]:
        chosen += [number for number, task in enumerate(tasks) if task.group == group][:num_recordings]
    played, seconds, recordings = stage.play(agent, "planning", record=chosen)
    seconds_per_plan = sum(controller.seconds_per_plan) / agent.num_plans
    result = AgentResult.of(describe_planner(config, controller.planner), played, seconds, seconds_per_plan)
    # Which tasks fail is known afterwards only, and frames and plans of all would fill gigabytes: some of those that
    # failed are played once more, with the same random numbers.
    failed = [task.task for task in played if not task.any and task.task not in chosen][:num_recordings]
    again = stage.play(agent, "failures again, for videos", failed, record=failed)[2] if failed else []
    return result, played, (*recordings, *(one for one in again if not one.played.any))


def _play_baselines(
    stage: _Stage, config: Config, space: gymnasium.Space[Any]
) -> Iterator[tuple[AgentResult, list[PlayedTask]]]:
    """What the agents beside the planner reached, and their tasks."""
    settings, recorded = config.evaluation, "the recorded actions"
    smoothness = config.collection.smoothness if config.collection.policy == "smooth_random" else 0.0
    policy = RandomPolicy(space, smoothness)

    def draw(number: int, task: Task) -> NDArray[Any]:  # noqa: ARG001 (whatever the task is)
        return policy.sequence(np.random.default_rng((settings.seed, number)), settings.max_steps)

    label = f"random actions (smoothness {smoothness:g})" if smoothness else "random actions"
    agents = [(ScriptedAgent("random", draw), label)]
    if stage.tasks.goals == "recorded":
        agents.append((ScriptedAgent("recorded", lambda _, task: np.asarray(task.actions)), recorded))
    for agent, label in agents:
        try:
            played, seconds, _ = stage.play(agent, label)
        except EnvironmentFailedError as error:  # what the planner did is not lost by that
            stage.progress.warn(f"no {label}: {error}")
            yield AgentResult(name=agent.name, label=label, missing=str(error)), []
        else:
            yield AgentResult.of(label, played, seconds), played
    if stage.tasks.goals == "environment":
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

    def look(self) -> Frame:
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

    def result(self, agent: str) -> PlayedTask:
        return PlayedTask(
            agent=agent,
            task=self.number,
            group=self.task.group,
            any=self.steps is not None,
            end=self.at_end,
            steps=self.steps,
            played=self.played,
            distances=self.distances,
            episode=self.task.episode,
        )


@dataclass
class _Stage:
    """Where agents play the tasks, as many at a time as there are lanes.

    In groups: an episode goes on after its goal was reached, so that those of a group end together.
    """

    tasks: TaskSet
    lanes: Sequence[Lane]
    max_steps: int
    progress: Progress

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
                    played.append(attempt.result(agent.name))
                    if attempt.recorded:
                        recordings.append(Recording(played[-1], attempt.task.goal_frame, attempt.frames, attempt.plans))
                self.progress.advance(len(group), f"reached {sum(task.any for task in played)}")
        finally:
            self.progress.finish()
        return played, time.perf_counter() - began, recordings

    def _play_group(self, agent: Agent, group: Sequence[_Attempt]) -> None:
        for attempt in group:
            begin(attempt.lane, attempt.task)
        agent.reset([attempt.number for attempt in group], [attempt.task for attempt in group])
        frames = np.stack([attempt.look() for attempt in group])  # of those that have ended, the last
        playing = list(range(len(group)))
        while playing:
            actions = agent.act(frames)
            recorded = [place for place in playing if group[place].recorded]
            if recorded and isinstance(agent, PlanningAgent):
                for place, plan in zip(recorded, agent.expected(recorded), strict=True):
                    group[place].plans.append(plan)
            ended = {n for n in playing if group[n].play(actions[n], self.tasks.criterion, self.max_steps)}
            for place in playing:
                frames[place] = group[place].look()
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


def describe_protocol(config: Config, tasks: TaskSet, dataset: EpisodeDataset | None) -> str:
    """What was done, in a sentence."""
    settings = config.evaluation
    if tasks.goals == "environment":
        unseen = "no collected episode had" if dataset is not None else "the run's settings do not collect with"
        where = f"start and goal drawn by the environment, from seeds that {unseen}"
    else:
        how = "setting the state" if tasks.restore == "state" else "replaying seed and actions"
        held_out = "held-out" if settings.split == "evaluation" else "validation"
        where = (
            f"start and, {settings.goal_steps} environment steps later, goal of {held_out} episodes, restored by {how}"
        )
    return (
        f"{len(tasks.tasks)} episodes of at most {settings.max_steps} environment steps, "
        f"{min(settings.num_envs, len(tasks.tasks))} side by side: {where}; success is "
        f"{tasks.criterion}; starts that were solved already and drawn again: {tasks.solved}; seed {settings.seed}"
    )
