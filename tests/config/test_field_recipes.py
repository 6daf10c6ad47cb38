"""Recipes of the field: what they train is what was published, read independently."""

from __future__ import annotations

import pytest
import torch

from jepaworld.config import load_config
from jepaworld.data.windows import Batch
from jepaworld.envs.calls import close
from jepaworld.envs.make import make_env
from jepaworld.envs.spaces import Spaces
from jepaworld.losses.objective import make_objective
from jepaworld.models import build

# Weights as published, (variance, covariance, similarity in time, variance in time, inverse dynamics), imagined steps.
PUBLISHED = {"eb_jepa": ((16.0, 8.0, 12.0, 0.0, 1.0), 8), "pldm": ((3.98, 6.92, 0.742, 0.245, 1.07), 15)}


def _variance_and_covariance(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean hinge, and mean square over the pairs of dimensions, of samples (N, D)."""
    covariance = torch.cov(z.T)
    pairs = ~torch.eye(len(covariance), dtype=torch.bool)
    return torch.relu(1.0 - (z.var(dim=0) + 1e-4).sqrt()).mean(), covariance[pairs].square().mean()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_loss_is_the_published_one(name: str) -> None:
    (variance, covariance, similarity, time_variance, inverse), steps = PUBLISHED[name]
    config = load_config(name, overrides=["batch_size=6"])
    env = make_env(config.environment_name, config.environment_kwargs)
    spaces = Spaces.of(config, env.action_space)
    torch.manual_seed(0)
    model = build(config, spaces)
    objective = make_objective(config, model, spaces)
    frames = torch.randint(256, (6, config.num_transitions + 1, 3, 65, 65), dtype=torch.uint8)
    actions = torch.rand(6, config.num_transitions, 2) * 2 - 1
    loss, terms = objective(Batch(frames, actions))
    with torch.no_grad():
        z = model.encode(frames)
        starts = range(config.num_transitions - steps + 1)
        errors = [
            model.rollout(z[:, s : s + 1], actions[:, s : s + steps]) - z[:, s + 1 : s + steps + 1] for s in starts
        ]
        expected = torch.stack(errors).square().mean()
        # eb_jepa takes all frames together (here those before and after the transitions), PLDM the frames of a step.
        batches = [z[:, :-1].flatten(0, 1), z[:, 1:].flatten(0, 1)] if name == "eb_jepa" else list(z.unbind(1))
        for batch in batches:
            hinge, pairs = _variance_and_covariance(batch)
            expected = expected + (variance * hinge + covariance * pairs) / len(batches)
        expected = expected + similarity * (z[:, 1:] - z[:, :-1]).square().mean()
        expected = expected + time_variance * torch.relu(1.0 - (z.var(dim=1) + 1e-4).sqrt()).mean()
        expected = expected + inverse * terms["inverse_dynamics_loss"]
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
    close(env)


@pytest.mark.parametrize("name", PUBLISHED)
def test_encoder_and_predictor_end_in_one_layer_norm(name: str) -> None:
    config = load_config(name)
    env = make_env(config.environment_name, config.environment_kwargs)
    model = build(config, Spaces.of(config, env.action_space))
    assert model.online_encoder.projector is model.predictor.projection
    z = model.predict(torch.randn(2, 3, 512), torch.zeros(2, 3, 2))
    torch.testing.assert_close(z.mean(dim=-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    close(env)
