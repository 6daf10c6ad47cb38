"""Pixel baselines: what trains which part, what a step of imagination is, and which settings they look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space
from torch import Tensor

from jepaworld import models
from jepaworld.config import Config
from jepaworld.config.changes import unseen
from jepaworld.data.windows import Batch
from jepaworld.errors import ConfigError
from jepaworld.losses.objective import make_objective
from jepaworld.models import WorldModel, checkpoints, encoder_decoder
from jepaworld.models.encoder_decoder import EncoderDecoder, EncoderPredictorDecoder
from jepaworld.models.jepa import to_images
from tests.conftest import fresh_model

BOX = Box(-1.0, 1.0, (2,))
STANDARD, FAIR = "encoder_decoder", "encoder_predictor_decoder"
TOKENS = {"encoder_type": "vit", "encoder_params": {"vit": {"pool": "patches"}}}
both = pytest.mark.parametrize("kind", [STANDARD, FAIR])
latents = pytest.mark.parametrize("encoder", [{}, TOKENS], ids=["vector", "tokens"])


def painting(config: Config, space: Space = BOX) -> Any:
    """A model whose decoder paints something; a fresh one paints nothing whatever it is given."""
    model: Any = fresh_model(config, space)
    with torch.no_grad():
        model.decoder.head.weight.normal_(std=0.1)
        model.decoder.background.fill_(0.5)
    return model


def window(batch: int = 5, transitions: int = 3) -> Batch:
    frames = torch.randint(0, 256, (batch, transitions + 1, 3, 16, 16), dtype=torch.uint8)
    return Batch(frames, torch.rand(batch, transitions, 2) * 2 - 1)


@both
@latents
def test_both_are_world_models(tiny_config: Callable[..., Config], kind: str, encoder: dict[str, Any]) -> None:
    config = tiny_config(model_type=kind, **encoder)
    model, (frames, actions) = painting(config), window()
    latent = (4, 8) if encoder else (8,)
    assert isinstance(model, WorldModel)
    assert model.latent_shape == latent
    z = model.encode(frames)
    assert z.shape == (5, 4, *latent)
    assert torch.equal(z, model.encode_target(frames)) and not model.encode_target(frames).requires_grad
    assert model.paint(z[:, :-1], actions).shape == (5, 3, 3, 16, 16)
    assert model.predict(z[:, :-1], actions).shape == model.rollout(z[:, :1], actions).shape == (5, 3, *latent)


@both
@latents
def test_the_loss_is_the_pixel_error_of_what_is_painted_and_trains_every_part(
    tiny_config: Callable[..., Config], kind: str, encoder: dict[str, Any]
) -> None:
    config = tiny_config(model_type=kind, **encoder)
    model, batch = painting(config), window()
    loss, terms = make_objective(config, model, None)(batch)  # type: ignore[arg-type]
    z, images = model.encode(batch.frames[:, :-1]), to_images(batch.frames.clone())
    expected = {"prediction_loss": (model.paint(z, batch.actions) - images[:, 1:]).square().mean()}
    if kind == FAIR:
        itself = model.decoder(z.flatten(0, 1)) - images[:, :-1].flatten(0, 1)
        expected["reconstruction_loss"] = itself.square().mean()
    torch.testing.assert_close(terms, {name: term.detach() for name, term in expected.items()})
    torch.testing.assert_close(loss, sum(expected.values()))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), name
    parts = {name for name, _ in model.named_children()}
    assert ("predictor" in parts) == (kind == FAIR)


@latents
def test_a_step_of_the_standard_one_encodes_what_it_paints(
    tiny_config: Callable[..., Config], encoder: dict[str, Any]
) -> None:
    model, (frames, actions) = painting(tiny_config(model_type=STANDARD, **encoder)).eval(), window()
    assert isinstance(model, EncoderDecoder) and model.context_length == 1
    imagined = model.rollout(model.encode(frames[:, :1]), actions)
    z = model.encode(frames[:, :1])
    for step in range(3):
        painted = model.paint(z, actions[:, step : step + 1])
        assert (painted < 0).any() or (painted > 1).any(), "else clamping is not seen"
        z = model.encoder(painted[:, 0].clamp(0, 1)).unsqueeze(1)
        torch.testing.assert_close(imagined[:, step : step + 1], z)
        shown = painted.clamp(0, 1).mul(255).round().byte()
        torch.testing.assert_close(model.encode(shown), z, atol=0.02, rtol=0.02)


@latents
def test_the_fair_one_imagines_in_latents_and_paints_nothing(
    tiny_config: Callable[..., Config], encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(model_type=FAIR, num_transitions=3, jepa_model={"predictor_context_length": 2}, **encoder)
    model, (frames, actions) = painting(config).eval(), window()
    assert isinstance(model, EncoderPredictorDecoder) and model.context_length == 2
    z = model.encode(frames[:, :1])
    painted = model.paint(z, actions[:, :1])
    torch.testing.assert_close(painted[:, 0], model.decoder(model.predict(z, actions[:, :1])[:, 0]))

    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("painted")

    monkeypatch.setattr(model.decoder, "forward", refuse)
    imagined = model.rollout(z, actions)
    torch.testing.assert_close(imagined[:, :1], model.predict(z, actions[:, :1]))
    two = torch.cat([z, imagined[:, :1]], dim=1)
    torch.testing.assert_close(imagined[:, 1], model.predict(two, actions[:, :2])[:, 1])


@both
def test_the_action_is_seen(tiny_config: Callable[..., Config], kind: str) -> None:
    model = painting(tiny_config(model_type=kind), Discrete(3)).eval()
    z = model.encode(window().frames[:, :1])
    painted = [model.paint(z, torch.full((5, 1, 1), action)) for action in range(3)]
    assert not torch.allclose(painted[0], painted[1]) and not torch.allclose(painted[1], painted[2])


def test_pictures_are_painted_few_at_a_time(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (frames, actions) = painting(tiny_config(model_type=STANDARD)).eval(), window(7)
    z, held = model.encode(frames[:, :-1]), []
    expected = model.predict(z, actions)
    model.decoder.register_forward_hook(lambda _module, _given, painted: held.append(painted.numel()))
    monkeypatch.setattr(encoder_decoder, "NUMBERS_AT_ONCE", 6 * 3 * 16 * 16)
    torch.testing.assert_close(model.predict(z, actions), expected)
    assert len(held) == 4 and max(held) <= 6 * 3 * 16 * 16


@both
def test_the_encoder_is_the_jepas_with_normalisation_and_projector(
    tiny_config: Callable[..., Config], kind: str
) -> None:
    config = tiny_config(image_normalization="centered", jepa_model={"projector": "mlp", "projector_hidden_dim": 12})
    torch.manual_seed(3)
    jepa = fresh_model(config, BOX)
    torch.manual_seed(3)
    other: Any = fresh_model(config.with_overrides([f"model_type={kind}"]), BOX)
    encoder = other.encoder if kind == STANDARD else other.online_encoder
    names = [name for name, _ in jepa.online_encoder.named_children()]
    assert [name for name, _ in encoder.named_children()] == names == ["normalization", "encoder", "projector"]
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(jepa.online_encoder.get_submodule("encoder")(images), encoder.encoder(images))


@both
def test_a_checkpoint_gives_the_model_back(tiny_config: Callable[..., Config], kind: str, tmp_path: Path) -> None:
    config = tiny_config(model_type=kind)
    model, (frames, actions) = painting(config).eval(), window()
    checkpoints.save(tmp_path / "model.safetensors", model, "jepa", config, BOX)
    loaded = models.load(tmp_path / "model.safetensors")
    assert type(loaded) is type(model)
    z = model.encode(frames[:, :1])
    assert torch.equal(loaded.rollout(z, actions), model.rollout(z, actions))


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "without_effect"),
    [
        ("encoder_type=mlp", []),
        ("image_normalization=centered", []),
        ("action_emb_dim=5", []),
        ("action_scaling=statistics", []),
        ("jepa_model.projector=layer_norm", []),
        ("jepa_model.predictor_dropout_rate=0.1", [STANDARD]),
        ("jepa_model.predictor_type=gru", [STANDARD]),
        ("jepa_model.target_encoder_mode=none", [STANDARD, FAIR]),
        ("jepa_model.ema_decay=0.5", [STANDARD, FAIR]),
        ("jepa_model.prediction_weight=0.5", [STANDARD, FAIR]),
        ("auxiliary_loss.weight=0.5", [STANDARD, FAIR]),
        ("dynamics_losses.rollout_weight=1", [STANDARD, FAIR]),
        ("model_params.size=3", [STANDARD, FAIR]),
    ],
)
def test_what_has_no_effect_is_said(override: str, without_effect: list[str]) -> None:
    for kind in (STANDARD, FAIR):
        notices = Config().with_overrides([f"model_type={kind}", override]).notices()
        said = [f"{override.partition('.')[0]}" in notice and "model_type is" in notice for notice in notices]
        assert said == [True] * (kind in without_effect), (kind, notices)


@both
def test_its_decoder_is_part_of_the_model(tiny_config: Callable[..., Config], kind: str) -> None:
    overrides = [f"model_type={kind}", "jepa_decoder_training.enabled=false", "decoder_dim=64"]
    config = Config().with_overrides(overrides)
    assert config.notices() == []
    assert "decoder_dim" not in unseen("jepa", config) and "decoder_dim" in unseen("jepa", Config())
    for wrong, named in ("decoder_heads=7", "decoder_dim"), ("decoder_patch_size=7", "decoder_patch_size"):
        with pytest.raises(ConfigError, match=named):
            config.with_overrides([wrong])
    assert fresh_model(tiny_config(model_type=kind, decoder_depth=1), BOX).decoder.head.in_features == 16


def test_settings_of_the_jepas_losses_contradict_nothing_here() -> None:
    overrides = ["dynamics_losses.rollout_weight=1", "dynamics_losses.rollout_steps=4"]
    with pytest.raises(ConfigError):
        Config().with_overrides(overrides)
    assert Config().with_overrides([f"model_type={STANDARD}", *overrides])
    with pytest.raises(ConfigError, match="no auxiliary loss"):
        Config().with_overrides([f"model_type={FAIR}", "early_stopping.metric_jepa=val_auxiliary_loss"])
