"""How often plans reach their goals, beside a random policy and the recorded actions.

Shapes: B environments side by side, k environment steps of an action block, A numbers of a block, C H W image.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from jepaworld.config import Config
from jepaworld.data.policies import RandomPolicy
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.player import Lane, Player
from jepaworld.evaluation.rates import Rate
from jepaworld.evaluation.tasks import Task, TaskSet, begin, draw_tasks, make_task_player
from jepaworld.planning import Controller, Planner, WorldModel
from jepaworld.planning.controller import ImaginedPlan
from jepaworld.utils.progress import Progress

Actions = Sequence[NDArray[Any]]
"""For each environment the actions (steps, *shape) to play next; none at all if it has none left."""


class Agent(Protocol):
    """Who acts in a group of environments."""

    @property
    def looks(self) -> bool:
        """Whether `act` needs frames."""
        ...

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:
        """Begin these tasks, whose places in the evaluation are `numbers`."""
        ...

    def act(self, frames: NDArray[np.uint8] | None) -> Actions:
        """What to play next in each environment, given what is seen, uint8 (B, C, H, W)."""
        ...


class PlanningAgent:
    """Plays the first block of a plan, then plans again; see `Controller`."""

    looks = True

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.num_plans = 0

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:  # noqa: ARG002 (the interface's)
        """Set the goals."""
        self.controller.reset(np.stack([task.goal_frame for task in tasks]))

    def act(self, frames: NDArray[np.uint8] | None) -> Actions:
        """The actions of the next block of each environment."""
        assert frames is not None
        searches = len(self.controller.seconds_per_plan)
        blocks = self.controller.act(frames)
        self.num_plans += (len(self.controller.seconds_per_plan) - searches) * len(frames)
        return list(self.controller.space.split(blocks))


class RandomAgent:
    """Random actions as `RandomPolicy` draws them, in each task from its own seed."""

    looks = False

    def __init__(self, space: gymnasium.Space[Any], smoothness: float, seed: int, steps: int) -> None:
        self.policy, self.seed, self.steps = RandomPolicy(space, smoothness), seed, steps
        self.numbers: Sequence[int] = []

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:  # noqa: ARG002 (the interface's)
        """Note which tasks these are."""
        self.numbers = numbers

    def act(self, frames: NDArray[np.uint8] | None) -> Actions:  # noqa: ARG002 (the interface's)
        """The actions of the whole episode."""
        return [self.policy.sequence(np.random.default_rng((self.seed, n)), self.steps) for n in self.numbers]


class RecordedAgent:
    """The recorded actions that led from start to goal, once."""

    looks = False

    def __init__(self) -> None:
        self.actions: Actions = []

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:  # noqa: ARG002 (the interface's)
        """Take the tasks' actions."""
        assert all(task.actions is not None for task in tasks), "goals of the environment have no recorded actions"
        self.actions = [task.actions for task in tasks if task.actions is not None]

    def act(self, frames: NDArray[np.uint8] | None) -> Actions:  # noqa: ARG002 (the interface's)
        """All actions at first, nothing afterwards."""
        actions, self.actions = self.actions, [one[:0] for one in self.actions]
        return actions


