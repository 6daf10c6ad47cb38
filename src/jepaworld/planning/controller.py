"""Receding-horizon control: plan from what is seen, play the beginning of the plan, plan again.

Shapes: B environments, K context frames, P plan steps, A numbers of one action block, C H W image, *D latent: (D,) or
(N, D) with tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepaworld.config.planning import PlanningConfig
from jepaworld.errors import ConfigError, PlanningError
from jepaworld.models.protocol import WorldModel, check_protocol, context_length, encode_goal, max_rollout_steps
from jepaworld.planning.costs import GoalCost, WorldModelCost, make_cost
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import Plan, Planner, make_planner
from jepaworld.utils.modules import device_of, in_eval_mode

Frames = NDArray[np.uint8] | Tensor

History = tuple[NDArray[np.uint8], NDArray[np.generic]]
"""What came before an episode's first frame: h frames (h, C, H, W), and the action block after each (h, A)."""


@dataclass(frozen=True, eq=False)
class ImaginedPlan:
    """A plan with what the model expects of it."""

    actions: Tensor  # action blocks as the environment takes them (B, P, A), float32 or int64
    cost: Tensor  # their cost (B,)
    imagined: Tensor  # embeddings after each block (B, P, *D) float32; a decoder shows them as pictures
    start: Tensor  # embeddings of the present (B, *D)
    goal: Tensor  # embeddings of the goal (B, *D)


