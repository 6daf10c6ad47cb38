"""What makes a plan good: small functions of what is imagined, that can be weighted and added.

Shapes: N candidate plans, P plan steps, D latent (one axis or more), A numbers of one action block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from jepaworld.settings_planning import PlanningObjectiveConfig


class Objective(Protocol):
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

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:  # noqa: ARG002 (Objective's)
        """Score plans; see `Objective`."""
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

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:  # noqa: ARG002 (Objective's)
        """Score plans; see `Objective`."""
        return actions.float().square().mean(dim=(1, 2))


@dataclass(frozen=True)
class WeightedSum:
    """Weighted sum of objectives.

    Attributes:
        terms: (weight, objective) pairs, at least one.
    """

    terms: tuple[tuple[float, Objective], ...]

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:
        """Score plans; see `Objective`."""
        first, *others = (weight * objective(imagined, goal, actions) for weight, objective in self.terms)
        return sum(others, first)


def make_objective(settings: PlanningObjectiveConfig) -> Objective:
    """The objective that `planning.objective` describes."""
    terms: list[tuple[float, Objective]] = [(1.0, GoalDistance(settings.metric, settings.path, settings.discount))]
    if settings.last_weight > 0:
        terms.append((settings.last_weight, GoalDistance(settings.metric, "last")))
    if settings.action_penalty > 0:
        terms.append((settings.action_penalty, ActionPenalty()))
    return WeightedSum(tuple(terms)) if len(terms) > 1 else terms[0][1]
