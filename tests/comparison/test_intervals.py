"""Intervals over seeds and tasks: as wide as they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jepaworld.comparison.cell import CellResult, Measure
from jepaworld.comparison.page import findings
from jepaworld.comparison.summary import Outcome, Summary, summarise
from jepaworld.evaluation.scores import wilson
from tests.comparison.conftest import Grid, a_result, outcomes


def of(grid: Grid, *settings: list[CellResult]) -> list[Summary]:
    """Summaries of settings, with a result for each seed."""
    cells = grid({"latent_dim": list(range(1, len(settings) + 1))}, seeds=max(map(len, settings)))
    results = [result for results in settings for result in results]
    return summarise([Outcome(cell, result) for cell, result in zip(cells, results, strict=True)])


def test_a_single_run_has_its_own_figures(grid: Grid) -> None:
    (one,) = of(grid, [a_result([True] * 8 + [False] * 2)])
    assert one.reached is not None and one.reached.value == 0.8
    assert one.linear["state"] == (0.5, 0.4, 0.55)
    assert one.imagination == (0.25, 0.2, 0.3)
    assert one.effective_rank is not None and one.effective_rank.value == 3.5 and math.isnan(one.effective_rank.low)
    assert one.minutes is not None and one.minutes.value == 2.0 and one.parameters == 1234


def test_all_reached_keeps_an_interval(grid: Grid) -> None:
    (one,) = of(grid, [a_result([True] * 20), a_result([True] * 20)])
    assert one.reached == (1.0, pytest.approx(wilson(40, 40)[0]), 1.0)


def test_seeds_that_differ_make_the_interval_wider(grid: Grid) -> None:
    alike, apart = ([a_result(outcomes(rate, 200, i)) for i, rate in enumerate(rates)] for rates in ([0.5] * 4, EDGES))
    narrow, wide = (of(grid, results)[0].reached for results in (alike, apart))
    assert narrow is not None and wide is not None
    assert narrow.high - narrow.low < 0.12 < 0.5 < wide.high - wide.low


EDGES = [0.05, 0.95, 0.05, 0.95]


def test_the_spread_of_the_mean_over_seeds_is_not_underestimated(grid: Grid) -> None:
    """Ranks of five seeds: the interval is that of their standard error, not of a bootstrap that is too narrow."""
    ranks = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    (one,) = of(grid, [a_result(effective_rank=rank) for rank in ranks])
    assert one.effective_rank is not None
    error = ranks.std(ddof=1) / math.sqrt(len(ranks))
    assert (one.effective_rank.high - one.effective_rank.low) / (2 * 1.96 * error) == pytest.approx(1.0, abs=0.06)


def test_tasks_of_one_episode_are_not_counted_as_independent(grid: Grid) -> None:
    reached = [task < 50 for task in range(100)]
    together, apart = (
        [a_result(reached, owners=[task // 25 * each + task * (1 - each) for task in range(100)])] for each in (1, 0)
    )
    wide, narrow = (of(grid, results)[0].reached for results in (together, apart))
    assert wide is not None and narrow is not None
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_difference_is_taken_task_by_task(grid: Grid) -> None:
    hard = outcomes(0.5, 300, 0)
    better = [task or place % 20 == 0 for place, task in enumerate(hard)]
    first, second = of(grid, [a_result(hard)], [a_result(better)])
    assert second.behind is None and first.behind is not None
    assert first.behind.value == pytest.approx(np.mean(better) - np.mean(hard))
    assert first.behind.low > 0.0, "paired, although the two intervals overlap"
    assert first.reached is not None and second.reached is not None and first.reached.high > second.reached.low
    unpaired, _ = of(grid, [a_result(hard)], [a_result(better, protocol="other tasks")])
    assert unpaired.behind is not None and unpaired.behind.low < 0.0


def test_intervals_of_runs_shift_all_seeds_together(grid: Grid) -> None:
    """Held-out episodes are the same, so that more seeds do not make their part of the interval smaller."""
    results = [a_result(linear={"state": Measure(value=0.5, low=0.3, high=0.6)}) for _ in range(4)]
    (one,) = of(grid, results)
    assert one.linear["state"] == (0.5, pytest.approx(0.3, abs=0.02), pytest.approx(0.6, abs=0.02))


def test_what_has_not_finished_is_left_out(grid: Grid) -> None:
    cells = grid({"latent_dim": [4, 8]}, seeds=2)
    runs = [
        Outcome(cells[0], a_result([True, True])),
        Outcome(cells[1], None, "it broke"),
        Outcome(cells[2], None),
        Outcome(cells[3], None),
    ]
    first, second = summarise(runs)
    assert first.reached is not None and first.reached.value == 1.0 and len(first.results) == 1
    assert second.reached is None and second.behind is None
    assert [run.status for run in runs] == ["finished", "failed", "not finished", "not finished"]


def test_findings_name_what_is_behind_and_what_cannot_be_told_apart(grid: Grid) -> None:
    high, same, low = (
        a_result(outcomes(rate, 200, seed), collapsed=rate < 0.5) for rate, seed in ((0.9, 1), (0.9, 2), (0.1, 3))
    )
    text = list(findings(of(grid, [high], [same], [low])))
    best = "latent_dim=1" if np.mean(high.reached) >= np.mean(same.reached) else "latent_dim=2"
    alike = {"latent_dim=1": "latent_dim=2", "latent_dim=2": "latent_dim=1"}[best]
    assert text[0].startswith(best) and text[1].startswith("latent_dim=3 is behind") and alike in text[2]
    assert "latent_dim=3" in text[3] and "collapsed in 1 of 1" in text[3]