class Controller:
    """Plays B environments towards goal images, all at once.

    Args:
        model: The world model; it stays where it is, and its train or eval mode is left as it is.
        action_space: The environments' `Box` or `Discrete` action space.
        settings: The section `planning`.
        frame_skipping: Environment steps in an action block.
        seed: Of the planner's random numbers, together with the number of an environment (see `reset`).
        bf16: Imagine in bf16 autocast.
        planner: Instead of the one that the settings name.
        goal_cost: Instead of the one that the settings describe.

    Attributes:
        space: The plan space; `space.split(blocks)` gives the environments' actions.
        seconds_per_plan: How long each plan took, for all environments together, encoding included.
        steps_played: How many steps of the last plan `act` has given out.

    Raises:
        ConfigError: the horizon or the context is longer than the model allows, a plan is shorter than what is to be
            played of it, or the planner does not take this kind of actions.
        PlanningError: the model has no `encode` or `rollout`.
    """

    def __init__(
        self,
        model: WorldModel,
        action_space: gymnasium.Space,
        settings: PlanningConfig,
        *,
        frame_skipping: int = 1,
        seed: int = 0,
        bf16: bool = False,
        planner: Planner | None = None,
        goal_cost: GoalCost | None = None,
    ) -> None:
        check_protocol(model)
        _check_settings(model, settings)
        self.device = device_of(model)
        self.space = PlanSpace.of(action_space, frame_skipping, self.device)
        penalty = settings.cost.action_penalty
        if self.space.discrete and goal_cost is None and penalty > 0:
            raise ConfigError(f"planning.cost.action_penalty is {penalty:g}: must be 0 for {action_space}.")
        self.model, self.settings, self.bf16 = model, settings, bf16
        self.context = settings.context or context_length(model)
        self.planner = planner or make_planner(settings, self.space, seed)
        self.goal_cost = goal_cost or make_cost(settings.cost)
        self.seconds_per_plan: list[float] = []
        self._goal_shape: tuple[int, ...] = ()
        self._goal: Tensor | None = None
        self.restart()

    def reset(
        self,
        goal_frames: Frames,
        numbers: Sequence[int] | None = None,
        history: Sequence[History | None] | None = None,
    ) -> None:
        """Begin new episodes.

        Args:
            goal_frames: uint8 (B, C, H, W), of the size that the model takes.
            numbers: Of the B tasks. A task's random numbers then follow from the seed and its number, whatever was
                played before or is played beside it. None: 0 to B - 1 at first, and the random numbers go on.
            history: What came before, of each environment, oldest first; the latest `context` - 1 of it are used, so
                that the first plan is made as all others are. None where there is nothing.

        Raises:
            PlanningError: these are no frames.
        """
        frames = self._to_device(goal_frames, "goal_frames")
        with torch.no_grad(), in_eval_mode(self.model):
            self._goal = encode_goal(self.model, frames.unsqueeze(1))[:, 0].float()
        if numbers is not None:
            self.planner.number_environments(numbers)
        self._goal_shape = tuple(frames.shape)
        self.restart()
        self._remember(history or [])

    def restart(self) -> None:
        """Begin new episodes with the same goals, without a history."""
        # Of the latest frames, oldest first. Who has a shorter history than others has zeros first.
        self._past: list[Tensor] = []  # embeddings (B, *D)
        self._past_actions: list[Tensor] = []  # blocks (B, A) between them
        self._lengths = [0] * (self._goal_shape[0] if self._goal_shape else 0)  # how many each environment has
        self._plan: Plan | None = None
        self._cost: WorldModelCost | None = None
        self._imagined: ImaginedPlan | None = None
        self.steps_played = 0

    def act(self, frames: Frames) -> Tensor:
        """The next action block of each environment.

        To be called once for each block that is played, with the frames before it; with `planning.replan_every` above 1
        a new plan is made in every so many calls, and the others go on with the last.

        Args:
            frames: uint8 (B, C, H, W), what is seen now.

        Returns:
            (B, A) as the environment takes them, float32 or int64; `space.split` makes environment actions of them.

        Raises:
            PlanningError: no goal was set, the frames have another shape than the goals, or a cost is not finite.
        """
        if self._goal is None:
            raise PlanningError("there is no goal yet. Call reset(goal_frames) first.")
        frames = self._to_device(frames, "frames")
        if tuple(frames.shape) != self._goal_shape:
            raise PlanningError(
                f"frames have shape {tuple(frames.shape)}: must be that of the goals, {self._goal_shape} "
                "(environments, channels, height, width)."
            )
        replan = self._plan is None or self.steps_played == self.settings.replan_every
        begin = self._clock() if replan else 0.0
        # Between two plans, a model without a memory does not look.
        if replan or self.context > 1:
            self._look(frames)
        if replan:
            self._make_plan(self._goal)
            self.seconds_per_plan.append(self._clock() - begin)
        assert self._plan is not None
        block = self._plan.actions[:, self.steps_played]
        self.steps_played += 1
        if self.context > 1:
            self._past_actions = [*self._past_actions, block][-(self.context - 1) :]
        return block

    def cost(self, frames: Frames) -> WorldModelCost:
        """What plans from the first frames of new episodes cost, (B, C, H, W) uint8 after `reset`; none is played."""
        assert self._goal is not None and self._plan is None, "between reset() and act()"
        self._look(self._to_device(frames, "frames"))
        return self._make_cost(self._goal)

    @property
    def last_plan(self) -> ImaginedPlan | None:
        """The latest plan and what the model expects of it; imagined when asked for. None before the first."""
        if self._plan is not None and self._imagined is None:
            self._imagined = self.imagine()
        return self._imagined

    def imagine(self, envs: Sequence[int] | None = None) -> ImaginedPlan:
        """What the model expects of the latest plans of some environments; None for all."""
        assert self._plan is not None and self._cost is not None, "act() makes plans"
        rows, cost = list(range(len(self._plan.actions)) if envs is None else envs), self._cost
        plans = self._plan.actions[rows]
        return ImaginedPlan(plans, self._plan.cost[rows], cost.imagine(plans, rows), cost.z[rows, -1], cost.goal[rows])

    def _make_plan(self, goal: Tensor) -> None:
        settings, warm_start = self.settings, None
        if self._plan is not None and settings.warm_start:
            warm_start = self.planner.shift(self._plan, self.steps_played)
        self._cost = self._make_cost(goal)
        self._plan = self.planner.plan(self._cost, len(goal), settings.horizon, warm_start)
        self._imagined, self.steps_played = None, 0

    def _make_cost(self, goal: Tensor) -> WorldModelCost:
        return WorldModelCost(
            self.model,
            torch.stack(self._past, dim=1),
            torch.stack(self._past_actions, dim=1) if self._past_actions else None,
            goal,
            self.goal_cost,
            self.space,
            lengths=self._lengths,
            memory_megabytes=self.settings.memory_megabytes,
            max_candidates=self.settings.max_candidates,
            bf16=self.bf16,
        )

    def _look(self, frames: Tensor) -> None:
        """Embed what is seen now, and forget what the model does not look back to."""
        with torch.no_grad(), in_eval_mode(self.model):
            present = self.model.encode(frames.unsqueeze(1))[:, 0].float()
        self._past = [*self._past, present][-self.context :]
        self._lengths = [min(length + 1, self.context) for length in self._lengths]

    def _remember(self, history: Sequence[History | None]) -> None:
        """Look at what came before, step by step, as if it had been played here."""
        lengths = [0 if one is None else min(len(one[0]), self.context - 1) for one in history]
        assert not history or len(history) == self._goal_shape[0], (len(history), self._goal_shape)
        for back in range(max(lengths, default=0), 0, -1):
            # Zeros stand where there is nothing yet; no plan looks at them.
            frames = torch.zeros(self._goal_shape, dtype=torch.uint8)
            blocks = torch.zeros(len(history), self.space.width, dtype=torch.int64 if self.space.discrete else None)
            for row, (one, length) in enumerate(zip(history, lengths, strict=True)):
                if one is not None and length >= back:
                    frames[row], blocks[row] = torch.tensor(one[0][-back]), torch.tensor(one[1][-back])
            self._look(frames.to(self.device))
            self._past_actions.append(blocks.to(self.device))
        self._lengths = lengths or self._lengths

    def _to_device(self, frames: Frames, name: str) -> Tensor:
        uint8 = np.uint8 if isinstance(frames, np.ndarray) else torch.uint8
        if frames.dtype != uint8 or frames.ndim != 4:
            raise PlanningError(
                f"{name} are {frames.dtype} {tuple(frames.shape)}; expected uint8 (environments, channels, height, "
                "width), see jepaworld.envs.frames.image_to_frame."
            )
        tensor = torch.tensor(np.ascontiguousarray(frames)) if isinstance(frames, np.ndarray) else frames
        return tensor.to(self.device)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # it works on while Python goes on
        return time.perf_counter()


def _check_settings(model: WorldModel, settings: PlanningConfig) -> None:
    name, horizon, steps = type(model).__name__, settings.horizon, max_rollout_steps(model)
    for key, value, most, reason in (
        ("context", settings.context or 1, context_length(model), f"the context_length of {name}"),
        ("horizon", horizon, steps or horizon, f"the max_rollout_steps of {name}"),
        ("replan_every", settings.replan_every, horizon, "planning.horizon, the steps of a plan"),
    ):
        if value > most:
            raise ConfigError(f"planning.{key} is {value}: at most {most}, {reason}.")
