"""Collapse diagnostics against plain numpy references, and which clouds raise an alarm."""

import math

import numpy as np
import pytest
import torch

from jepaworld.losses.collapse import CollapseDiagnostics, collapse_diagnostics, judge_collapse


def cloud(n: int = 512, d: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def two_rooms_like(n: int = 1024, d: int = 64) -> np.ndarray:
    """Two degrees of freedom spread over 64 unit-variance dimensions, away from the origin."""
    rng = np.random.default_rng(1)
    position = rng.uniform(-1, 1, size=(n, 2))
    hidden = np.tanh(position @ rng.normal(size=(2, 256)) * 2 + rng.normal(size=256))
    z = hidden @ rng.normal(size=(256, d))
    return (z - z.mean(0)) / z.std(0) + rng.normal(size=d)


def diagnose(z: np.ndarray):
    return collapse_diagnostics(torch.tensor(z, dtype=torch.float32))


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_numbers_equal_a_numpy_reference(shape: tuple[int, int]) -> None:
    z = (cloud(*shape) * np.linspace(0.5, 3, shape[1]) + 0.7).astype(np.float32)
    found = diagnose(z)
    std = z.astype(np.float64).std(axis=0, ddof=1)
    np.testing.assert_allclose(found.std, std, rtol=1e-6)
    np.testing.assert_allclose([found.std_mean, found.std_min, found.std_max], [std.mean(), std.min(), std.max()])
    singular = np.linalg.svd(z.astype(np.float64), compute_uv=False)
    p = singular / singular.sum()
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    singular = np.linalg.svd(z.astype(np.float64) - z.mean(axis=0, dtype=np.float64), compute_uv=False)
    p = singular[singular > singular[0] * 1e-9] / singular.sum()
    assert found.centred_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    cosines = [float(unit[i] @ unit[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    assert found.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    variation = np.sqrt(z.astype(np.float64).var(axis=0).sum() / (z.astype(np.float64) ** 2).sum(axis=1).mean())
    assert found.relative_variation == pytest.approx(variation, rel=1e-6)
    assert found.num_samples == shape[0]


def test_effective_rank_of_equal_directions_is_their_number() -> None:
    z = np.zeros((8, 16))
    z[np.arange(8), np.arange(8) % 4] = 3.0
    assert diagnose(z).effective_rank == pytest.approx(4.0)


@pytest.mark.parametrize(
    "z",
    [
        cloud(),
        cloud() + 3.0,
        cloud() * np.geomspace(0.05, 3, 64),
        two_rooms_like(),
        np.pad(np.random.default_rng(2).uniform(-1, 1, (500, 2)), ((0, 0), (0, 30))),
        np.random.default_rng(2).uniform(-1, 1, (500, 2)) @ cloud(2, 64) + 20.0,
        cloud(512, 1),
        cloud(512, 2) * [1.0, 3.0],
        cloud(8, 256),
        cloud() * 0.02,
        cloud() * 0.02 + 1.0,
    ],
    ids=[
        "white",
        "offset",
        "uneven",
        "two_rooms",
        "linear_in_state",
        "linear_far_away",
        "one_d",
        "two_d",
        "few_samples",
        "small",
        "fresh",
    ],
)
def test_healthy_embeddings_raise_no_alarm(z: np.ndarray) -> None:
    found = diagnose(z)
    assert not found.collapsed and found.reasons == ()


@pytest.mark.parametrize(
    ("z", "word"),
    [
        (np.full((100, 64), 0.3), "Scale"),
        (np.zeros((100, 64)), "Scale"),
        (cloud() * 1e-4, "standard deviation"),
        (two_rooms_like() * 1e-4, "standard deviation"),
        (cloud() * 1e-3 + 5.0, "same way"),
        (cloud() * 0.015 + 5.0, "of the embedding's length"),
        (cloud(512, 1) * cloud(1, 64), "Dimensional"),
        (cloud(512, 1) * cloud(1, 64) + 2.0, "Dimensional"),
        (np.concatenate([cloud(4096, 3), np.zeros((4096, 253))], axis=1), "Dimensional"),
        (np.where(np.arange(64) == 0, np.nan, cloud(16)), "NaN"),
    ],
    ids=[
        "constant",
        "zero",
        "shrunk",
        "shrunk_2",
        "noisy_constant",
        "relative",
        "line",
        "line_offset",
        "wide",
        "nan",
    ],
)
def test_collapsed_embeddings_raise_an_alarm(z: np.ndarray, word: str) -> None:
    found = diagnose(z)
    assert found.collapsed
    assert any(word in reason for reason in found.reasons), found.reasons


def test_standardised_structure_is_unchanged_by_shrinking_but_the_verdict_is_not() -> None:
    healthy, shrunk = diagnose(cloud()), diagnose(cloud() * 1e-4)
    assert shrunk.effective_rank == pytest.approx(healthy.effective_rank, rel=1e-6)
    assert shrunk.mean_cosine == pytest.approx(healthy.mean_cosine, abs=1e-6)
    assert (healthy.collapsed, shrunk.collapsed) == (False, True)


def test_constant_embedding_has_rank_one() -> None:
    assert diagnose(np.full((100, 64), 0.3)).effective_rank == pytest.approx(1.0, abs=1e-3)
    assert diagnose(cloud() * 1e-6 + 1.0).effective_rank < 1.01


def test_metrics_have_the_names_of_the_log_and_plain_values() -> None:
    found = diagnose(cloud())
    assert found.as_metrics() == {
        "collapse/std_mean": found.std_mean,
        "collapse/std_min": found.std_min,
        "collapse/effective_rank": found.effective_rank,
        "collapse/mean_cosine": found.mean_cosine,
        "collapse/collapsed": False,
    }
    assert {type(value) for value in found.as_metrics().values()} == {float, bool}


def test_embeddings_that_are_not_finite_leave_a_log_without_numbers() -> None:
    found = diagnose(np.where(np.arange(64) == 0, np.nan, cloud(16)))
    assert found.as_metrics() == {"collapse/collapsed": True} and not found.finite
    written = found.model_dump_json()
    assert "NaN" not in written.replace("contain NaN", "") and math.isnan(
        CollapseDiagnostics.model_validate_json(written).std_mean
    )


def test_tokens_are_judged_by_their_mean_and_half_precision_is_accepted() -> None:
    z = torch.tensor(cloud(64, 12)).reshape(64, 3, 4).to(torch.bfloat16)
    found = collapse_diagnostics(z.requires_grad_())
    assert found == collapse_diagnostics(z.detach().double().mean(dim=1))
    # Tokens that differ by their place alone say nothing about the picture.
    same = torch.tensor(cloud(1, 12)).reshape(1, 3, 4).expand(64, 3, 4)
    assert collapse_diagnostics(same).collapsed


class Line(torch.nn.Module):
    """Embeds a picture's brightness on a line of size 0.03 beside a mean of 1: rank 1."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = torch.nn.Linear(1, 64)
        with torch.no_grad():
            self.linear.weight.copy_(0.03 * torch.randn(64, 1, generator=generator))
            self.linear.bias.copy_(1.0 + 0.3 * torch.randn(64, generator=generator))
        self.dropout = torch.nn.Dropout(0.5)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        brightness = frames.float().flatten(2).mean(dim=2, keepdim=True) / 128.0 - 1.0
        return self.dropout(self.linear(brightness))

    def encode_online(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.randn(*frames.shape[:2], 64)

    encode_target = encode_online


def test_the_judgement_is_in_float32_on_what_the_predictor_takes_in_eval_mode() -> None:
    frames = torch.randint(0, 256, (300, 1, 1, 1), dtype=torch.uint8)
    model = Line().train()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = collapse_diagnostics(model.eval().encode(frames[:, None])[:, 0])
        found = judge_collapse(model.train(), frames, batch_size=64)
    assert rounded.centred_rank > 2 and not rounded.collapsed, "in bfloat16 the alarm cannot sound"
    assert found.centred_rank < 1.01 and found.collapsed and "Dimensional" in found.verdict
    assert model.training and model.dropout.training
    assert not diagnose(cloud()).collapsed and "apart" in diagnose(cloud()).verdict
