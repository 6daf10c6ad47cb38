"""The cost of candidate plans under a world model.

Shapes: B environments, S candidate plans, P plan steps, K context frames, A numbers of one action block, D latent (one
axis or more).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jepaworld.devices import autocast
from jepaworld.planning.objectives import Objective
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.protocol import WorldModel, in_eval_mode


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
        objective: What is good.
        space: Of the actions; the objective is given normalised ones.
        max_candidates: Candidates imagined at once, over all environments; at least 1.
        bf16: Imagine in bf16 autocast. The objective works in float32.
    """

    def __init__(
        self,
        model: WorldModel,
        z: Tensor,
        context_actions: Tensor | None,
        goal: Tensor,
        objective: Objective,
        space: PlanSpace,
        *,
        max_candidates: int = 65536,
        bf16: bool = False,
    ) -> None:
        assert len(z) == len(goal) and max_candidates >= 1, (z.shape, goal.shape, max_candidates)
        self.model, self.objective, self.space = model, objective, space
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
        return self.objective(self._rollout(plans, owners), self.goal[owners], self.space.normalise(plans)).float()

    def _rollout(self, plans: Tensor, owners: Tensor) -> Tensor:
        past = None if self.context_actions is None else self.context_actions[owners]
        with in_eval_mode(self.model), autocast(plans.device, self.bf16):
            return self.model.rollout(self.z[owners], plans, past)
