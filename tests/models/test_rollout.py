"""Prediction and rollout: each embedding from its own past only, and imagined steps that feed each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.envs.spaces import Spaces
from jepaworld.models import build
from jepaworld.models.jepa import JEPA
from jepaworld.models.predictors import Predictor
from tests.conftest import fresh_model

BOX = Box(-2, 2, (2,), np.float32)


class WindowPredictor(Predictor):
    """Looks back 3 steps: a causal sum with weights that tell the lags apart, and a mixed action term."""

    context_length = 3
    weights = (0.5, 0.3, 0.1)  # of the present, the step before it, and the one before that

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, z: Tensor, action_embedding: Tensor) -> Tensor:
        assert z.shape == action_embedding.shape
        assert z.shape[1] <= self.context_length
        self.seen.append((z.shape[1], len(z)))
        steps = [self.one(z[:, : t + 1], action_embedding[:, : t + 1]) for t in range(z.shape[1])]
        return torch.stack(steps, dim=1)

    def one(self, z: Tensor, a: Tensor) -> Tensor:
        result = torch.zeros_like(z[:, 0])
        for lag, weight in enumerate(self.weights[: z.shape[1]]):
            result = result + weight * (z[:, -1 - lag] + torch.sin(a[:, -1 - lag]) * (lag + 1))
        return result


def window_model() -> JEPA:
    return JEPA(nn.Identity(), nn.Identity(), WindowPredictor(), "none", 0.9, latent_shape=(1,))


def markov_model(tiny_config: Callable[..., Config]) -> JEPA:
    return fresh_model(tiny_config(), BOX).eval()


def test_rollout_equals_iterated_prediction(tiny_config: Callable[..., Config]) -> None:
    model = markov_model(tiny_config)
    z, actions = torch.randn(3, 1, 8), torch.randn(3, 5, 2)
    expected, present = [], z
    for step in range(5):
        present = model.predict(present, actions[:, step : step + 1])
        expected.append(present)
    imagined = model.rollout(z, actions)
    assert imagined.shape == (3, 5, 8)
    torch.testing.assert_close(imagined, torch.cat(expected, dim=1))


def test_first_imagined_step_is_the_prediction_of_forward(tiny_config: Callable[..., Config]) -> None:
    model = markov_model(tiny_config)
    frames, actions = torch.randint(0, 256, (2, 4, 3, 16, 16)).to(torch.uint8), torch.randn(2, 3, 2)
    output = model(frames, actions)
    z = model.encode(frames)
    for t in range(3):
        torch.testing.assert_close(model.rollout(z[:, t : t + 1], actions[:, t : t + 1])[:, 0], output.predicted[:, t])


def test_a_markov_predictor_takes_the_last_frame_of_a_longer_context(
    tiny_config: Callable[..., Config],
) -> None:
    model = markov_model(tiny_config)
    z, actions, context_actions = torch.randn(3, 4, 8), torch.randn(3, 2, 2), torch.randn(3, 3, 2)
    expected = model.rollout(z[:, -1:], actions)
    torch.testing.assert_close(model.rollout(z, actions), expected)
    torch.testing.assert_close(model.rollout(z, actions, context_actions), expected)


def test_gradients_flow_to_embeddings_and_actions(tiny_config: Callable[..., Config]) -> None:
    model = markov_model(tiny_config)
    z, actions = torch.randn(2, 1, 8, requires_grad=True), torch.randn(2, 4, 2, requires_grad=True)
    model.rollout(z, actions)[:, -1].square().sum().backward()
    assert z.grad is not None
    assert actions.grad is not None
    assert (z.grad.abs().sum(dim=-1) > 0).all()
    assert (actions.grad.abs().sum(dim=-1) > 0).all()  # every step leads to the last one
    with torch.no_grad():
        assert not model.rollout(z, actions).requires_grad


def test_later_actions_do_not_reach_earlier_steps(tiny_config: Callable[..., Config]) -> None:
    for model in (markov_model(tiny_config), window_model()):
        d = 8 if isinstance(model.predictor, nn.Module) and hasattr(model.predictor, "layers") else 2
        z, actions = torch.randn(1, 1, d), torch.randn(1, 5, 2, requires_grad=True)
        for step in range(5):
            (gradient,) = torch.autograd.grad(model.rollout(z, actions)[:, step].sum(), actions)
            reached = gradient[0].abs().sum(dim=-1) > 0
            assert reached.tolist() == [t <= step for t in range(5)]


def test_predict_does_not_look_ahead(tiny_config: Callable[..., Config]) -> None:
    model = markov_model(tiny_config)
    z, actions = torch.randn(1, 5, 8, requires_grad=True), torch.randn(1, 5, 2, requires_grad=True)
    predicted = model.predict(z, actions)
    for step in range(5):
        gradients = torch.autograd.grad(predicted[:, step].sum(), (z, actions), retain_graph=True)
        for gradient in gradients:
            reached = gradient[0].abs().sum(dim=-1) > 0
            assert not reached[step + 1 :].any()
            assert reached[step]


@pytest.mark.parametrize("context", [1, 2, 3, 5])
@pytest.mark.parametrize("plan", [1, 2, 6])
def test_a_predictor_with_a_longer_context(context: int, plan: int) -> None:
    model = window_model()
    z, actions = torch.randn(2, context, 2), torch.randn(2, plan, 2)
    context_actions = torch.randn(2, context - 1, 2)
    # Independent: keep whole histories and take the last three at every step.
    history, moves = list(z.unbind(1)), [*context_actions.unbind(1), *actions.unbind(1)]
    for step in range(plan):
        present = context - 1 + step
        first = max(0, present - 2)
        history.append(
            model.predictor.one(
                torch.stack(history[first : present + 1], 1), torch.stack(moves[first : present + 1], 1)
            )
        )
    imagined = model.rollout(z, actions, context_actions if context > 1 else None)
    torch.testing.assert_close(imagined, torch.stack(history[context:], dim=1))


def test_a_predictor_with_a_longer_context_demands_the_actions_between_the_frames() -> None:
    with pytest.raises(AssertionError, match="actions between"):
        window_model().rollout(torch.randn(1, 2, 2), torch.randn(1, 3, 2))


def test_discrete_actions_can_be_rolled_out(tiny_config: Callable[..., Config]) -> None:
    model = build(tiny_config(frame_skipping=2), Spaces.of(tiny_config(frame_skipping=2), Discrete(4, start=-1))).eval()
    z, actions = torch.randn(3, 1, 8, requires_grad=True), torch.randint(-1, 3, (3, 4, 2))
    imagined = model.rollout(z, actions)
    assert imagined.shape == (3, 4, 8)
    imagined.sum().backward()
    assert z.grad is not None


@pytest.mark.parametrize("context", [2, 3])
def test_an_mlp_with_context_sees_the_latest_frames_and_actions_and_no_others(
    tiny_config: Callable[..., Config], context: int
) -> None:
    model = fresh_model(tiny_config(jepa_model={"predictor_context_length": context}), BOX).eval()
    z, actions = torch.randn(1, 5, 8, requires_grad=True), torch.randn(1, 5, 2, requires_grad=True)
    predicted = model.predict(z, actions)
    for step in range(5):
        for gradient in torch.autograd.grad(predicted[:, step].sum(), (z, actions), retain_graph=True):
            reached = gradient[0].abs().sum(dim=-1) > 0
            assert reached.tolist() == [step - context < t <= step for t in range(5)]


def test_an_mlp_with_context_imagines_what_it_predicts(tiny_config: Callable[..., Config]) -> None:
    model = fresh_model(tiny_config(jepa_model={"predictor_context_length": 2}), BOX).eval()
    z, actions = torch.randn(3, 2, 8), torch.randn(3, 4, 2)
    sequence, first = z, actions[:, :1]
    for step in range(1, 4):  # what is imagined becomes part of the sequence that is predicted from
        sequence = torch.cat([sequence, model.predict(sequence, actions[:, : step + 1])[:, -1:]], dim=1)
    torch.testing.assert_close(model.rollout(z, actions[:, 1:], first), sequence[:, 2:])
    # Without a past, the first frame stands for it, as at the beginning of a window in training.
    torch.testing.assert_close(
        model.rollout(z[:, :1], actions[:, :1])[:, 0], model.predict(z[:, :1], actions[:, :1])[:, 0]
    )


def test_before_the_beginning_stands_the_first_embedding_with_actions_of_zero(
    tiny_config: Callable[..., Config],
) -> None:
    """In training, at the beginning of a window, as in planning, when less has been seen than the predictor uses."""
    model = fresh_model(tiny_config(jepa_model={"predictor_context_length": 3}), BOX).eval()
    z, actions = torch.randn(4, 1, 8), torch.rand(4, 1, 2)
    inputs: list[Tensor] = []
    model.predictor.layers.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model.predict(z, actions)
    model.rollout(z, actions)
    embedded = model.action_embedding(actions)
    zero = torch.zeros_like(embedded)
    for found in inputs:
        torch.testing.assert_close(found, torch.cat([z, embedded, z, zero, z, zero], dim=-1))
    assert len(inputs) == 2
