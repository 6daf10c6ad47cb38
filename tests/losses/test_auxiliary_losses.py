"""Each auxiliary loss against a float64 numpy reference written from the equations; what it sees and ignores.

The references use loops and explicit sums on purpose: they share no trick with the implementation.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from jepaworld.losses import (
    AuxiliaryLoss,
    BarlowTwinsLoss,
    DINOLoss,
    NoAuxiliaryLoss,
    Reduction,
    SIGRegLoss,
    VICRegLoss,
    make_auxiliary_loss,
)

SHAPES = [(2, 1), (2, 5), (7, 3), (6, 6), (5, 12), (64, 4)]
Reference = Callable[[np.ndarray], tuple[float, dict[str, float]]]


def embeddings(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Correlated dimensions of different means and scales, some above and some below a deviation of 1."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * rng.uniform(0.1, 1.5, size=d)
    return z + rng.normal(size=d)


def vicreg_reference(std_coeff: float, cov_coeff: float, gamma: float = 1.0, eps: float = 1e-4) -> Reference:
    """Equations 1 to 4 of arXiv 2105.04906: hinge on the standard deviation, off-diagonal covariances."""

    def loss(z: np.ndarray) -> tuple[float, dict[str, float]]:
        n, d = z.shape
        mean = z.sum(axis=0) / n
        covariance = np.zeros((d, d))
        for row in z:
            covariance += np.outer(row - mean, row - mean)
        covariance /= n - 1
        std = sum(max(0.0, gamma - np.sqrt(covariance[j, j] + eps)) for j in range(d)) / d
        cov = sum(covariance[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
        return std_coeff * std + cov_coeff * cov, {"std": std, "cov": cov}

    return loss


def barlow_reference(lambda_param: float, eps: float = 1e-5) -> Reference:
    """Equations 1 and 2 of arXiv 2103.03230 for a batch with itself; C = z_norm.T @ z_norm / batch_size."""

    def loss(z: np.ndarray) -> tuple[float, dict[str, float]]:
        n, d = z.shape
        mean = z.sum(axis=0) / n
        z_norm = (z - mean) / np.sqrt(((z - mean) ** 2).sum(axis=0) / n + eps)
        correlation = [[sum(z_norm[b, i] * z_norm[b, j] for b in range(n)) / n for j in range(d)] for i in range(d)]
        invariance = sum((1 - correlation[i][i]) ** 2 for i in range(d))
        redundancy = sum(correlation[i][j] ** 2 for i in range(d) for j in range(d) if i != j)
        return invariance + lambda_param * redundancy, {"invariance": invariance, "redundancy": redundancy}

    return loss


def dino_reference(center: np.ndarray) -> Reference:
    """The squared Euclidean distance between the mean of the batch and the centre."""

    def loss(z: np.ndarray) -> tuple[float, dict[str, float]]:
        distance = sum(float(z[:, j].sum() / len(z) - center[j]) ** 2 for j in range(z.shape[1]))
        return distance, {"center_distance": distance, "center_norm": float(np.sqrt((center**2).sum()))}

    return loss


def dino_with_center(d: int) -> tuple[DINOLoss, np.ndarray]:
    center = np.random.default_rng(5).normal(size=d)
    loss = DINOLoss(d).eval()
    loss.center.copy_(torch.tensor(center))
    return loss, loss.center.double().numpy()


class FixedDirections(SIGRegLoss):
    """SIGReg along directions that do not change."""

    def draw_directions(self, z: Tensor) -> Tensor:
        drawn = np.random.default_rng(7).normal(size=(self.num_directions, z.shape[-1]))
        directions = drawn / np.sqrt((drawn**2).sum(axis=1, keepdims=True))
        return torch.tensor(directions.tolist(), dtype=torch.float32)


def sigreg_reference(num_directions: int, num_knots: int, largest: float) -> Reference:
    """N times the integral over t of |mean of exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by trapezoids."""

    def loss(z: np.ndarray) -> tuple[float, dict[str, float]]:
        drawn = np.random.default_rng(7).normal(size=(num_directions, z.shape[1]))
        total = 0.0
        for direction in drawn:
            x = z @ direction / np.sqrt((direction**2).sum())
            knots = [largest * k / (num_knots - 1) for k in range(num_knots)]
            heights = [abs(np.exp(1j * t * x).mean() - np.exp(-t * t / 2)) ** 2 * np.exp(-t * t / 2) for t in knots]
            step = knots[1]
            half = sum((a + b) / 2 * step for a, b in itertools.pairwise(heights))
            total += 2 * half * len(z)  # from -largest to largest
        return total / num_directions, {"statistic": total / num_directions}

    return loss


def pair(name: str, d: int) -> tuple[nn.Module, Reference]:
    """A loss with coefficients that are no defaults, and its reference."""
    if name == "vicreg":
        return VICRegLoss(sim_coeff=3.0, std_coeff=7.0, cov_coeff=0.6), vicreg_reference(7.0, 0.6)
    if name == "barlow_twins":
        return BarlowTwinsLoss(lambda_param=0.3), barlow_reference(0.3)
    if name == "sigreg":
        return FixedDirections(num_directions=6, num_knots=9, largest_knot=4.0), sigreg_reference(6, 9, 4.0)
    loss, center = dino_with_center(d)
    return loss, dino_reference(center)


def numerical_gradient(function: Callable[[np.ndarray], float], z: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """Central differences in float64."""
    gradient = np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        up, down = z.copy(), z.copy()
        up[index] += h
        down[index] -= h
        gradient[index] = (function(up) - function(down)) / (2 * h)
    return gradient


NAMES = ["vicreg", "barlow_twins", "dino", "sigreg"]
LOSS_OF = {"vicreg": VICRegLoss, "barlow_twins": BarlowTwinsLoss, "dino": lambda: DINOLoss(4), "sigreg": SIGRegLoss}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_terms_equal_the_reference(name: str, shape: tuple[int, int]) -> None:
    z = embeddings(*shape)
    loss, reference = pair(name, shape[1])
    value, terms = loss.calculate_reg_terms(torch.tensor(z, dtype=torch.float32))
    expected, expected_terms = reference(z)
    assert value.shape == ()
    assert float(value) == pytest.approx(expected, rel=2e-4, abs=1e-5)
    assert terms.keys() == expected_terms.keys()
    for key, term in terms.items():
        assert float(term) == pytest.approx(expected_terms[key], rel=2e-4, abs=1e-5), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (9, 2)])
def test_gradient_equals_finite_differences_of_the_reference(name: str, shape: tuple[int, int]) -> None:
    z = embeddings(*shape, seed=1)
    loss, reference = pair(name, shape[1])
    x = torch.tensor(z, dtype=torch.float32, requires_grad=True)
    loss.calculate_reg_terms(x)[0].backward()
    expected = numerical_gradient(lambda v: reference(v)[0], z)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=5e-3, atol=2e-3 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_detached_scalars_and_the_loss_is_not(name: str) -> None:
    loss, _ = pair(name, 4)
    value, terms = loss.calculate_reg_terms(torch.randn(6, 4, requires_grad=True))
    assert value.requires_grad
    assert terms
    for key, term in terms.items():
        assert term.shape == (), key
        assert not term.requires_grad, key


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_float32_under_bf16_autocast(name: str) -> None:
    loss, _ = pair(name, 16)
    z = torch.tensor(embeddings(32, 16), dtype=torch.float32, requires_grad=True)
    outside = loss.calculate_reg_terms(z)[0]
    (expected_gradient,) = torch.autograd.grad(outside, z)
    with torch.autocast("cpu", torch.bfloat16):
        inside, terms = loss.calculate_reg_terms(z)
    (gradient,) = torch.autograd.grad(inside, z)
    assert inside.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert torch.equal(inside, outside)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    loss, _ = pair(name, 16)
    z = torch.tensor(embeddings(32, 16), dtype=dtype)
    value, _ = loss.calculate_reg_terms(z)
    assert value.dtype == torch.float32
    assert float(value) == float(loss.calculate_reg_terms(z.float())[0])


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_read_from_the_device(name: str) -> None:
    """Fake tensors have no values, so that every `.item()`, `bool()` or boolean mask fails on them."""
    with FakeTensorMode():
        loss = LOSS_OF[name]().train()
        z = torch.randn(6, 4, requires_grad=True)
        loss.calculate_reg_terms(z)[0].backward()
        assert z.grad is not None
        with pytest.raises(RuntimeError):
            z.sum().item()  # what the loss must not do


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins", "sigreg"])
def test_gradient_is_finite_for_constant_embeddings(name: str) -> None:
    """The case that the loss is made for: a collapsed batch."""
    z = torch.full((6, 4), 0.3, requires_grad=True)
    value, _ = pair(name, 4)[0].calculate_reg_terms(z)
    value.backward()
    assert torch.isfinite(value)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins"])
def test_statistics_do_not_depend_on_the_mean(name: str) -> None:
    z = torch.tensor(embeddings(32, 5), dtype=torch.float32)
    loss, _ = pair(name, 5)
    assert float(loss.calculate_reg_terms(z + 50)[0]) == pytest.approx(float(loss.calculate_reg_terms(z)[0]), rel=1e-3)


# --- VICReg ---------------------------------------------------------------------------------------


def test_vicreg_two_views_equal_equation_6() -> None:
    x, y = embeddings(9, 4), embeddings(9, 4, seed=3)
    sim, std, cov = 3.0, 7.0, 0.6
    loss, terms = VICRegLoss(sim, std, cov)(torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32))
    (loss_x, terms_x), (loss_y, terms_y) = vicreg_reference(std, cov)(x), vicreg_reference(std, cov)(y)
    mse = ((x - y) ** 2).sum() / x.size
    assert float(loss) == pytest.approx(sim * mse + loss_x + loss_y, rel=1e-4)
    assert float(terms["sim"]) == pytest.approx(mse, rel=1e-4)
    for key in ("std", "cov"):
        assert float(terms[key]) == pytest.approx(terms_x[key] + terms_y[key], rel=1e-4)
    assert not any(term.requires_grad for term in terms.values())


def test_vicreg_two_views_pull_the_views_together_from_both_sides() -> None:
    x, y = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3, requires_grad=True)
    VICRegLoss(2.0, 0.0, 0.0)(x, y)[0].backward()
    assert x.grad is not None
    assert y.grad is not None
    expected = 2.0 * 2 * (x - y).detach() / x.numel()
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(y.grad, -expected)


def test_vicreg_two_views_stay_float32_under_autocast() -> None:
    x, y = torch.randn(16, 8), torch.randn(16, 8)
    loss = VICRegLoss()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(x.bfloat16(), y.bfloat16())[0]
    assert inside.dtype == torch.float32
    assert float(inside) == float(loss(x.bfloat16().float(), y.bfloat16().float())[0])


def test_vicreg_sim_coeff_is_not_part_of_the_single_view_loss() -> None:
    z = torch.tensor(embeddings(9, 4), dtype=torch.float32)
    assert float(VICRegLoss(0.0, 5.0, 2.0).calculate_reg_terms(z)[0]) == float(
        VICRegLoss(99.0, 5.0, 2.0).calculate_reg_terms(z)[0]
    )


def test_vicreg_hinge_is_one_sided() -> None:
    """Dimensions above the target are left alone; those below are pushed apart."""
    z = torch.tensor(embeddings(64, 2), dtype=torch.float32)
    z = (z - z.mean(0)) / z.std(0) * torch.tensor([3.0, 0.3])
    z.requires_grad_()
    loss, terms = VICRegLoss(std_coeff=1.0, cov_coeff=0.0).calculate_reg_terms(z)
    loss.backward()
    assert z.grad is not None
    assert float(terms["std"]) == pytest.approx((1 - np.sqrt(0.09 + 1e-4)) / 2, rel=1e-4)
    assert torch.equal(z.grad[:, 0], torch.zeros(64))
    assert (z.grad[:, 1] * (z - z.mean(0))[:, 1]).sum() < 0  # descent makes the deviations larger


# --- Barlow Twins ---------------------------------------------------------------------------------


def test_barlow_twins_cannot_see_scale() -> None:
    z = torch.tensor(embeddings(64, 6), dtype=torch.float32) * 100
    loss, _ = pair("barlow_twins", 6)
    assert float(loss.calculate_reg_terms(0.01 * z)[0]) == pytest.approx(
        float(loss.calculate_reg_terms(z)[0]), rel=1e-3
    )


def test_barlow_twins_sees_repeated_features() -> None:
    feature, other = torch.randn(256), torch.randn(256)
    loss = BarlowTwinsLoss(lambda_param=1.0)
    repeated = loss.calculate_reg_terms(torch.stack([feature, -feature], dim=1))[1]["redundancy"]
    independent = loss.calculate_reg_terms(torch.stack([feature, other], dim=1))[1]["redundancy"]
    assert float(repeated) == pytest.approx(2.0, rel=1e-3)
    assert float(independent) < 0.1


def test_barlow_twins_punishes_a_constant_feature() -> None:
    z = torch.randn(256, 3)
    z[:, 1] = 4.0
    terms = BarlowTwinsLoss().calculate_reg_terms(z)[1]
    assert float(terms["invariance"]) == pytest.approx(1.0, rel=1e-3)


# --- DINO -----------------------------------------------------------------------------------------


def test_dino_uses_the_old_centre_and_then_follows_in_closed_form() -> None:
    decay, steps = 0.8, 7
    loss = DINOLoss(3, center_ema_decay=decay).train()
    batches = [embeddings(5, 3, seed=seed) for seed in range(steps)]
    means = [batch.mean(axis=0) for batch in batches]
    for k, batch in enumerate(batches):
        center = sum(((1 - decay) * decay ** (k - 1 - i) * means[i] for i in range(k)), start=np.zeros(3))
        np.testing.assert_allclose(loss.center.numpy(), center, atol=1e-5)
        value, terms = loss.calculate_reg_terms(torch.tensor(batch, dtype=torch.float32))
        assert float(value) == pytest.approx(((means[k] - center) ** 2).sum(), rel=1e-4, abs=1e-5)
        assert float(terms["center_norm"]) == pytest.approx(np.linalg.norm(center), rel=1e-4, abs=1e-6)
    center = sum(((1 - decay) * decay ** (steps - 1 - i) * means[i] for i in range(steps)), start=np.zeros(3))
    np.testing.assert_allclose(loss.center.numpy(), center, atol=1e-5)


def test_dino_gradient_is_that_of_the_old_centre_after_the_update() -> None:
    loss, center = dino_with_center(4)
    loss.train()
    z = torch.randn(6, 4, requires_grad=True)
    loss.calculate_reg_terms(z)[0].backward()
    assert not np.allclose(loss.center.numpy(), center)
    expected = 2 * (z.detach().double().mean(0).numpy() - center) / 6
    assert z.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), np.tile(expected, (6, 1)), rtol=1e-4, atol=1e-6)
    assert not loss.center.requires_grad


@pytest.mark.parametrize(("decay", "expected"), [(0.0, "mean"), (1.0, "start")])
def test_dino_decay_at_its_limits(decay: float, expected: str) -> None:
    loss = DINOLoss(2, center_ema_decay=decay).train()
    start = torch.tensor([3.0, -2.0])
    loss.center.copy_(start)
    z = torch.randn(8, 2)
    loss.calculate_reg_terms(z)
    torch.testing.assert_close(loss.center, z.mean(0) if expected == "mean" else start)


def test_dino_centre_does_not_move_in_eval_mode() -> None:
    loss, _ = dino_with_center(3)
    before = loss.center.clone()
    loss.calculate_reg_terms(torch.randn(4, 3))
    assert torch.equal(loss.center, before)


def test_dino_centre_is_saved_and_restored_and_is_no_parameter() -> None:
    loss, _ = dino_with_center(3)
    assert list(loss.parameters()) == []
    other = DINOLoss(3)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.center, loss.center)
    assert not torch.equal(other.center, DINOLoss(3).center)


def test_dino_updates_its_centre_under_autocast_in_float32() -> None:
    loss = DINOLoss(3, center_ema_decay=0.5).train()
    z = torch.randn(8, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss.calculate_reg_terms(z)
    assert loss.center.dtype == torch.float32
    torch.testing.assert_close(loss.center, 0.5 * z.float().mean(0))


def test_dino_ignores_variance() -> None:
    loss, _ = dino_with_center(4)
    z = torch.randn(16, 4)
    collapsed = z.mean(0).expand(16, 4)
    assert float(loss.calculate_reg_terms(collapsed)[0]) == pytest.approx(
        float(loss.calculate_reg_terms(z)[0]), rel=1e-4
    )


# --- choice by configuration ----------------------------------------------------------------------


def test_sigreg_is_lowest_for_a_standard_normal_and_sees_scale_mean_and_copies() -> None:
    torch.manual_seed(0)
    z, loss = torch.randn(512, 16), SIGRegLoss()
    healthy = float(loss.calculate_reg_terms(z)[0])
    assert healthy < 2.0  # whatever the number of samples
    assert float(loss.calculate_reg_terms(torch.randn(2048, 16))[0]) < 2.0
    for other in (0.01 * z, 3 * z, z + 1, z[:, :1].expand(-1, 16)):
        assert float(loss.calculate_reg_terms(other)[0]) > 5 * healthy


def test_sigreg_draws_unit_directions_anew_each_time_and_shares_them_over_devices() -> None:
    loss = SIGRegLoss(num_directions=4000)
    first, second = loss.draw_directions(torch.zeros(2, 3)), loss.draw_directions(torch.zeros(2, 3))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(4000))
    torch.testing.assert_close(first.T @ first / 4000, torch.eye(3) / 3, atol=0.03, rtol=0)
    reduction, drawn = Threads(), []

    def device() -> None:
        loss = SIGRegLoss(num_directions=4)
        loss.reduction = reduction
        drawn.append(loss.draw_directions(torch.zeros(2, 3)))

    threads = [threading.Thread(target=device) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(*drawn)


def test_none_is_zero_and_has_no_terms() -> None:
    value, terms = NoAuxiliaryLoss().calculate_reg_terms(torch.randn(4, 3, requires_grad=True))
    assert float(value) == 0.0
    assert terms == {}


@pytest.mark.parametrize(
    ("name", "params", "reference"),
    [
        ("vicreg", {"std_coeff": 4.0, "cov_coeff": 0.2, "sim_coeff": 9.0}, vicreg_reference(4.0, 0.2)),
        ("barlow_twins", {"lambda_param": 0.7}, barlow_reference(0.7)),
        ("dino", {"center_ema_decay": 0.3}, dino_reference(np.zeros(8))),
        ("none", {}, lambda _: (0.0, {})),
    ],
)
def test_the_configuration_chooses_the_loss_and_its_parameters_but_not_the_weight(
    tiny_config: Callable, name: str, params: dict[str, float], reference: Reference
) -> None:
    config = tiny_config(auxiliary_loss={"type": name, "weight": 17.0, "params": {name: params} if params else {}})
    loss = make_auxiliary_loss(config).train()
    z = embeddings(12, 8)
    value = loss.calculate_reg_terms(torch.tensor(z, dtype=torch.float32))[0]
    assert float(value) == pytest.approx(reference(z)[0], rel=1e-3)
    for key, setting in params.items():
        assert getattr(loss, key) == setting
    if isinstance(loss, DINOLoss):
        np.testing.assert_allclose(loss.center.numpy(), 0.7 * z.mean(axis=0), rtol=1e-4)


# --- what each prevents ---------------------------------------------------------------------------


def optimised(loss: nn.Module, pull: Callable[[Tensor], Tensor], steps: int = 300) -> Tensor:
    """Embeddings (128, 6) of a small encoder trained on `pull(z) + 0.5 * loss`, from a fixed seed."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(128, 10, generator=generator)
    torch.manual_seed(2)
    encoder = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 6))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-2)
    loss.train()
    for _ in range(steps):
        optimizer.zero_grad()
        z = encoder(x)
        (pull(z) + 0.5 * loss.calculate_reg_terms(z)[0]).backward()
        optimizer.step()
    return encoder(x).detach()


