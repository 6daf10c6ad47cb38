"""Objectives against numpy."""

import numpy as np
import pytest
import torch

from jepaworld.config.planning import PlanningCostConfig
from jepaworld.planning import ActionPenalty, GoalDistance, WeightedSum, make_cost

IMAGINED = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(0))
GOAL = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1))
ACTIONS = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(2)) * 2 - 1


def _distances(metric: str) -> np.ndarray:
    imagined, goal = IMAGINED.numpy().reshape(5, 4, 6), GOAL.numpy().reshape(5, 1, 6)
    match metric:
        case "l2":
            return ((imagined - goal) ** 2).mean(-1)
        case "l1":
            return np.abs(imagined - goal).mean(-1)
    norms = np.linalg.norm(imagined, axis=-1) * np.linalg.norm(goal, axis=-1)
    return 1 - (imagined * goal).sum(-1) / norms


@pytest.mark.parametrize("metric", ["l2", "l1", "cosine"])
@pytest.mark.parametrize("path", ["mean", "sum", "last", "discounted"])
def test_goal_distance(metric, path) -> None:
    distances = _distances(metric)
    weights = {"mean": [0.25] * 4, "sum": [1] * 4, "last": [0, 0, 0, 1], "discounted": [1, 0.8, 0.64, 0.512]}[path]
    found = GoalDistance(metric, path, discount=0.8)(IMAGINED, GOAL, ACTIONS)
    assert found.shape == (5,)
    np.testing.assert_allclose(found, distances @ np.array(weights), rtol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "l1", "cosine"])
def test_at_the_goal_cost_and_gradient_are_finite_and_zero(metric) -> None:
    imagined = GOAL.unsqueeze(1).clone().requires_grad_()
    cost = GoalDistance(metric)(imagined, GOAL, ACTIONS)
    torch.testing.assert_close(cost, torch.zeros(5), atol=1e-6, rtol=0.0)
    cost.sum().backward()
    torch.testing.assert_close(imagined.grad, torch.zeros_like(imagined), atol=1e-6, rtol=0.0)


def test_low_precision_embeddings_are_compared_in_float32() -> None:
    cost = GoalDistance()(IMAGINED.bfloat16(), GOAL, ACTIONS)
    assert cost.dtype == torch.float32
    torch.testing.assert_close(cost, GoalDistance()(IMAGINED.bfloat16().float(), GOAL, ACTIONS))


def test_settings_make_the_sum_that_they_describe() -> None:
    settings = PlanningCostConfig(metric="l1", path="discounted", discount=0.5, last_weight=3.0, action_penalty=0.2)
    distances = _distances("l1")
    expected = distances @ np.array([1, 0.5, 0.25, 0.125]) + 3.0 * distances[:, -1]
    expected += 0.2 * (ACTIONS.numpy() ** 2).mean((1, 2))
    np.testing.assert_allclose(make_cost(settings)(IMAGINED, GOAL, ACTIONS), expected, rtol=1e-5)
    assert make_cost(PlanningCostConfig()) == GoalDistance("l2", "mean")


def test_weighted_sums_can_be_nested() -> None:
    inner = WeightedSum(((2.0, ActionPenalty()), (1.0, GoalDistance())))
    found = WeightedSum(((3.0, inner), (0.5, ActionPenalty())))(IMAGINED, GOAL, ACTIONS)
    expected = 6.5 * ActionPenalty()(IMAGINED, GOAL, ACTIONS) + 3.0 * GoalDistance()(IMAGINED, GOAL, ACTIONS)
    torch.testing.assert_close(found, expected)
