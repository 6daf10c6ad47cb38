"""How well predictions fit what is true, with intervals over episodes.

Shapes: N frames, K columns, V entries of the state (an angle has two columns), E episodes. Everything in float64.

Frames of an episode are alike, so that intervals are drawn over episodes and never over frames.
"""

from __future__ import annotations

import numpy as np
import torch

RESAMPLES = 2000
"""Bootstrap resamples: the ends of a 95 % interval then rest on 50 resamples each."""


def r2_score(y: np.ndarray, y_hat: np.ndarray, starts: np.ndarray | None = None) -> list[float | None]:
    """Coefficient of determination of each entry, against the mean of `y` itself.

    Args:
        y: (N, K) or (N,) true values, held out.
        y_hat: Same shape, predictions.
        starts: (V,) first column of each entry; an entry of several columns has one R² of all of them together. None
            takes each column for an entry.

    Returns:
        V values of at most 1; None where `y` is constant, so that there is nothing to explain, or not finite.
    """
    y, y_hat = as_matrix(y), as_matrix(y_hat)
    assert y.shape == y_hat.shape
    residual = by_entry(((y - y_hat) ** 2).sum(axis=0), starts)
    total = by_entry(((y - y.mean(axis=0)) ** 2).sum(axis=0), starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(varying_entries(y, starts), 1.0 - residual / total, np.nan)
    return [float(score) if np.isfinite(score) else None for score in scores]


def bootstrap_r2(
    y: np.ndarray, y_hat: np.ndarray, owners: np.ndarray, *, starts: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """R² of resampled held-out episodes, drawn with replacement, all frames of a drawn episode together.

    Args:
        y: (N, K) true values.
        y_hat: (N, K) predictions.
        owners: (N,) episode of each frame.
        starts: As of `r2_score`.
        seed: Seed of the draws.

    Returns:
        (RESAMPLES, V); NaN where all drawn episodes together are constant, and of a single one, which tells no spread.
    """
    y, y_hat = as_matrix(y), as_matrix(y_hat)
    y, y_hat = y - y.mean(axis=0), y_hat - y.mean(axis=0)
    frames = episode_sums(np.ones((len(y), 1)), owners)
    drawn = resample_counts(len(frames), seed=seed)
    residual = by_entry(drawn @ episode_sums((y - y_hat) ** 2, owners), starts)
    mean_squared = (drawn @ episode_sums(y, owners)) ** 2 / (drawn @ frames)
    total = by_entry(drawn @ episode_sums(y**2, owners) - mean_squared, starts)
    unknown = (total <= 1e-12 * by_entry((y**2).sum(axis=0), starts)) | (len(frames) < 2)
    return np.where(unknown, np.nan, 1.0 - residual / np.where(unknown, 1.0, total))


def episode_sums(values: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Sums (E, K) of values (N, K) over each episode, given that of each row (N,)."""
    episodes, codes = np.unique(owners, return_inverse=True)
    sums = np.zeros((len(episodes), values.shape[1]))
    np.add.at(sums, codes, values)
    return sums


def resample_counts(episodes: int, *, seed: int = 0) -> np.ndarray:
    """How often each episode is drawn in each bootstrap resample: float64 (RESAMPLES, episodes)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(episodes, np.full(episodes, 1.0 / episodes), size=RESAMPLES).astype(np.float64)


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


def by_entry(columns: np.ndarray, starts: np.ndarray | None) -> np.ndarray:
    """Sums over the columns (..., K) of each entry: float64 (..., V)."""
    columns = np.asarray(columns, dtype=np.float64)
    return columns if starts is None else np.add.reduceat(columns, starts, axis=-1)


def constant_columns(values: np.ndarray) -> np.ndarray:
    """Which columns of (N, K) do not change by more than float32 rounding."""
    return np.ptp(values, axis=0) <= 1e-6 * np.abs(values).max(axis=0)


def varying_entries(values: np.ndarray, starts: np.ndarray | None) -> np.ndarray:
    """Which entries (V,) change in a column at least, of values (N, K)."""
    return by_entry(~constant_columns(values), starts) > 0
