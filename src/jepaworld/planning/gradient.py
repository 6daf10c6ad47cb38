"""Planning by gradient descent through the model. Shapes: B environments, G starts, P plan steps, A block numbers."""

from __future__ import annotations

import torch

from jepaworld.config.components import component
from jepaworld.config.fields import setting
from jepaworld.errors import PlanningError
from jepaworld.planning.cem import GaussianPlanner, SmoothSettings
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import IterationSettings, Plan, Scorer

MAX_STARTS = 32


class GradientSettings(SmoothSettings, IterationSettings):
    """Of `GradientPlanner`."""

    learning_rate: float = setting(0.1, "Step of the gradient planner's Adam.", gt=0.0)


@component("planner", "gradient")
class GradientPlanner(GaussianPlanner[GradientSettings]):
    """Adam (arXiv 1412.6980) on normalised actions, through the model, from at most `MAX_STARTS` starts; the best wins.

    After each step the actions are put back within their bounds. The first start is the middle of the bounds or the
    warm start, the others are drawn around it. Steps are short: in `num_iterations` steps an action moves by about
    `num_iterations * learning_rate` of its normalised range [-1, 1], so this planner wants more iterations than the
    others (30 or more).
    """

    name = "gradient"
    Settings = GradientSettings

    def __init__(self, space: PlanSpace, settings: GradientSettings | None = None, *, seed: int = 0) -> None:
        super().__init__(space, settings, seed=seed)
        num_starts = min(self.settings.num_samples, MAX_STARTS)  # each takes the memory of a whole backward pass
        self.settings = self.settings.model_copy(update={"num_samples": num_starts})

    def _search(self, score: Scorer, num_envs: int, horizon: int, warm_start: Plan | None) -> Plan:
        mean, std, mixing = self._start(num_envs, horizon, warm_start)
        actions = self._draw(mean, std, mixing, self.settings.num_samples).requires_grad_()
        # The unit of a cost is arbitrary, and Adam's default eps would slow those of small gradients.
        optimizer = torch.optim.Adam([actions], lr=self.settings.learning_rate, eps=1e-12)
        for _ in range(self.settings.num_iterations):
            with torch.enable_grad():
                costs = score(actions)
                if costs.requires_grad:
                    (actions.grad,) = torch.autograd.grad(costs.sum(), actions, allow_unused=True)
            if actions.grad is None:
                raise PlanningError(
                    "planning.planner is gradient, but no gradient comes back from the cost to the actions: rollout() "
                    "and the goal cost must be differentiable (see check_dynamics)."
                )
            # A forbidden start has no slope to follow, and stays where it is.
            actions.grad.masked_fill_(costs.detach().isinf()[..., None, None], 0.0)
            optimizer.step()
            actions.copy_(self.space.clip(actions))
        score(actions.detach())
        return score.best()
