"""The recipe of LeWM against an independent reading of its published loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from jepaworld.config import Config, load_config
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.losses import JEPAObjective, SIGRegLoss, make_objective
from jepaworld.models import build

SMALL = ["image_size=28", "decoder_patch_size=14", "latent_dim=16", "encoder_params.vit.dim=16", "action_emb_dim=16"]
SMALL += ["encoder_params.vit.heads=2", "encoder_params.vit.depth=1", "jepa_model.predictor_depth=1"]
SMALL += ["jepa_model.predictor_dropout_rate=0.0", "jepa_model.projector_hidden_dim=32"]


@pytest.fixture
def config() -> Config:
    return load_config("lewm", SMALL)


def statistic(z: Tensor, directions: Tensor) -> float:
    """SIGReg of embeddings (N, D) along unit directions (M, D), number by number, in float64."""
    total, count = 0.0, 17
    knots = [3.0 * i / (count - 1) for i in range(count)]
    step = knots[1]
    for direction in directions.double():
        projected = z.double() @ direction
        for i, t in enumerate(knots):
            gauss = math.exp(-(t**2) / 2)
            error = (float(torch.cos(t * projected).mean()) - gauss) ** 2 + float(torch.sin(t * projected).mean()) ** 2
            total += error * gauss * (step if i in (0, count - 1) else 2 * step)
    return total * len(z) / len(directions)


def test_the_loss_is_the_published_one(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    spaces = Spaces.of(config, Box(-1, 1, (2,), np.float32))
    objective = make_objective(config, build(config, spaces), spaces)
    assert isinstance(objective, JEPAObjective)
    directions = torch.nn.functional.normalize(torch.randn(5, 16), dim=1)
    monkeypatch.setattr(SIGRegLoss, "draw_directions", lambda *_: directions)
    batch = Batch(torch.randint(256, (8, 4, 3, 28, 28), dtype=torch.uint8), torch.rand(8, 3, 10))
    total, terms = objective.eval()(batch)  # in eval mode, so that batch norm gives the same twice
    z = objective.model.encode(batch.frames)
    predicted = objective.model.predict(z[:, :3], batch.actions)
    prediction = float((predicted - z[:, 1:]).square().mean().detach())
    regular = sum(statistic(z[:, t].detach(), directions) for t in range(4)) / 4
    assert float(terms["prediction_loss"]) == pytest.approx(prediction, rel=1e-5)
    assert float(terms["auxiliary_loss"]) == pytest.approx(regular, rel=1e-4)
    assert total.item() == pytest.approx(prediction + 0.09 * regular, rel=1e-4)


def test_the_prediction_loss_trains_its_target_too(config: Config) -> None:
    torch.manual_seed(0)
    spaces = Spaces.of(config, Box(-1, 1, (2,), np.float32))
    model = build(config, spaces).train()
    output = model(torch.randint(256, (8, 4, 3, 28, 28), dtype=torch.uint8), torch.rand(8, 3, 10))
    assert output.target.requires_grad
    assert output.target.shape == output.predicted.shape == (8, 3, 16)