def shrink(z: Tensor) -> Tensor:
    """As a prediction loss does: constant embeddings are the easiest to predict."""
    return z.square().mean()


def copy_first(z: Tensor) -> Tensor:
    """All dimensions the same: informative in one direction only."""
    return (z[:, 1:] - z[:, :1]).square().mean()


def largest_correlation(z: Tensor) -> float:
    correlation = torch.corrcoef(z.T)
    return float((correlation - torch.eye(len(correlation))).abs().max())


def test_without_a_regulariser_both_pulls_collapse_the_embeddings() -> None:
    assert float(optimised(NoAuxiliaryLoss(), shrink).std(0).max()) < 0.01
    assert largest_correlation(optimised(NoAuxiliaryLoss(), copy_first)) > 0.99


def test_vicreg_prevents_shrinking_and_copying() -> None:
    z = optimised(VICRegLoss(), shrink)
    assert float(z.std(0).min()) > 0.8
    z = optimised(VICRegLoss(), copy_first)
    assert float(z.std(0).min()) > 0.8
    assert largest_correlation(z) < 0.8


def test_sigreg_prevents_shrinking_and_copying() -> None:
    assert float(optimised(SIGRegLoss(num_directions=64), shrink).std(0).min()) > 0.5
    z = optimised(SIGRegLoss(num_directions=64), copy_first)
    assert float(z.std(0).min()) > 0.5 and largest_correlation(z) < 0.7


