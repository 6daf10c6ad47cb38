"""The cross-entropy method, plain and improved.

Shapes: B environments, S candidate plans, E elites, P plan steps, A numbers of one action block. Candidates, means and
standard deviations are in normalised actions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from gymnasium.spaces import Box
from torch import Tensor

from jepaworld.config.components import component
from jepaworld.config.fields import setting
from jepaworld.planning.noise import ar1_mixing, plan_noise, power_law_mixing
from jepaworld.planning.planner import BuiltInPlanner, EliteSettings, Plan, SampleSettings, Scorer, elites_of

MIN_STD = setting(0.1, "Floor on the standard deviation of later iterations.", ge=0.0)
Returned = Literal["best", "mean"]
RETURNED = setting(
    "best",
    "Plan that cem, icem and mppi return: the best of all candidates, or the mean of the last iteration.",
)


class GaussianSettings(SampleSettings):
    """Of planners that draw from a Gaussian."""

    initial_std: float = setting(
        1.0, "Standard deviation of the first iteration; bounded actions are scaled to [-1, 1].", gt=0.0
    )

    @abstractmethod
    def mixing(self, steps: int, device: torch.device) -> Tensor:
        """How noise is correlated over environment steps, (T, T)."""


class SmoothSettings(GaussianSettings):
    """Of planners with AR(1) noise."""

    noise_smoothness: float = setting(
        0.7, "Correlation of the noise of neighbouring environment steps (all but icem).", ge=0.0, lt=1.0
    )

    def mixing(self, steps: int, device: torch.device) -> Tensor:
        """See `ar1_mixing`."""
        return ar1_mixing(steps, self.noise_smoothness, device)


G = TypeVar("G", bound=GaussianSettings)


class GaussianPlanner(BuiltInPlanner[G]):
    """Base of the planners of `Box` actions that draw candidates from a Gaussian around a mean."""

    takes = (Box,)

    def _start(self, num_envs: int, horizon: int, warm_start: Plan | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation (B, P, A) of the first iteration, and the noise's mixing."""
        mean = self._prior_center(num_envs, horizon) if warm_start is None else self.space.clip(warm_start.center)
        # As wide after a warm start: what is seen now may ask for another plan.
        std = torch.full_like(mean, self.settings.initial_std)
        return mean, std, self.settings.mixing(horizon * self.space.frame_skipping, self.space.device)

    def _draw(self, mean: Tensor, std: Tensor, mixing: Tensor, num_samples: int) -> Tensor:
        """Candidates (B, S, P, A) within the bounds; the first is the mean itself."""
        candidates = plan_noise(self.space, num_samples, mixing, self.generators)
        candidates.mul_(std.unsqueeze(1)).add_(mean.unsqueeze(1))
        candidates[:, 0] = mean
        return self.space.clip(candidates)

    @staticmethod
    def _returned(score: Scorer, mean: Tensor, returned: Returned, elites: Tensor | None = None) -> Plan:
        """The plan of a search that ended at this mean (B, P, A), from which the next search begins either way."""
        cost = score(mean.unsqueeze(1))[:, 0]
        best = score.best(mean, elites)
        if returned == "best":
            return best
        # The mean of allowed candidates may be forbidden itself.
        allowed = cost.isfinite()
        actions = torch.where(allowed[:, None, None], score.space.to_real(mean), best.actions)
        return replace(best, actions=actions, cost=torch.where(allowed, cost, best.cost))


class CEMSettings(SmoothSettings, EliteSettings):
    """Of `CEM`."""

    min_std: float = MIN_STD
    returned: Returned = RETURNED


