"""What makes a plan good: the cost of what is imagined, and the cost of candidate plans under a world model.

Shapes: B environments, S candidate plans, N plans of any environments, P plan steps, K context frames, A numbers of one
action block, *D latent: (D,) or (N, D) with tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jepaworld.config.planning import PlanningCostConfig
from jepaworld.models.protocol import WorldModel
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.utils.devices import autocast
from jepaworld.utils.modules import in_eval_mode

# Estimate of what imagining one candidate takes, in bytes. Measured with MLP predictors (latents of 64 and 256, hidden
# layers four times as wide): 2 to 6 times its context, imagined embeddings and goal in float32, 25 to 68 times where
# the activations of all steps are kept for gradients.
_BYTES_PER_LATENT = 4 * 8
_GRADIENTS_TAKE = 10
_BYTES_PER_CANDIDATE = 4096  # for what does not grow with the latent


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
    """Distance of imagined embeddings to the goal's, a `GoalCost`."""

    # l2: mean over the latent of the squared difference; l1: of the absolute one; cosine: 1 minus the cosine, 0 to 2.
    metric: Literal["l2", "l1", "cosine"] = "l2"
    # Steps that count: the last; mean or sum over all; discounted: the sum with step p (from 0) times discount ** p.
    path: Literal["mean", "sum", "discounted", "last"] = "mean"
    discount: float = 0.9

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:  # noqa: ARG002, D102 (GoalCost's)
        distances = self.distances(imagined[:, -1:] if self.path == "last" else imagined, goal)
        if self.path == "discounted":
            return distances @ self.discount ** torch.arange(distances.shape[1], device=distances.device)
        return distances.mean(dim=1) if self.path == "mean" else distances.sum(dim=1)

    def distances(self, imagined: Tensor, goal: Tensor) -> Tensor:
        """The distance after each step: (N, P, *D) and (N, *D) to (N, P) float32."""
        imagined, goal = imagined.flatten(2).float(), goal.flatten(1).float().unsqueeze(1)
        if self.metric == "cosine":
            return 1.0 - torch.nn.functional.cosine_similarity(imagined, goal, dim=-1)
        # A norm makes no copy of the differences' squares, which are as large as all that was imagined.
        if self.metric == "l1":
            return torch.linalg.vector_norm(imagined - goal, ord=1, dim=-1) / imagined.shape[-1]
        return torch.linalg.vector_norm(imagined - goal, dim=-1).square() / imagined.shape[-1]


@dataclass(frozen=True)
class ActionPenalty:
    """Mean squared normalised action over the plan: 0 at the centre of the bounds, at most 1 for bounded actions."""

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:  # noqa: ARG002, D102 (GoalCost's)
        return actions.float().square().mean(dim=(1, 2))


