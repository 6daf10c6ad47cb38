"""The cross-entropy method, plain and improved.

Shapes: B environments, S candidate plans, E elites, P plan steps, A numbers of one action block. Candidates, means and
standard deviations are in normalised actions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jepaworld.config.components import component
from jepaworld.errors import ConfigError
from jepaworld.planning.noise import ar1_mixing, plan_noise, power_law_mixing
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import Plan, Planner, Scorer, check_elites, elites_of


class GaussianPlanner(Planner):
    """Base of the planners that draw candidates from a Gaussian around a mean.

    Args:
        space: A plan space of `Box` actions.
        num_samples: S, the mean included.
        initial_std: Standard deviation of the first iteration of every search, warm start or not.
        noise_smoothness: Correlation of the noise of neighbouring environment steps (AR(1)), 0 to below 1.
        seed: Of the random numbers.

    Raises:
        ConfigError: the actions are `Discrete`.
    """

    def __init__(
        self, space: PlanSpace, *, num_samples: int, initial_std: float, noise_smoothness: float = 0.0, seed: int
    ) -> None:
        super().__init__(space, seed=seed)
        if space.discrete:
            raise ConfigError(
                f"planning.planner is {self.name}, which searches continuous actions: categorical_cem, random_shooting "
                f"or auto for {space.action_space}."
            )
        self.num_samples, self.initial_std, self.noise_smoothness = num_samples, initial_std, noise_smoothness

    def _mixing(self, steps: int) -> Tensor:
        """How noise is correlated over environment steps, (T, T)."""
        return ar1_mixing(steps, self.noise_smoothness, self.space.device)

    def _start(self, num_envs: int, horizon: int, warm_start: Plan | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation (B, P, A) of the first iteration, and the noise's mixing."""
        mean = self._prior_center(num_envs, horizon) if warm_start is None else self.space.clip(warm_start.center)
        return mean, torch.full_like(mean, self.initial_std), self._mixing(horizon * self.space.frame_skipping)

    def _draw(self, mean: Tensor, std: Tensor, mixing: Tensor, num_samples: int) -> Tensor:
        """Candidates (B, S, P, A) within the bounds; the first is the mean itself."""
        candidates = plan_noise(self.space, num_samples, mixing, self.generators)
        candidates.mul_(std.unsqueeze(1)).add_(mean.unsqueeze(1))
        candidates[:, 0] = mean
        return self.space.clip(candidates)


@component("planner", "cem")
class CEM(GaussianPlanner):
    """The cross-entropy method (Rubinstein 1999), as planners with learned models use it (PlaNet, arXiv 1811.04551).

    Each iteration draws candidates from a Gaussian and fits it to the best of them. Differs from PlaNet in: noise that
    is correlated over environment steps, a floor on the standard deviation, the mean as one of the candidates, and the
    best plan seen (the last mean among them) instead of the last mean as the result.

    Args:
        space: A plan space of `Box` actions.
        seed: Of the random numbers. The others are the settings of `planning` of these names.

    Raises:
        ConfigError: the actions are `Discrete`, or there are more elites than candidates.
    """

    name = "cem"

    def __init__(
        self,
        space: PlanSpace,
        *,
        num_samples: int = 150,
        num_iterations: int = 4,
        num_elites: int = 20,
        initial_std: float = 1.0,
        min_std: float = 0.1,
        noise_smoothness: float = 0.7,
        seed: int = 0,
    ) -> None:
        super().__init__(
            space, num_samples=num_samples, initial_std=initial_std, noise_smoothness=noise_smoothness, seed=seed
        )
        check_elites(num_elites, num_samples)
        self.num_iterations, self.num_elites, self.min_std = num_iterations, num_elites, min_std

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        mean, std, mixing = self._start(num_envs, horizon, warm_start)
        for _ in range(self.num_iterations):
            candidates = self._draw(mean, std, mixing, self.num_samples)
            elites, _ = elites_of(candidates, score(candidates), self.num_elites)
            mean, std = elites.mean(dim=1), elites.std(dim=1, correction=0).clamp(min=self.min_std)
        score(mean.unsqueeze(1))
        return score.best(mean)


@component("planner", "icem")
class ICEM(GaussianPlanner):
    """The improved cross-entropy method (iCEM, arXiv 2008.06389).

    Over CEM it has power-law noise, fewer candidates in each later iteration, a share of the elites kept for the next
    iteration and, shifted, for the next search, and a running mean of the Gaussian. Differs from the paper in: kept
    elites keep their cost within a search instead of being scored again, and the mean is a candidate of every iteration
    instead of the last.

    Args:
        space: A plan space of `Box` actions.
        decay: Factor by which each iteration has fewer candidates than the one before, but at least twice as many as
            elites.
        momentum: Share of the old mean and standard deviation in the new.
        seed: Of the random numbers. The others are the settings of `planning` of these names.

    Raises:
        ConfigError: the actions are `Discrete`, or there are more elites than candidates.
    """

    name = "icem"

    def __init__(
        self,
        space: PlanSpace,
        *,
        num_samples: int = 150,
        num_iterations: int = 4,
        num_elites: int = 20,
        initial_std: float = 1.0,
        min_std: float = 0.1,
        noise_exponent: float = 2.0,
        kept_elites: float = 0.3,
        decay: float = 1.25,
        momentum: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(space, num_samples=num_samples, initial_std=initial_std, seed=seed)
        check_elites(num_elites, num_samples)
        self.num_iterations, self.num_elites, self.min_std = num_iterations, num_elites, min_std
        self.noise_exponent, self.decay, self.momentum = noise_exponent, decay, momentum
        self.num_kept = round(kept_elites * num_elites)

    def shift(self, plan: Plan, steps: int) -> Plan:
        """As `Planner.shift`; the elites' free steps are drawn anew."""
        shifted = super().shift(plan, steps)
        if plan.elites is None:
            return shifted
        num_envs, count, horizon = plan.elites.shape[:3]
        mean, std, mixing = self._start(num_envs, horizon, None)
        fresh = self._draw(mean, std, mixing, count + 1)[:, 1:]
        elites = self._shifted(plan.elites.transpose(1, 2), steps, fresh.transpose(1, 2)).transpose(1, 2)
        return replace(shifted, elites=elites)

    def _mixing(self, steps: int) -> Tensor:
        return power_law_mixing(steps, self.noise_exponent, self.space.device)

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        mean, std, mixing = self._start(num_envs, horizon, warm_start)
        kept = mean[:, None][:, :0] if warm_start is None or warm_start.elites is None else warm_start.elites
        kept_costs = score(kept) if kept.shape[1] else mean.new_empty(num_envs, 0)
        for iteration in range(self.num_iterations):
            fewer = int(self.num_samples * self.decay**-iteration)
            num_samples = min(self.num_samples, max(2 * self.num_elites, fewer))
            candidates = self._draw(mean, std, mixing, num_samples)
            costs = torch.cat([score(candidates), kept_costs], dim=1)
            elites, elite_costs = elites_of(torch.cat([candidates, kept], dim=1), costs, self.num_elites)
            kept, kept_costs = elites[:, : self.num_kept], elite_costs[:, : self.num_kept]
            mean = mean.lerp(elites.mean(dim=1), 1.0 - self.momentum)
            std = std.lerp(elites.std(dim=1, correction=0), 1.0 - self.momentum).clamp(min=self.min_std)
        score(mean.unsqueeze(1))
        return score.best(mean, kept if self.num_kept else None)
