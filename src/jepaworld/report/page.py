"""The HTML page of a report: one file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import yaml

from jepaworld.evaluation.imagination import ImaginationResult
from jepaworld.evaluation.measure import PIXELS, UNTRAINED, ImaginedStrip, Measurements, Reconstruction
from jepaworld.evaluation.state_probes import READABLE
from jepaworld.report import figures
from jepaworld.report.figures import PROBE_NAMES
from jepaworld.report.headline import Headline, number, with_interval
from jepaworld.report.markup import absent, chart_row, image_cell, plain, prose, table
from jepaworld.report.planning_section import planning_section
from jepaworld.runs.folder import RunFolder

MODEL, OTHER, PLAIN = figures.MODEL, figures.OTHER, figures.PLAIN

MAX_STATE_CHARTS = 4
"""Charts of state variables; more are in the table only."""


def render_page(run: RunFolder, measured: Measurements, headline: Headline) -> str:
    """The whole page as text."""
    sections = [
        *([] if measured.planning is None else [("planning", "Planning", planning_section(measured.planning))]),
        ("imagination", "Imagination", _imagination(measured)),
        ("reconstructions", "Reconstructions", _reconstructions(measured)),
        ("state", "What the embedding knows", _probes(measured)),
        ("collapse", "Collapse diagnostics", _collapse(run, measured)),
        ("training", "Training", _training(run)),
        ("data", "Data", _data(measured)),
        ("run", "Run", _run(run)),
    ]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{html}</section>' for name, title, html in sections)
    style = resources.files("jepaworld.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(headline.title)}: jepaworld report</title><style>{style}</style></head>"
        f"<body><main>{_head(run, measured, headline)}<nav>{links}</nav>{body}</main></body></html>\n"
    )


def _head(run: RunFolder, measured: Measurements, headline: Headline) -> str:
    badges = "".join(f'<span class="badge {kind}">{escape(text)}</span>' for kind, text in headline.badges)
    banners = "".join(f'<div class="banner">{prose(text)}</div>' for text in measured.missing)
    if headline.unfinished:
        banners = f'<div class="banner"><strong>{prose(headline.unfinished)}</strong></div>{banners}'
    findings = "".join(f"<li>{prose(text)}</li>" for text in headline.findings)
    cards = "".join(
        f'<div class="card"><div class="label">{escape(card.label)}</div><div '
        f'class="value">{escape(card.value)}'
        f'</div><div class="note">{escape(card.note)}</div></div>'
        for card in headline.cards
    )
    return (
        f'<header><div class="eyebrow">jepaworld report</div><h1>{escape(headline.title)}</h1>'
        f'<div class="soft">{escape(headline.subtitle)}</div>'
        f'<div class="soft"><code>{escape(str(run.path))}</code></div><div '
        f'class="badges">{badges}</div></header>'
        f'{banners}<ul class="findings">{findings}</ul><div class="cards">{cards}</div>'
    )


def _imagination(measured: Measurements) -> str:
    result = measured.imagination
    if result is None:
        return absent("Imagination could not be measured: it needs a trained model and its dataset.")
    parts = [
        "<p>From a single real frame the model imagines what the recorded actions lead to, without seeing "
        "any "
        f"further frame. Episodes are {_heldout(measured)}.</p>"
    ]
    if measured.strips:
        parts.append(
            "<h3>Drawn by seed</h3>"
            + "".join(map(_strip, measured.strips))
            + f"<h3>Worst of {len(result.window_rows)} windows by error</h3>"
            + "".join(map(_strip, measured.worst_strips))
        )
    else:
        parts.append(absent("Without a state decoder imagination cannot be painted; the numbers need none."))
    parts.append(
        "<h3>Error by step</h3><p>Squared error of imagined embeddings over the variance of real ones: 0 is "
        "perfect, 1 is no better than the mean embedding. A model that has learned how actions move things "
        "stays "
        f"below the copy of the first frame. {len(result.window_rows)} windows of {result.num_episodes[0]} "
        "episodes; intervals are drawn over episodes.</p>"
    )
    parts.append(chart_row([figures.imagination_chart(result)]))
    parts.append(_imagination_table(result))
    parts.append("<h3>State read from imagination</h3>" + _imagined_states(result))
    return "".join(parts)


def _imagination_table(result: ImaginationResult) -> str:
    steps = [step for step in (1, 2, 4, 8, 16) if step <= len(result.error)]
    header = ["step", "imagined (95 % interval)", "copy of the first frame", "windows", "episodes"]
    rows = [
        [
            str(i + 1),
            with_interval(result.error[i], (result.low[i], result.high[i])),
            number(result.copy_error[i]),
            str(result.num_windows[i]),
            str(result.num_episodes[i]),
        ]
        for i in (step - 1 for step in steps)
    ]
    return table(header, rows, numeric_from=0)


def _imagined_states(result: ImaginationResult) -> str:
    if not result.states:
        return absent(
            "No state variable is read well enough from real frames to be followed through imagination (R² of at "
            f"least {READABLE} on a part of the training episodes)."
        )
    header = ["variable", "read by", "step", "from imagination (95 %)", "from the real frame", "if nothing moved"]
    steps = sorted({0, min(3, len(result.error) - 1), len(result.error) - 1})
    rows = []
    for state in result.states:
        for i in steps:
            names = [state.probe.name, PROBE_NAMES[state.probe.kind]] if i == 0 else ["", ""]
            imagined = with_interval(state.imagined[i], (state.low[i], state.high[i]))
            rows.append([*names, str(i + 1), imagined, number(state.encoded[i]), number(state.copied[i])])
    left_out = len(result.states) - MAX_STATE_CHARTS
    return (
        "<p>How far the state that a probe reads from imagined embeddings is from the true one: mean Euclidean "
        "distance in the variable's own unit, over the entries that are read from real frames with R² of at least "
        f"{READABLE}. Each variable is read by the linear probe or by the MLP, whichever was better on a part of the "
        "training episodes. What is read from the real frame is the probe's own error.</p>"
        + chart_row(figures.state_error_chart(state) for state in result.states[:MAX_STATE_CHARTS])
        + (absent(f"{left_out} more in the table.") if left_out > 0 else "")
        + table(header, rows, numeric_from=2)
    )


def _strip(strip: ImaginedStrip) -> str:
    rows = (
        ("real frame", strip.real),
        ("decoded from it", strip.decoded_real),
        ("decoded imagination", strip.decoded_imagined),
    )
    head = "".join(f"<th scope='col'>{'now' if step == 0 else f'+{step}'}</th>" for step in strip.steps)
    body = ""
    for label, images in rows:
        texts = (f"{label}, step {step}" for step in strip.steps)
        cells = "".join(map(image_cell, images, texts))
        body += f"<tr><th scope='row'>{label}</th>{cells}</tr>"
    return (
        f'<figure class="panel strip"><figcaption>Episode {strip.episode}, from step {strip.start}'
        f'<span class="soft"> · mean error {number(strip.error)}</span></figcaption><div class="scroll">'
        f'<table class="frames"><tr><td></td>{head}</tr>{body}</table></div></figure>'
    )


def _reconstructions(measured: Measurements) -> str:
    found = measured.reconstructions
    if found is None:
        return absent("No reconstructions: they need a state decoder, the model and its dataset.")
    share = "" if found.painted is None else f", so that {found.painted:.0%} of the pixel variance is painted"
    return (
        "<p>Frames painted from their own embedding alone; what is missing here is not in the embedding, or "
        f"the decoder did not find it. Mean squared pixel error {number(found.error)} over "
        f"{found.num_frames} "
        f"{_heldout(measured)} frames (always painting the mean frame: {number(found.mean_image_error)}"
        f"{share}).</p>"
        f"<h3>Drawn by seed</h3>{_reconstruction_table(found.chosen)}"
        f"<h3>Worst of {found.num_frames} by pixel error</h3>{_reconstruction_table(found.worst)}"
    )


def _reconstruction_table(pictures: Sequence[Reconstruction]) -> str:
    head = "".join(f"<th scope='col'>ep. {p.episode}<br>step {p.step}</th>" for p in pictures)
    real = "".join(image_cell(p.real, f"real frame, episode {p.episode}") for p in pictures)
    decoded = "".join(image_cell(p.decoded, f"reconstruction, episode {p.episode}") for p in pictures)
    errors = "".join(f"<td class='soft'>{number(p.error)}</td>" for p in pictures)
    return (
        f'<div class="scroll panel strip"><table class="frames"><tr><td></td>{head}</tr>'
        f"<tr><th scope='row'>real frame</th>{real}</tr><tr><th scope='row'>reconstruction</th>{decoded}</tr>"
        f"<tr><th scope='row'>squared error</th>{errors}</tr></table></div>"
    )


def _probes(measured: Measurements) -> str:
    if not measured.probes:
        return absent("No probes: they need a trained model and its dataset.")
    first = measured.probes[0]
    header = [
        "variable",
        "linear R² (95 %)",
        "MLP R² (95 %)",
        f"{UNTRAINED}: linear, MLP",
        "16 x 16 pixels: linear, MLP",
    ]
    shown_first = measured.headline_probe
    rows, constant = [], []
    for result in [*shown_first, *(r for r in measured.probes if r not in shown_first)]:
        if result.r2 is None:
            constant.append(result.name)
            continue
        assert result.mlp is not None, "reports fit MLPs"
        row = [
            result.name,
            with_interval(result.r2, result.interval),
            with_interval(result.mlp.r2, result.mlp.interval),
        ]
        for name in (UNTRAINED, PIXELS):
            row.append(f"{number(result.baselines.get(name))}, {number(result.mlp.baselines.get(name))}")
        rows.append(row)
    scatter = chart_row([figures.probe_scatter(shown_first)]) if shown_first else ""
    return (
        "<p>What can be read from the embedding of each variable of the environment by a linear map and by a small "
        f"network (MLP), both fitted on {first.num_train_frames} frames of {first.num_train_episodes} training "
        f"episodes and judged on {first.num_heldout_frames} frames of {first.num_heldout_episodes} "
        f"{_heldout(measured)} episodes. R² is the share of variance that is read: 1 is all, 0 or less is nothing. "
        "What only the MLP reads is there, but folded, and distances in the embedding do not follow it. What no frame "
        "shows (a goal that is not drawn, say) cannot be read from one. Beside it, the same probes on an encoder of "
        "the same architecture with random weights and on the pooled pixels. Intervals are drawn over episodes.</p>"
        + (table(header, rows, numeric_from=1) if rows else "")
        + (absent(f"Not measurable, because constant in these frames: {', '.join(constant)}.") if constant else "")
        + scatter
    )


def _collapse(run: RunFolder, measured: Measurements) -> str:
    parts = []
    found = measured.collapse
    if found is not None:
        verdict = "".join(f'<div class="banner bad">{escape(reason)}</div>' for reason in found.reasons)
        parts.append(
            verdict
            or "<p>The embedding tells frames apart: none of the alarms for shrinking, for pointing one "
            "way or for "
            "lying on few directions is raised.</p>"
        )
        rows = [
            ["standard deviation of a dimension, mean", number(found.std_mean)],
            ["smallest and largest", f"{number(found.std_min)} to {number(found.std_max)}"],
            ["variation as a share of the embedding's length", number(found.relative_variation)],
            [f"effective rank (RankMe), of {len(found.std)}", f"{found.effective_rank:.1f}"],
            ["effective rank without the mean", f"{found.centred_rank:.1f}"],
            ["mean cosine of different frames", number(found.mean_cosine)],
            ["frames", str(found.num_samples)],
        ]
        parts.append(table([f"best model, {_heldout(measured)} frames", ""], rows))
    epochs = run.epochs.get("jepa", [])
    best = run.best_epoch["epoch"] if run.best_epoch else None
    spread = [("collapse/std_mean", "mean", MODEL), ("collapse/std_min", "smallest", OTHER)]
    charts = [
        None if found is None or not np.isfinite(found.std_mean) else figures.std_histogram(found),
        figures.epoch_chart(epochs, spread, "Standard deviation over training", best=best, logarithmic=True),
        figures.epoch_chart(
            epochs,
            [("collapse/effective_rank", "effective rank", MODEL)],
            "Effective rank over training",
            best=best,
        ),
        figures.epoch_chart(
            epochs, [("collapse/mean_cosine", "mean cosine", MODEL)], "Mean cosine over training", best=best
        ),
    ]
    parts.append(chart_row(charts))
    return "".join(parts) or absent("No epoch has ended yet.")


def _training(run: RunFolder) -> str:
    jepa, decoder = run.epochs.get("jepa", []), run.epochs.get("decoder", [])
    best = run.best_epoch["epoch"] if run.best_epoch else None
    charts = [
        figures.epoch_chart(jepa, _train_and_validation("loss_jepa"), "JEPA loss", best=best, logarithmic=True),
        figures.epoch_chart(
            jepa, _train_and_validation("prediction_loss"), "Prediction loss", best=best, logarithmic=True
        ),
        figures.epoch_chart(
            jepa,
            _train_and_validation("auxiliary_loss"),
            "Auxiliary loss, unweighted",
            best=best,
            logarithmic=True,
        ),
        *(
            figures.epoch_chart(jepa, _train_and_validation(f"auxiliary/{name}"), f"Auxiliary term: {name}", best=best)
            for name in _auxiliary_terms(jepa)
        ),
        figures.epoch_chart(
            decoder, _train_and_validation("loss_jepa_decoder"), "State decoder loss", logarithmic=True
        ),
    ]
    return chart_row(charts) or absent("No epoch has ended yet.")


def _train_and_validation(name: str) -> list[tuple[str, str, str]]:
    return [(f"train_{name}", "training", MODEL), (f"val_{name}", "validation", OTHER)]


def _auxiliary_terms(epochs: Sequence[dict[str, Any]]) -> list[str]:
    keys = sorted({key for epoch in epochs for key in epoch})
    return [key.removeprefix("train_auxiliary/") for key in keys if key.startswith("train_auxiliary/")]


def _data(measured: Measurements) -> str:
    if measured.dataset is None:
        return absent("The dataset could not be opened.")
    rows = [[name.replace("_", " "), plain(value)] for name, value in measured.dataset.items()]
    return table(["", ""], rows)


def _run(run: RunFolder) -> str:
    notices = "".join(f"<li>{prose(notice)}</li>" for notice in run.config.notices())
    rows = []
    for name, value in run.info.items():
        if name == "phases":
            rows += [[f"phase {phase}", plain(facts)] for phase, facts in value.items()]
        elif name != "dataset":  # shown under Data
            rows.append([name.replace("_", " "), plain(value)])
    settings = yaml.safe_dump(run.config.to_dict(), sort_keys=False, allow_unicode=True)
    return (
        (f"<h3>Notices</h3><ul>{notices}</ul>" if notices else "")
        + (table(["", ""], rows) if rows else absent("There is no run.json."))
        + f"<details><summary>Configuration</summary><pre>{escape(settings)}</pre></details>"
    )


def _heldout(measured: Measurements) -> str:
    names = {"evaluation": "held-out (evaluation)", "validation": "validation", "training": "training"}
    return names.get(measured.heldout or "", "held-out")
