"""Action embeddings: bounded boxes become [-1, 1], discrete actions table rows, blocks keep their order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor, nn

from jepaworld.envs.spaces import Spaces, block_size
from jepaworld.models.action_encoders import ContinuousActionEmbedding, DiscreteActionEmbedding


def make_action_embedding(space: Space, frame_skipping: int, width: int) -> nn.Module:
    kind = DiscreteActionEmbedding if isinstance(space, Discrete) else ContinuousActionEmbedding
    return kind(Spaces((3, 8, 8), space, frame_skipping), width)


def scaled(space: Box, frame_skipping: int, actions: Tensor) -> Tensor:
    """What enters the linear map, read through an identity in its place."""
    width = block_size(space, frame_skipping)
    embedding = make_action_embedding(space, frame_skipping, width)
    linear = next(module for module in embedding.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(torch.eye(width))
        linear.bias.zero_()
        return embedding(actions)


def test_bounds_become_minus_one_and_one() -> None:
    space = Box(np.array([-3.0, 0.0, 10.0]), np.array([1.0, 8.0, 10.5]), dtype=np.float64)
    actions = torch.tensor([[[-3.0, 0.0, 10.0], [1.0, 8.0, 10.5], [-1.0, 4.0, 10.25], [0.0, 2.0, 10.125]]])
    expected = torch.tensor([[[-1.0, -1, -1], [1, 1, 1], [0, 0, 0], [0.5, -0.5, -0.5]]])
    torch.testing.assert_close(scaled(space, 1, actions), expected)


def test_dimensions_without_two_bounds_are_taken_as_they_are() -> None:
    inf = np.inf
    low, high = np.float32([-inf, 0.0, -inf, -2.0]), np.float32([inf, inf, 5.0, 2.0])
    space = Box(low, high, dtype=np.float32)
    actions = torch.tensor([[[3.0, 4.0, -7.0, 1.0]]])
    torch.testing.assert_close(scaled(space, 1, actions), torch.tensor([[[3.0, 4.0, -7.0, 0.5]]]))


def test_the_largest_float_is_no_bound() -> None:
    """Spaces without limits often carry it, and scaling by it would make every action the same."""
    space = Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (1,), np.float32)
    torch.testing.assert_close(scaled(space, 1, torch.tensor([[[3.0]]])), torch.tensor([[[3.0]]]))


def test_a_dimension_with_one_possible_value_stays_finite() -> None:
    space = Box(np.float32([2.0, -1.0]), np.float32([2.0, 1.0]), dtype=np.float32)
    assert torch.isfinite(scaled(space, 1, torch.tensor([[[2.0, 0.3]]]))).all()


def test_blocks_of_a_matrix_action_scale_each_entry_by_its_own_bounds() -> None:
    """Frame skipping lays blocks out as (k, *shape) in C order."""
    low, high = np.float32([[-1, -2], [-4, 0]]), np.float32([[1, 6], [12, 24]])
    space = Box(low, high, dtype=np.float32)
    rng = np.random.default_rng(0)
    block = rng.uniform(low, high, size=(3, 2, 2)).astype(np.float32)
    expected = (block - [[0, 2], [4, 12]]) / [[1, 4], [8, 12]]
    actual = scaled(space, 3, torch.tensor(block.reshape(1, 1, -1)))
    np.testing.assert_allclose(actual.numpy().ravel(), expected.ravel(), rtol=1e-5, atol=1e-6)


def test_integer_boxes_can_be_embedded() -> None:
    space = Box(0, 10, (1,), np.uint8)
    torch.testing.assert_close(
        scaled(space, 1, torch.tensor([[[0], [10]]], dtype=torch.uint8)), torch.tensor([[[-1.0], [1.0]]])
    )


def test_scaling_is_saved_but_not_trained() -> None:
    embedding = make_action_embedding(Box(-3, 1, (2,), np.float32), 1, 4)
    assert {name for name, _ in embedding.named_parameters()} == {"linear.weight", "linear.bias"}
    assert len(embedding.state_dict()) == 4


@pytest.mark.parametrize("start", [0, 3, -2])
def test_discrete_actions_begin_at_start(start: int) -> None:
    torch.manual_seed(1)
    shifted = make_action_embedding(Discrete(4, start=start), 1, 5)
    torch.manual_seed(1)
    plain = make_action_embedding(Discrete(4), 1, 5)
    actions = torch.arange(4).view(1, 4, 1)
    embedded = shifted(actions + start)
    torch.testing.assert_close(embedded, plain(actions))
    assert len(torch.unique(embedded[0], dim=0)) == 4
    for outside in (start - 1, start + 4):
        with pytest.raises(IndexError):
            shifted(torch.tensor([[[outside]]]))


def test_discrete_blocks_keep_their_order() -> None:
    embedding = make_action_embedding(Discrete(3, start=1), 2, 6)
    pairs = torch.tensor([[[a, b] for a in (1, 2, 3) for b in (1, 2, 3)]])
    embedded = embedding(pairs)
    assert embedded.shape == (1, 9, 6)
    assert len(torch.unique(embedded[0], dim=0)) == 9


@pytest.mark.parametrize("space", [Box(-1, 1, (3,), np.float32), Discrete(5, start=2)])
@pytest.mark.parametrize("frame_skipping", [1, 4])
def test_shapes_and_gradients(space: Space, frame_skipping: int) -> None:
    embedding = make_action_embedding(space, frame_skipping, 7)
    width = block_size(space, frame_skipping)
    if isinstance(space, Box):
        actions = torch.randn(64, 3, width, requires_grad=True)
    else:
        actions = torch.randint(2, 7, (64, 3, width))
    embedded = embedding(actions)
    assert embedded.shape == (64, 3, 7)
    embedded.square().sum().backward()
    for name, parameter in embedding.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    if isinstance(space, Box):
        assert actions.grad is not None
        assert (actions.grad != 0).any()
