"""The Transformer predictor: causal, the same in training and in a rollout, of the published size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor
from torch.nn import functional as F

from jepaworld.config import Config
from jepaworld.models.predictors import Predictor
from jepaworld.models.size import count_parameters
from jepaworld.models.transformer import TransformerPredictor, short_attention
from tests.conftest import fresh_model

SMALL = {"depth": 2, "heads": 2, "head_dim": 4, "mlp_dim": 16}


def predictor(latent_shape: tuple[int, ...], context_length: int, **settings: Any) -> TransformerPredictor:
    """One whose gates are open, so that blocks do something."""
    torch.manual_seed(0)
    made = TransformerPredictor(
        latent_shape, 5, TransformerPredictor.Settings(**SMALL | settings, context_length=context_length)
    )
    for name, parameter in made.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def inputs(latent_shape: tuple[int, ...], length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, length, *latent_shape, generator=generator), torch.randn(3, length, 5, generator=generator)


@pytest.mark.parametrize("latent_shape", [(8,), (4, 8)])
@pytest.mark.parametrize(("context", "length"), [(1, 4), (3, 2), (3, 3), (3, 7)])
def test_each_prediction_is_made_from_its_own_window_of_the_past(
    latent_shape: tuple[int, ...], context: int, length: int
) -> None:
    model, (z, actions) = predictor(latent_shape, context), inputs(latent_shape, length)
    predicted = model(z, actions)
    assert predicted.shape == z.shape
    for t in range(length):
        first = max(0, t + 1 - context)
        alone = model(z[:, first : t + 1], actions[:, first : t + 1])[:, -1]
        torch.testing.assert_close(predicted[:, t], alone)


@pytest.mark.parametrize("latent_shape", [(8,), (4, 8)])
def test_the_past_the_present_and_their_actions_count_and_the_future_does_not(latent_shape: tuple[int, ...]) -> None:
    model, (z, actions) = predictor(latent_shape, 4), inputs(latent_shape, 4)
    z.requires_grad_()
    actions.requires_grad_()
    model(z, actions)[:, 2, ..., 0].sum().backward()  # one entry: the sum of a normed vector is constant
    for gradient in (z.grad, actions.grad):
        assert gradient is not None
        norms = gradient.transpose(0, 1).flatten(1).norm(dim=1)
        assert bool((norms[:3] > 1e-6).all()) and norms[3] == 0


def test_every_token_sees_every_token_of_its_frame_and_order_matters() -> None:
    model, (z, actions) = predictor((4, 8), 2), inputs((4, 8), 2)
    z.requires_grad_()
    model(z, actions)[:, 1, 0, 0].sum().backward()
    assert z.grad is not None
    assert bool((z.grad[:, 1].norm(dim=-1) > 1e-6).all())
    turned = model(z.flip(2), actions)
    assert not torch.allclose(turned.flip(2), model(z, actions), atol=1e-3)


def test_it_begins_as_the_norm_of_its_input_whatever_the_action() -> None:
    torch.manual_seed(0)
    model = TransformerPredictor((8,), 5, TransformerPredictor.Settings(**SMALL, context_length=2)).eval()
    z, actions = inputs((8,), 2)
    expected = torch.nn.functional.layer_norm(z + model.frame_positions[:, :, 0], (8,))
    torch.testing.assert_close(model(z, actions), expected)
    torch.testing.assert_close(model(z, actions + 1), expected)


def test_dropout_acts_in_training_only() -> None:
    model, given = predictor((8,), 2, dropout_rate=0.5), inputs((8,), 2)
    assert torch.equal(model(*given), model(*given))
    model.train()
    assert not torch.equal(model(*given), model(*given))


def test_it_has_the_size_that_lewm_publishes() -> None:
    # 10,791,360 parameters for embeddings of 192 and a history of 3, counted in the public code.
    assert (
        count_parameters(TransformerPredictor((192,), 192, TransformerPredictor.Settings(context_length=3)))
        == 10_791_360
    )


@pytest.mark.parametrize("context", [1, 3])
def test_a_rollout_begins_with_the_predictions_of_training(tiny_config: Callable[..., Config], context: int) -> None:
    settings = {f"predictor_{name}": value for name, value in SMALL.items()}
    jepa = {"predictor_type": "transformer", "predictor_context_length": context, **settings}
    model = fresh_model(tiny_config(num_transitions=4, jepa_model=jepa), Box(-2, 2, (2,), np.float32)).eval()
    z, actions = torch.randn(3, 4, 8), torch.randn(3, 4, 2)
    predicted = model.predict(z, actions)
    for t in range(4):
        imagined = model.rollout(z[:, : t + 1], actions[:, t:], actions[:, :t])
        torch.testing.assert_close(imagined[:, 0], predicted[:, t])


@pytest.mark.parametrize("latent_shape", [(8,), (4, 8)])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("known", [1, 2, 4])
def test_a_rollout_with_the_cache_equals_one_without(latent_shape: tuple[int, ...], positions: str, known: int) -> None:
    model = predictor(latent_shape, 4, positions=positions)
    z, actions = inputs(latent_shape, 9)
    cached, plain, past, all_past = [], [], None, None
    new, new_actions = z[:, :known], actions[:, :known]
    for step in range(5):  # over the end of the window of 4
        one, past = model.advance(new, new_actions, past)
        other, all_past = Predictor.advance(model, new, new_actions, all_past)
        cached.append(one)
        plain.append(other)
        new, new_actions = one.unsqueeze(1), actions[:, known + step : known + step + 1]
    torch.testing.assert_close(torch.stack(cached), torch.stack(plain))


def test_the_frames_before_are_not_computed_again() -> None:
    model, (z, actions) = predictor((8,), 3), inputs((8,), 2)
    _, past = model.advance(z[:, :1], actions[:, :1])
    expected, _ = model.advance(z[:, 1:], actions[:, 1:], past)
    forgotten = past._replace(z=torch.zeros_like(past.z), action_embeddings=torch.zeros_like(past.action_embeddings))
    assert torch.equal(model.advance(z[:, 1:], actions[:, 1:], forgotten)[0], expected)


def test_attention_by_products_is_that_of_torch() -> None:
    q, k, v = torch.randn(3, 2, 4, 3, 8)
    seen = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(short_attention(q, k, v, attn_mask=seen, dropout_p=0.0), expected)
    assert not torch.allclose(short_attention(q, k, v, attn_mask=seen, dropout_p=0.5), expected)


def test_rotary_positions_tell_the_order_of_frames() -> None:
    model, (z, actions) = predictor((8,), 3, positions="rotary"), inputs((8,), 3)
    order = torch.tensor([1, 0, 2])
    assert not torch.allclose(model(z, actions)[:, 2], model(z[:, order], actions[:, order])[:, 2], atol=1e-4)
