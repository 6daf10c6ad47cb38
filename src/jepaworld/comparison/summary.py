"""What runs of one setting show together: means with intervals over training seeds and tasks.

Shapes: R resamples, S training seeds, T tasks, E recorded episodes that tasks come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jepaworld.comparison.cell import CellResult, Measure
from jepaworld.comparison.grid import Cell
from jepaworld.evaluation.scores import RESAMPLES, Z_95, interval_95, resample_counts, wilson


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def rate(self) -> float:
        """The value, for `utils.text.share`."""
        return self.value

    @property
    def ends(self) -> tuple[float, float]:
        """The interval."""
        return self.low, self.high


class Outcome(NamedTuple):
    """A cell with what came of it: a result, or the reason why there is none."""

    cell: Cell
    result: CellResult | None
    error: str | None = None

    @property
    def status(self) -> str:
        """For people."""
        return "finished" if self.result else "failed" if self.error else "not finished"


class Summary(NamedTuple):
    """A setting over its finished seeds; estimates are None if there are none, or nothing was measured.

    Attributes:
        setting: The varied settings and their values.
        runs: All its cells.
        reached: Share of goals reached at any time.
        ended: Share of tasks that ended at the goal.
        behind: How much larger the share of the best setting is; None of the best itself.
        linear: R² of linear probes by state variable.
        mlp: R² of MLPs.
        effective_rank: Of the embeddings.
        collapsed: Runs whose embedding collapsed.
        imagination: Error at the last imagined step.
        minutes: Of training.
        parameters: Trained parameters of the model.
    """

    setting: Mapping[str, Any]
    runs: Sequence[Outcome]
    reached: Estimate | None = None
    ended: Estimate | None = None
    behind: Estimate | None = None
    linear: Mapping[str, Estimate] = {}
    mlp: Mapping[str, Estimate] = {}
    effective_rank: Estimate | None = None
    collapsed: int = 0
    imagination: Estimate | None = None
    minutes: Estimate | None = None
    parameters: int | None = None

    @property
    def results(self) -> list[CellResult]:
        """Of the finished runs."""
        return [run.result for run in self.runs if run.result is not None]

    @property
    def rates(self) -> list[float]:
        """Share of goals that each finished run reached."""
        return [float(np.mean(result.reached)) for result in self.results]


def summarise(runs: Sequence[Outcome]) -> list[Summary]:
    """A summary of each setting, in the order of the grid."""
    grouped: dict[str, list[Outcome]] = {}
    for run in runs:
        grouped.setdefault(repr(run.cell.setting), []).append(run)
    settings = [_summary(runs, place) for place, runs in enumerate(grouped.values())]
    best = max((s for s in settings if s.reached), key=lambda s: s.reached.value if s.reached else 0.0, default=None)
    if best is None:
        return settings
    return [
        one if one is best else one._replace(behind=_behind(best, settings.index(best), one, place))
        for place, one in enumerate(settings)
    ]


def _summary(runs: Sequence[Outcome], place: int) -> Summary:
    summary = Summary(runs[0].cell.setting, runs)
    found = summary.results
    if not found:
        return summary
    weights = _seed_weights(len(found), place)

    def success(outcomes: list[list[bool]]) -> Estimate:
        rate, tasks = float(np.mean(outcomes)), len(found[0].owners)
        # As for one run: with all or none reached every resample is the same, and Wilson's interval is the wider one.
        wide = wilson(round(rate * tasks * len(found)), tasks * len(found))
        low, high = interval_95(_success_draws(outcomes, found[0].owners, weights)) or wide
        return Estimate(rate, min(low, wide[0]), max(high, wide[1]))

    def probes(kind: str) -> dict[str, Estimate]:
        readings: list[dict[str, Measure]] = [getattr(one, kind) for one in found]
        names = [name for name in readings[0] if all(name in one for one in readings)]
        means = {name: _mean([one[name] for one in readings], weights) for name in names}
        return {name: mean for name, mean in means.items() if mean is not None}

    minutes = [Measure(value=sum(one.seconds.values()) / 60) for one in found]
    return summary._replace(
        reached=success([one.reached for one in found]),
        ended=success([one.ended for one in found]),
        linear=probes("linear"),
        mlp=probes("mlp"),
        effective_rank=_mean([Measure(value=one.effective_rank) for one in found], weights),
        collapsed=sum(one.collapsed for one in found),
        imagination=_mean([one.imagination for one in found], weights),
        minutes=_mean(minutes, weights),
        parameters=found[0].parameters,
    )


def _seed_weights(seeds: int, place: int) -> np.ndarray:
    """How much each seed counts in each resample, in sum 1: (R, S); settings are drawn independently.

    One seed fewer than there are is drawn: with all of them the spread of the mean would come out too small by the
    factor sqrt((S - 1) / S), which is 0.82 for three seeds (Rao and Wu 1988).
    """
    if seeds == 1:
        return np.ones((RESAMPLES, 1))
    rng = np.random.default_rng((1, place))
    return rng.multinomial(seeds - 1, np.full(seeds, 1.0 / seeds), size=RESAMPLES) / (seeds - 1)


def _success_draws(outcomes: Sequence[Sequence[bool]], owners: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """Mean success over resampled seeds and resampled episodes, all tasks of a drawn one together: (R,)."""
    _, codes = np.unique(owners, return_inverse=True)
    episodes = int(codes.max()) + 1
    reached = np.stack([np.bincount(codes, np.asarray(one, float), minlength=episodes) for one in outcomes])  # (S, E)
    # The same episodes for every setting, so that differences between settings are paired.
    drawn = resample_counts(episodes)  # (R, E)
    return ((weights @ reached) * drawn).sum(axis=1) / (drawn @ np.bincount(codes))


def _mean(values: Sequence[Measure], weights: np.ndarray) -> Estimate | None:
    """Mean over seeds; the interval is over seeds and, where each run has one, over episodes.

    Held-out episodes are the same for all seeds, so that they shift all runs together: one draw for all.
    """
    value, low, high = np.array([(one.value, one.low, one.high) for one in values]).T
    if not np.isfinite(value).all():
        return None
    if len(values) == 1:
        return Estimate(float(value[0]), float(low[0]), float(high[0]))
    shift = np.random.default_rng(0).standard_normal((RESAMPLES, 1))
    side = np.where(shift < 0.0, value - low, high - value)  # intervals of R² are longer below
    draws = (weights * (value + shift * np.nan_to_num(side) / Z_95)).sum(axis=1)
    return Estimate(float(value.mean()), *(interval_95(draws) or ()))


def _behind(best: Summary, best_place: int, other: Summary, place: int) -> Estimate | None:
    """How much higher the best setting's success is; paired where both were given the same tasks."""
    first, second = best.results, other.results
    if not second:
        return None
    draws = [
        _success_draws([one.reached for one in found], found[0].owners, _seed_weights(len(found), at))
        for found, at in ((first, best_place), (second, place))
    ]
    if _tasks(best) != _tasks(other):
        draws[1] = np.roll(draws[1], 1)  # resample i of one and i + 1 of the other have nothing in common
    assert best.reached is not None and other.reached is not None
    low, high = interval_95(draws[0] - draws[1]) or (math.nan, math.nan)
    return Estimate(best.reached.value - other.reached.value, low, high)


def _tasks(summary: Summary) -> tuple[Any, ...]:
    """What tells tasks apart: the data that they come from, and how they were drawn."""
    config, found = summary.runs[0].cell.config, summary.results[0]
    return config.load_dataset_path or config.dataset_dir, found.protocol, found.owners
