"""Success rates with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from jepaworld.evaluation.scores import interval_95, resample_counts

Z_95 = 1.959963984540054
"""Quantile of the standard normal distribution at 0.975."""


class Rate(BaseModel):
    """Share of episodes that succeeded, with a 95 % interval.

    Attributes:
        successes: Episodes that did.
        episodes: All, at least 1.
        rate: Share of successes, 0 to 1.
        low: Lower end of the interval.
        high: Upper end.
        interval: "wilson": Wilson's interval, which takes episodes for independent. "bootstrap": where several tasks
            come from one recorded episode and are alike, the wider of Wilson's and that of resampled recordings.

    Example:
        >>> rate = Rate.of([True, True, False])
        >>> rate.rate, round(rate.low, 2), round(rate.high, 2)
        (0.6666666666666666, 0.21, 0.94)
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

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
        low, high = wilson(successes, episodes)
        kind: Literal["wilson", "bootstrap"] = "wilson"
        if len(set(owners)) < len(owners) and None not in owners:
            kind = "bootstrap"
            # With all or none reached, every resample is the same: Wilson's interval is then the wider one.
            resampled = _resampled_rates(np.asarray(outcomes, np.float64), np.asarray(owners))
            ends = interval_95(resampled)
            assert ends is not None, "rates are finite"
            low, high = min(low, ends[0]), max(high, ends[1])
        rate = successes / episodes
        return cls(successes=successes, episodes=episodes, rate=rate, low=low, high=high, interval=kind)


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % interval, which holds for rates near 0 and 1 and small numbers too (Wilson 1927)."""
    n, p = episodes, successes / episodes
    scale = 1.0 / (1.0 + Z_95**2 / n)
    middle = scale * (p + Z_95**2 / (2 * n))
    half = scale * Z_95 * math.sqrt(p * (1.0 - p) / n + Z_95**2 / (4 * n**2))
    # Rounding must not put the rate itself outside.
    return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))


def _resampled_rates(outcomes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Rates over recorded episodes drawn with replacement, all tasks of a drawn one together: (resamples,)."""
    _, codes = np.unique(owners, return_inverse=True)
    drawn = resample_counts(int(codes.max()) + 1)
    return drawn @ np.bincount(codes, outcomes) / (drawn @ np.bincount(codes))
