"""Charts and pictures as data URIs, for a page that loads nothing from elsewhere.

Charts are SVG with a transparent background and dark ink; the page's style turns their lightness round on dark pages.
Nothing here uses pyplot, so that no global state of the user's session changes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from jepaworld.evaluation.results import Imagination, PlanningResults, Probe, StateError
from jepaworld.losses.collapse import CollapseDiagnostics
from jepaworld.report.headline import AGENT_NAMES, PROBE_NAMES
from jepaworld.utils.text import number

MODEL, OTHER, PLAIN = "#2f7fd6", "#de7326", "#8a929c"
_THIN = ("axes.linewidth", "grid.linewidth", "xtick.major.width", "ytick.major.width")
_STYLE: Any = dict.fromkeys(_THIN, 0.6) | {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "jepaworld",  # the same chart gives the same file
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "black",
    "grid.alpha": 0.12,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
}
_DASHED: Any = {"color": PLAIN, "linestyle": (0, (4, 3))}
_WIDTH, _HEIGHT = 5.4, 2.9  # inches
_MAX_POINTS = 400  # of a scatter plot


class Chart(NamedTuple):
    """A figure and the words for it."""

    title: str
    uri: str


def picture(image: np.ndarray) -> str:
    """A uint8 image (C, H, W) with 1 or 3 channels as a PNG data URI."""
    return _png(Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)))


def animation(content: bytes) -> tuple[str, str]:
    """An animated WebP as a data URI, and its last frame as one that stands still."""
    with Image.open(io.BytesIO(content)) as moving:
        moving.seek(getattr(moving, "n_frames", 1) - 1)
        return _data_uri("webp", content), _png(moving.convert("RGB"))


def epoch_chart(
    epochs: Sequence[dict[str, Any]],
    series: Sequence[tuple[str, str, str]],
    title: str,
    *,
    best: int | None = None,
    logarithmic: bool = False,
) -> Chart | None:
    """Metrics over epochs; None if no epoch has any of them.

    Args:
        epochs: Records of the metrics log.
        series: Key, label and colour of each line.
        title: Of the chart.
        best: Epoch to mark.
        logarithmic: A logarithmic axis, if all values are positive and spread over more than a factor of ten.
    """
    lines = []
    for key, label, colour in series:
        points = [(e["epoch"], e[key]) for e in epochs if isinstance(e.get(key), int | float) and np.isfinite(e[key])]
        if points:
            lines.append((*zip(*points, strict=True), label, colour))
    if not lines:
        return None
    with _axes() as axes:
        for x, y, label, colour in lines:
            axes.plot(x, y, label=label, color=colour, marker="o" if len(x) < 2 else None, markersize=4)
        values = np.concatenate([np.asarray(y, float) for _, y, _, _ in lines])
        if logarithmic and values.min() > 0 and values.max() > 10 * values.min():
            axes.set_yscale("log")
        if best is not None:
            axes.axvline(best, color=PLAIN, linewidth=1, linestyle=(0, (3, 3)), label=f"best epoch ({best})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        if len(lines) > 1 or best is not None:
            axes.legend()
        return _chart(axes, title)


def std_histogram(collapse: CollapseDiagnostics) -> Chart:
    """How the standard deviations of the embedding's dimensions are spread."""
    with _axes() as axes:
        top = max(collapse.std_max * 1.05, 1e-12)
        bins = min(30, max(8, len(collapse.std) // 2))
        axes.hist(collapse.std, bins=bins, range=(0.0, top), color=MODEL, alpha=0.85)
        axes.axvline(collapse.std_mean, color=OTHER, linewidth=1.4, label=f"mean {collapse.std_mean:.3g}")
        axes.set(xlabel="standard deviation over held-out frames", ylabel="dimensions")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return _chart(axes, "Standard deviation of each dimension")


def imagination_chart(found: Imagination) -> Chart:
    """Imagination error by step with its interval, beside copying and the mean."""
    copied = ("copy of the first frame", found.copy_error, {"color": OTHER})
    mean = ("mean embedding (= 1)", [1.0] * len(found.step), _DASHED)
    title, ends = "Imagination error by step, in embedding space", (found.error_low_95, found.error_high_95)
    return _by_step(title, "squared error / variance", found.error, ends, [copied, mean])


def state_error_chart(state: StateError) -> Chart:
    """Distance between true state and the one read from imagination."""
    encoded = ("from the real frame", state.encoded, _DASHED)
    copied = ("copy of the first state", state.copied, {"color": OTHER})
    title = f"Error of {state.name}, read by the {PROBE_NAMES[state.probe]}"
    ends = (state.imagined_low_95, state.imagined_high_95)
    return _by_step(title, "distance, in its own unit", state.imagined, ends, [encoded, copied])


def _by_step(title: str, unit: str, imagined: Sequence[float], ends: Any, others: Sequence[Any]) -> Chart:
    """A curve over imagined steps with its interval; beside it others with label, values and style."""
    steps = range(1, len(imagined) + 1)
    with _axes() as axes:
        axes.fill_between(steps, *ends, color=MODEL, alpha=0.2, linewidth=0)
        axes.plot(steps, imagined, color=MODEL, marker="o", markersize=3.5, label="imagined (95 % interval)")
        for label, values, style in others:
            axes.plot(steps, values, label=label, **style)
        axes.set_ylim(bottom=0.0)
        axes.set(xlabel="imagined steps", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return _chart(axes, title)


def success_chart(planning: PlanningResults) -> Chart:
    """Share of goals reached at any time by each agent with its interval, over all tasks and in each group."""
    agents = [agent for agent in planning.agents if agent.missing is None]
    rows = ["all", *planning.groups]
    colours = {"planner": MODEL, "random": OTHER}
    with _axes(1.4 + 0.55 * len(rows)) as axes:
        for place, agent in enumerate(agents):
            shown = [(y, agent.any[row]) for y, row in enumerate(rows) if row in agent.any]
            heights = [y + 0.22 * (place - (len(agents) - 1) / 2) for y, _ in shown]
            rate = 100 * np.array([entry.rate for _, entry in shown])
            ends = 100 * np.array([(entry.low, entry.high) for _, entry in shown]).T
            style: Any = {"fmt": "o", "markersize": 5, "capsize": 3, "linewidth": 1.6}
            colour, label = colours.get(agent.name, PLAIN), AGENT_NAMES.get(agent.name, agent.name)
            axes.errorbar(rate, heights, xerr=np.abs(ends - rate), color=colour, label=label, **style)
        axes.set_yticks(range(len(rows)), ["all goals" if row == "all" else row for row in rows])
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-2, 102), xlabel="% of goals reached at any time")
        _figure_of(axes).legend(loc="outside lower center", ncols=3)
        return _chart(axes, "Goals reached, with 95 % intervals")


def probe_scatter(probe: Probe) -> Chart:
    """True against read values of an entry of the state on held-out frames."""
    every = max(1, len(probe.truth) // _MAX_POINTS)
    reads = {"linear": probe.prediction, **({"MLP": probe.mlp.prediction} if probe.mlp else {})}
    truth, *points = (_values(columns)[::every] for columns in (probe.truth, *reads.values()))
    ends = [f([f(values) for values in (truth, *points)]) for f in (min, max)]
    with _axes() as axes:
        axes.plot(ends, ends, color=PLAIN, linewidth=1.0)
        for label, read, colour in zip(reads, points, (MODEL, OTHER), strict=False):
            axes.scatter(truth, read, s=6, color=colour, alpha=0.45, linewidths=0, label=label)
        axes.set(xlabel=f"true {probe.variable}", ylabel="read by the probes")
        axes.legend(markerscale=2)
        return _chart(axes, f"{probe.variable} on held-out frames (linear R² {number(probe.r2)})")


def _values(columns: np.ndarray) -> np.ndarray:
    """Values (N,) of an entry's columns (N, 1), or (N, 2) for sine and cosine of an angle."""
    return columns[:, 0] if columns.shape[1] == 1 else np.arctan2(columns[:, 0], columns[:, 1])


@contextmanager
def _axes(height: float = _HEIGHT) -> Iterator[Axes]:
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(_WIDTH, height), layout="constrained").add_subplot()


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    return figure


def _chart(axes: Axes, title: str) -> Chart:
    axes.set_title(title)
    buffer = io.BytesIO()
    _figure_of(axes).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Chart(title, _data_uri("svg+xml", buffer.getvalue()))


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _data_uri("png", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
