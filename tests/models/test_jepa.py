"""The JEPA's three modes: who encodes what, who learns from what, and how the target encoder follows.

Most tests replace encoders and predictor by ones whose outputs can be read: an image of one grey value v
becomes the embedding `v * scale`, and the predictor adds the action.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import EnvironmentNotUsableError
from jepaworld.losses import JEPAObjective, VICRegLoss
from jepaworld.models import build
from jepaworld.models.jepa import JEPA, to_images

MODES = ["default", "vjepa2", "none"]
ENCODERS = ["vit", "cnn", "mlp"]
ACTION_SPACES = {"box": Box(-1, 1, (2,), np.float32), "discrete": Discrete(3, start=1)}
D = 2
ONLINE, TARGET = 1.0, 100.0
PARTS = {"online_encoder", "target_encoder", "action_embedding", "predictor"}


class GreyEncoder(nn.Module):
    """Embeds an image of one grey value v (0 to 255) as `(v * scale, v * scale)` and counts the images."""

    def __init__(self, scale: float = ONLINE) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        if self.training:
            self.seen += len(images)
        return (images.mean(dim=(1, 2, 3)) * 255 * self.scale).unsqueeze(1).expand(-1, D)


class AddAction(nn.Module):
    """Predicts `z + gain * action` and keeps what it was given."""

    context_length = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.inputs: list[Tensor] = []

    def forward(self, z: Tensor, action_embedding: Tensor) -> Tensor:
        self.inputs.append(z)
        return z + self.gain * action_embedding


def readable(mode: str) -> JEPA:
    """A model whose online encoder multiplies by 1, and whose target encoder by 100."""
    model = JEPA(GreyEncoder(), nn.Linear(1, D), AddAction(), mode, ema_decay=0.5, latent_shape=(D,))
    with torch.no_grad():
        model.action_embedding.weight.fill_(1.0)
        model.action_embedding.bias.zero_()
        if model.target_encoder is not None:
            model.target_encoder.scale.fill_(TARGET)
    return model


def grey_frames(values: Tensor) -> Tensor:
    """uint8 frames (B, T, 1, 4, 4) of grey values (B, T)."""
    return values.to(torch.uint8)[:, :, None, None, None].expand(-1, -1, 1, 4, 4).contiguous()


def grey_windows(b: int = 3, t: int = 4) -> tuple[Tensor, Tensor]:
    """Grey values (B, T+1), all different, and actions (B, T, 1)."""
    values = torch.arange(1, b * (t + 1) + 1).view(b, t + 1) * 3
    return values, torch.randn(b, t, 1)


def embedded(values: Tensor, scale: float) -> Tensor:
    return (values.float() * scale).unsqueeze(-1).expand(*values.shape, D)


def images_of(encoder: nn.Module) -> int:
    assert isinstance(encoder, GreyEncoder)
    return encoder.images


def real_model(config: Config, space: str = "box") -> JEPA:
    return build(config, Spaces.of(config, ACTION_SPACES[space]))


def random_windows(config: Config, t: int, b: int = 4, space: str = "box") -> Batch:
    frames = torch.randint(0, 256, (b, t + 1, config.input_channels, config.image_size, config.image_size))
    actions = torch.rand(b, t, 2) * 2 - 1 if space == "box" else torch.randint(1, 4, (b, t, 1))
    return Batch(frames.to(torch.uint8), actions)


# --- who encodes what -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "input_scale", "target_scale"),
    [("default", TARGET, TARGET), ("vjepa2", ONLINE, TARGET), ("none", ONLINE, ONLINE)],
)
def test_predictor_input_and_target_come_from_the_encoders_of_the_mode(
    mode: str, input_scale: float, target_scale: float
) -> None:
    model = readable(mode)
    values, actions = grey_windows()
    output = model(grey_frames(values), actions)
    expected_input = embedded(values[:, :-1], input_scale)
    torch.testing.assert_close(model.predictor.inputs[-1], expected_input)
    torch.testing.assert_close(output.predicted, expected_input + actions)
    torch.testing.assert_close(output.target, embedded(values[:, 1:], target_scale))


@pytest.mark.parametrize("mode", MODES)
def test_online_embeddings_for_the_auxiliary_loss(mode: str) -> None:
    values, actions = grey_windows()
    output = readable(mode)(grey_frames(values), actions)
    torch.testing.assert_close(output.online_s_t, embedded(values[:, :-1], ONLINE))
    if mode == "vjepa2":
        assert output.online_s_t_plus_1 is None
    else:
        torch.testing.assert_close(output.online_s_t_plus_1, embedded(values[:, 1:], ONLINE))
        assert output.online_s_t_plus_1.requires_grad
    assert output.online_s_t.requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_target_is_detached(mode: str) -> None:
    values, actions = grey_windows()
    output = readable(mode)(grey_frames(values), actions)
    assert not output.target.requires_grad
    assert output.predicted.requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_encode_gives_what_the_predictor_takes_and_encode_target_what_it_is_compared_with(mode: str) -> None:
    model = readable(mode)
    values, actions = grey_windows()
    frames = grey_frames(values)
    output = model(frames, actions)
    torch.testing.assert_close(model.encode(frames)[:, :-1], model.predictor.inputs[-1])
    torch.testing.assert_close(model.encode_target(frames)[:, 1:], output.target)
    torch.testing.assert_close(model.encode_online(frames), embedded(values, ONLINE))
    assert not model.encode_target(frames).requires_grad
    assert model.encode(frames).requires_grad == (mode != "default")


@pytest.mark.parametrize(("mode", "online", "target"), [("default", 15, 15), ("vjepa2", 12, 12), ("none", 15, 0)])
def test_each_network_encodes_a_frame_that_it_needs_once(mode: str, online: int, target: int) -> None:
    model = readable(mode)
    values, actions = grey_windows(b=3, t=4)
    model(grey_frames(values), actions)
    assert images_of(model.online_encoder) == online
    assert (images_of(model.target_encoder) if model.target_encoder is not None else 0) == target


def test_pixels_enter_the_encoder_as_floats_between_0_and_1() -> None:
    frames = torch.arange(256).view(1, 1, 1, 16, 16).to(torch.uint8)
    images = to_images(frames)
    assert images.dtype == torch.float32
    assert float(images.min()) == 0.0
    assert float(images.max()) == 1.0
    torch.testing.assert_close(images.flatten(), torch.arange(256) / 255)
    assert frames.dtype == torch.uint8
    assert int(frames.max()) == 255


# --- which action belongs to which frames ---------------------------------------------------------


def adding_world(b: int = 4, t: int = 5) -> tuple[Tensor, Tensor]:
    """Frames whose grey value grows by the action: `frames[:, t+1] = frames[:, t] + actions[:, t]`."""
    actions = torch.randint(1, 20, (b, t, 1))
    values = torch.cat([torch.full((b, 1), 10), 10 + actions.squeeze(-1).cumsum(1)], dim=1)
    return grey_frames(values), actions.float()


@pytest.mark.parametrize("mode", MODES)
def test_actions_t_lead_from_frame_t_to_the_next(mode: str) -> None:
    model = readable(mode)
    if model.target_encoder is not None:
        model.target_encoder.scale.fill_(ONLINE)
    frames, actions = adding_world()
    aligned = model(frames, actions)
    torch.testing.assert_close(aligned.predicted, aligned.target)
    for shift in (-1, 1):
        shifted = model(frames, actions.roll(shift, dims=1))
        assert float((shifted.predicted - shifted.target).detach().abs().max()) > 0.5, shift


def test_one_frame_more_than_actions_is_demanded() -> None:
    frames, actions = adding_world()
    with pytest.raises(AssertionError, match="one frame more"):
        readable("none")(frames, actions[:, :-1])


@pytest.mark.parametrize("space", ACTION_SPACES)
@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_shapes(tiny_config: Callable[..., Config], encoder: str, mode: str, t: int, space: str) -> None:
    config = tiny_config(encoder_type=encoder, jepa_model={"target_encoder_mode": mode})
    model = real_model(config, space)
    windows = random_windows(config, t, space=space)
    output = model(*windows)
    for name, value in output._asdict().items():
        assert value is None or value.shape == (4, t, config.latent_dim), name
    assert model.encode(windows.frames).shape == (4, t + 1, config.latent_dim)
    assert model.rollout(output.online_s_t[:, :1], windows.actions).shape == (4, t, config.latent_dim)


@pytest.mark.parametrize("mode", MODES)
def test_windows_of_a_batch_and_their_order_do_not_mix(tiny_config: Callable[..., Config], mode: str) -> None:
    config = tiny_config(jepa_model={"target_encoder_mode": mode})
    model = real_model(config).eval()
    windows = random_windows(config, 3)
    whole = model(*windows)
    alone = model(windows.frames[2:3, 1:3], windows.actions[2:3, 1:2])
    torch.testing.assert_close(alone.predicted[0, 0], whole.predicted[2, 1])
    torch.testing.assert_close(alone.target[0, 0], whole.target[2, 1])
    torch.testing.assert_close(alone.online_s_t[0, 0], whole.online_s_t[2, 1])


def test_other_action_spaces_are_refused(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(EnvironmentNotUsableError, match="MultiDiscrete"):
        build(tiny_config(), Spaces.of(tiny_config(), MultiDiscrete([2, 3])))


# --- who learns from what -------------------------------------------------------------------------


def parts_with_gradient(model: JEPA) -> set[str]:
    """Parts with a gradient that is not zero; in such a part each parameter must have one."""
    found: dict[str, list[bool]] = {}
    for name, parameter in model.named_parameters():
        has = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        found.setdefault(name.split(".")[0], []).append(has)
    for part, flags in found.items():
        assert all(flags) or not any(flags), f"only some parameters of {part} have a gradient"
    return {part for part, flags in found.items() if any(flags)}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(
    ("mode", "loss", "expected"),
    [
        ("default", "prediction", {"action_embedding", "predictor"}),
        ("default", "auxiliary", {"online_encoder"}),
        ("default", "total", {"online_encoder", "action_embedding", "predictor"}),
        ("vjepa2", "prediction", {"online_encoder", "action_embedding", "predictor"}),
        ("vjepa2", "auxiliary", {"online_encoder"}),
        ("vjepa2", "total", {"online_encoder", "action_embedding", "predictor"}),
        ("none", "prediction", {"online_encoder", "action_embedding", "predictor"}),
        ("none", "auxiliary", {"online_encoder"}),
        ("none", "total", {"online_encoder", "action_embedding", "predictor"}),
    ],
)
def test_gradients(tiny_config: Callable[..., Config], encoder: str, mode: str, loss: str, expected: set[str]) -> None:
    norm = {"cnn": {"activation": "gelu"}, "mlp": {"activation": "gelu"}}  # no dead units
    config = tiny_config(encoder_type=encoder, encoder_params=norm, jepa_model={"target_encoder_mode": mode})
    model = real_model(config)
    objective = JEPAObjective(model, VICRegLoss(), weight=0.5)
    batch = random_windows(config, 2, b=16)
    if loss == "total":
        objective(batch)[0].backward()
    elif loss == "prediction":
        JEPAObjective(model, VICRegLoss(), weight=0.0)(batch)[0].backward()
    else:
        objective.auxiliary_loss.calculate_reg_terms(objective.samples(model(*batch)))[0].backward()
    assert parts_with_gradient(model) == expected


def test_mode_none_gets_its_prediction_gradient_through_the_predictor_input_only() -> None:
    """By hand for one pair: d/dscale (v0 * s + a - stop(v1 * s))^2 = 2 (v0 s + a - v1 s) v0."""
    model = readable("none")
    values, actions = torch.tensor([[10, 30]]), torch.tensor([[[4.0]]])
    output = model(grey_frames(values), actions)
    (output.predicted - output.target).square().mean().backward()
    assert model.online_encoder.scale.grad is not None
    assert float(model.online_encoder.scale.grad) == pytest.approx(2 * (10 + 4 - 30) * 10, rel=1e-5)


def test_auxiliary_gradient_comes_from_the_frames_of_the_mode() -> None:
    """Which frames move the online encoder: all of them, but in vjepa2 not the last."""

    class Sum(nn.Module):
        def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return z.sum(dim=(-2, -1)).mean() / D, {}

    values, actions = torch.tensor([[1, 10, 100]]), torch.zeros(1, 2, 1)
    expected = {"default": (11 + 110) / 2, "vjepa2": 11, "none": (11 + 110) / 2}
    for mode, gradient in expected.items():
        model = readable(mode)
        objective = JEPAObjective(model, Sum(), 1.0)
        objective.auxiliary_loss.calculate_reg_terms(objective.samples(model(grey_frames(values), actions)))[
            0
        ].backward()
        assert model.online_encoder.scale.grad is not None
        assert float(model.online_encoder.scale.grad) == pytest.approx(gradient, rel=1e-5), mode


@pytest.mark.parametrize("mode", MODES)
def test_parameters_to_train_are_all_but_the_target_encoders(tiny_config: Callable[..., Config], mode: str) -> None:
    model = real_model(tiny_config(jepa_model={"target_encoder_mode": mode}))
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == PARTS - {"target_encoder"}


# --- the target encoder ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["default", "vjepa2"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_target_encoder_begins_as_a_frozen_deep_copy(
    tiny_config: Callable[..., Config], encoder: str, mode: str
) -> None:
    config = tiny_config(encoder_type=encoder, jepa_model={"target_encoder_mode": mode})
    model = real_model(config)
    assert model.target_encoder is not None
    assert type(model.target_encoder) is type(model.online_encoder)
    online, target = model.online_encoder.state_dict(), model.target_encoder.state_dict()
    assert online.keys() == target.keys()
    for name in online:
        assert torch.equal(online[name], target[name]), name
        assert online[name].data_ptr() != target[name].data_ptr(), name
    assert not any(parameter.requires_grad for parameter in model.target_encoder.parameters())


def test_mode_none_has_no_target_encoder_and_nothing_to_update(tiny_config: Callable[..., Config]) -> None:
    model = real_model(tiny_config(jepa_model={"target_encoder_mode": "none"}))
    assert model.target_encoder is None
    assert not any(name.startswith("target_encoder") for name in model.state_dict())
    before = copy.deepcopy(model.state_dict())
    model._update_target_encoder_ema()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_target_encoder_is_always_in_eval_mode(tiny_config: Callable[..., Config]) -> None:
    model = real_model(tiny_config(encoder_params={"cnn": {"norm": "batch"}}))
    assert model.target_encoder is not None

    def target_modes() -> set[bool]:
        return {module.training for module in model.target_encoder.modules()}  # type: ignore[union-attr]

    assert target_modes() == {False}
    for _ in range(2):
        model.train()
        assert model.online_encoder.training
        assert model.predictor.training
        assert target_modes() == {False}
        model.eval()
        assert not model.online_encoder.training
        assert target_modes() == {False}
    JEPAObjective(model, VICRegLoss(), 1.0).train()
    assert model.online_encoder.training
    assert target_modes() == {False}


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("mode", ["default", "vjepa2"])
def test_ema_in_closed_form(tiny_config: Callable[..., Config], mode: str, decay: float) -> None:
    """theta_k = d^k theta_0 + (1 - d) * sum_i d^(k-1-i) phi_i, with phi_i the online weights at update i."""
    steps = 6
    model = real_model(tiny_config(jepa_model={"target_encoder_mode": mode, "ema_decay": decay}))
    assert model.target_encoder is not None
    expected = {name: value.double() * decay**steps for name, value in model.target_encoder.named_parameters()}
    for i in range(steps):
        with torch.no_grad():
            for name, parameter in model.online_encoder.named_parameters():
                parameter.copy_(torch.randn_like(parameter))
                expected[name] = expected[name] + (1 - decay) * decay ** (steps - 1 - i) * parameter.double()
        online = copy.deepcopy(model.online_encoder.state_dict())
        model._update_target_encoder_ema()
        assert all(torch.equal(online[name], value) for name, value in model.online_encoder.state_dict().items())
    for name, parameter in model.target_encoder.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-5)
        assert not parameter.requires_grad
        assert parameter.grad_fn is None


def test_buffers_of_the_target_encoder_follow_and_are_not_touched_by_its_own_forward(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config(encoder_params={"cnn": {"norm": "batch"}}, jepa_model={"ema_decay": 0.9})
    model = real_model(config).train()
    assert model.target_encoder is not None
    start = {name: value.clone() for name, value in model.target_encoder.named_buffers()}
    assert start
    model(*random_windows(config, 2))
    for name, value in model.target_encoder.named_buffers():
        assert torch.equal(value, start[name]), name
    model._update_target_encoder_ema()
    online = dict(model.online_encoder.named_buffers())
    for name, value in model.target_encoder.named_buffers():
        assert torch.equal(value, online[name]), name
        assert not torch.equal(value, start[name]), name


def test_target_encoder_has_no_dropout_while_the_online_encoder_trains(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config(encoder_type="vit", encoder_params={"vit": {"dropout": 0.5, "emb_dropout": 0.5}})
    model = real_model(config).train()
    windows = random_windows(config, 1)
    first, second = model(*windows), model(*windows)
    torch.testing.assert_close(first.target, second.target)
    assert not torch.allclose(first.online_s_t, second.online_s_t)


def test_predictor_dropout_acts_in_training_only(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(jepa_model={"predictor_dropout_rate": 0.5})
    model = real_model(config).train()
    windows = random_windows(config, 1)
    assert not torch.allclose(model(*windows).predicted, model(*windows).predicted)
    model.eval()
    assert torch.equal(model(*windows).predicted, model(*windows).predicted)


def test_equal_seeds_give_equal_models_and_different_seeds_do_not(tiny_config: Callable[..., Config]) -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(real_model(tiny_config()).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert any(not torch.equal(models[0][name], models[2][name]) for name in models[0])


def test_the_predictors_size_is_as_configured(tiny_config: Callable[..., Config]) -> None:
    def widths(**jepa_model: int) -> list[tuple[int, int]]:
        model = real_model(tiny_config(jepa_model=jepa_model))
        linears = [module for module in model.predictor.modules() if isinstance(module, nn.Linear)]
        return [(linear.in_features, linear.out_features) for linear in linears]

    assert widths(predictor_hidden_dim=20, predictor_num_layers=1) == [(8 + 4, 20), (20, 8)]
    assert widths(predictor_hidden_dim=24, predictor_num_layers=3) == [
        (8 + 4, 24),
        (24, 24),
        (24, 24),
        (24, 8),
    ]
