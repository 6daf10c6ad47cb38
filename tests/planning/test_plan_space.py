"""Action blocks in normalised coordinates and back."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from jepaworld.errors import EnvironmentNotUsableError
from jepaworld.planning import PlanSpace

MIXED = Box(np.array([-2.0, 0.0, -np.inf, 5.0, 3.0], np.float32), np.array([4.0, 0.5, np.inf, np.inf, 3.0], np.float32))


def test_bounded_entries_are_scaled_and_others_are_not() -> None:
    space = PlanSpace.of(MIXED, 2)
    assert (space.width, space.entries, space.discrete) == (10, 5, False)
    low = space.to_real(torch.full((1, 10), -1.0))[0]
    high = space.to_real(torch.full((1, 10), 1.0))[0]
    np.testing.assert_allclose(low, np.tile([-2.0, 0.0, -1.0, 5.0, 3.0], 2))
    np.testing.assert_allclose(high, np.tile([4.0, 0.5, 1.0, 5.0, 3.0], 2))
    far = space.to_real(torch.full((1, 10), 70.0))[0]
    np.testing.assert_allclose(far, np.tile([4.0, 0.5, 70.0, 70.0, 3.0], 2))


def test_huge_bounds_are_no_bounds() -> None:
    largest = np.finfo(np.float32).max
    space = PlanSpace.of(Box(-largest, largest, (1,), np.float32))
    assert space.to_real(torch.tensor([3.0])).tolist() == [3.0]


def test_normalise_is_the_inverse() -> None:
    space = PlanSpace.of(Box(np.array([-2.0, 1.0]), np.array([4.0, 1.5]), dtype=np.float64), 3)
    normalised = torch.rand(4, 2, 6) * 2 - 1
    torch.testing.assert_close(space.normalise(space.to_real(normalised)), normalised, atol=1e-5, rtol=0.0)


def test_split_keeps_the_order_of_steps_and_the_bounds_of_a_finer_dtype() -> None:
    action_space = Box(0.0, 0.1, (2, 2), np.float64)  # float32(0.1) is above 0.1
    space = PlanSpace.of(action_space, 3)
    blocks = space.to_real(torch.linspace(-1, 1, 12).expand(2, 12))
    actions = space.split(blocks)
    assert actions.shape == (2, 3, 2, 2) and actions.dtype == np.float64
    np.testing.assert_allclose(actions[0].ravel(), np.linspace(0, 0.1, 12), atol=1e-8)
    assert all(action_space.contains(action) for action in actions[1])


def test_rounding_at_a_bound_stays_inside() -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=500).astype(np.float32)
    action_space = Box(low, low + rng.random(500).astype(np.float32))
    space = PlanSpace.of(action_space)
    for bound in (torch.ones(500), -torch.ones(500)):
        for normalised in (bound, bound.clone().requires_grad_()):
            assert action_space.contains(space.to_real(normalised).detach().numpy())


def test_gradients_pass_at_the_bounds_and_through_rounding() -> None:
    space = PlanSpace.of(Box(np.array([-1.0, 0.1], np.float32), np.array([1.0, 0.3], np.float32)))
    at_bound = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], requires_grad=True)
    space.to_real(at_bound).sum().backward()
    torch.testing.assert_close(at_bound.grad, torch.tensor([[1.0, 0.1], [1.0, 0.1]]))
    whole = PlanSpace.of(Box(0, 10, (1,), np.int32))
    normalised = torch.tensor([[0.07]], requires_grad=True)
    real = whole.to_real(normalised)
    assert real.item() == 5.0
    real.sum().backward()
    assert normalised.grad is not None and normalised.grad.item() == 5.0
    assert whole.split(real)[0].dtype == np.int32


def test_discrete_adds_the_start() -> None:
    space = PlanSpace.of(Discrete(4, start=-1), 2)
    assert (space.width, space.num_actions, space.discrete) == (2, 4, True)
    real = space.to_real(torch.tensor([[0, 3]]))
    assert real.tolist() == [[-1, 2]] and real.dtype == torch.int64
    assert space.normalise(real).tolist() == [[0.0, 3.0]]
    actions = space.split(real)
    assert actions.shape == (1, 2) and actions.dtype == np.int64


def test_other_spaces_are_refused() -> None:
    with pytest.raises(EnvironmentNotUsableError, match="MultiDiscrete"):
        PlanSpace.of(MultiDiscrete([2, 3]))
