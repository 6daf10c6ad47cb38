"""The noise of candidates has the correlation and the spectrum that it should."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from jepaworld.planning import PlanSpace
from jepaworld.planning.noise import ar1_mixing, plan_noise, power_law_mixing


def _draw(mixing: torch.Tensor, space: PlanSpace, count: int = 8000) -> np.ndarray:
    """Noise as environment steps: (count, T, a)."""
    noise = plan_noise(space, count // 2, mixing, [torch.Generator().manual_seed(n) for n in range(2)])
    assert noise.shape == (2, count // 2, len(mixing) // space.frame_skipping, space.width)
    return noise.reshape(count, len(mixing), space.entries).numpy()


@pytest.mark.parametrize("smoothness", [0.0, 0.8])
def test_ar1_correlation_across_steps_and_blocks(smoothness) -> None:
    space = PlanSpace.of(Box(-1, 1, (2,)), 3)  # blocks of 3 steps of 2 entries
    noise = _draw(ar1_mixing(12, smoothness), space)
    expected = smoothness ** np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    for entry in range(2):
        np.testing.assert_allclose(np.cov(noise[:, :, entry].T), expected, atol=0.06)
    between = noise[:, :, 0].T @ noise[:, :, 1] / len(noise)
    np.testing.assert_allclose(between, 0.0, atol=0.06)


@pytest.mark.parametrize("steps", [1, 2, 15, 16])
@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_power_law_spectrum_of_unit_variance(steps, exponent) -> None:
    noise = _draw(power_law_mixing(steps, exponent), PlanSpace.of(Box(-1, 1, (1,))))[:, :, 0]
    np.testing.assert_allclose(noise.var(axis=0), 1.0, atol=0.08)
    power = (np.abs(np.fft.rfft(noise, axis=1)) ** 2).mean(axis=0)
    frequency = np.maximum(np.fft.rfftfreq(steps), 1 / steps)
    expected = frequency**-exponent
    np.testing.assert_allclose(power / power.mean(), expected / expected.mean(), rtol=0.08)


def test_no_noise_is_white_only_by_name() -> None:
    torch.testing.assert_close(ar1_mixing(5, 0.0), torch.eye(5))
    white = power_law_mixing(6, 0.0)
    torch.testing.assert_close(white.T @ white, torch.eye(6), atol=1e-6, rtol=0.0)
