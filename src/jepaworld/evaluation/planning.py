"""How often plans reach their goals, beside a random policy and the recorded actions.

Shapes: B environments side by side, k environment steps of an action block, A numbers of a block, C H W image, P plan
steps, *D latent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jepaworld.config import Config
from jepaworld.data.policies import RandomPolicy
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.player import Lane, Player
from jepaworld.errors import EnvironmentFailedError
from jepaworld.evaluation.results import AgentResult, PlanningResults, PlayedTask
from jepaworld.evaluation.tasks import Task, TaskSet, begin, draw_tasks, make_task_player
from jepaworld.planning import Controller, Planner, WorldModel
from jepaworld.utils.modules import device_of
from jepaworld.utils.progress import Progress

Actions = Sequence[NDArray[Any]]
"""For each environment the actions (steps, *shape) to play next; none at all if it has none left."""

_SMALL_MODEL = 5_000_000
"""Parameters below which one thread plans faster than several on a processor."""


class Agent(Protocol):
    """Who acts in a group of environments.

    Attributes:
        name: As in `AgentResult`.
        needs_frames: Whether `act` needs frames.
    """

    name: str
    needs_frames: bool

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:
        """Begin these tasks, whose places in the evaluation are `numbers`."""
        ...

    def act(self, frames: NDArray[np.uint8] | None) -> Actions:
        """What to play next in each environment, given what is seen, uint8 (B, C, H, W)."""
        ...


class PlanningAgent:
    """Plays the first block of a plan, then plans again; see `Controller`."""

    name, needs_frames = "planner", True

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.num_plans = 0

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:
        """Set the goals. A task's number decides its random numbers, whatever is played beside it."""
        self.controller.reset(np.stack([task.goal_frame for task in tasks]), numbers)

    def act(self, frames: NDArray[np.uint8] | None) -> Actions:
        """The actions of the next block of each environment."""
        assert frames is not None
        searches = len(self.controller.seconds_per_plan)
        blocks = self.controller.act(frames)
        self.num_plans += (len(self.controller.seconds_per_plan) - searches) * len(frames)
        return list(self.controller.space.split(blocks))


class ScriptedAgent:
    """Plays actions that stand fixed before a task begins, once."""

    needs_frames = False

    def __init__(self, name: str, actions_of: Callable[[int, Task], NDArray[Any]]) -> None:
        self.name, self.actions_of = name, actions_of
        self.actions: Actions = []

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:
        """Find the tasks' actions."""
        self.actions = [self.actions_of(number, task) for number, task in zip(numbers, tasks, strict=True)]

    def act(self, frames: NDArray[np.uint8] | None) -> Actions:  # noqa: ARG002 (the interface's)
        """All actions at first, nothing afterwards."""
        actions, self.actions = self.actions, [one[:0] for one in self.actions]
        return actions


