"""Planners that take `Discrete` actions: the categorical cross-entropy method, and random shooting, which takes both.

Shapes: B environments, S candidate plans, E elites, P plan steps, A numbers of one action block, n actions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from jepaworld.config.components import component
from jepaworld.planning.cem import SmoothSettings
from jepaworld.planning.noise import draw, plan_noise
from jepaworld.planning.planner import BuiltInPlanner, EliteSettings, Plan, Scorer, elites_of


@component("planner", "categorical_cem")
class CategoricalCEM(BuiltInPlanner[EliteSettings]):
    """The cross-entropy method (Rubinstein 1999) with a categorical distribution for each entry of the plan.

    Each iteration draws candidates and sets the probabilities to the elites' frequencies, mixed with the uniform
    distribution so that no action dies out. The most probable plan is a candidate of every iteration, and the best plan
    seen is the result.

    Attributes:
        smoothing: Share of the uniform distribution in the fitted probabilities, 0 to 1.
        exploration: Share of the uniform distribution in a warm start, 0 to 1.
    """

    name = "categorical_cem"
    takes = (Discrete,)
    Settings = EliteSettings
    smoothing = 0.1
    exploration = 0.5

    def _prior_center(self, num_envs: int, horizon: int) -> Tensor:
        """Uniform probabilities (B, P, A, n)."""
        n = self.space.num_actions
        return torch.full((num_envs, horizon, self.space.width, n), 1.0 / n, device=self.space.device)

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        settings, uniform = self.settings, self._prior_center(num_envs, horizon)
        probabilities, likeliest = uniform, torch.zeros(uniform.shape[:-1], dtype=torch.int64, device=uniform.device)
        if warm_start is not None:
            likeliest = warm_start.center.argmax(dim=-1)
            probabilities = warm_start.center.lerp(uniform, self.exploration)
        for _ in range(settings.num_iterations):
            candidates = draw_categorical(probabilities, settings.num_samples, self.generators)
            candidates[:, 0] = likeliest
            elites, _ = elites_of(candidates, score(candidates), settings.num_elites)
            # Counts are whole numbers, so that their sums do not depend on the order of the additions on a GPU.
            counts = torch.zeros_like(uniform).scatter_add_(
                -1, elites.movedim(1, -1), uniform.new_ones(()).expand(*uniform.shape[:-1], settings.num_elites)
            )
            likeliest = counts.argmax(dim=-1)
            probabilities = (counts / settings.num_elites).lerp(uniform, self.smoothing)
        score(likeliest.unsqueeze(1))
        return score.best(probabilities)


def draw_categorical(probabilities: Tensor, num_samples: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Independent draws, int64 indices (B, S, P, A), by probabilities (B, P, A, n) which sum to 1."""
    cumulated = probabilities.cumsum(dim=-1)
    uniform = draw(Tensor.uniform_, generators, *probabilities.shape[1:-1], num_samples)
    # The sum of the probabilities may round to a little less than the uniform number.
    indices = torch.searchsorted(cumulated, uniform, right=True).clamp_(max=probabilities.shape[-1] - 1)
    return indices.movedim(-1, 1).contiguous()


@component("planner", "random_shooting")
class RandomShooting(BuiltInPlanner[SmoothSettings]):
    """The best of random plans, drawn once: the floor that a search must beat.

    `Box`: Gaussian around the middle of the bounds, correlated over environment steps. `Discrete`: uniform. The warm
    start, if any, is one of the candidates.
    """

    name = "random_shooting"
    Settings = SmoothSettings

    def _prior_center(self, num_envs: int, horizon: int) -> Tensor:
        center = torch.zeros(num_envs, horizon, self.space.width, device=self.space.device)
        return center.long() if self.space.discrete else self.space.clip(center)

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        space, settings, center = self.space, self.settings, self._prior_center(num_envs, horizon)
        if space.discrete:
            uniform = center.new_full((*center.shape, space.num_actions), 1.0 / space.num_actions, dtype=torch.float32)
            candidates = draw_categorical(uniform, settings.num_samples, self.generators)
        else:
            mixing = settings.mixing(horizon * space.frame_skipping, space.device)
            noise = plan_noise(space, settings.num_samples, mixing, self.generators)
            candidates = space.clip(center.unsqueeze(1) + settings.initial_std * noise)
        if warm_start is not None:
            candidates[:, 0] = warm_start.center
        score(candidates)
        return score.best()
