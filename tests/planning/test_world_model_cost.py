"""The cost of candidates: what it says, in how much memory, with and without gradients."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn
from toy_models import GlidingModel, PointModel

from jepaworld.planning import ActionPenalty, GoalDistance, PlanSpace, WeightedSum, WorldModelCost

SPACE = PlanSpace.of(Box(-2, 2, (2,)), 1)
Z, GOAL = torch.randn(3, 1, 2, 1), torch.randn(3, 2, 1)


def _cost(model, max_candidates=None, goal_cost=None, **kwargs) -> WorldModelCost:
    goal_cost = goal_cost or GoalDistance()
    return WorldModelCost(model, Z, None, GOAL, goal_cost, SPACE, max_candidates=max_candidates, **kwargs)


def test_each_candidate_starts_and_ends_in_its_own_environment() -> None:
    candidates = torch.randn(3, 4, 5, 2)
    costs = _cost(PointModel(gain=2.0))(candidates)
    for env in range(3):
        for sample in range(4):
            path = Z[env, 0, :, 0] + 2.0 * candidates[env, sample].cumsum(dim=0)
            expected = (path - GOAL[env, :, 0]).square().mean()
            torch.testing.assert_close(costs[env, sample], expected)


@pytest.mark.parametrize("max_candidates", [1, 5, 12, 1000])
def test_chunks_change_nothing_but_the_memory(max_candidates) -> None:
    model, candidates = PointModel(), torch.randn(3, 7, 4, 2)
    whole = _cost(PointModel())(candidates)
    torch.testing.assert_close(_cost(model, max_candidates)(candidates), whole)
    assert max(model.batches) <= max_candidates and sum(model.batches) == 21
    model.batches.clear()
    plans = candidates[:, 0]
    imagined = _cost(model, max_candidates).imagine(plans)
    assert max(model.batches) <= max_candidates
    torch.testing.assert_close(imagined, PointModel().rollout(Z, plans).detach())


@pytest.mark.parametrize("latent", [(64,), (196, 384)])
@pytest.mark.parametrize("gradients", [False, True])
def test_memory_is_bounded_in_bytes_whatever_the_latent(latent, gradients) -> None:
    """Of the embeddings that are imagined at once, a part of the memory is left for the rest of the model."""

    class Still:
        largest = 0

        def encode(self, frames):
            return frames

        def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
            imagined = z[:, -1:].expand(-1, actions.shape[1], *latent) + actions.mean()
            self.largest = max(self.largest, 4 * imagined.numel())
            return imagined

    model, candidates = Still(), torch.zeros(2, 20, 3, 2, requires_grad=gradients)
    z, goal = torch.zeros(2, 1, *latent), torch.zeros(2, *latent)
    for megabytes in (16, 64):
        model.largest = 0
        WorldModelCost(model, z, None, goal, GoalDistance(), SPACE, memory_megabytes=megabytes)(candidates)
        everything = 4 * 40 * 3 * goal[0].numel()
        at_least_one = 4 * 3 * goal[0].numel()
        assert model.largest <= max(at_least_one, megabytes * 2**20 / (20 if gradients else 4))
        assert model.largest >= min(everything, megabytes * 2**20 / (400 if gradients else 40))


def test_candidates_of_one_environment_share_its_context_and_goal() -> None:
    """Where a candidate is large, the others see the same memory instead of a copy."""
    seen = []

    class Seeing(GlidingModel):
        def rollout(self, z, actions, context_actions=None):
            seen.extend([z, context_actions])
            return super().rollout(z, actions, context_actions)

    def goal_cost(imagined, goal, actions):
        seen.append(goal)
        return GoalDistance()(imagined, goal, actions)

    cost = WorldModelCost(
        Seeing(), torch.randn(3, 2, 2, 1), torch.randn(3, 1, 2), GOAL, goal_cost, SPACE, max_candidates=4
    )
    cost(torch.randn(3, 4, 5, 2))
    assert len(seen) == 9 and all(len(one) == 4 and one.stride(0) == 0 for one in seen)


def test_gradients_are_those_of_the_whole_in_any_chunks_and_in_eval_mode() -> None:
    class Dropping(PointModel):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def rollout(self, z, actions, context_actions=None):
            return self.dropout(super().rollout(z, actions, context_actions))

    candidates = torch.randn(3, 7, 4, 2, requires_grad=True)
    (whole,) = torch.autograd.grad(_cost(PointModel())(candidates).sum(), candidates)
    assert bool((whole.abs() > 0).all())
    model = Dropping().train()
    costs = _cost(model, 4)(candidates)
    assert model.training and model.dropout.training
    (chunked,) = torch.autograd.grad(costs.sum(), candidates)  # imagines once more
    torch.testing.assert_close(chunked, whole)
    assert max(model.batches) <= 4
    assert sum(model.batches) == 2 * 21  # nothing of the first time was kept


def test_no_graph_without_need() -> None:
    candidates = torch.randn(3, 7, 4, 2)
    assert not _cost(PointModel())(candidates).requires_grad
    with torch.no_grad():
        assert _cost(PointModel())(candidates.clone().requires_grad_()).requires_grad


def test_the_penalty_is_of_normalised_actions() -> None:
    costs = _cost(PointModel(), goal_cost=WeightedSum(((1.0, ActionPenalty()),)))(torch.full((3, 1, 4, 2), 2.0))
    torch.testing.assert_close(costs, torch.ones(3, 1))


def test_context_goes_with_its_environment() -> None:
    z, past = torch.randn(3, 2, 2, 1), torch.randn(3, 1, 2)
    candidates, model = torch.randn(3, 4, 5, 2), GlidingModel()
    cost = WorldModelCost(model, z, past, GOAL, GoalDistance(), SPACE, max_candidates=5)
    found = cost(candidates)
    for env in range(3):
        imagined = model.rollout(z[env].expand(4, 2, 2, 1), candidates[env], past[env].expand(4, 1, 2))
        expected = GoalDistance()(imagined, GOAL[env].expand(4, 2, 1), candidates[env])
        torch.testing.assert_close(found[env], expected.detach())


def test_bf16_is_an_approximation_and_its_cost_is_float32() -> None:
    class Linear(PointModel):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(2, 2)

        def rollout(self, z, actions, context_actions=None):
            return super().rollout(z, self.map(actions), context_actions)

    model, candidates = Linear(), torch.randn(3, 7, 4, 2)
    exact, low = _cost(model)(candidates), _cost(model, bf16=True)(candidates)
    assert low.dtype == torch.float32 and not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, rtol=0.1, atol=1.0)


def test_discrete_candidates_reach_the_model_as_the_environment_takes_them() -> None:
    class Seeing:
        def encode(self, frames):
            return frames.float()

        def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
            assert actions.dtype == torch.int64
            return z + actions[..., :1].float().cumsum(dim=1)

    space = PlanSpace.of(Discrete(3, start=5))
    cost = WorldModelCost(Seeing(), torch.zeros(2, 1, 1), None, torch.zeros(2, 1), GoalDistance("l1"), space)
    assert cost(space.to_real(torch.tensor([[[[0]]], [[[2]]]]))).tolist() == [[5.0], [7.0]]
