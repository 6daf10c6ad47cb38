"""How well predictions fit what is true, and how often something succeeds, with intervals over episodes.

Shapes: N frames, K columns, V entries of the state (an angle has two columns), E episodes. Everything in float64.

Frames of an episode are alike, so that intervals are drawn over episodes and never over frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field

from jepaworld.utils.records import Record

RESAMPLES = 2000
"""Bootstrap resamples: the ends of a 95 % interval then rest on 50 resamples each."""

Z_95 = 1.959963984540054
"""Quantile of the standard normal distribution at 0.975."""


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


class Rate(Record, allow_inf_nan=False):
    """Share of episodes that succeeded, with a 95 % interval.

    The interval is Wilson's, which takes episodes for independent. Where several tasks come from one recorded episode,
    and are alike, it is the wider of Wilson's and that of resampled recordings ("bootstrap").

    Example:
        >>> rate = Rate.of([True, True, False])
        >>> rate.rate, round(rate.low, 2), round(rate.high, 2)
        (0.6666666666666666, 0.21, 0.94)
    """

    successes: int = Field(ge=0)
    episodes: int = Field(ge=1)
    rate: float = Field(ge=0.0, le=1.0)
    low: float = Field(ge=0.0, le=1.0)
    high: float = Field(ge=0.0, le=1.0)
    interval: Literal["wilson", "bootstrap"] = "wilson"

    @classmethod
    def of(cls, outcomes: Sequence[bool], owners: Sequence[int | None] = ()) -> Self:
        """The rate of some episodes.

        Args:
            outcomes: Whether each succeeded, at least one.
            owners: The recorded episode that each one's start and goal come from, if they do.
        """
        successes, episodes = sum(map(bool, outcomes)), len(outcomes)
        ends, alike = wilson(successes, episodes), len(set(owners)) < len(owners) and None not in owners
        if alike:
            counted = episode_sums(np.column_stack([outcomes, np.ones(episodes)]), np.asarray(owners))
            reached, played = (resample_counts(len(counted)) @ counted).T
            # With all or none reached, every resample is the same: Wilson's interval is then the wider one.
            low, high = interval_95(reached / played) or ends
            ends = min(ends[0], low), max(ends[1], high)
        return cls(
            successes=successes,
            episodes=episodes,
            rate=successes / episodes,
            low=ends[0],
            high=ends[1],
            interval="bootstrap" if alike else "wilson",
        )


class Spread(Record, allow_inf_nan=False):
    """Rates of the same tasks, played with several streams of random numbers, and their mean with a 95 % interval.

    The interval is over tasks: those of a recorded episode are drawn together, with all their streams. How far `rates`
    lie apart says what the random numbers alone decide. Where all tasks came out alike, resampling has no width, and
    Wilson's interval is taken.

    Example:
        >>> Spread.of([[True, False], [True, True]]).rates
        [0.5, 1.0]
    """

    rates: list[float]  # of each stream
    mean: float = Field(ge=0.0, le=1.0)
    low: float = Field(ge=0.0, le=1.0)
    high: float = Field(ge=0.0, le=1.0)

    @classmethod
    def of(cls, outcomes: Sequence[Sequence[bool]], owners: Sequence[int | None] = ()) -> Self:
        """The spread of outcomes (streams, tasks); `owners` as of `Rate.of`."""
        reached = np.array(outcomes, np.float64)
        tasks, each = reached.shape[1], reached.mean(axis=0)
        alone = not owners or None in owners
        codes = np.arange(tasks) if alone else np.asarray(owners)
        counted = episode_sums(np.column_stack([each, np.ones(tasks)]), codes)
        total, played = (resample_counts(len(counted)) @ counted).T
        ends = interval_95(total / played) if np.ptp(each) else None
        low, high = ends or wilson(float(each.sum()), tasks)
        return cls(rates=reached.mean(axis=1).tolist(), mean=float(each.mean()), low=low, high=high)


def wilson(successes: float, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % interval, which holds for rates near 0 and 1 and small numbers too (Wilson 1927)."""
    n, p = episodes, successes / episodes
    scale = 1.0 / (1.0 + Z_95**2 / n)
    middle = scale * (p + Z_95**2 / (2 * n))
    half = scale * Z_95 * math.sqrt(p * (1.0 - p) / n + Z_95**2 / (4 * n**2))
    # Rounding must not put the rate itself outside.
    return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))


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
