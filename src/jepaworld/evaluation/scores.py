"""How well predictions fit what is true, with intervals over episodes.

Shapes: N frames, K variables, E episodes. Everything in float64.

Frames of an episode are alike, so that intervals are drawn over episodes and never over frames.
"""

from __future__ import annotations

import numpy as np
import torch

RESAMPLES = 2000
"""Bootstrap resamples: the ends of a 95 % interval then rest on 50 resamples each."""


def r2_score(y: np.ndarray, y_hat: np.ndarray) -> list[float | None]:
    """Coefficient of determination of each variable, against the mean of `y` itself.

    Args:
        y: (N, K) or (N,) true values, held out.
        y_hat: Same shape, predictions.

    Returns:
        K values of at most 1; None where `y` is constant, so that there is nothing to explain.
    """
    y, y_hat = as_matrix(y), as_matrix(y_hat)
    assert y.shape == y_hat.shape
    residual = ((y - y_hat) ** 2).sum(axis=0)
    total = ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    constant = constant_columns(y)
    return [None if constant[k] else float(1.0 - residual[k] / total[k]) for k in range(y.shape[1])]


def bootstrap_r2(
    y: np.ndarray, y_hat: np.ndarray, owners: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """R² of resampled held-out episodes, drawn with replacement, all frames of a drawn episode together.

    Args:
        y: (N, K) true values.
        y_hat: (N, K) predictions.
        owners: (N,) episode of each frame.
        seed: Seed of the draws.
        resamples: How many.

    Returns:
        (resamples, K); NaN where all drawn episodes together are constant.
    """
    y, y_hat = as_matrix(y), as_matrix(y_hat)
    y, y_hat = y - y.mean(axis=0), y_hat - y.mean(axis=0)
    _, codes = np.unique(owners, return_inverse=True)
    episodes = int(codes.max()) + 1

    def per_episode(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((episodes, values.shape[1]))
        np.add.at(sums, codes, values)
        return sums

    drawn = resample_counts(episodes, seed=seed, resamples=resamples)
    count = drawn @ np.bincount(codes)[:, None]
    residual = drawn @ per_episode((y - y_hat) ** 2)
    total = drawn @ per_episode(y**2) - (drawn @ per_episode(y)) ** 2 / count
    constant = total <= 1e-12 * (y**2).sum(axis=0)
    return np.where(constant, np.nan, 1.0 - residual / np.where(constant, 1.0, total))


def resample_counts(episodes: int, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each episode is drawn in each bootstrap resample: float64 (resamples, episodes)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(episodes, np.full(episodes, 1.0 / episodes), size=resamples).astype(np.float64)


def interval_95(resampled: np.ndarray) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentile of bootstrap values (resamples,); None if none of them is finite."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def as_matrix(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Values (N, ...) flattened to float64 (N, K); tensors may be on any device."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array.astype(np.float64).reshape(len(array), -1)


def constant_columns(values: np.ndarray) -> np.ndarray:
    """Which columns of (N, K) do not change by more than float32 rounding."""
    return np.ptp(values, axis=0) <= 1e-6 * np.abs(values).max(axis=0)
