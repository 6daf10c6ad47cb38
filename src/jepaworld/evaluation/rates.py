"""Success rates with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field

from jepaworld.evaluation.scores import episode_sums, interval_95, resample_counts
from jepaworld.utils.records import Record

Z_95 = 1.959963984540054
"""Quantile of the standard normal distribution at 0.975."""


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


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Wilson's 95 % interval, which holds for rates near 0 and 1 and small numbers too (Wilson 1927)."""
    n, p = episodes, successes / episodes
    scale = 1.0 / (1.0 + Z_95**2 / n)
    middle = scale * (p + Z_95**2 / (2 * n))
    half = scale * Z_95 * math.sqrt(p * (1.0 - p) / n + Z_95**2 / (4 * n**2))
    # Rounding must not put the rate itself outside.
    return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))
