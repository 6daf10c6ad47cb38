"""The training step: the total loss, the updater, the meter and one epoch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import NonFiniteLossError
from jepaworld.losses import DINOLoss, JEPAObjective, Objective, VICRegLoss, make_objective
from jepaworld.models import build
from jepaworld.training_loops.epoch_loop import (
    Meter,
    TrainingStep,
    parameter_groups,
    train_validate_model_epoch,
    use_graph,
)

MODES = ["default", "vjepa2", "none"]
LOSSES = ["vicreg", "barlow_twins", "dino", "sigreg", "none"]
CPU = torch.device("cpu")
SPACE = Box(-1, 1, (2,), np.float32)


def windows(b: int = 8, t: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (b, t + 1, 3, 16, 16), generator=generator).to(torch.uint8)
    return Batch(frames, torch.rand(b, t, 2, generator=generator) * 2 - 1)


def objective_of(config: Config) -> JEPAObjective:
    return make_objective(config, build(config, Spaces.of(config, SPACE)), Spaces.of(config, SPACE))


# --- the total loss -------------------------------------------------------------------------------


class Recording(nn.Module):
    """An auxiliary loss that keeps its inputs; its value is their mean, its term 3 times that."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.inputs.append(z)
        return z.square().mean(), {"thrice": 3 * z.detach().square().mean()}


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("mode", MODES)
def test_total_is_prediction_plus_weight_times_auxiliary(
    tiny_config: Callable[..., Config], mode: str, weight: float
) -> None:
    config = tiny_config(jepa_model={"target_encoder_mode": mode})
    model, auxiliary = build(config, Spaces.of(config, SPACE)).eval(), Recording()
    batch = windows()
    total, terms = JEPAObjective(model, auxiliary, weight)(batch)
    output = model(*batch)
    prediction = ((output.predicted - output.target) ** 2).sum() / output.target.numel()
    given = [output.online_s_t] if mode == "vjepa2" else [output.online_s_t, output.online_s_t_plus_1]
    expected_auxiliary = sum(z.square().mean() for z in given) / len(given)
    (samples,) = auxiliary.inputs  # one call, so that a running average moves once
    assert samples.shape == ((16, 8) if mode == "vjepa2" else (2, 16, 8))
    for z, expected in zip(samples.view(-1, 8, 2, 8), given, strict=True):
        torch.testing.assert_close(z, expected)
    torch.testing.assert_close(terms["prediction_loss"], prediction.detach())
    torch.testing.assert_close(terms["auxiliary_loss"], expected_auxiliary.detach())
    torch.testing.assert_close(terms["auxiliary/thrice"], 3 * expected_auxiliary.detach())
    torch.testing.assert_close(total, prediction + weight * expected_auxiliary)
    assert total.requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_statistics_per_step_are_those_of_each_time_step(tiny_config: Callable[..., Config], mode: str) -> None:
    config = tiny_config(jepa_model={"target_encoder_mode": mode})
    model, auxiliary = build(config, Spaces.of(config, SPACE)).eval(), Recording()
    batch = windows()
    JEPAObjective(model, auxiliary, 1.0, per_step=True)(batch)
    frames = batch.frames[:, :-1] if mode == "vjepa2" else batch.frames  # each frame once
    torch.testing.assert_close(auxiliary.inputs[0], model.encode_online(frames).transpose(0, 1))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mode", MODES)
def test_terms_are_detached_finite_scalars(tiny_config: Callable[..., Config], mode: str, loss: str) -> None:
    config = tiny_config(auxiliary_loss={"type": loss}, jepa_model={"target_encoder_mode": mode})
    _, terms = objective_of(config)(windows())
    assert {"prediction_loss", "auxiliary_loss"} <= terms.keys()
    for name, term in terms.items():
        assert isinstance(term, Tensor), name
        assert term.shape == (), name
        assert not term.requires_grad, name
        assert torch.isfinite(term), name


