"""What all planners share: the interface, the plan, settings, and the bookkeeping of costs.

Shapes: B environments, S candidate plans, P plan steps, A numbers of one action block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from jepaworld.config import components
from jepaworld.config.fields import Section, setting
from jepaworld.config.planning import PlanningConfig
from jepaworld.errors import ConfigError, PlanningError
from jepaworld.planning.plan_space import PlanSpace

Cost = Callable[[Tensor], Tensor]
"""Costs (B, S) of candidates (B, S, P, A) as the environment takes them (float32 or int64).

Lower is better. Infinite forbids a candidate: it is never chosen, and the others are weighed among themselves.
"""


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan for each environment."""

    actions: Tensor  # action blocks as the environment takes them (B, P, A), float32 or int64
    cost: Tensor  # of exactly these actions (B,)
    # What the next search may begin from: normalised actions (B, P, A), or of categorical_cem the probability of each
    # action (B, P, A, n).
    center: Tensor
    elites: Tensor | None = None  # good candidates (B, E, P, A), normalised, of planners that keep some (icem)


class Planner(ABC):
    """Searches for the action blocks of lowest cost; knows nothing of the model or the environment.

    All environments are searched at once, each with random numbers of its own, so that its plan does not depend on how
    many are searched beside it. Two planners with the same seed, asked the same, give the same plans.

    Args:
        space: The plan space; plans are searched on its device.
        seed: Of the random numbers, together with the number of an environment.

    Attributes:
        name: As in the setting `planning.planner`.
        takes: The kinds of action spaces that it searches.
        generators: Of the environments, in order; `number_environments` makes them.

    Raises:
        ConfigError: it does not take this kind of actions.
    """

    name: str
    takes: tuple[type, ...] = (Box, Discrete)

    def __init__(self, space: PlanSpace, *, seed: int = 0) -> None:
        if not isinstance(space.action_space, self.takes):
            planners: dict[str, Any] = dict(components.registered("planner"))
            fitting = [name for name, cls in planners.items() if isinstance(space.action_space, cls.takes)]
            raise ConfigError(
                f"planning.planner is {self.name}: must be auto, {', '.join(fitting)} for {space.action_space}."
            )
        self.space, self.seed = space, seed
        self.generators: list[torch.Generator] = []

    def number_environments(self, numbers: Sequence[int]) -> None:
        """Begin the random numbers of each environment anew, from the planner's seed and the environment's number.

        Without it, environments have the numbers 0, 1, and so on. The random numbers go on from plan to plan.
        """
        seeds = [int(np.random.SeedSequence((self.seed, n)).generate_state(1, np.uint64)[0]) for n in numbers]
        self.generators = [torch.Generator(self.space.device).manual_seed(seed) for seed in seeds]

    @torch.no_grad()
    def plan(self, cost: Cost, num_envs: int, horizon: int, warm_start: Plan | None = None) -> Plan:
        """Search.

        Args:
            cost: What is minimised; called with any number S of candidates for each environment.
            num_envs: B.
            horizon: P.
            warm_start: A plan to begin from, for the same B and P; `shift` makes it of the previous plan.

        Returns:
            The best plan found, never worse than `warm_start.center`; with `planning.returned` mean that of the last
            iteration.

        Raises:
            PlanningError: a cost is NaN, every candidate of an environment is forbidden, or the cost has another shape.
        """
        assert warm_start is None or warm_start.actions.shape[:2] == (num_envs, horizon), (num_envs, horizon)
        if len(self.generators) != num_envs:
            self.number_environments(range(num_envs))
        score = Scorer(cost, self.space)
        plan = self._search(score, num_envs, horizon, warm_start)
        score.check()  # once a plan: it waits for the device
        return plan

    def shift(self, plan: Plan, steps: int) -> Plan:
        """The rest of a plan after `steps` of its P steps were played, as `warm_start` of the next search.

        The steps that become free at the end are filled with what a search without warm start begins from.
        """
        center = self._shifted(plan.center, steps, self._prior_center(*plan.actions.shape[:2]))
        return replace(plan, center=center)

    @abstractmethod
    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        """Search; the candidates given to `score` are normalised."""

    def _prior_center(self, num_envs: int, horizon: int) -> Tensor:
        """The centre of a search without warm start: the middle of the bounds, in normalised actions (B, P, A)."""
        return self.space.clip(torch.zeros(num_envs, horizon, self.space.width, device=self.space.device))

    @staticmethod
    def _shifted(values: Tensor, steps: int, filling: Tensor) -> Tensor:
        """Entries along dimension 1 moved forward by `steps`; the end is that of `filling`."""
        return torch.cat([values[:, steps:], filling[:, filling.shape[1] - min(steps, values.shape[1]) :]], dim=1)


# --- settings ------------------------------------------------------------------------------------------------------


class SampleSettings(Section):
    """What all built-in planners have."""

    num_samples: int = setting(150, "Candidate plans in each iteration.", ge=1)