@dataclass
class Recording:
    """What was seen and planned in one of the planner's episodes, for a video.

    Attributes:
        played: What became of it.
        goal: uint8 (C, H, W).
        frames: uint8 (C, H, W) each, before every block and at the end.
        plans: Imagined embeddings (P, *D) of the plan that is followed at each of the frames but the last.
    """

    played: PlayedTask
    goal: NDArray[np.uint8]
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    plans: list[torch.Tensor] = field(default_factory=list)


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
        num_recordings: Episodes to record for videos in each group: so many from the beginning, which the seed chose,
            and over all groups at most so many more that failed.
        progress: What the user sees.

    Returns:
        The results with `recordings`; whatever is about a run folder is the caller's to add.

    Raises:
        JepaworldError: a subclass for each problem that the user can mend, as `draw_tasks`, `begin` and `Controller`;
            an environment that fails while the planner plays.
    """
    progress, settings, began = progress or Progress(), config.evaluation, time.perf_counter()
    num_lanes = min(settings.num_envs, settings.num_episodes)
    with make_task_player(config, dataset, num_lanes) as player, _few_threads(model):
        controller = Controller(
            model,
            player.action_space,
            config.planning,
            frame_skipping=config.frame_skipping,
            seed=settings.seed,
            bf16=bf16,
        )
        tasks = draw_tasks(config, player.lanes[0], dataset, episodes)
        for note in tasks.notes:
            progress.warn(note)
        session = _Session(tasks, player, settings.max_steps, progress)
        planner, played, recordings = _play_planner(session, controller, config, num_recordings)
        agents = [planner]
        for agent, label in _baselines(config, tasks, player.action_space):
            try:
                found, seconds, _ = session.play(agent, label)
            except EnvironmentFailedError as error:  # what the planner did is not lost by that
                progress.warn(f"no {label}: {error}")
                agents.append(AgentResult(name=agent.name, label=label, missing=str(error)))
            else:
                agents.append(AgentResult.of(label, found, seconds))
                played += found
    if tasks.goals == "environment":
        missing = "the environment drew the goals, nobody went there"
        agents.append(AgentResult(name="recorded", label="the recorded actions", missing=missing))
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


def _play_planner(
    session: _Session, controller: Controller, config: Config, num_recordings: int
) -> tuple[AgentResult, list[PlayedTask], tuple[Recording, ...]]:
    """The planner's result, its tasks, and recordings: by seed, then failures."""
    agent, tasks = PlanningAgent(controller), session.tasks.tasks
    chosen: list[int] = []
    for group in session.tasks.groups or ["all"]:
        chosen += [number for number, task in enumerate(tasks) if task.group == group][:num_recordings]
    played, seconds, recordings = session.play(agent, "planning", record=chosen)
    seconds_per_plan = sum(controller.seconds_per_plan) / agent.num_plans
    result = AgentResult.of(describe_planner(config, controller.planner), played, seconds, seconds_per_plan)
    # Which tasks fail is known afterwards only, and frames and plans of all would fill gigabytes: some of those that
    # failed are played once more, with the same random numbers.
    failed = [task.task for task in played if not task.any and task.task not in chosen][:num_recordings]
    again = session.play(agent, "failures again, for videos", failed, record=failed)[2] if failed else []
    return result, played, (*recordings, *(one for one in again if not one.played.any))


def _baselines(config: Config, tasks: TaskSet, space: gymnasium.Space[Any]) -> Iterator[tuple[Agent, str]]:
    """The agents beside the planner, with a label each."""
    settings = config.evaluation
    smoothness = config.collection.smoothness if config.collection.policy == "smooth_random" else 0.0
    policy = RandomPolicy(space, smoothness)

    def random(number: int, task: Task) -> NDArray[Any]:  # noqa: ARG001 (the interface's)
        return policy.sequence(np.random.default_rng((settings.seed, number)), settings.max_steps)

    def recorded(number: int, task: Task) -> NDArray[Any]:  # noqa: ARG001 (the interface's)
        assert task.actions is not None, "goals are recorded"
        return task.actions

    label = f"random actions (smoothness {smoothness:g})" if smoothness else "random actions"
    yield ScriptedAgent("random", random), label
    if tasks.goals == "recorded":
        yield ScriptedAgent("recorded", recorded), "the recorded actions"