@pytest.mark.parametrize("mode", MODES)
def test_auxiliary_none_equals_weight_zero(tiny_config: Callable[..., Config], mode: str) -> None:
    gradients = []
    for auxiliary in ({"type": "none", "weight": 1.0}, {"type": "vicreg", "weight": 0.0}):
        torch.manual_seed(0)
        objective = objective_of(tiny_config(auxiliary_loss=auxiliary, jepa_model={"target_encoder_mode": mode}))
        objective(windows())[0].backward()
        gradients.append([p.grad for p in objective.parameters() if p.grad is not None and p.grad.any()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_losses_are_float32_under_autocast(tiny_config: Callable[..., Config]) -> None:
    objective = objective_of(tiny_config())
    with torch.autocast("cpu", torch.bfloat16):
        assert objective.model(*windows()).predicted.dtype == torch.bfloat16
        total, terms = objective(windows())
    assert total.dtype == torch.float32
    assert {term.dtype for term in terms.values()} == {torch.float32}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_reads_nothing_from_the_device(
    tiny_config: Callable[..., Config], loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(tiny_config(auxiliary_loss={"type": loss}))
    step = step_of(objective, tiny_config(), 1e-3)

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("a value was read")

    # The optimizer's kernel for processors takes the rate as a number.
    step.optimizer.step = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, forbidden)
    meter = Meter()
    for _ in range(2):
        meter.add(step(windows()), 8)


# --- one batch overfitted -------------------------------------------------------------------------


def cycle(n: int = 16) -> Batch:
    """Pairs of n images of 4 x 4 coloured squares, each followed by the next and the last by the first."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (n, 3, 4, 4), generator=generator).to(torch.uint8)
    images = images.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)
    return Batch(torch.stack([images, images.roll(-1, dims=0)], dim=1), torch.zeros(n, 1, 2))


@pytest.mark.parametrize(
    ("mode", "encoder"), [*((mode, "cnn") for mode in MODES), ("vjepa2", "vit"), ("vjepa2", "mlp")]
)
def test_one_batch_is_overfitted(tiny_config: Callable[..., Config], mode: str, encoder: str) -> None:
    """VICReg keeps the embeddings apart, so the prediction can only become small by predicting."""
    steps = 200
    config = tiny_config(
        encoder_type=encoder,
        encoder_params={"mlp": {"hidden_dim": 64}},
        jepa_model={"target_encoder_mode": mode, "ema_decay": 0.8, "predictor_hidden_dim": 64},
        auxiliary_loss={"weight": 1.0},
        learning_rate=3e-3 if encoder == "mlp" else 1e-2,
        warmup_steps=10,
    )
    objective = objective_of(config).train()
    step = step_of(objective, config, config.learning_rate, steps)
    batch = cycle()
    history = [{name: term.item() for name, term in step(batch).items()} for _ in range(steps)]
    spread = objective.model(*batch).target.var(dim=(0, 1)).mean().item()
    assert spread > 0.5
    assert history[-1]["prediction_loss"] < 0.05 * spread
    assert history[-1]["loss_jepa"] < 0.1 * history[0]["loss_jepa"]


# --- the step -------------------------------------------------------------------------------------


def step_of(
    objective: Objective, config: Config, rate: float = 1.0, total: int = 12, bf16: bool = False
) -> TrainingStep:
    return TrainingStep(objective, config, rate, total, CPU, bf16)


class Weighted(Objective):
    """Loss `(weights * (3, 4)).sum() * mean(actions)`, with weights that are a matrix."""

    loss_name = "total"

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weights or (0.0, 0.0)]))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.weight * torch.tensor([3.0, 4.0])).sum() * batch.actions.mean(), {}


def unit_batch(value: float = 1.0) -> Batch:
    return Batch(torch.zeros(1, 2, 1, 2, 2, dtype=torch.uint8), torch.full((1, 1, 1), value))


def plain(tiny_config: Callable[..., Config], **settings: Any) -> Config:
    return tiny_config(**({"warmup_steps": 4, "weight_decay": 0.0, "gradient_clip_norm": None} | settings))


def rates(step: TrainingStep, count: int) -> list[float]:
    """The rate of each step as the optimizer had it, which must be the one announced before."""
    result = []
    for _ in range(count):
        announced = step.learning_rate
        step(unit_batch())
        result.append(step.rate.item())
        assert result[-1] == announced
        assert all(group["lr"] is step.rate for group in step.optimizer.param_groups)
    return result


def test_warm_up_then_cosine(tiny_config: Callable[..., Config]) -> None:
    step = step_of(Weighted(), plain(tiny_config, learning_rate_schedule="cosine"), 2.0)
    root = math.sqrt(0.5)
    expected = [0.5, 1.0, 1.5, 2.0]  # a quarter of the peak more at each step
    c, s = math.cos(math.pi / 8), math.sin(math.pi / 8)
    expected += [2.0, 1 + c, 1 + root, 1 + s, 1.0, 1 - s, 1 - root, 1 - c]  # half a cosine over 8 steps
    assert rates(step, 12) == pytest.approx(expected)
    assert step.learning_rate == pytest.approx(0.0, abs=1e-12)
    assert step.step_count == 12


def test_warm_up_then_constant(tiny_config: Callable[..., Config]) -> None:
    step = step_of(Weighted(), plain(tiny_config, learning_rate_schedule="constant"))
    assert rates(step, 6) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_no_warm_up_and_a_warm_up_longer_than_the_phase(tiny_config: Callable[..., Config]) -> None:
    assert rates(step_of(Weighted(), plain(tiny_config, warmup_steps=0), total=2), 2) == pytest.approx([1.0, 0.5])
    assert rates(step_of(Weighted(), plain(tiny_config, warmup_steps=100), total=2), 2) == pytest.approx([0.5, 1.0])


def test_the_rate_moves_the_parameters(tiny_config: Callable[..., Config]) -> None:
    """The first step of Adam is the rate times the sign of the gradient."""
    objective = Weighted()
    step_of(objective, plain(tiny_config), 0.1)(unit_batch(-1.0))
    torch.testing.assert_close(objective.weight.detach(), torch.tensor([[0.025, 0.025]]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("clip", "share"), [(0.5, 0.1), (6.0, 1.0), (None, 1.0)])
def test_gradients_are_clipped_and_the_norm_before_is_returned(
    tiny_config: Callable[..., Config], clip: float | None, share: float
) -> None:
    objective = Weighted()
    terms = step_of(objective, plain(tiny_config, gradient_clip_norm=clip))(unit_batch())
    assert terms["gradient_norm"].item() == pytest.approx(5.0)
    assert not terms["gradient_norm"].requires_grad
    assert objective.weight.grad is not None
    torch.testing.assert_close(objective.weight.grad, share * torch.tensor([[3.0, 4.0]]), rtol=1e-4, atol=1e-6)


def test_weight_decay_shrinks_matrices_without_gradient(tiny_config: Callable[..., Config]) -> None:
    objective = Weighted(2.0, -4.0)
    step_of(objective, plain(tiny_config, warmup_steps=0, weight_decay=0.5), 0.1)(unit_batch(0.0))
    torch.testing.assert_close(objective.weight.detach(), torch.tensor([[2.0, -4.0]]) * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("encoder", ["vit", "cnn", "mlp"])
def test_norms_biases_positions_and_tokens_are_not_decayed(tiny_config: Callable[..., Config], encoder: str) -> None:
    vit = {"pool": "cls"}
    config = tiny_config(encoder_type=encoder, encoder_params={"vit": vit, "cnn": {"norm": "batch"}})
    model = build(config, Spaces.of(config, SPACE))
    decayed, others = ({id(parameter) for parameter in group} for group in parameter_groups(model.online_encoder))
    for module in model.online_encoder.modules():
        for name, parameter in module.named_parameters(recurse=False):
            matrix = isinstance(module, nn.Linear | nn.Conv2d | nn.MultiheadAttention) and "bias" not in name
            assert (id(parameter) in decayed) == matrix, (type(module).__name__, name)
            assert (id(parameter) in others) != matrix


def test_gradients_do_not_add_up_over_steps(tiny_config: Callable[..., Config]) -> None:
    step = step_of(Weighted(), plain(tiny_config))
    assert [step(unit_batch())["gradient_norm"].item() for _ in range(3)] == pytest.approx([5.0] * 3)


def test_frozen_parameters_are_left_out(tiny_config: Callable[..., Config]) -> None:
    model = build(tiny_config(), Spaces.of(tiny_config(), SPACE))
    objective = JEPAObjective(model, VICRegLoss(), 1.0)
    step = step_of(objective, tiny_config(weight_decay=0.5, jepa_model={"ema_decay": 1.0}), 1e-3)
    trained = {id(p) for group in step.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if not name.startswith("target_encoder")}


def test_a_step_goes_on_where_it_was_saved(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(weight_decay=0.1)
    results = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        objective = objective_of(config)
        step = step_of(objective, config, 1e-2)
        for seed in range(4):
            if interrupted and seed == 2:
                state, weights = copy.deepcopy(step.state()), copy.deepcopy(objective.state_dict())
                objective = objective_of(config)
                objective.load_state_dict(weights)
                step = step_of(objective, config, 1e-2)
                step.load_state(state)
            step(windows(seed=seed))
        results.append(objective.state_dict())
    assert all(torch.equal(results[0][name], value) for name, value in results[1].items())


# --- meter ----------------------------------------------------------------------------------------


def scalars(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_means_are_weighted_by_the_size_of_the_batch() -> None:
    meter = Meter()
    for value, samples in ((1.0, 8), (2.0, 8), (10.0, 4)):
        meter.add(scalars(a=value, b=-value), samples)
    assert meter.means() == pytest.approx({"a": (8 + 16 + 40) / 20, "b": -(8 + 16 + 40) / 20})
    assert meter.samples == 20


def test_recent_means_begin_anew_after_each_read_and_epoch_means_do_not() -> None:
    meter = Meter()
    for value in (1.0, 3.0):
        meter.add(scalars(a=value), 4)
    assert meter.read_recent(2) == pytest.approx({"a": 2.0})
    meter.add(scalars(a=8.0), 4)
    assert meter.read_recent(3) == pytest.approx({"a": 8.0})
    assert meter.means() == pytest.approx({"a": 4.0})


def test_means_of_long_epochs_are_exact() -> None:
    meter = Meter()
    for _ in range(3000):
        meter.add(scalars(a=0.1), 256)
    assert meter.means()["a"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_term_that_is_not_finite_is_found_with_its_step_and_name(value: float) -> None:
    meter = Meter()
    for step in range(5, 9):  # steps 1 to 4 were read before
        late = value if step >= 7 else 1.0
        meter.add(scalars(fine=1.0, prediction_loss=value if step >= 6 else 1.0, other=late), 2)
    with pytest.raises(NonFiniteLossError, match=f"step 6: prediction_loss is {value}"):
        meter.read_recent(8)


def test_meter_goes_on_where_it_was_saved() -> None:
    whole, first = Meter(), Meter()
    for meter in (whole, first):
        meter.add(scalars(a=1.0, b=2.0), 8)
        meter.read_recent(1)
    second = Meter()
    second.load_state(first.state())
    for meter in (whole, second):
        meter.add(scalars(a=5.0, b=7.0), 3)
    assert second.means() == whole.means()
    assert second.samples == 11


# --- an epoch -------------------------------------------------------------------------------------


class Toy(Objective):
    """Loss `weight * mean(actions)` that keeps a diary of what happens in which order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.diary: list[Any] = []

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.diary.append(("forward", self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        loss = self.weight * batch.actions.mean()
        return loss, {"raw": batch.actions.mean()}

    def update_targets(self) -> None:
        self.diary.append(("update_targets", self.weight.item()))


def action_batches(*batches: tuple[int, float]) -> Iterator[Batch]:
    for size, value in batches:
        yield Batch(torch.zeros(size, 2, 1, 2, 2, dtype=torch.uint8), torch.full((size, 1, 1), value))


def test_training_epoch_steps_then_lets_the_target_follow_then_logs(
    tiny_config: Callable[..., Config],
) -> None:
    toy = Toy().eval()
    step = step_of(toy, plain(tiny_config, warmup_steps=0, learning_rate_schedule="constant"), 0.1)
    weights: list[float] = []
    means = train_validate_model_epoch(
        toy, action_batches((4, 1.0), (4, 3.0), (2, 5.0)), Meter(), CPU, False, step,
        lambda: weights.append(toy.weight.item()),
    )  # fmt: skip
    assert [entry[0] for entry in toy.diary] == ["forward", "update_targets"] * 3
    assert {entry[1:] for entry in toy.diary if entry[0] == "forward"} == {(True, True, False)}
    after = [entry[1] for entry in toy.diary if entry[0] == "update_targets"]
    assert after == weights
    assert 1.0 > weights[0] > weights[1] > weights[2]
    assert step.step_count == 3
    assert means["raw"] == pytest.approx((4 * 1 + 4 * 3 + 2 * 5) / 10)
    assert means["loss_jepa"] == pytest.approx((4 * 1 + 4 * 3 * weights[0] + 2 * 5 * weights[1]) / 10)
    assert means["gradient_norm"] == pytest.approx((4 * 1 + 4 * 3 + 2 * 5) / 10)


def test_validation_changes_nothing(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(
        encoder_params={"cnn": {"norm": "batch"}}, jepa_model={"predictor_dropout_rate": 0.5},
        auxiliary_loss={"type": "dino"},
    )  # fmt: skip
    objective = objective_of(config).train()
    before = copy.deepcopy(objective.state_dict())
    runs = [
        train_validate_model_epoch(objective, [windows(seed=1), windows(b=3, seed=2)], Meter(), CPU, False)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert "gradient_norm" not in runs[0]
    assert not objective.training
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert torch.is_grad_enabled()


def test_validation_is_the_sample_weighted_mean_of_its_batches(tiny_config: Callable[..., Config]) -> None:
    objective = objective_of(tiny_config()).eval()
    batches = [windows(seed=1), windows(b=3, seed=2)]
    means = train_validate_model_epoch(objective, batches, Meter(), CPU, False)
    with torch.no_grad():
        results = [objective(batch) for batch in batches]
    parts = [{**terms, "loss_jepa": loss} for loss, terms in results]
    for name, value in means.items():
        assert value == pytest.approx((8 * parts[0][name].item() + 3 * parts[1][name].item()) / 11, rel=1e-6), name


def test_mixed_precision_is_on_in_the_forward_pass_only(tiny_config: Callable[..., Config]) -> None:
    toy = Toy()
    step = step_of(toy, plain(tiny_config), bf16=True)
    train_validate_model_epoch(toy, action_batches((2, 1.0)), Meter(), CPU, True, step)
    train_validate_model_epoch(toy, action_batches((2, 1.0)), Meter(), CPU, True)
    # In training mode and in validation: (module in training mode, gradients, autocast).
    assert [entry[1:] for entry in toy.diary if entry[0] == "forward"] == [(True, True, True), (False, False, True)]
    assert not torch.is_autocast_enabled("cpu")
    assert toy.weight.dtype == torch.float32


@pytest.mark.parametrize("mode", ["default", "vjepa2"])
def test_the_target_encoder_follows_after_the_optimizer_step(tiny_config: Callable[..., Config], mode: str) -> None:
    """With decay 0 the target equals the online encoder that the optimizer has just changed."""
    config = tiny_config(jepa_model={"target_encoder_mode": mode, "ema_decay": 0.0})
    objective = objective_of(config)
    model = objective.model
    start = copy.deepcopy(model.online_encoder.state_dict())
    step = step_of(objective, config, 1e-2)
    equal: list[bool] = []

    def compare() -> None:
        assert model.target_encoder is not None
        target = model.target_encoder.state_dict()
        equal.append(all(torch.equal(target[name], v) for name, v in model.online_encoder.state_dict().items()))

    train_validate_model_epoch(objective, [windows(), windows(seed=1)], Meter(), CPU, False, step, compare)
    assert equal == [True, True]
    assert any(not torch.equal(start[name], value) for name, value in model.online_encoder.state_dict().items())


def test_the_centre_of_dino_is_part_of_the_objectives_state(tiny_config: Callable[..., Config]) -> None:
    objective = objective_of(tiny_config(auxiliary_loss={"type": "dino"})).train()
    objective(windows())
    assert isinstance(objective.auxiliary_loss, DINOLoss)
    assert objective.auxiliary_loss.center.any()
    assert torch.equal(objective.state_dict()["auxiliary_loss.center"], objective.auxiliary_loss.center)


@pytest.mark.parametrize("mode", ["vjepa2", "none"])
def test_vicreg_gives_the_embeddings_their_scale(tiny_config: Callable[..., Config], mode: str) -> None:
    """Without it nothing does: the frames cannot be predicted, so that small embeddings cost least."""
    spreads = {}
    for kind in ("none", "vicreg"):
        torch.manual_seed(0)
        config = tiny_config(
            encoder_type="mlp", jepa_model={"target_encoder_mode": mode, "ema_decay": 0.8},
            auxiliary_loss={"type": kind, "weight": 1.0}, learning_rate=1e-2, weight_decay=0.0,
        )  # fmt: skip
        objective = objective_of(config).train()
        step = step_of(objective, config, config.learning_rate, 200)
        for seed in range(200):
            step(windows(b=16, t=1, seed=seed))
        z = objective.model.encode_online(windows(b=16, t=1).frames[:, :1]).flatten(0, 1).detach()
        spreads[kind] = z.std(0).mean().item()
    assert spreads["vicreg"] > 0.7
    assert spreads["none"] < 0.4


def test_in_mode_default_the_auxiliary_loss_alone_trains_the_encoder(
    tiny_config: Callable[..., Config],
) -> None:
    config = tiny_config(auxiliary_loss={"type": "none"}, jepa_model={"target_encoder_mode": "default"})
    objective = objective_of(config).train()
    start = copy.deepcopy(objective.model.online_encoder.state_dict())
    step = step_of(objective, config, 1e-2)
    train_validate_model_epoch(objective, [windows()] * 3, Meter(), CPU, False, step)
    assert all(torch.equal(start[name], v) for name, v in objective.model.online_encoder.state_dict().items())


def test_steps_are_captured_on_cuda_where_modules_are_known(tiny_config: Callable[..., Config]) -> None:
    known, cuda = objective_of(tiny_config()), torch.device("cuda")
    assert use_graph("auto", cuda, known) and not use_graph("auto", CPU, known) and not use_graph("eager", cuda, known)
    foreign = JEPAObjective(known.model, Recording(), 1.0)
    assert not use_graph("auto", cuda, foreign) and use_graph("graph", cuda, foreign)
