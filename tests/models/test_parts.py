"""Projectors, normalisation of images, scaling of actions, the GRU: each against what it is defined by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn import functional as F

from jepaworld.config import Config, load_config
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import ConfigError
from jepaworld.models import build, checkpoints, load
from jepaworld.models.action_encoders import ActionMLP
from jepaworld.models.gru import GRUPredictor
from jepaworld.models.size import count_parameters
from tests.conftest import fresh_model

BOX = Box(-2, 2, (2,), np.float32)
FRAMES = torch.randint(0, 256, (6, 3, 3, 16, 16), dtype=torch.uint8)


def test_lewm_has_the_published_size() -> None:
    # An action block of 10 (Push-T, 5 steps); counted in the public code: all, encoder, predictor.
    config = load_config(Path("lewm"))
    model = build(config, Spaces((3, 224, 224), BOX, 5))
    assert count_parameters(model) == 18_034_478
    encoder = model.online_encoder.get_submodule("encoder")
    assert (count_parameters(encoder), count_parameters(model.predictor.predictor)) == (5_501_376, 10_791_360)


@pytest.mark.parametrize("projector", ["mlp", "layer_norm"])
@pytest.mark.parametrize("mode", ["none", "vjepa2", "default"])
def test_a_projector_follows_encoder_and_predictor(
    tiny_config: Callable[..., Config], projector: str, mode: str
) -> None:
    config = tiny_config(jepa_model={"projector": projector, "target_encoder_mode": mode, "projector_hidden_dim": 12})
    model = fresh_model(config, BOX)
    model(FRAMES, torch.randn(6, 2, 2))  # moves the running statistics of batch norm
    model.eval()
    encoder, predictor = model.online_encoder, model.predictor
    raw = encoder.get_submodule("encoder")(FRAMES.flatten(0, 1).float() / 255)
    z = model.encode_online(FRAMES)
    torch.testing.assert_close(z.flatten(0, 1), encoder.get_submodule("projector")(raw))
    if projector == "layer_norm":
        torch.testing.assert_close(z, F.layer_norm(raw, (8,)).view_as(z))
        assert predictor.get_submodule("projection") is encoder.get_submodule("projector")
    actions = torch.randn(6, 3, 2)
    inner = predictor.get_submodule("predictor")(z, model.action_embedding(actions))
    expected = predictor.get_submodule("projection")(inner)
    torch.testing.assert_close(model.predict(z, actions), expected)
    torch.testing.assert_close(model.rollout(z[:, :1], actions[:, :1]), expected[:, :1])


def test_batch_norm_takes_every_latent_of_the_batch_and_running_statistics_later(
    tiny_config: Callable[..., Config],
) -> None:
    model = fresh_model(tiny_config(jepa_model={"projector": "mlp", "target_encoder_mode": "none"}), BOX)
    whole = model.train().encode(FRAMES)
    assert not torch.allclose(model.encode(FRAMES[:3]), whole[:3], atol=1e-4)
    together = model.eval().encode(FRAMES)
    torch.testing.assert_close(model.encode(FRAMES[:3]), together[:3])


def test_the_target_encoder_has_the_projector_and_its_statistics(tiny_config: Callable[..., Config]) -> None:
    model = fresh_model(tiny_config(jepa_model={"projector": "mlp", "ema_decay": 0.0}), BOX)
    model.train().encode_online(FRAMES)
    model._update_target_encoder_ema()
    torch.testing.assert_close(model.eval().encode_target(FRAMES), model.encode_online(FRAMES).detach())


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("centered", 200 / 127.5 - 1), ("imagenet", (200 / 255 - 0.485) / 0.229), ("unit", 200 / 255)],
)
def test_images_are_normalised(tiny_config: Callable[..., Config], kind: str, expected: float) -> None:
    model = fresh_model(tiny_config(image_normalization=kind), BOX)
    seen = []
    encoder = model.online_encoder if kind == "unit" else model.online_encoder.get_submodule("encoder")
    encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.encode_online(torch.full((1, 1, 3, 16, 16), 200, dtype=torch.uint8))
    torch.testing.assert_close(seen[0][0, 0], torch.full((16, 16), expected))


def test_actions_are_scaled_by_statistics_that_the_checkpoint_carries(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    statistics = np.array([1.0, -1.0]), np.array([0.5, 0.0])
    config = tiny_config(action_scaling="statistics", action_encoder_type="mlp")
    model = build(config, Spaces((3, 16, 16), BOX, action_statistics=statistics)).eval()
    assert isinstance(model.action_embedding, ActionMLP)
    actions = torch.tensor([[[2.0, 1.0]]])
    torch.testing.assert_close(model.action_embedding.scaled(actions), torch.tensor([[[2.0, 2.0]]]))
    checkpoints.save(tmp_path / "m.safetensors", model, "jepa", config, BOX)
    loaded = load(tmp_path / "m.safetensors")
    torch.testing.assert_close(loaded.action_embedding(actions), model.action_embedding(actions))


def test_an_action_mlp_refuses_discrete_actions(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="action_encoder_type"):
        fresh_model(tiny_config(action_encoder_type="mlp"), Discrete(3))


@pytest.mark.parametrize("tokens", [(), (4,)])
def test_the_gru_has_the_latent_as_its_hidden_state(tokens: tuple[int, ...]) -> None:
    model = GRUPredictor(8, 5)
    z, actions = torch.randn(2, 3, *tokens, 8), torch.randn(2, 3, 5)
    predicted = model(z, actions)
    assert predicted.shape == z.shape
    torch.testing.assert_close(predicted[1, 2], model.cell(actions[1, 2].expand(*tokens, 5), z[1, 2]))


def test_a_vit_gives_its_patches_as_tokens(tiny_config: Callable[..., Config]) -> None:
    vit = {"vit": {"pool": "patches", "patch_size": 4}}
    model = fresh_model(tiny_config(encoder_type="vit", encoder_params=vit), BOX)
    assert model.latent_shape == (16, 8)
    changed = FRAMES.clone()
    changed[..., :4, 12:] = 255 - changed[..., :4, 12:]  # the fourth patch of the first row
    difference = (model.eval().encode(changed) - model.encode(FRAMES)).abs().sum(dim=(0, 1, 3))
    assert int(difference.argmax()) == 3


def test_a_vit_without_a_head_ends_in_its_norm(tiny_config: Callable[..., Config]) -> None:
    vit = {"vit": {"pool": "cls", "head": False, "dim": 8, "heads": 2}}
    model = fresh_model(tiny_config(encoder_type="vit", encoder_params=vit), BOX).eval()
    z = model.encode(FRAMES)
    torch.testing.assert_close(z, F.layer_norm(z, (8,)), atol=1e-4, rtol=1e-4)
    vit["vit"]["dim"] = 16
    with pytest.raises(ConfigError, match="head"):
        tiny_config(encoder_type="vit", encoder_params=vit)