@dataclass(frozen=True)
class WeightedSum:
    """Weighted sum of costs: (weight, cost) pairs, at least one."""

    terms: tuple[tuple[float, GoalCost], ...]

    def __call__(self, imagined: Tensor, goal: Tensor, actions: Tensor) -> Tensor:  # noqa: D102 (GoalCost's)
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
    """Imagines candidates and scores what it sees; a cost for any `Planner`. The model is in eval mode meanwhile.

    Candidates are imagined in chunks that stay within `memory_megabytes`, whatever B and S. Without gradients, unless
    the candidates require them; then what several chunks imagined is forgotten and imagined again in the backward pass.

    Args:
        model: The world model.
        z: Embeddings of the context as from `model.encode` (B, K, *D); the last is the present.
        context_actions: The action blocks between them (B, K - 1, A), or None with K = 1.
        lengths: How many of the K each environment has, the latest ones, at least 1; None for all.
        goal: Embeddings of the goals (B, *D).
        goal_cost: What is good.
        space: Of the actions; the goal cost is given normalised ones.
        memory_megabytes: MiB that imagination may take, as estimated; one candidate is always imagined.
        max_candidates: Also a limit on the candidates imagined at once; None for none.
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
        lengths: Sequence[int] | None = None,
        memory_megabytes: float = 2048,
        max_candidates: int | None = None,
        bf16: bool = False,
    ) -> None:
        assert len(z) == len(goal), (z.shape, goal.shape)
        self.model, self.goal_cost, self.space = model, goal_cost, space
        self.z, self.context_actions, self.goal = z, context_actions, goal
        self.lengths = [z.shape[1]] * len(z) if lengths is None else list(lengths)
        self.memory_megabytes, self.max_candidates, self.bf16 = memory_megabytes, max_candidates, bf16

    def __call__(self, candidates: Tensor) -> Tensor:
        """Costs (B, S) float32 of candidates (B, S, P, A), action blocks as the environment takes them."""
        num_envs, num_samples, horizon = candidates.shape[:3]
        assert num_envs == len(self.z), (candidates.shape, self.z.shape)
        at_once = self._candidates_at_once(horizon, _GRADIENTS_TAKE if candidates.requires_grad else 1)
        # Several environments with all their candidates each, or a part of the candidates of one: these then share its
        # context and goal as a view. (Across environments, the model's one batch axis makes a copy of them, within the
        # estimate; it is the candidates of large latents, imagined few at once, that a copy would weigh on.)
        groups, parts = self._groups(self.lengths, max(1, at_once // num_samples)), _slices(num_samples, at_once)
        score = self._score
        if candidates.requires_grad and len(groups) * len(parts) > 1:
            score = partial(checkpoint, self._score, use_reentrant=False)
        with torch.set_grad_enabled(candidates.requires_grad):
            rows = [torch.cat([score(candidates[group, part], group) for part in parts], dim=1) for group in groups]
            return torch.cat(rows)

    def imagine(self, plans: Tensor, envs: Sequence[int] | None = None) -> Tensor:
        """What the model expects (b, P, *D) float32 of plans (b, P, A), one for each of `envs`; None for all."""
        rows = list(range(len(self.z)) if envs is None else envs)
        chunks = self._groups([self.lengths[row] for row in rows], self._candidates_at_once(plans.shape[1]))
        with torch.no_grad():
            return torch.cat([self._rollout(plans[chunk, None], rows[chunk]).float() for chunk in chunks])

    def _candidates_at_once(self, horizon: int, factor: int = 1) -> int:
        latents = (self.z.shape[1] + horizon + 1) * self.goal[0].numel()  # numbers of context, imagination and goal
        each = factor * (_BYTES_PER_LATENT * latents + _BYTES_PER_CANDIDATE)
        at_once = int(self.memory_megabytes * 2**20 / each)
        return max(1, min(at_once, self.max_candidates or at_once))

    @staticmethod
    def _groups(lengths: Sequence[int], size: int) -> list[slice]:
        """Neighbours of equal context, at most `size` together: the model takes one length for all that it imagines."""
        groups, first = [], 0
        for _, alike in groupby(lengths):
            count = len(list(alike))
            groups += [slice(first + part.start, first + part.stop) for part in _slices(count, size)]
            first += count
        return groups

    def _score(self, candidates: Tensor, envs: slice) -> Tensor:
        """Costs (b, S) of candidates (b, S, P, A) of these b environments."""
        imagined = self._rollout(candidates, envs)
        goal = _repeated(self.goal, envs, candidates.shape[1])
        actions = self.space.normalise(candidates.flatten(0, 1))
        return self.goal_cost(imagined, goal, actions).float().view(candidates.shape[:2])

    def _rollout(self, candidates: Tensor, envs: slice | list[int]) -> Tensor:
        """What the model expects (b * S, P, *D) of candidates (b, S, P, A) of these b environments."""
        count, past = candidates.shape[1], self.context_actions
        unknown = self.z.shape[1] - self.lengths[envs.start if isinstance(envs, slice) else envs[0]]
        alone = past is None or unknown == past.shape[1]  # the present frame, with no action before it
        context_actions = None if past is None or alone else _repeated(past[:, unknown:], envs, count)
        z = _repeated(self.z[:, unknown:], envs, count)
        with in_eval_mode(self.model), autocast(candidates.device, self.bf16):
            return self.model.rollout(z, candidates.flatten(0, 1), context_actions)


def _repeated(values: Tensor, envs: slice | list[int], count: int) -> Tensor:
    """(b * count, ...) of (B, ...): each chosen entry `count` times, one entry alone without a copy."""
    return values[envs].unsqueeze(1).expand(-1, count, *values.shape[1:]).flatten(0, 1)


def _slices(total: int, size: int) -> list[slice]:
    """`total` things in as few and as equal parts of at most `size` as can be."""
    size = math.ceil(total / math.ceil(total / size))
    return [slice(first, min(first + size, total)) for first in range(0, total, size)]
