"""Charts as inline SVG that takes the page's font and text colour, and small pictures as data URIs.

Nothing here uses pyplot, so that no global state of the user's session changes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from jepaworld.evaluation.imagination import ImaginationResult, StateError
from jepaworld.evaluation.probes import ProbeKind, ProbeResult
from jepaworld.evaluation.results import PlanningResults
from jepaworld.losses.collapse import CollapseDiagnostics

MODEL, OTHER, PLAIN = "#2f7fd6", "#de7326", "#8a929c"
PROBE_NAMES: dict[ProbeKind, str] = {"linear": "linear probe", "mlp": "MLP"}
AGENT_NAMES = {"planner": "planner", "random": "random policy", "recorded": "recorded actions"}
_TEXT = "#010203"  # replaced by currentColor, so that charts are readable on light and dark pages
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jepaworld",
    "font.size": 10,
    "text.color": _TEXT,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.titlecolor": _TEXT,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": _TEXT,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}
_SIZE = (5.4, 2.9)


def picture(image: np.ndarray) -> str:
    """A uint8 image (C, H, W) with 1 or 3 channels as a PNG data URI."""
    array = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def epoch_chart(
    epochs: Sequence[dict[str, Any]],
    series: Sequence[tuple[str, str, str]],
    title: str,
    *,
    best: int | None = None,
    logarithmic: bool = False,
    unit: str = "",
) -> str | None:
    """Metrics over epochs.

    Args:
        epochs: Records of the metrics log.
        series: Key, label and colour of each line.
        title: Of the chart, also its description for readers of text.
        best: Epoch to mark.
        logarithmic: A logarithmic axis, if all values are positive and spread over more than a factor of ten.
        unit: Label of the vertical axis.

    Returns:
        The SVG, or None if no epoch has any of the keys.
    """
    lines = []
    for key, label, colour in series:
        points = [(e["epoch"], e[key]) for e in epochs if isinstance(e.get(key), int | float)]
        points = [(epoch, value) for epoch, value in points if np.isfinite(value)]
        if points:
            lines.append((*zip(*points, strict=True), label, colour))
    if not lines:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(title)
        for x, y, label, colour in lines:
            axes.plot(x, y, label=label, color=colour, marker="o" if len(x) < 2 else None, markersize=4)
        values = np.concatenate([np.asarray(y, float) for _, y, _, _ in lines])
        if logarithmic and values.min() > 0 and values.max() > 10 * values.min():
            axes.set_yscale("log")
        if best is not None:
            axes.axvline(best, color=PLAIN, linewidth=1, linestyle=(0, (3, 3)), label=f"best epoch ({best})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        if len(lines) > 1 or best is not None:
            axes.legend()
        return _svg(figure, title)


def std_histogram(collapse: CollapseDiagnostics) -> str:
    """How the standard deviations of the embedding's dimensions are spread."""
    title = "Standard deviation of each dimension"
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(title)
        std = collapse.std.numpy().astype(float)
        top = max(float(std.max()) * 1.05, 1e-12)
        bins = min(30, max(8, len(std) // 2))
        axes.hist(std, bins=bins, range=(0.0, top), color=MODEL, alpha=0.85)
        axes.axvline(collapse.std_mean, color=OTHER, linewidth=1.4, label=f"mean {collapse.std_mean:.3g}")
        axes.set_xlabel("standard deviation over held-out frames")
        axes.set_ylabel("dimensions")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return _svg(figure, title)


def imagination_chart(result: ImaginationResult) -> str:
    """Imagination error by step with its interval, beside copying and the mean."""
    title = "Imagination error by step, in embedding space"
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(title)
        steps = np.arange(1, len(result.error) + 1)
        axes.fill_between(steps, result.low, result.high, color=MODEL, alpha=0.2, linewidth=0)
        axes.plot(steps, result.error, color=MODEL, marker="o", markersize=3.5, label="imagined (95 % interval)")
        axes.plot(steps, result.copy_error, color=OTHER, label="copy of the first frame")
        axes.axhline(1.0, color=PLAIN, linewidth=1.2, linestyle=(0, (4, 3)), label="mean embedding (= 1)")
        _finish_by_step(axes, "squared error / variance")
        return _svg(figure, title)


def state_error_chart(state: StateError) -> str:
    """Distance between true state and the one read from imagination."""
    title = f"Error of `{state.probe.name}`, read by the {PROBE_NAMES[state.probe.kind]}"
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(title)
        steps = np.arange(1, len(state.imagined) + 1)
        axes.fill_between(steps, state.low, state.high, color=MODEL, alpha=0.2, linewidth=0)
        axes.plot(steps, state.imagined, color=MODEL, marker="o", markersize=3.5, label="from imagination (95 %)")
        axes.plot(steps, state.encoded, color=PLAIN, linestyle=(0, (4, 3)), label="from the real frame")
        axes.plot(steps, state.copied, color=OTHER, label="copy of the first state")
        _finish_by_step(axes, "distance, in its own unit")
        return _svg(figure, title)


def success_chart(planning: PlanningResults) -> str:
    """Share of goals reached at any time by each agent with its interval, over all tasks and in each group."""
    title = "Goals reached, with 95 % intervals"
    agents = [agent for agent in planning.agents if agent.missing is None]
    rows = ["all", *planning.groups]
    colours = {"planner": MODEL, "random": OTHER}
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_SIZE[0], 1.4 + 0.55 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, pad=10)
        for place, agent in enumerate(agents):
            shown = [(y, agent.any[row]) for y, row in enumerate(rows) if row in agent.any]
            heights = [y + 0.22 * (place - (len(agents) - 1) / 2) for y, _ in shown]
            rate = 100 * np.array([entry.rate for _, entry in shown])
            ends = 100 * np.array([(entry.low, entry.high) for _, entry in shown]).T
            axes.errorbar(
                rate,
                heights,
                xerr=np.abs(ends - rate),
                fmt="o",
                markersize=5,
                capsize=3,
                linewidth=1.6,
                color=colours.get(agent.name, PLAIN),
                label=AGENT_NAMES.get(agent.name, agent.name),
            )
        axes.set_yticks(range(len(rows)), ["all goals" if row == "all" else row for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("% of goals reached at any time")
        figure.legend(loc="outside lower center", ncols=3)
        return _svg(figure, title)


def probe_scatter(results: Sequence[ProbeResult], max_points: int = 400) -> str:
    """True against read values of a state variable's entries on held-out frames, one panel each."""
    shown = results[:2]
    title = f"True and read `{shown[0].variable}` on held-out frames"
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.9 * len(shown) + 0.6, 3.1), layout="constrained")
        for panel, result in enumerate(shown, start=1):
            axes = figure.add_subplot(1, len(shown), panel)
            every = max(1, len(result.truth) // max_points)
            truth, read = result.truth[::every], result.prediction[::every]
            low, high = min(truth.min(), read.min()), max(truth.max(), read.max())
            axes.plot([low, high], [low, high], color=PLAIN, linewidth=1.0)
            axes.scatter(truth, read, s=7, color=MODEL, alpha=0.45, linewidths=0, label="linear")
            if result.mlp is not None:
                axes.scatter(
                    truth, result.mlp.prediction[::every], s=5, color=OTHER, alpha=0.45, linewidths=0, label="MLP"
                )
            axes.set_xlabel(f"true {result.name}")
            axes.set_ylabel("read by the probes")
            axes.set_title("" if result.r2 is None else f"linear R² {result.r2:.3f}")
            axes.legend(markerscale=2)
        return _svg(figure, title)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title.replace("`", ""), pad=10)
    return figure, axes


def _finish_by_step(axes: Axes, label: str) -> None:
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("imagined steps")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()


def _svg(figure: Figure, title: str) -> str:
    """The figure as an SVG element for a page that holds several: own ids, the page's font and colour."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<(metadata|style).*?</\1>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = text.replace(_TEXT, "currentColor")
    text = re.sub(r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'(?:, [^;\"]*)?", r"\1inherit", text)
    prefix = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    text = re.sub(r'<svg ([^>]*?)\s?width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)\s?height="[^"]*"', r"<svg \1", text, count=1)
    label = escape(title.replace("`", ""), quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" class="chart" ', 1).strip()
