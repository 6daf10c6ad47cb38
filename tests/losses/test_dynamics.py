"""Losses that make embeddings plannable: values against the definition, and what they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.nn import functional as F

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.losses import JEPAObjective, make_objective
from jepaworld.losses.dynamics import DynamicsLosses, rollout_loss, temporal_similarity_loss, time_variance_loss
from jepaworld.losses.inverse_dynamics import InverseDynamicsHead
from jepaworld.losses.prediction import prediction_loss
from jepaworld.models import build
from jepaworld.training_loops.epoch_loop import TrainingStep

SPACE = Box(np.array([-1, 0], np.float32), np.array([1, 10], np.float32))
MODES = ["default", "vjepa2", "none"]
ALL = {
    "temporal_similarity_weight": 2.0,
    "time_variance_weight": 4.0,
    "inverse_dynamics_weight": 3.0,
    "rollout_weight": 5.0,
    "rollout_steps": 3,
}


def windows(transitions: int = 4, action_size: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (6, transitions + 1, 3, 16, 16), generator=generator).to(torch.uint8)
    return Batch(frames, torch.rand(6, transitions, action_size, generator=generator))


def made(
    tiny_config: Callable[..., Config], space: gymnasium.Space = SPACE, mode: str = "vjepa2", **dynamics_losses: Any
) -> JEPAObjective:
    config = tiny_config(jepa_model={"target_encoder_mode": mode}, num_transitions=4, dynamics_losses=dynamics_losses)
    torch.manual_seed(0)
    return make_objective(config, build(config, Spaces.of(config, space)), Spaces.of(config, space))


def test_temporal_similarity_is_the_mean_squared_step() -> None:
    z = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 1.0]]])
    assert temporal_similarity_loss(z).item() == pytest.approx((9 + 0 + 0 + 1) / 4)


def test_time_variance_is_a_hinge_on_the_spread_within_each_window() -> None:
    z = torch.tensor([[[0.0, 0.0], [4.0, 0.6]], [[0.0, 9.0], [0.0, 9.0]]])  # standard deviations 2.83, 0.42; 0, 0
    expected = (0 + (1 - 0.18**0.5) + 1 + 1) / 4
    assert time_variance_loss(z, eps=0.0).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("distance", "expected"), [("mse", (9 + 16) / 4), ("l1", 7 / 4), ("cosine", (1 - 1 / 2**0.5 + 0) / 2)]
)
def test_distances_of_a_prediction(tiny_config: Callable[..., Config], distance: Any, expected: float) -> None:
    predicted, target = torch.tensor([[[3.0, 4.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    if distance == "cosine":
        predicted, target = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[1.0, 1.0], [2.0, 2.0]]])
    assert prediction_loss(predicted, target, distance).item() == pytest.approx(expected, abs=1e-6)
    # One step and several imagined ones are judged alike, and the weight acts on the former alone.
    jepa = {"prediction_loss": distance, "prediction_weight": 3.0}
    config = tiny_config(
        jepa_model=jepa, num_transitions=4, dynamics_losses={"rollout_weight": 1.0, "rollout_steps": 2}
    )
    objective = make_objective(config, build(config, Spaces.of(config, SPACE)), Spaces.of(config, SPACE)).eval()
    assert isinstance(objective, JEPAObjective)
    batch = windows()
    total, terms = objective(batch)
    output = objective.model(batch.frames, batch.actions)
    torch.testing.assert_close(
        terms["prediction_loss"], prediction_loss(output.predicted, output.target, distance).detach()
    )
    starts = range(3)
    imagined = torch.cat(
        [objective.model.rollout(output.predictor_input[:, t : t + 1], batch.actions[:, t : t + 2]) for t in starts]
    )
    real = torch.cat([output.target[:, t : t + 2] for t in starts])
    rollout = prediction_loss(imagined, real, distance)
    torch.testing.assert_close(terms["rollout_loss"], rollout.detach())
    weighted = 3.0 * terms["prediction_loss"] + config.auxiliary_loss.weight * terms["auxiliary_loss"] + rollout
    torch.testing.assert_close(total, weighted)


@pytest.mark.parametrize("mode", MODES)
def test_the_total_is_the_weighted_sum(tiny_config: Callable[..., Config], mode: str) -> None:
    batch = windows()
    plain, plain_terms = made(tiny_config, mode=mode)(batch)
    total, terms = made(tiny_config, mode=mode, **ALL)(batch)
    names = ("temporal_similarity_loss", "time_variance_loss", "inverse_dynamics_loss", "rollout_loss")
    added = {name: terms[name] for name in names}
    assert not set(added) & set(plain_terms)
    assert all(value.item() > 0 and not value.requires_grad for value in added.values())
    weights = dict(zip(added, (2.0, 4.0, 3.0, 5.0), strict=True))
    expected = plain + sum(weights[name] * value for name, value in added.items())
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize(("mode", "frames"), [("default", 5), ("vjepa2", 4), ("none", 5)])
def test_similarity_takes_the_online_embeddings_of_all_frames_that_the_mode_encodes(
    tiny_config: Callable[..., Config], mode: str, frames: int
) -> None:
    objective = made(tiny_config, mode=mode, temporal_similarity_weight=1.0).eval()
    batch = windows()
    z = objective.model.encode_online(batch.frames)[:, :frames]
    expected = ((z[:, 1:] - z[:, :-1]) ** 2).mean()
    torch.testing.assert_close(objective(batch)[1]["temporal_similarity_loss"], expected.detach())


def test_inverse_dynamics_reads_the_action_between_two_embeddings(tiny_config: Callable[..., Config]) -> None:
    objective = made(tiny_config, inverse_dynamics_weight=1.0).eval()
    head, batch = objective.dynamics_losses.head, windows()
    assert head is not None
    z = objective.model.encode_online(batch.frames[:, :4])
    scaled = batch.actions * torch.tensor([1.0, 0.2]) - torch.tensor([0.0, 1.0])  # [-1, 1] and [0, 10] to [-1, 1]
    errors = [
        F.mse_loss(head.layers(torch.cat([z[:, t], z[:, t + 1]], dim=1)), scaled[:, t]) for t in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(objective(batch)[1]["inverse_dynamics_loss"], torch.stack(errors).mean().detach())


def test_inverse_dynamics_reads_the_mean_of_tokens() -> None:
    spaces = Spaces((3, 16, 16), SPACE)
    head, tokens = InverseDynamicsHead((3, 4), 8, spaces), InverseDynamicsHead((4,), 8, spaces)
    tokens.load_state_dict(head.state_dict())
    z, z_next, actions = torch.randn(6, 2, 3, 4), torch.randn(6, 2, 3, 4), torch.rand(6, 2, 2)
    assert head(z, z_next).shape == actions.shape
    torch.testing.assert_close(head.loss(z, z_next, actions), tokens.loss(z.mean(2), z_next.mean(2), actions))


def test_inverse_dynamics_of_discrete_actions_is_a_cross_entropy() -> None:
    head = InverseDynamicsHead((4,), 8, Spaces((3, 16, 16), Discrete(3, start=5), 2))
    z, z_next = torch.randn(2, 6, 1, 4)
    actions = torch.tensor([5, 6, 7, 5, 6, 7]).reshape(6, 1, 1).repeat(1, 1, 2)
    logits = head(z, z_next)
    assert logits.shape == (6, 1, 2, 3)
    chosen = logits.log_softmax(-1).gather(-1, (actions - 5).unsqueeze(-1))
    torch.testing.assert_close(head.loss(z, z_next, actions), -chosen.mean())


@pytest.mark.parametrize("mode", MODES)
def test_rollout_imagines_from_every_frame_with_enough_after_it(tiny_config: Callable[..., Config], mode: str) -> None:
    model, batch = made(tiny_config, mode=mode).model.eval(), windows()
    output = model(*batch)
    errors: list[Tensor] = []
    for start in range(2):
        z = output.predictor_input[:, start]
        for step in range(3):
            z = model.predict(z.unsqueeze(1), batch.actions[:, start + step].unsqueeze(1))[:, 0]
            errors.append((z - output.target[:, start + step]).square().mean())
    torch.testing.assert_close(rollout_loss(model, output, batch.actions, 3), torch.stack(errors).mean())


def test_gradients_of_the_last_imagined_step_reach_the_first_action_and_the_encoder(
    tiny_config: Callable[..., Config],
) -> None:
    model, batch = made(tiny_config).model, windows(transitions=3)
    actions = batch.actions.requires_grad_()
    output = model(batch.frames, actions)
    rollout_loss(model, output, actions, 3).backward()
    assert actions.grad is not None and (actions.grad[:, 0] != 0).any()
    assert all(p.grad is not None and (p.grad != 0).any() for p in model.online_encoder.parameters())


def test_the_head_is_trained_and_learns(tiny_config: Callable[..., Config]) -> None:
    """PLDM's published code never optimised its head."""
    objective = made(tiny_config, inverse_dynamics_weight=1.0)
    head, batch = objective.dynamics_losses.head, windows()
    assert head is not None
    before = {name: value.clone() for name, value in head.named_parameters()}
    config = tiny_config(warmup_steps=0, learning_rate_schedule="constant")
    step = TrainingStep(objective, config, 3e-3, 200, torch.device("cpu"), bf16=False)
    first = objective(batch)[1]["inverse_dynamics_loss"].item()
    for _ in range(200):
        step(batch)
    assert all(not torch.equal(value, before[name]) for name, value in head.named_parameters())
    assert objective(batch)[1]["inverse_dynamics_loss"].item() < 0.3 * first


