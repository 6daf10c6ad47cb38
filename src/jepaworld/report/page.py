"""The report of a run: `report.html`, one file without scripts that loads nothing from elsewhere, and `report.json`.

What stands on the page is in `templates/`; here is what the templates need beside the results: charts, pictures, and
the rows of tables that take some choosing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup, escape

from jepaworld.config.loading import dump_yaml
from jepaworld.evaluation.measure import UNTRAINED, Pictures, measure
from jepaworld.evaluation.probes import PIXELS, READABLE
from jepaworld.evaluation.results import Imagination, PlanningResults, Results
from jepaworld.report import figures, headline
from jepaworld.report.figures import MODEL, OTHER, Chart
from jepaworld.runs.folder import RunFolder
from jepaworld.utils import text
from jepaworld.utils.storage import atomic_write_text
from jepaworld.utils.text import number, with_interval

SECTIONS = {
    "planning": "Planning",
    "imagination": "Imagination",
    "reconstructions": "Reconstructions",
    "state": "What the embedding knows",
    "collapse": "Collapse diagnostics",
    "training": "Training",
    "data": "Data",
    "run": "Run",
}
MAX_STATE_CHARTS, MAX_SCATTERS = 4, 2  # more are in the tables only


def write_report(run_dir: str | Path, *, device: str = "auto") -> Path:
    """Measure a run's best model on held-out episodes and write `report.html` and `report.json` into the run.

    Reads only the run folder and the dataset that it names. What is not there (no decoder, no finished epoch,
    no dataset) is left out, and the page says so.

    Args:
        run_dir: A folder that training wrote, finished or not.
        device: Where the models run: auto, cpu, cuda, cuda:N or mps.

    Returns:
        Path of the HTML page.

    Raises:
        CheckpointError: the folder is missing or is no run, or a file of it is damaged.
        DatasetError: the dataset is damaged, or is not the one that the run was trained on.
        StorageError: the report cannot be written.
    """
    run = RunFolder.open(run_dir)
    # Models draw their first weights, on the CPU; the caller's random numbers go on as if they had not.
    with torch.random.fork_rng(devices=[]):
        results, pictures = measure(run, device)
    headline.add_headline(results)
    page = render_page(results, pictures)
    atomic_write_text(run.report_numbers, results.to_json())
    atomic_write_text(run.report_page, page)
    return run.report_page


def read_results(run_dir: str | Path) -> Results:
    """The numbers of the run's last report."""
    return Results.model_validate_json(RunFolder(run_dir).report_numbers.read_bytes())


def render_page(results: Results, pictures: Pictures) -> str:
    """The whole page as text."""
    return template("page.html", text.duration, figures.picture, prose, plain).render(
        results=results,
        pictures=pictures,
        sections={name: title for name, title in SECTIONS.items() if name != "planning" or results.planning},
        unfinished=headline.unfinished(results),
        heldout=results.heldout.label if results.heldout else "held-out",
        agent_names=headline.AGENT_NAMES,
        videos=_videos(results.planning) if results.planning else [],
        imagination_rows=_imagination_rows(results.imagination),
        state_rows=_state_rows(results.imagination),
        readable=READABLE,
        probe_rows=_probe_rows(results),
        constant=[probe.variable for probe in results.probes if probe.r2 is None],
        charts=_charts(results),
        configuration=dump_yaml(results.config),
    )