class IterationSettings(SampleSettings):
    """Of planners that improve what they drew."""

    num_iterations: int = setting(4, "Iterations of improvement; random_shooting draws once.", ge=1)


class EliteSettings(IterationSettings):
    """Of planners that go by the best candidates."""

    num_elites: int = setting(
        20, "Best candidates that the next iteration is fitted to (cem, icem, categorical_cem).", ge=1
    )

    def model_post_init(self, _context: Any) -> None:
        """Refuse more elites than candidates."""
        if self.num_elites > self.num_samples:
            raise ConfigError(
                f"planning.num_elites is {self.num_elites}: at most planning.num_samples = {self.num_samples}."
            )


S = TypeVar("S", bound=SampleSettings)


class BuiltInPlanner(Planner, Generic[S]):
    """A planner whose settings are an object of its class `Settings`.

    Args:
        space: The plan space.
        settings: None takes the defaults.
        seed: Of the random numbers.
    """

    Settings: type[S]

    def __init__(self, space: PlanSpace, settings: S | None = None, *, seed: int = 0) -> None:
        super().__init__(space, seed=seed)
        self.settings: S = settings or self.Settings()


# --- costs ---------------------------------------------------------------------------------------------------------


class Scorer:
    """A cost of normalised candidates that counts NaN and remembers the best. All stays on the device until `check`."""

    def __init__(self, cost: Cost, space: PlanSpace) -> None:
        self._cost, self.space = cost, space
        self._num_nan = torch.zeros((), dtype=torch.int64, device=space.device)
        self._num_scored = 0
        self._best: tuple[Tensor, Tensor] | None = None

    def __call__(self, candidates: Tensor) -> Tensor:
        """Costs (B, S) of normalised candidates (B, S, P, A)."""
        costs = self._cost(self.space.to_real(candidates))
        if costs.shape != candidates.shape[:2]:
            raise PlanningError(
                f"the cost of candidates {tuple(candidates.shape)} has shape {tuple(costs.shape)}: expected "
                f"{tuple(candidates.shape[:2])}, a number for each."
            )
        found = costs.detach()
        self._num_nan += (found.isnan() | found.isneginf()).sum()  # nothing is infinitely good
        self._num_scored += found.numel()
        lowest, index = found.min(dim=1)
        actions = candidates.detach().take_along_dim(index[:, None, None, None], dim=1)[:, 0]
        if self._best is not None:
            better = lowest < self._best[0]
            lowest = torch.where(better, lowest, self._best[0])
            actions = torch.where(better[:, None, None], actions, self._best[1])
        self._best = lowest, actions
        return costs

    def best(self, center: Tensor | None = None, elites: Tensor | None = None) -> Plan:
        """The best candidate seen, as a plan with what the next search may begin from (itself by default)."""
        assert self._best is not None, "no candidate was scored"
        cost, actions = self._best
        return Plan(self.space.to_real(actions), cost, actions if center is None else center, elites)

    def check(self) -> None:
        """Make sure that every cost was a number, and that each environment has a plan that is not forbidden.

        Raises:
            PlanningError: some were NaN, or all candidates of an environment were forbidden.
        """
        assert self._best is not None, "no candidate was scored"
        # Both numbers in one copy from the device, which is waited for.
        num_nan, num_forbidden = torch.stack([self._num_nan, self._best[0].isinf().sum()]).tolist()
        if num_nan:
            raise PlanningError(
                f"the cost of {num_nan} of {self._num_scored} candidate plans is NaN: the model's weights are not "
                "finite, planning.horizon is longer than it can imagine, or a cost of your own divides by zero."
            )
        if num_forbidden:
            envs = self._best[0].isinf().nonzero()[:, 0].tolist()
            raise PlanningError(
                f"every candidate plan of environment(s) {envs} is forbidden (its cost is infinite): raise "
                "planning.num_samples, let the cost allow some, or look for an overflow (check_dynamics(model))."
            )


def elites_of(candidates: Tensor, costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best candidates, best first; where fewer are allowed, these again in turn instead of forbidden ones.

    From (B, S, P, A) and their costs (B, S), infinite if forbidden, to (B, E, P, A) and (B, E) with E = `count`.
    """
    best, index = costs.topk(count, dim=1, largest=False)
    allowed = best.isfinite().sum(dim=1, keepdim=True)
    # With none allowed there is nothing to prefer: the fit stays as wide as what was drawn.
    rank = torch.arange(count, device=costs.device) % torch.where(allowed > 0, allowed, count)
    best, index = best.gather(1, rank), index.gather(1, rank)
    return candidates.take_along_dim(index[..., None, None], dim=1), best


def make_planner(settings: PlanningConfig, space: PlanSpace, seed: int = 0) -> Planner:
    """The planner that `planning.planner` names; "auto" takes cem for `Box`, categorical_cem for `Discrete`.

    Raises:
        ConfigError: the planner does not take this kind of actions, or there are more elites than candidates.
    """
    (found,) = components.choose("planner", settings.planner, settings, space.discrete)
    return found.make(space=space, seed=seed)