def test_the_target_keeps_its_gradient_only_when_told_to(tiny_config: Callable[..., Config]) -> None:
    for keep in (False, True):
        config = tiny_config(jepa_model={"target_encoder_mode": "none", "target_gradient": keep})
        model = build(config, Spaces.of(config, SPACE))
        output = model(*windows(transitions=1))
        assert output.target.requires_grad is keep
        if keep:
            (gradient,) = torch.autograd.grad(output.target.sum(), next(model.online_encoder.parameters()))
            assert (gradient != 0).any()


def test_a_residual_predictor_gives_the_change(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(jepa_model={"predictor_residual": True})
    model = build(config, Spaces.of(config, SPACE))
    torch.nn.init.zeros_(model.predictor.layers[-1].weight)  # pyright: ignore
    torch.nn.init.zeros_(model.predictor.layers[-1].bias)  # pyright: ignore
    z, actions = torch.randn(2, 3, config.latent_dim), torch.rand(2, 3, 2)
    torch.testing.assert_close(model.predict(z, actions), z)


def test_without_weights_nothing_is_added_and_no_head_exists(tiny_config: Callable[..., Config]) -> None:
    objective = made(tiny_config)
    assert objective.dynamics_losses.head is None
    assert not list(objective.dynamics_losses.parameters())
    assert isinstance(objective.dynamics_losses, DynamicsLosses)


def test_the_head_is_in_the_resume_state(tiny_config: Callable[..., Config]) -> None:
    state = made(tiny_config, inverse_dynamics_weight=1.0).state_dict()
    assert any(name.startswith("dynamics_losses.head.layers") for name in state)


def test_rollout_of_a_predictor_with_context_begins_with_as_many_real_frames(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config(num_transitions=4, jepa_model={"predictor_context_length": 2})
    model, batch = build(config, Spaces.of(config, SPACE)).eval(), windows()
    output = model(*batch)
    errors: list[Tensor] = []
    for present in (1, 2):
        z = output.predictor_input[:, present - 1 : present + 1]
        imagined = model.rollout(z, batch.actions[:, present : present + 2], batch.actions[:, present - 1 : present])
        errors.append((imagined - output.target[:, present : present + 2]).square().mean())
    torch.testing.assert_close(rollout_loss(model, output, batch.actions, 2), torch.stack(errors).mean())


@pytest.mark.parametrize("mode", MODES)
def test_imagined_steps_begin_at_what_the_predictor_takes_in_this_mode(
    tiny_config: Callable[..., Config], mode: str
) -> None:
    """Planning begins at `encode`; in mode default that is the target encoder's embedding, not the online one."""
    objective = made(tiny_config, mode=mode, rollout_weight=1.0, rollout_steps=2).eval()
    model, batch = objective.model, windows()
    if model.target_encoder is not None:
        with torch.no_grad():
            for parameter in model.target_encoder.parameters():
                parameter.mul_(1.7)
    z, target, steps = model.encode(batch.frames), model.encode_target(batch.frames), 2
    errors = []
    for start in range(batch.actions.shape[1] - steps + 1):
        imagined = model.rollout(z[:, start : start + 1], batch.actions[:, start : start + steps])
        errors.append((imagined - target[:, start + 1 : start + 1 + steps]).square())
    found = rollout_loss(model, model(*batch), batch.actions, steps)
    torch.testing.assert_close(found, torch.stack(errors).mean())
