"""Success rates with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Z_95 = 1.959963984540054
"""Quantile of the standard normal distribution at 0.975."""


@dataclass(frozen=True)
class Rate:
    """How many of some episodes succeeded.

    Attributes:
        successes: Episodes that did.
        episodes: All, at least 1.
    """

    successes: int
    episodes: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Rate:
        """The rate of outcomes, at least one."""
        counted = [bool(outcome) for outcome in outcomes]
        assert counted, "a rate needs an episode"
        return cls(sum(counted), len(counted))

    @property
    def rate(self) -> float:
        """Share of successes, 0 to 1."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which holds for rates near 0 and 1 and small numbers too (Wilson 1927)."""
        n, p = self.episodes, self.rate
        scale = 1.0 / (1.0 + Z_95**2 / n)
        middle = scale * (p + Z_95**2 / (2 * n))
        half = scale * Z_95 * math.sqrt(p * (1.0 - p) / n + Z_95**2 / (4 * n**2))
        # Rounding must not put the rate itself outside.
        return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        low, high = self.interval
        return {"successes": self.successes, "episodes": self.episodes, "rate": self.rate, "low": low, "high": high}
