"""A comparison as a page, as a table for other programs, and as one for the terminal."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jepaworld.comparison.grid import in_words, value_text
from jepaworld.comparison.processes import log_file
from jepaworld.comparison.summary import Estimate, Outcome, Summary, summarise
from jepaworld.config.loading import dump_yaml
from jepaworld.report.page import template
from jepaworld.utils import text
from jepaworld.utils.storage import atomic_write_text
from jepaworld.utils.text import columns, number, percent, share, wrapped

ESTIMATES = {
    "success": "reached",
    "success_at_end": "ended",
    "behind_best": "behind",
    "effective_rank": "effective_rank",
    "imagination_error": "imagination",
    "minutes": "minutes",
}
"""Columns of the table that have an interval, and what they are of."""


def write_page(path: Path, settings: Sequence[Summary], name: str, jobs: int) -> None:
    """Write the page: one file without scripts that loads nothing from elsewhere."""
    runs = [run for setting in settings for run in setting.runs]
    results = [run.result for run in runs if run.result is not None]
    page = template("comparison.html", value_text, in_words, estimate, difference).render(
        name=name or runs[0].cell.config.environment_name,
        settings=settings,
        runs=[(run, summarise([run])[0], _links(run, path.parent)) for run in runs],
        finished=len(results),
        failed=sum(run.status == "failed" for run in runs),
        findings=list(findings(settings)),
        keys=list(settings[0].setting),
        probes=_best_read_first(settings),
        steps=sorted({result.imagined_steps for result in results}),
        protocols=list(dict.fromkeys(result.protocol for result in results)),
        devices=list(dict.fromkeys(result.device for result in results)),
        random=[result.random for result in results if math.isfinite(result.random)],
        datasets=len({(run.cell.config.load_dataset_path, run.cell.config.dataset_dir) for run in runs}),
        config=runs[0].cell.config,
        configuration=dump_yaml(runs[0].cell.config.to_dict()),
        jobs=jobs,
    )
    atomic_write_text(path, page)


def estimate(found: Estimate | None) -> str:
    """A number with its interval, if it has one."""
    if found is None:
        return "n/a"
    return text.with_interval(found.value, found.ends) if math.isfinite(found.low) else number(found.value)


def difference(found: Estimate | None) -> str:
    """A difference of shares in points of percent."""
    return "" if found is None else f"{percent(found.value)} ({percent(found.low)} to {percent(found.high)})"


def findings(settings: Sequence[Summary]) -> Iterator[str]:
    """What the figures say, in sentences: the best setting, what is behind it, what cannot be told apart."""
    measured = [one for one in settings if one.reached is not None]
    best = next((one for one in measured if one.behind is None), None)
    if best is None or best.reached is None:
        yield "No run has finished yet."
        return
    yield f"{in_words(best.setting)} reaches {share(best.reached)} of its goals."
    others = [one for one in measured if one is not best and one.behind is not None]
    behind = [one for one in others if one.behind is not None and one.behind.low > 0.0]
    for one in behind:
        yield f"{in_words(one.setting)} is behind it by {difference(one.behind)} points."
    if alike := [in_words(one.setting) for one in others if one not in behind]:
        yield f"Not told apart from it by these tasks and seeds: {'; '.join(alike)}."
    for one in measured:
        if one.collapsed:
            yield f"{in_words(one.setting)}: the embedding collapsed in {one.collapsed} of {len(one.results)} runs."


def _best_read_first(settings: Sequence[Summary]) -> list[str]:
    """State variables, so that one which no frame shows does not come first."""
    best: dict[str, float] = {}
    for name, found in (item for one in settings for item in one.linear.items()):
        best[name] = max(found.value, best.get(name, -math.inf))
    return sorted(best, key=lambda name: -best[name])


def _links(run: Outcome, folder: Path) -> dict[str, str]:
    """Report and log of a run, from the page on, as far as they are there."""
    files = {"report": run.cell.run / "report.html", "log": log_file(run.cell, folder)}
    return {name: Path(os.path.relpath(file, folder)).as_posix() for name, file in files.items() if file.is_file()}


def write_table(path: Path, settings: Sequence[Summary]) -> None:
    """Write the CSV file: a row for each run, and one with seed "all" for each setting.

    Shares are from 0 to 1, settings in YAML; in rows of settings intervals are over seeds and tasks.
    """
    rows: list[dict[str, Any]] = []
    for one in settings:
        for run in one.runs:
            (alone,) = summarise([run])
            rows.append({**_row(alone), "seed": run.cell.seed, "status": run.status, "error": run.error or ""})
        rows.append({**_row(one), "seed": "all", "status": f"{len(one.results)} of {len(one.runs)} finished"})
    names = list(dict.fromkeys(name for row in rows for name in row))
    order = [*settings[0].setting, "seed", "status", "error"]
    file = io.StringIO()
    table = csv.DictWriter(file, [*order, *(name for name in names if name not in order)], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    atomic_write_text(path, file.getvalue())


def _row(one: Summary) -> dict[str, Any]:
    row: dict[str, Any] = {key: value_text(value) for key, value in one.setting.items()}
    found = {name: getattr(one, of) for name, of in ESTIMATES.items()}
    found |= {f"linear_r2_{state}": value for state, value in one.linear.items()}
    found |= {f"mlp_r2_{state}": value for state, value in one.mlp.items()}
    for name, value in found.items():
        ends = () if value is None else value
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), map(_finite, ends), strict=False))
    return row | {"parameters": one.parameters, "collapsed_runs": one.collapsed}


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def overview(settings: Sequence[Summary]) -> Iterator[str]:
    """Lines for the terminal."""
    keys = list(settings[0].setting)
    titles = ["runs", "goals reached", "at the end", "behind", "rank", "imagination", "minutes", "parameters"]
    rows = [[*keys, *titles]]
    for one in settings:
        success = [share(rate) if rate else "n/a" for rate in (one.reached, one.ended)]
        figures = [
            number(found.value) if found else "n/a" for found in (one.effective_rank, one.imagination, one.minutes)
        ]
        size = f"{one.parameters:,}" if one.parameters else "n/a"
        values = [value_text(value) for value in one.setting.values()]
        runs = f"{len(one.results)} of {len(one.runs)}"
        rows.append([*values, runs, *success, difference(one.behind) or "-", *figures, size])
    yield from columns(rows, left=len(keys))
    yield ""
    for finding in findings(settings):
        yield from wrapped(finding)
    for run in (run for one in settings for run in one.runs if run.error):
        yield from wrapped(f"failed: {in_words(run.cell.setting)}, seed {run.cell.seed}: {run.error}")