class _Session:
    """Plays tasks with an agent, as many at a time as there are lanes.

    In groups: an episode goes on after its goal was reached, so that those of a group end together.
    """

    def __init__(self, tasks: TaskSet, player: Player, max_steps: int, progress: Progress) -> None:
        self.tasks, self.lanes, self.max_steps, self.progress = tasks, player.lanes, max_steps, progress

    def play(
        self, agent: Agent, title: str, numbers: Sequence[int] | None = None, record: Collection[int] = ()
    ) -> tuple[list[PlayedTask], float, list[Recording]]:
        """Play tasks.

        Args:
            agent: Who acts.
            title: What the user sees.
            numbers: Which tasks; None for all.
            record: The tasks that are recorded.

        Returns:
            What became of each task, the seconds that they took, and the recordings in the order of the tasks.
        """
        numbers = range(len(self.tasks.tasks)) if numbers is None else numbers
        played: list[PlayedTask] = []
        recordings: list[Recording] = []
        began = time.perf_counter()
        self.progress.start(title, len(numbers))
        try:
            for first in range(0, len(numbers), len(self.lanes)):
                group = [_Attempt(agent.name, n, self.tasks.tasks[n]) for n in numbers[first : first + len(self.lanes)]]
                self._play_group(agent, group, record)
                played += [attempt.result() for attempt in group]
                recordings += [attempt.recording() for attempt in group if attempt.number in record]
                self.progress.advance(len(group), f"reached {sum(task.any for task in played)}")
        finally:
            self.progress.finish()
        return played, time.perf_counter() - began, recordings

    def _play_group(self, agent: Agent, group: Sequence[_Attempt], record: Collection[int]) -> None:
        for lane, attempt in zip(self.lanes, group, strict=False):
            begin(lane, attempt.task)
        agent.reset([attempt.number for attempt in group], [attempt.task for attempt in group])
        playing, frames = list(range(len(group))), None
        while playing:
            if agent.needs_frames:
                frames = self._look(playing, frames)
            actions = agent.act(frames)
            recorded = [number for number in playing if group[number].number in record]
            if recorded and frames is not None and isinstance(agent, PlanningAgent):
                for number, plan in zip(recorded, _coming(agent.controller, recorded), strict=True):
                    group[number].frames.append(frames[number].copy())
                    group[number].plans.append(plan)
            playing = [number for number in playing if not self._step(number, group[number], actions[number])]
            for number in set(recorded) - set(playing):
                group[number].frames.append(self.lanes[number].frame())

    def _look(self, playing: Sequence[int], before: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """The frames (B, C, H, W) of all environments; of those that have ended, the last one."""
        if before is None:
            return np.stack([self.lanes[number].frame() for number in playing])
        for number in playing:
            before[number] = self.lanes[number].frame()
        return before

    def _step(self, number: int, attempt: _Attempt, actions: NDArray[Any]) -> bool:
        """Play actions in an environment; whether its episode has ended."""
        lane = self.lanes[number]
        for action in actions:
            ended = lane.step(action)
            attempt.judge(self.tasks, lane)
            if ended or attempt.played == self.max_steps:
                return True
        return not len(actions)


@dataclass
class _Attempt:
    """A task while an agent plays it, and what is recorded of it."""

    agent: str
    number: int
    task: Task
    steps: int | None = None
    at_end: bool = False
    played: int = 0
    distances: tuple[float, ...] = ()
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    plans: list[torch.Tensor] = field(default_factory=list)

    def judge(self, tasks: TaskSet, lane: Lane) -> None:
        """Count a step, and whether it reached the goal."""
        self.played += 1
        self.at_end, self.distances = tasks.criterion.judge(lane.states(), lane.info, self.task.goal_state)
        if self.at_end and self.steps is None:
            self.steps = self.played

    def result(self) -> PlayedTask:
        return PlayedTask(
            agent=self.agent,
            task=self.number,
            group=self.task.group,
            any=self.steps is not None,
            end=self.at_end,
            steps=self.steps,
            played=self.played,
            distances=self.distances,
            episode=self.task.episode,
        )

    def recording(self) -> Recording:
        return Recording(self.result(), self.task.goal_frame, self.frames, self.plans)


def _coming(controller: Controller, envs: Sequence[int]) -> torch.Tensor:
    """What the model expects to see from now on in some environments, (b, P, *D) in half precision.

    A plan that is played over several blocks ends sooner, and rests at its end.
    """
    imagined = controller.imagine(envs).imagined.half().cpu()
    played, length = controller.steps_played - 1, imagined.shape[1]
    return imagined[:, torch.arange(played, played + length).clamp(max=length - 1)]


@contextmanager
def _few_threads(model: Any) -> Iterator[None]:
    """One thread where several only wait for each other: a small model on a processor.

    Its operations are short, and between them an environment is stepped in Python, after which threads have to wake up
    again: 100 environments took 62 to 76 s with two threads and 17.8 s with one.
    """
    before = torch.get_num_threads()
    size = sum(parameter.numel() for parameter in model.parameters()) if isinstance(model, nn.Module) else 0
    if device_of(model).type == "cpu" and size < _SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