@component("planner", "cem")
class CEM(GaussianPlanner[CEMSettings]):
    """The cross-entropy method (Rubinstein 1999), as planners with learned models use it (PlaNet, arXiv 1811.04551).

    Each iteration draws candidates from a Gaussian and fits it to the best of them. Differs from PlaNet in: noise that
    is correlated over environment steps, a floor on the standard deviation, the mean as one of the candidates, and the
    best plan seen (the last mean among them) instead of the last mean as the result, unless `returned` is "mean".

    Example:
        ```
        planner = CEM(space, CEM.Settings(num_samples=64, num_elites=8), seed=0)
        plan = planner.plan(cost, num_envs=2, horizon=5)
        ```
    """

    name = "cem"
    Settings = CEMSettings

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        settings = self.settings
        mean, std, mixing = self._start(num_envs, horizon, warm_start)
        for _ in range(settings.num_iterations):
            candidates = self._draw(mean, std, mixing, settings.num_samples)
            elites, _ = elites_of(candidates, score(candidates), settings.num_elites)
            # Elites that agree would end the search where they are: the floor keeps it looking around.
            mean, std = elites.mean(dim=1), elites.std(dim=1, correction=0).clamp(min=settings.min_std)
        return self._returned(score, mean, settings.returned)


class ICEMSettings(GaussianSettings, EliteSettings):
    """Of `ICEM`."""

    min_std: float = MIN_STD
    returned: Returned = RETURNED
    noise_exponent: float = setting(2.0, "Exponent of the power-law noise of icem; 0 is white.", ge=0.0)
    kept_elites: float = setting(0.3, "Share of the elites that icem keeps for the next iteration.", ge=0.0, le=1.0)

    def mixing(self, steps: int, device: torch.device) -> Tensor:
        """See `power_law_mixing`."""
        return power_law_mixing(steps, self.noise_exponent, device)


@component("planner", "icem")
class ICEM(GaussianPlanner[ICEMSettings]):
    """The improved cross-entropy method (iCEM, arXiv 2008.06389).

    Over CEM it has power-law noise, fewer candidates in each later iteration, a share of the elites kept for the next
    iteration and, shifted, for the next search, and a running mean of the Gaussian. Differs from the paper in: kept
    elites keep their cost within a search instead of being scored again, and the mean is a candidate of every iteration
    instead of the last.

    Attributes:
        decay: Factor by which each iteration has fewer candidates than the one before, but at least twice as many as
            elites.
        momentum: Share of the old mean and standard deviation in the new.
    """

    name = "icem"
    Settings = ICEMSettings
    decay = 1.25
    momentum = 0.1

    def shift(self, plan: Plan, steps: int) -> Plan:
        """As `Planner.shift`; the elites' free steps are drawn anew."""
        shifted = super().shift(plan, steps)
        if plan.elites is None:
            return shifted
        num_envs, count, horizon = plan.elites.shape[:3]
        mean, std, mixing = self._start(num_envs, horizon, None)
        fresh = self._draw(mean, std, mixing, count + 1)[:, 1:]  # without the mean
        elites = self._shifted(plan.elites.transpose(1, 2), steps, fresh.transpose(1, 2)).transpose(1, 2)
        return replace(shifted, elites=elites)

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        settings = self.settings
        num_kept = round(settings.kept_elites * settings.num_elites)
        mean, std, mixing = self._start(num_envs, horizon, warm_start)
        kept = mean[:, None][:, :0] if warm_start is None or warm_start.elites is None else warm_start.elites
        kept_costs = score(kept) if kept.shape[1] else mean.new_empty(num_envs, 0)
        for iteration in range(settings.num_iterations):
            fewer = int(settings.num_samples * self.decay**-iteration)
            num_samples = min(settings.num_samples, max(2 * settings.num_elites, fewer))
            candidates = self._draw(mean, std, mixing, num_samples)
            costs = torch.cat([score(candidates), kept_costs], dim=1)
            elites, elite_costs = elites_of(torch.cat([candidates, kept], dim=1), costs, settings.num_elites)
            kept, kept_costs = elites[:, :num_kept], elite_costs[:, :num_kept]
            mean = mean.lerp(elites.mean(dim=1), 1.0 - self.momentum)
            std = std.lerp(elites.std(dim=1, correction=0), 1.0 - self.momentum).clamp(min=settings.min_std)
        return self._returned(score, mean, settings.returned, kept if num_kept else None)