@dataclass
class Outcome:
    """What became of one task.

    Attributes:
        task: Its place in the evaluation.
        group: The group of tasks that it is counted in.
        steps: Environment steps after which the goal was reached for the first time; None if it never was.
        at_end: Whether the episode ended at the goal.
        played: Environment steps of the episode.
        distances: How far each condition of `evaluation.success` was from holding at the end, in its unit.
    """

    task: int
    group: str
    steps: int | None = None
    at_end: bool = False
    played: int = 0
    distances: tuple[float, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether the goal was reached at any time."""
        return self.steps is not None


@dataclass(frozen=True)
class AgentResult:
    """What an agent achieved.

    Attributes:
        name: "planner", "random" or "recorded".
        label: Who it is, in words.
        outcomes: One for each task; empty if there is no such agent here.
        missing: Why there is none.
        seconds: Time for all episodes.
        seconds_per_plan: Time for one plan of one environment.
    """

    name: str
    label: str
    outcomes: tuple[Outcome, ...] = ()
    missing: str | None = None
    seconds: float = 0.0
    seconds_per_plan: float | None = None

    def rates(self, at_end: bool) -> dict[str, Rate]:
        """Success at the end, or at any time, over all tasks ("all") and each group, if there are several."""
        groups = list(dict.fromkeys(outcome.group for outcome in self.outcomes))
        selections = {"all": self.outcomes}
        if len(groups) > 1:
            selections |= {name: tuple(o for o in self.outcomes if o.group == name) for name in groups}
        return {
            name: Rate.of(outcome.at_end if at_end else outcome.reached for outcome in outcomes)
            for name, outcomes in selections.items()
            if outcomes
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        steps = [outcome.steps for outcome in self.outcomes if outcome.steps is not None]
        count = len(self.outcomes)
        return {
            "name": self.name,
            "label": self.label,
            "missing": self.missing,
            "any": {name: rate.to_dict() for name, rate in self.rates(at_end=False).items()},
            "end": {name: rate.to_dict() for name, rate in self.rates(at_end=True).items()},
            "median_steps_to_success": float(np.median(steps)) if steps else None,
            "seconds_per_episode": self.seconds / count if count else None,
            "seconds_per_plan": self.seconds_per_plan,
        }


@dataclass
class Recording:
    """What was seen and planned in one episode, for a video.

    Attributes:
        outcome: What became of it.
        goal: uint8 (C, H, W).
        frames: uint8 (C, H, W) each, before every block and at the end.
        plans: Imagined embeddings (P, *D) of the plan that is followed at each of the frames but the last.
    """

    outcome: Outcome
    goal: NDArray[np.uint8]
    frames: list[NDArray[np.uint8]] = field(default_factory=list)
    plans: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class PlanningResult:
    """How often goals were reached.

    Attributes:
        tasks: What was played.
        agents: The planner, the random policy, the recorded actions.
        recordings: Some of the planner's episodes: by seed, and failures.
        protocol: What was done, in a sentence.
    """

    tasks: TaskSet
    agents: tuple[AgentResult, ...]
    recordings: tuple[Recording, ...]
    protocol: str

    @property
    def groups(self) -> list[str]:
        """Groups of tasks that are counted apart; empty if there is only one."""
        groups = list(dict.fromkeys(task.group for task in self.tasks.tasks))
        return groups if len(groups) > 1 else []


def evaluate_planning(
    model: WorldModel,
    config: Config,
    dataset: EpisodeDataset | None,
    episodes: NDArray[np.int64],
    *,
    bf16: bool = False,
    num_recordings: int = 2,
    progress: Progress | None = None,
) -> PlanningResult:
    """Play the same tasks with plans, with a random policy and, where there are any, with the recorded actions.

    Args:
        model: The world model.
        config: Environment, `planning` and `evaluation` are used.
        dataset: The dataset that recorded starts and goals come from; None with goals of the environment.
        episodes: Its held-out episodes.
        bf16: Imagine in bf16 autocast.
        num_recordings: Episodes to keep for videos in each group: so many from the beginning, which the seed chose, and
            over all groups at most so many more that failed.
        progress: What the user sees.

    Raises:
        JepaworldError: a subclass for each problem that the user can mend, as `draw_tasks`, `begin` and `Controller`.
    """
    progress, settings = progress or Progress(), config.evaluation
    # Before any is made, as more than there are tasks are of no use.
    with make_task_player(config, dataset, min(settings.num_envs, settings.num_episodes)) as lanes:
        space = lanes.action_space
        controller = Controller(
            model, space, config.planning, frame_skipping=config.frame_skipping, seed=settings.seed, bf16=bf16
        )
        tasks = draw_tasks(config, lanes.lanes[0], dataset, episodes)
        for note in tasks.notes:
            progress.warn(note)
        player = _Player(config, tasks, lanes, progress)
        recordings = _Recordings(num_recordings, controller)
        agent = PlanningAgent(controller)
        outcomes, seconds = player.play("planning", agent, recordings)
        planner = AgentResult(
            "planner",
            describe_planner(config, controller.planner),
            outcomes,
            seconds=seconds,
            seconds_per_plan=sum(controller.seconds_per_plan) / agent.num_plans,
        )
        smoothness = config.collection.smoothness if config.collection.policy == "smooth_random" else 0.0
        label = f"random actions (smoothness {smoothness:g})" if smoothness else "random actions"
        agent = RandomAgent(space, smoothness, settings.seed, settings.max_steps)
        outcomes, seconds = player.play("random policy", agent)
        random = AgentResult("random", label, outcomes, seconds=seconds)
        label = "the recorded actions"
        if tasks.goals == "recorded":
            outcomes, seconds = player.play("recorded actions", RecordedAgent())
            recorded = AgentResult("recorded", label, outcomes, seconds=seconds)
        else:
            recorded = AgentResult("recorded", label, missing="the environment drew the goals, nobody went there")
    return PlanningResult(
        tasks, (planner, random, recorded), recordings.kept(), describe_protocol(config, tasks, dataset)
    )


class _Player:
    """Plays all tasks with an agent, `evaluation.num_envs` at a time."""

    def __init__(self, config: Config, tasks: TaskSet, lanes: Player, progress: Progress) -> None:
        self.tasks, self.lanes, self.progress = tasks, lanes.lanes, progress
        self.max_steps = config.evaluation.max_steps

    def play(
        self, title: str, agent: Agent, recordings: _Recordings | None = None
    ) -> tuple[tuple[Outcome, ...], float]:
        """The outcome of each task, and the seconds that they took."""
        tasks, outcomes = self.tasks.tasks, []
        began = time.perf_counter()
        self.progress.start(title, len(tasks))
        try:
            for first in range(0, len(tasks), len(self.lanes)):
                numbers = range(first, min(first + len(self.lanes), len(tasks)))
                played = self._play_group(numbers, agent, recordings)
                outcomes += played
                self.progress.advance(len(numbers), f"reached {sum(o.reached for o in outcomes)}")
        finally:
            self.progress.finish()
        return tuple(outcomes), time.perf_counter() - began

    def _play_group(self, numbers: Sequence[int], agent: Agent, recordings: _Recordings | None) -> list[Outcome]:
        tasks = [self.tasks.tasks[number] for number in numbers]
        outcomes = [Outcome(number, task.group) for number, task in zip(numbers, tasks, strict=True)]
        for lane, task in zip(self.lanes, tasks, strict=False):
            begin(lane, task)
        playing = set(range(len(tasks)))
        agent.reset(numbers, tasks)
        if recordings is not None:
            recordings.begin(outcomes, tasks)
        frames: NDArray[np.uint8] | None = None
        while playing:
            if agent.looks:
                frames = self._look(len(tasks), playing, frames)
            actions = agent.act(frames)
            if recordings is not None and frames is not None:
                recordings.note(frames, playing)
            for lane in sorted(playing):
                if self._step(self.lanes[lane], tasks[lane], actions[lane], outcomes[lane]):
                    playing.discard(lane)
                    if recordings is not None:
                        recordings.end(lane, self.lanes[lane].frame())
        return outcomes

    def _look(self, count: int, playing: set[int], before: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """The frames (B, C, H, W) of all environments; of those that have ended, the last one."""
        if before is None:
            return np.stack([lane.frame() for lane in self.lanes[:count]])
        frames = before.copy()
        for lane in playing:
            frames[lane] = self.lanes[lane].frame()
        return frames

    def _step(self, lane: Lane, task: Task, actions: NDArray[Any], outcome: Outcome) -> bool:
        """Play actions in an environment; whether its episode has ended."""
        criterion = self.tasks.criterion
        for action in actions:
            ended = lane.step(action)
            outcome.played += 1
            states = lane.states()
            outcome.at_end = criterion.reached(states, lane.info, task)
            if outcome.at_end and outcome.steps is None:
                outcome.steps = outcome.played
            outcome.distances = criterion.distances(states, task)
            if ended or outcome.played == self.max_steps:
                return True
        return not len(actions)


class _Recordings:
    """Keeps the planner's episodes that become videos: some that the seed chose, and some that failed."""

    def __init__(self, count: int, controller: Controller) -> None:
        self.count, self.controller = count, controller
        self.chosen: dict[str, list[Recording]] = {}
        self.failed: list[Recording] = []
        self.current: list[Recording] = []

    def begin(self, outcomes: Sequence[Outcome], tasks: Sequence[Task]) -> None:
        self._sort_out()
        self.current = [Recording(outcome, task.goal_frame) for outcome, task in zip(outcomes, tasks, strict=True)]

    def note(self, frames: NDArray[np.uint8], playing: set[int]) -> None:
        plan: ImaginedPlan | None = self.controller.last_plan
        assert plan is not None
        # What is still to come; a plan that is played over several blocks ends sooner, and rests at its end.
        played, length = self.controller.steps_played - 1, plan.imagined.shape[1]
        coming = torch.arange(played, played + length).clamp(max=length - 1)
        imagined = plan.imagined.half().cpu()[:, coming]
        for lane in playing:
            self.current[lane].frames.append(frames[lane])
            self.current[lane].plans.append(imagined[lane])

    def end(self, lane: int, frame: NDArray[np.uint8]) -> None:
        self.current[lane].frames.append(frame)

    def kept(self) -> tuple[Recording, ...]:
        self._sort_out()
        return tuple([recording for group in self.chosen.values() for recording in group] + self.failed)

    def _sort_out(self) -> None:
        """Keep of the episodes that have ended those that are wanted, and forget the others."""
        for recording in self.current:
            group = self.chosen.setdefault(recording.outcome.group, [])
            if len(group) < self.count:
                group.append(recording)
            elif not recording.outcome.reached and len(self.failed) < self.count:
                self.failed.append(recording)
        self.current = []


def describe_planner(config: Config, planner: Planner) -> str:
    """The planner in a few words."""
    planning = config.planning
    steps = f"{planning.horizon} steps" if config.frame_skipping == 1 else (
        f"{planning.horizon} steps of {config.frame_skipping} actions"
    )  # fmt: skip
    # Some cap or ignore what the settings say.
    samples = getattr(planner, "num_samples", planning.num_samples)
    searched = f"{getattr(planner, 'num_iterations', 1)} x {samples} candidates"
    return f"{planner.name.replace('_', ' ')}, {steps}, {searched}"


def describe_protocol(config: Config, tasks: TaskSet, dataset: EpisodeDataset | None) -> str:
    """What was done, in a sentence."""
    settings = config.evaluation
    if tasks.goals == "environment":
        unseen = "no collected episode had" if dataset is not None else "the run's settings do not collect with"
        where = f"start and goal drawn by the environment, from seeds that {unseen}"
    else:
        how = "setting the state" if tasks.restore == "state" else "replaying seed and actions"
        where = f"start and, {settings.goal_steps} environment steps later, goal of held-out episodes, begun by {how}"
    return (
        f"{len(tasks.tasks)} episodes of at most {settings.max_steps} environment steps, "
        f"{min(settings.num_envs, len(tasks.tasks))} side by side: {where}; success is "
        f"{tasks.criterion}; starts that were solved already and drawn again: {tasks.solved}; seed {settings.seed}"
    )
