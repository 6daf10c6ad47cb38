"""What makes a plan good: the cost of what is imagined, and the cost of candidate plans under a world model.

Shapes: B environments, S candidate plans, N = B * S, P plan steps, K context frames, A numbers of one action block, D
latent (one axis or more).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jepaworld.config.planning import PlanningCostConfig
from jepaworld.models.protocol import WorldModel
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.utils.devices import autocast
from jepaworld.utils.modules import in_eval_mode


class GoalCost(Protocol):
    """Anything that scores imagined futures; lower is better."""

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        """Score plans.

        Args:
            imagined: Embeddings after each step (N, P, *D).
            goal: The goal's embeddings (N, *D).
            actions: Normalised action blocks (N, P, A), each bounded entry in [-1, 1].

        Returns:
            (N,) float32. Differentiable, if the gradient planner is to be used.
        """
        ...


@dataclass(frozen=True)
class GoalDistance:
    """Distance of imagined embeddings to the goal's.

    Attributes:
        metric: "l2", the mean over the latent of the squared difference; "l1", of the absolute difference; "cosine",
            1 minus the cosine of the angle (0 to 2).
        path: Which steps count: "last"; "mean" or "sum" over all; "discounted", the sum of step p (from 0) weighted by
            discount ** p.
        discount: Used by path "discounted".
    """

    metric: Literal["l2", "l1", "cosine"] = "l2"
    path: Literal["mean", "sum", "discounted", "last"] = "mean"
    discount: float = 0.9

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:  # noqa: ARG002 (GoalCost's)
        """Score plans; see `GoalCost`."""
        if self.path == "last":
            imagined = imagined[:, -1:]
        distances = self.distances(imagined, goal)
        match self.path:
            case "last":
                return distances[:, 0]
            case "mean":
                return distances.mean(dim=1)
            case "sum":
                return distances.sum(dim=1)
            case "discounted":
                return distances @ self.discount ** torch.arange(distances.shape[1], device=distances.device)

    def distances(self, imagined: Tensor, goal: Tensor) -> Tensor:
        """The distance after each step: (N, P, *D) and (N, *D) to (N, P) float32."""
        imagined, goal = imagined.flatten(2).float(), goal.flatten(1).float().unsqueeze(1)
        match self.metric:
            case "l2":
                return torch.linalg.vector_norm(imagined - goal, dim=-1).square() / imagined.shape[-1]
            case "l1":
                return torch.linalg.vector_norm(imagined - goal, ord=1, dim=-1) / imagined.shape[-1]
            case "cosine":
                return 1.0 - torch.nn.functional.cosine_similarity(imagined, goal, dim=-1)


@dataclass(frozen=True)
class ActionPenalty:
    """Mean squared normalised action over the plan: 0 at the centre of the bounds, at most 1 for bounded actions."""

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:  # noqa: ARG002 (GoalCost's)
        """Score plans; see `GoalCost`."""
        return actions.float().square().mean(dim=(1, 2))


@dataclass(frozen=True)
class WeightedSum:
    """Weighted sum of costs.

    Attributes:
        terms: (weight, cost) pairs, at least one.
    """

    terms: tuple[tuple[float, GoalCost], ...]

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        """Score plans; see `GoalCost`."""
        first, *others = (weight * cost(imagined, goal, actions) for weight, cost in self.terms)
        return sum(others, first)


def make_cost(settings: PlanningCostConfig) -> GoalCost:
    """The cost that `planning.cost` describes."""
    terms: list[tuple[float, GoalCost]] = [(1.0, GoalDistance(settings.metric, settings.path, settings.discount))]
    if settings.last_weight > 0:
        terms.append((settings.last_weight, GoalDistance(settings.metric, "last")))
    if settings.action_penalty > 0:
        terms.append((settings.action_penalty, ActionPenalty()))
    return WeightedSum(tuple(terms)) if len(terms) > 1 else terms[0][1]


class WorldModelCost:
    """Imagines candidates and scores what it sees; a cost for any `Planner`.

    At most `max_candidates` are imagined at once, so that memory does not grow with B and S. Without gradients, unless
    the candidates require them; then what several chunks imagined is forgotten and imagined again in the backward pass.
    The model is in eval mode meanwhile.

    Args:
        model: The world model.
        z: Embeddings of the context as from `model.encode` (B, K, *D); the last is the present.
        context_actions: The action blocks between them (B, K - 1, A), or None with K = 1.
        goal: Embeddings of the goals (B, *D).
        goal_cost: What is good.
        space: Of the actions; the goal cost is given normalised ones.
        max_candidates: Candidates imagined at once, over all environments; at least 1.
        bf16: Imagine in bf16 autocast. The goal cost works in float32.
    """

    def __init__(
        self,
        model: WorldModel,
        z: Tensor,
        context_actions: Tensor | None,
        goal: Tensor,
        goal_cost: GoalCost,
        space: PlanSpace,
        *,
        max_candidates: int = 65536,
        bf16: bool = False,
    ) -> None:
        assert len(z) == len(goal) and max_candidates >= 1, (z.shape, goal.shape, max_candidates)
        self.model, self.goal_cost, self.space = model, goal_cost, space
        self.z, self.context_actions, self.goal = z, context_actions, goal
        self.max_candidates, self.bf16 = max_candidates, bf16

    def __call__(self, candidates: Tensor) -> Tensor:
        """Costs (B, S) float32 of candidates (B, S, P, A), action blocks as the environment takes them."""
        num_envs, num_samples = candidates.shape[:2]
        assert num_envs == len(self.z), (candidates.shape, self.z.shape)
        plans = candidates.flatten(0, 1)
        owners = torch.arange(len(plans), device=plans.device) // num_samples
        num_chunks = math.ceil(len(plans) / self.max_candidates)
        with torch.set_grad_enabled(candidates.requires_grad):
            if num_chunks == 1:
                return self._score(plans, owners).view(num_envs, num_samples)
            size = math.ceil(len(plans) / num_chunks)
            chunks = zip(plans.split(size), owners.split(size), strict=True)
            if candidates.requires_grad:
                costs = [checkpoint(self._score, *chunk, use_reentrant=False) for chunk in chunks]
            else:
                costs = [self._score(*chunk) for chunk in chunks]
            return torch.cat(costs).view(num_envs, num_samples)

    def imagine(self, plans: Tensor) -> Tensor:
        """What the model expects of one plan for each environment: (B, P, A) to embeddings (B, P, *D) float32."""
        with torch.no_grad():
            owners = torch.arange(len(plans), device=plans.device).split(self.max_candidates)
            return torch.cat([self._rollout(plans[part], part).float() for part in owners])

    def _score(self, plans: Tensor, owners: Tensor) -> Tensor:
        """Costs (N,) of plans (N, P, A) that belong to the environments `owners` (N,)."""
        return self.goal_cost(self._rollout(plans, owners), self.goal[owners], self.space.normalise(plans)).float()

    def _rollout(self, plans: Tensor, owners: Tensor) -> Tensor:
        past = None if self.context_actions is None else self.context_actions[owners]
        with in_eval_mode(self.model), autocast(plans.device, self.bf16):
            return self.model.rollout(self.z[owners], plans, past)