def test_vicreg_needs_its_covariance_term_against_copying() -> None:
    assert largest_correlation(optimised(VICRegLoss(cov_coeff=0.0), copy_first)) > 0.99


def test_barlow_twins_prevents_copying_and_constancy_but_not_shrinking() -> None:
    assert largest_correlation(optimised(BarlowTwinsLoss(lambda_param=0.5), copy_first)) < 0.5
    z = optimised(BarlowTwinsLoss(lambda_param=0.5), shrink)
    assert largest_correlation(z) < 0.2
    # Far below the scale at which it began (about 0.5), yet held above zero by the eps.
    assert 1e-3 < float(z.std(0).max()) < 0.3


def test_dino_holds_the_mean_but_not_the_variance() -> None:
    def with_centre() -> DINOLoss:
        loss = DINOLoss(6, center_ema_decay=1.0)
        loss.center.fill_(2.0)
        return loss

    # The pull to the zero vector is resisted: the mean stays near the centre ...
    held, free = optimised(with_centre(), shrink), optimised(NoAuxiliaryLoss(), shrink)
    assert float(held.mean(0).min()) > 0.5
    assert float(free.mean(0).abs().max()) < 0.01
    # ... while every embedding becomes that one vector.
    assert float(held.std(0).max()) < 0.05


