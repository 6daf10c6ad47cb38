"""An evaluation as plain text tables, for the terminal; the numbers are written as on the report's page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from jepaworld.report.headline import number, percent

AGENTS = {"planner": "plans", "random": "random policy", "recorded": "recorded actions"}
WIDTH = 110
SHOWN_STEPS = (1, 2, 4, 8, 16, 32)


def summary(planning: dict[str, Any], report: dict[str, Any]) -> str:
    """Planning success, times, collapse, probes, imagination error by horizon, and what could not be measured.

    Args:
        planning: Content of `evaluation/planning.json`.
        report: Content of `report.json`.
    """
    sections = [
        _success(planning),
        _speed(planning),
        _collapse(report),
        _probes(report),
        _imagination(report),
        (line for reason in report["missing"] for line in _wrapped(f"not measured: {reason}")),
    ]
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section)))


def _success(planning: dict[str, Any]) -> Iterator[str]:
    yield from _wrapped(planning["protocol"])
    yield ""
    rows = [["goals reached", "which", "at any time", "at the end", "episodes"]]
    notes = ["in parentheses: Wilson's 95 % interval"]
    for agent in planning["agents"]:
        name = AGENTS[agent["name"]]
        if agent["missing"]:
            notes.append(f"no {name}: {agent['missing']}")
            continue
        notes.append(f"{name}: {agent['label']}")
        for group in ("all", *planning["groups"]):
            if group in agent["any"]:
                rates = agent["any"][group], agent["end"][group]
                title = name if group == "all" else ""
                rows.append([title, group, *map(_rate, rates), str(rates[0]["episodes"])])
    yield from _table(rows, left=4)
    for note in notes:
        yield from _wrapped(note)


def _speed(planning: dict[str, Any]) -> Iterator[str]:
    rows = [["time", "per episode", "per plan", "median environment steps to the goal"]]
    for agent in planning["agents"]:
        if not agent["missing"]:
            seconds = (_seconds(agent[key]) for key in ("seconds_per_episode", "seconds_per_plan"))
            steps = agent["median_steps_to_success"]
            rows.append([AGENTS[agent["name"]], *seconds, "-" if steps is None else f"{steps:g}"])
    yield from _table(rows)


def _collapse(report: dict[str, Any]) -> Iterator[str]:
    found = report["collapse"]
    if found is not None:
        state = "COLLAPSED" if found["collapsed"] else "no collapse"
        yield (
            f"embedding: {state}; effective rank {number(found['effective_rank'])} of {len(found['std'])}, mean "
            f"standard deviation {number(found['std_mean'])}, mean cosine {number(found['mean_cosine'])}"
        )


def _probes(report: dict[str, Any]) -> Iterator[str]:
    probes = report["probes"]
    if not probes:
        return
    baselines = list(probes[0]["baselines_r2"])
    rows = [["R2 of probes", "linear", "MLP", *(f"linear, {name}" for name in baselines)]]
    constant = []
    for probe in probes:
        if probe["r2"] is None:
            constant.append(probe["variable"])
            continue
        values = [probe["r2"], (probe["mlp"] or {}).get("r2"), *(probe["baselines_r2"][name] for name in baselines)]
        rows.append([probe["variable"], *map(_plain, values)])
    yield from _table(rows)
    note = (
        f"on {probes[0]['num_heldout_frames']} frames of {report['heldout']['episodes']} "
        f"{report['heldout']['split']} episodes; 1 is perfect, 0 no better than the mean"
    )
    yield from _wrapped(note + (f"; constant there, so nothing to read: {', '.join(constant)}" if constant else ""))


def _imagination(report: dict[str, Any]) -> Iterator[str]:
    found = report["imagination"]
    if found is None:
        return
    last = len(found["step"])
    chosen = [index for index, step in enumerate(found["step"]) if step in (*SHOWN_STEPS, last)]
    curves = [("embedding error", found["error"]), ("  if nothing moved", found["copy_error"])]
    for state in found["states"]:
        reader = "MLP" if state["probe"] == "mlp" else f"{state['probe']} probe"
        curves.append((f"error of {state['variable']}, read by {reader}", state["imagined"]))
        curves.append(("  read from the real frame", state["encoded"]))
        curves.append(("  if nothing moved", state["copied"]))
    rows = [["imagined steps", *(str(found["step"][index]) for index in chosen)]]
    rows += [[title, *(_plain(curve[index]) for index in chosen)] for title, curve in curves]
    yield from _table(rows)
    note = "embedding error: mean squared, in units of the embedding's variance; guessing the mean embedding gives 1"
    units = "; errors of variables: mean distance in their own unit" if found["states"] else ""
    yield from _wrapped(note + units)


def _rate(rate: dict[str, Any]) -> str:
    return f"{percent(rate['rate'])} % ({percent(rate['low'])} to {percent(rate['high'])})"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.2f} ms"


def _plain(value: float | None) -> str:
    return "-" if value is None else number(value)


def _wrapped(text: str) -> list[str]:
    """The text in lines, of which only the first is not indented; paths and commands stay in one piece."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _table(rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Columns side by side, the first `left` of them aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width) for column, (cell, width) in enumerate(cells)
        ).rstrip()
