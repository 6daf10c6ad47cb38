"""Planning by gradient descent through the model. Shapes: B environments, G starts, P plan steps, A block numbers."""

from __future__ import annotations

import torch

from jepaworld.config.components import component
from jepaworld.errors import PlanningError
from jepaworld.planning.cem import GaussianPlanner
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import Plan, Scorer


@component("planner", "gradient")
class GradientPlanner(GaussianPlanner):
    """Adam (arXiv 1412.6980) on normalised actions, through the model, from at most `MAX_STARTS` starts; the best wins.

    After each step the actions are put back within their bounds. The first start is the middle of the bounds or the
    warm start, the others are drawn around it. Steps are short: in `num_iterations` steps an action moves by about
    `num_iterations * learning_rate` of its normalised range [-1, 1], so this planner wants more iterations than the
    others (30 or more).

    Args:
        space: A plan space of `Box` actions.
        seed: Of the random numbers. The others are the settings of `planning` of these names.

    Raises:
        ConfigError: the actions are `Discrete`.
    """

    name = "gradient"
    MAX_STARTS = 32

    def __init__(
        self,
        space: PlanSpace,
        *,
        num_samples: int = 16,
        num_iterations: int = 30,
        initial_std: float = 1.0,
        noise_smoothness: float = 0.7,
        learning_rate: float = 0.1,
        seed: int = 0,
    ) -> None:
        num_starts = min(num_samples, self.MAX_STARTS)
        super().__init__(
            space, num_samples=num_starts, initial_std=initial_std, noise_smoothness=noise_smoothness, seed=seed
        )
        self.num_iterations, self.learning_rate = num_iterations, learning_rate

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        mean, std, mixing = self._start(num_envs, horizon, warm_start)
        actions = self._draw(mean, std, mixing, self.num_samples).requires_grad_()
        # The unit of a cost is arbitrary, and Adam's default eps would slow those of small gradients.
        optimizer = torch.optim.Adam([actions], lr=self.learning_rate, eps=1e-12)
        for _ in range(self.num_iterations):
            with torch.enable_grad():
                costs = score(actions)
                if costs.requires_grad:
                    (actions.grad,) = torch.autograd.grad(costs.sum(), actions, allow_unused=True)
            if actions.grad is None:
                raise PlanningError(
                    "planning.planner is gradient, but no gradient comes back from the cost to the actions: make "
                    "rollout() and the goal cost differentiable (check_dynamics(model) looks for it), or plan with cem."
                )
            # A forbidden start has no slope to follow, and stays where it is.
            actions.grad.masked_fill_(costs.detach().isinf()[..., None, None], 0.0)
            optimizer.step()
            actions.copy_(self.space.clip(actions))
        score(actions.detach())
        return score.best()