def test_dino_slows_the_drift_of_the_mean() -> None:
    def drift(z: Tensor) -> Tensor:
        return -z.mean()

    free, held = (optimised(loss, drift, steps=100) for loss in (NoAuxiliaryLoss(), DINOLoss(6)))
    assert float(held.mean(0).mean()) < 0.5 * float(free.mean(0).mean())


# --- leading axes and several devices ------------------------------------------------------------------

LOSSES = [VICRegLoss(sim_coeff=0.0), BarlowTwinsLoss(), DINOLoss(5), FixedDirections(num_directions=4)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_leading_axes_are_batches_of_their_own_and_averaged(loss: AuxiliaryLoss) -> None:
    z = torch.randn(3, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    loss.eval()
    found, terms = loss.calculate_reg_terms(z)
    parts = [loss.calculate_reg_terms(part) for part in z.flatten(0, 1)]
    torch.testing.assert_close(found, torch.stack([part for part, _ in parts]).mean())
    for name, term in terms.items():
        torch.testing.assert_close(term, torch.stack([part[name] for _, part in parts]).mean())


def test_the_centre_of_dino_moves_once_a_step_to_the_mean_of_all_samples() -> None:
    loss = DINOLoss(3, center_ema_decay=0.9).train()
    z = torch.randn(2, 6, 3)
    loss.calculate_reg_terms(z)
    torch.testing.assert_close(loss.center, 0.1 * z.mean(dim=(0, 1)))


class Threads(Reduction):
    """Two devices played by two threads: each waits for the other's part of the sum."""

    num_devices = 2

    def __init__(self) -> None:
        self.barrier, self.parts = threading.Barrier(2), {}

    def sum(self, values: Tensor) -> Tensor:
        self.parts[threading.get_ident()] = values
        self.barrier.wait()
        total = sum(self.parts[key] for key in sorted(self.parts))
        self.barrier.wait()
        return total


@pytest.mark.parametrize(
    "make", [lambda: VICRegLoss(sim_coeff=0.0), BarlowTwinsLoss, lambda: DINOLoss(5), lambda: FixedDirections(4)]
)
def test_two_devices_give_the_loss_and_the_gradient_of_one(make: Callable[[], AuxiliaryLoss]) -> None:
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole, _ = make().calculate_reg_terms(z)
    (expected,) = torch.autograd.grad(whole, z)
    reduction, losses = Threads(), []

    def device(part: Tensor) -> None:
        loss = make()
        loss.reduction = reduction
        losses.append(loss.calculate_reg_terms(part)[0])

    threads = [threading.Thread(target=device, args=(part,)) for part in z.split(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for loss in losses:
        torch.testing.assert_close(loss, whole)
        torch.testing.assert_close(torch.autograd.grad(loss, z, retain_graph=True)[0], expected)