def template(name: str, *helpers: Callable[..., Any]) -> jinja2.Template:
    """A page's template; helpers can be used in it by their names, beside the usual ones for numbers."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jepaworld.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    usual = (text.number, text.percent, text.share, text.counted)
    environment.filters |= {helper.__name__: helper for helper in (*usual, *helpers)}
    return environment.get_template(name)


def prose(words: str) -> Markup:
    """Escaped text in which `words` between backticks are code."""
    parts = str(escape(words)).replace(" %", "\N{NO-BREAK SPACE}%").split("`")
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))


def plain(value: Any) -> str:
    """A JSON value as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {plain(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})" if value else "scalar"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _charts(results: Results) -> dict[str, list[Chart]]:
    """Charts of each section; those without data are left out."""
    planning, imagination, collapse = results.planning, results.imagination, results.collapse
    jepa, best = results.epochs.get("jepa", []), (results.best_epoch or {}).get("epoch")

    def over_epochs(title: str, key: str, *, logarithmic: bool = True, phase: str = "jepa") -> Chart | None:
        series = [(f"train_{key}", "training", MODEL), (f"val_{key}", "validation", OTHER)]
        marked, epochs = best if phase == "jepa" else None, results.epochs.get(phase, [])
        return figures.epoch_chart(epochs, series, title, best=marked, logarithmic=logarithmic)

    def watched(title: str, *series: tuple[str, str, str], logarithmic: bool = False) -> Chart | None:
        return figures.epoch_chart(jepa, series, title, best=best, logarithmic=logarithmic)

    prefix = "train_auxiliary/"
    terms = sorted({key.removeprefix(prefix) for epoch in jepa for key in epoch if key.startswith(prefix)})
    spread = ("collapse/std_mean", "mean", MODEL), ("collapse/std_min", "smallest", OTHER)
    charts: dict[str, list[Chart | None]] = {
        "planning": [planning and figures.success_chart(planning)],
        "imagination": [imagination and figures.imagination_chart(imagination)],
        "states": [figures.state_error_chart(s) for s in imagination.states[:MAX_STATE_CHARTS]] if imagination else [],
        "state": [
            figures.probe_scatter(probe)
            for probe in results.headline_probes[:MAX_SCATTERS]
            if probe.r2 is not None and probe.truth is not None
        ],
        "collapse": [
            figures.std_histogram(collapse) if collapse and collapse.finite else None,
            watched("Standard deviation over training", *spread, logarithmic=True),
            watched("Effective rank over training", ("collapse/effective_rank", "effective rank", MODEL)),
            watched("Mean cosine over training", ("collapse/mean_cosine", "mean cosine", MODEL)),
        ],
        "training": [
            over_epochs("JEPA loss", "loss_jepa"),
            over_epochs("Prediction loss", "prediction_loss"),
            over_epochs("Auxiliary loss, unweighted", "auxiliary_loss"),
            *(over_epochs(f"Auxiliary term: {name}", f"auxiliary/{name}", logarithmic=False) for name in terms),
            over_epochs("State decoder loss", "loss_jepa_decoder", phase="decoder"),
        ],
    }
    return {name: [chart for chart in some if chart] for name, some in charts.items()}


def _imagination_rows(found: Imagination | None) -> list[Sequence[str]]:
    if found is None:
        return []
    rows = []
    for i in found.shown:
        error = with_interval(found.error[i], (found.error_low_95[i], found.error_high_95[i]))
        counts = found.num_windows[i], found.num_episodes[i]
        rows.append((str(found.step[i]), error, number(found.copy_error[i]), *map(str, counts)))
    return rows


def _state_rows(found: Imagination | None) -> list[Sequence[str]]:
    rows = []
    for state in found.states if found else []:
        last = len(state.imagined) - 1
        for i in sorted({0, min(3, last), last}):
            names = (state.name, headline.PROBE_NAMES[state.probe]) if i == 0 else ("", "")
            imagined = with_interval(state.imagined[i], (state.imagined_low_95[i], state.imagined_high_95[i]))
            rows.append((*names, str(i + 1), imagined, number(state.encoded[i]), number(state.copied[i])))
    return rows


def _probe_rows(results: Results) -> list[Sequence[str]]:
    variable = results.headline_probe and results.headline_probe.variable
    rows = []
    for probe in sorted(results.probes, key=lambda probe: probe.state != variable):  # the headline's first
        mlp = probe.mlp
        if probe.r2 is None or mlp is None:
            continue
        pairs = ((probe.baselines_r2.get(name), mlp.baselines_r2.get(name)) for name in (UNTRAINED, PIXELS))
        baselines = (f"{number(linear)}, {number(network)}" for linear, network in pairs)
        reads = (with_interval(one.r2, one.interval_95) for one in (probe, mlp))
        rows.append((probe.variable, *reads, *baselines))
    return rows


def _videos(planning: PlanningResults) -> list[dict[str, Any]]:
    """File, caption and success of each, with its pictures if the file is there."""
    videos = []
    for video in planning.videos:
        path = planning.folder / video.file
        moving, still = figures.animation(path.read_bytes()) if path.is_file() else (None, None)
        videos.append({"of": video, "moving": moving, "still": still})
    return videos
