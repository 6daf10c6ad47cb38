"""An evaluation as a plain text table, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

AGENTS = {"planner": "plans", "random": "random policy", "recorded": "recorded actions"}


def summary(planning: dict[str, Any], report: dict[str, Any]) -> str:
    """Planning success, probes, collapse and imagination error by horizon.

    Args:
        planning: Content of `evaluation/planning.json`.
        report: Content of `report.json`.
    """
    sections = [_success(planning), _speed(planning), _collapse(report), _probes(report), _imagination(report)]
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section)))


def _success(planning: dict[str, Any]) -> Iterator[str]:
    yield planning["protocol"]
    yield ""
    groups = ["all", *planning["groups"]]
    rows = [["success", "", *groups]]
    for agent in planning["agents"]:
        name = AGENTS[agent["name"]]
        if agent["missing"]:
            rows.append([name, f"none: {agent['missing']}"])
            continue
        for key, title in (("any", "at any time"), ("end", "at the end")):
            rows.append([name if key == "any" else "", title, *(_rate(agent[key].get(group)) for group in groups)])
    yield from _table(rows)


def _speed(planning: dict[str, Any]) -> Iterator[str]:
    rows = [["time", "per episode", "per plan", "median steps to the goal"]]
    for agent in planning["agents"]:
        if not agent["missing"]:
            rows.append(
                [
                    AGENTS[agent["name"]],
                    _seconds(agent["seconds_per_episode"]),
                    _seconds(agent["seconds_per_plan"]),
                    _plain(agent["median_steps_to_success"]),
                ]
            )
    yield from _table(rows)


def _collapse(report: dict[str, Any]) -> Iterator[str]:
    found = report["collapse"]
    if found is not None:
        state = "COLLAPSED" if found["collapsed"] else "no collapse"
        yield (
            f"embedding: {state}; effective rank {_plain(found['effective_rank'])} of {len(found['std'])}, mean "
            f"standard deviation {_plain(found['std_mean'])}, mean cosine {_plain(found['mean_cosine'])}"
        )


def _probes(report: dict[str, Any]) -> Iterator[str]:
    if not report["probes"]:
        return
    rows = [["probe of", "linear R2", "MLP R2"]]
    for probe in report["probes"]:
        rows.append([probe["variable"], _plain(probe["r2"]), _plain((probe["mlp"] or {}).get("r2"))])
    yield from _table(rows)


def _imagination(report: dict[str, Any]) -> Iterator[str]:
    found = report["imagination"]
    if found is None:
        return
    chosen = [index for index, step in enumerate(found["step"]) if step in (1, 2, 4, 8, 16, 32, len(found["step"]))]
    rows = [["imagined steps", *(str(found["step"][index]) for index in chosen)]]
    rows.append(["embedding error", *(_plain(found["error"][index]) for index in chosen)])
    rows.append(["first frame kept", *(_plain(found["copy_error"][index]) for index in chosen)])
    for state in found["states"]:
        rows.append([f"error of {state['variable']}", *(_plain(state["imagined"][index]) for index in chosen)])
        rows.append(["first state kept", *(_plain(state["copied"][index]) for index in chosen)])
    yield from _table(rows)


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "-"
    return f"{rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}) of {rate['episodes']}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.2f} ms"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns side by side; a row that is shorter than the first is not padded."""
    count = len(rows[0])
    full = [row for row in rows if len(row) == count]
    widths = [max(len(row[column]) for row in full) for column in range(count)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join(cells).rstrip()
