"""The HTML page of a report: one file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
import yaml

from jepaworld.report import figures
from jepaworld.report.headline import Headline, number, with_interval
from jepaworld.report.measure import UNTRAINED, ImaginedStrip, Measurements, Reconstruction
from jepaworld.report.run_folder import RunFolder

MODEL, OTHER, PLAIN = figures.MODEL, figures.OTHER, figures.PLAIN


def render_page(run: RunFolder, measured: Measurements, headline: Headline) -> str:
    """The whole page as text."""
    sections = [
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
    banners = "".join(f'<div class="banner">{_prose(text)}</div>' for text in measured.missing)
    if headline.unfinished:
        banners = f'<div class="banner"><strong>{_prose(headline.unfinished)}</strong></div>{banners}'
    findings = "".join(f"<li>{_prose(text)}</li>" for text in headline.findings)
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
        return _absent("Imagination could not be measured: it needs a trained model and its dataset.")
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
        parts.append(_absent("Without a state decoder imagination cannot be painted; the numbers need none."))
    parts.append(
        "<h3>Error by step</h3><p>Squared error of imagined embeddings over the variance of real ones: 0 is "
        "perfect, 1 is no better than the mean embedding. A model that has learned how actions move things "
        "stays "
        f"below the copy of the first frame. {len(result.window_rows)} windows of {result.num_episodes[0]} "
        "episodes; intervals are drawn over episodes.</p>"
    )
    parts.append(_charts([figures.imagination_chart(result), figures.state_error_chart(result)]))
    parts.append(_imagination_table(measured))
    return "".join(parts)


def _imagination_table(measured: Measurements) -> str:
    result = measured.imagination
    assert result is not None
    steps = [step for step in (1, 2, 4, 8, 16) if step <= len(result.error)]
    header = ["step", "imagined (95 % interval)", "copy of the first frame", "windows", "episodes"]
    state = result.state
    if state is not None:
        header += [f"{state.variable}: imagined", "from the real frame", "copied"]
    rows = []
    for i in (step - 1 for step in steps):
        row = [
            str(i + 1),
            with_interval(result.error[i], (result.low[i], result.high[i])),
            number(result.copy_error[i]),
            str(result.num_windows[i]),
            str(result.num_episodes[i]),
        ]
        if state is not None:
            row += [
                with_interval(state.imagined[i], (state.low[i], state.high[i])),
                number(state.encoded[i]),
                number(state.copied[i]),
            ]
        rows.append(row)
    return _table(header, rows, numeric_from=0)


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
        cells = "".join(map(_image, images, texts))
        body += f"<tr><th scope='row'>{label}</th>{cells}</tr>"
    return (
        f'<figure class="panel strip"><figcaption>Episode {strip.episode}, from step {strip.start}'
        f'<span class="soft"> · mean error {number(strip.error)}</span></figcaption><div class="scroll">'
        f'<table class="frames"><tr><td></td>{head}</tr>{body}</table></div></figure>'
    )


def _reconstructions(measured: Measurements) -> str:
    found = measured.reconstructions
    if found is None:
        return _absent("No reconstructions: they need a state decoder, the model and its dataset.")
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
    real = "".join(_image(p.real, f"real frame, episode {p.episode}") for p in pictures)
    decoded = "".join(_image(p.decoded, f"reconstruction, episode {p.episode}") for p in pictures)
    errors = "".join(f"<td class='soft'>{number(p.error)}</td>" for p in pictures)
    return (
        f'<div class="scroll panel strip"><table class="frames"><tr><td></td>{head}</tr>'
        f"<tr><th scope='row'>real frame</th>{real}</tr><tr><th scope='row'>reconstruction</th>{decoded}</tr>"
        f"<tr><th scope='row'>squared error</th>{errors}</tr></table></div>"
    )


def _probes(measured: Measurements) -> str:
    if not measured.probes:
        return _absent("No probes: they need a trained model and its dataset.")
    first = measured.probes[0]
    header = ["variable", "R² (95 % interval)", UNTRAINED, "16 x 16 pixels"]
    rows = []
    shown_first = measured.headline_probe
    for result in [*shown_first, *(r for r in measured.probes if r not in shown_first)]:
        row = [result.name]
        if result.r2 is None:
            row += ["not measurable: constant in these frames", "", ""]
        else:
            row.append(with_interval(result.r2, result.interval))
            row += [number(result.baselines.get(UNTRAINED)), number(result.baselines.get("pixels"))]
        rows.append(row)
    scatter = ""
    if measured.headline_probe:
        scatter = _charts([figures.probe_scatter(measured.headline_probe)])
    return (
        "<p>A linear map from the embedding to each variable of the environment, fitted on "
        f"{first.num_train_frames} frames of {first.num_train_episodes} training episodes and judged on "
        f"{first.num_heldout_frames} frames of {first.num_heldout_episodes} {_heldout(measured)} episodes. "
        "R² is "
        "the share of variance that is read: 1 is all, 0 or less is nothing. What no frame shows (a goal "
        "that is "
        "not drawn, say) cannot be read from one. Beside it, the same probe on an encoder of the same "
        "architecture with random weights and on the pooled pixels. Intervals are drawn over episodes.</p>"
        f"{_table(header, rows)}{scatter}"
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
        parts.append(_table([f"best model, {_heldout(measured)} frames", ""], rows))
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
    parts.append(_charts(charts))
    return "".join(parts) or _absent("No epoch has ended yet.")


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
    return _charts(charts) or _absent("No epoch has ended yet.")


def _train_and_validation(name: str) -> list[tuple[str, str, str]]:
    return [(f"train_{name}", "training", MODEL), (f"val_{name}", "validation", OTHER)]


def _auxiliary_terms(epochs: Sequence[dict[str, Any]]) -> list[str]:
    keys = sorted({key for epoch in epochs for key in epoch})
    return [key.removeprefix("train_auxiliary/") for key in keys if key.startswith("train_auxiliary/")]


def _data(measured: Measurements) -> str:
    if measured.dataset is None:
        return _absent("The dataset could not be opened.")
    rows = [[name.replace("_", " "), _plain(value)] for name, value in measured.dataset.items()]
    return _table(["", ""], rows)


def _run(run: RunFolder) -> str:
    notices = "".join(f"<li>{_prose(notice)}</li>" for notice in run.config.notices())
    rows = []
    for name, value in run.info.items():
        if name == "phases":
            rows += [[f"phase {phase}", _plain(facts)] for phase, facts in value.items()]
        elif name != "dataset":  # shown under Data
            rows.append([name.replace("_", " "), _plain(value)])
    settings = yaml.safe_dump(run.config.to_dict(), sort_keys=False, allow_unicode=True)
    return (
        (f"<h3>Notices</h3><ul>{notices}</ul>" if notices else "")
        + (_table(["", ""], rows) if rows else _absent("There is no run.json."))
        + f"<details><summary>Configuration</summary><pre>{escape(settings)}</pre></details>"
    )


def _heldout(measured: Measurements) -> str:
    names = {"evaluation": "held-out (evaluation)", "validation": "validation", "training": "training"}
    return names.get(measured.heldout or "", "held-out")


def _image(image: np.ndarray, text: str) -> str:
    return f'<td><img src="{figures.picture(image)}" alt="{escape(text, quote=True)}"></td>'


def _charts(charts: Iterable[str | None]) -> str:
    figures_html = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    return f'<div class="charts">{figures_html}</div>' if figures_html else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric_from: int | None = None) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag} class='{'number' if numeric_from is not None and i >= numeric_from else 'long'}'>"
            f"{escape(cell)}</{tag}>"
            for i, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if any(header) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _absent(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _prose(text: str) -> str:
    """Escaped text in which `words` between backticks are code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})" if value else "scalar"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
