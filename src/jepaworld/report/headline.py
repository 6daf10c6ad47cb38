"""What a reader wants to know first: verdict, findings in plain sentences, key numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jepaworld.config import Config
from jepaworld.evaluation.imagination import ImaginationResult
from jepaworld.evaluation.probes import mean_r2
from jepaworld.report.measure import UNTRAINED, Measurements
from jepaworld.report.run_folder import RunFolder

_LOSSES = {
    "vicreg": "VICReg",
    "barlow_twins": "Barlow Twins",
    "dino": "DINO centring",
    "none": "no auxiliary loss",
}
_ENCODERS = {"vit": "ViT", "cnn": "CNN", "mlp": "MLP"}


class Card(NamedTuple):
    """A key number."""

    label: str
    value: str
    note: str


@dataclass
class Headline:
    """The top of the page.

    Attributes:
        title: The environment.
        subtitle: Mode, loss, encoder and seed.
        unfinished: A sentence if the run has not ended.
        badges: Kind (`good`, `bad`, `warn` or empty) and text of each.
        findings: Sentences.
        cards: Key numbers.
    """

    title: str
    subtitle: str
    unfinished: str | None
    badges: list[tuple[str, str]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)


def make_headline(run: RunFolder, measured: Measurements) -> Headline:
    """Sum up a run."""
    headline = Headline(run.config.environment_name, _subtitle(run.config), _unfinished(run))
    _add_collapse(headline, measured)
    _add_probe(headline, measured)
    _add_imagination(headline, measured)
    _add_reconstruction(headline, measured)
    _add_training(headline, run)
    return headline


def _subtitle(config: Config) -> str:
    return (
        f"target encoder mode {config.jepa_model.target_encoder_mode} · "
        f"{_LOSSES[config.auxiliary_loss.type]} · "
        f"{_ENCODERS[config.encoder_type]} encoder, {config.latent_dim} dimensions · seed {config.seed}"
    )


def _unfinished(run: RunFolder) -> str | None:
    if run.finished:
        return None
    status = run.info.get("status", "unknown")
    epochs = len(run.epochs.get("jepa", []))
    return (
        f"This run has not finished (status: {status}; {epochs} of at most {run.config.num_epochs} JEPA "
        "epochs). "
        "The report shows what is there."
    )


def _add_collapse(headline: Headline, measured: Measurements) -> None:
    found = measured.collapse
    if found is None:
        headline.badges.append(("", "Collapse not measured"))
        return
    dimensions = len(found.std)
    if found.collapsed:
        headline.badges.append(("bad", "Collapsed embedding"))
        headline.findings.append(
            "The embedding has collapsed, and a low prediction loss means nothing. " + " ".join(found.reasons)
        )
    else:
        headline.badges.append(("good", "No collapse"))
        headline.findings.append(
            f"The embedding keeps held-out frames apart: mean standard deviation {number(found.std_mean)}, "
            "effective "
            f"rank {found.effective_rank:.1f} of {dimensions}."
        )
    headline.cards.append(Card("Effective rank", number(found.effective_rank), f"of {dimensions} dimensions (RankMe)"))


def _add_probe(headline: Headline, measured: Measurements) -> None:
    results = measured.headline_probe
    mean, interval = mean_r2(results)
    if mean is None:
        return
    name, episodes = measured.headline_variable, measured.num_heldout_episodes
    floors = {
        key: float(np.mean([value for r in results if (value := r.baselines.get(key)) is not None]))
        for key in results[0].baselines
    }
    beside = f"; an untrained encoder gives {number(floors[UNTRAINED])}" if UNTRAINED in floors else ""
    if "pixels" in floors:
        beside += f", the pixels themselves {number(floors['pixels'])}"
    headline.findings.append(
        f"A linear probe reads `{name}` from the embedding with R² {with_interval(mean, interval)} on "
        f"{episodes} "
        f"{measured.heldout} episodes{beside}."
    )
    headline.cards.append(Card(f"Probe R², {name}", number(mean), _interval_note(interval)))


def _add_imagination(headline: Headline, measured: Measurements) -> None:
    result = measured.imagination
    if result is None:
        return
    if not np.isfinite(result.error[-1]):
        headline.findings.append("Imagination error has no scale, because the target embeddings are constant.")
        return
    last = len(result.error) - 1
    interval = (float(result.low[last]), float(result.high[last]))
    useful = useful_steps(result)
    at_end = (
        f"after {last + 1} steps the error is {with_interval(result.error[last], interval)} of the "
        "embedding's "
        f"variance (keeping the first frame {number(result.copy_error[last])}, the mean embedding 1)."
    )
    if useful:
        headline.findings.append(
            "Imagined from one frame, embeddings are better than keeping that frame and than the mean "
            "embedding "
            f"for {useful} of {last + 1} steps; {at_end}"
        )
    else:
        headline.badges.append(("warn", "Imagination does not beat its baselines"))
        headline.findings.append(
            f"Imagination does not beat keeping the first frame or the mean embedding at any step; {at_end}"
        )
    headline.cards.append(
        Card(
            "Useful imagined steps",
            f"{useful} of {last + 1}",
            f"final error {number(result.error[last])}, copying {number(result.copy_error[last])}, mean 1",
        )
    )
    state = result.state
    if state is not None and np.isfinite(state.imagined[last]):
        headline.findings.append(
            f"After {last + 1} imagined steps `{state.variable}` read by a probe is "
            f"{with_interval(state.imagined[last], (state.low[last], state.high[last]))} away from the "
            "truth on "
            f"average; read from the real frame {number(state.encoded[last])}, if nothing had moved "
            f"{number(state.copied[last])}."
        )


def useful_steps(result: ImaginationResult) -> int:
    """First steps at which the error, with its interval, is below both the copy and the mean embedding."""
    upper = np.where(np.isfinite(result.high), result.high, result.error)
    better = upper < np.minimum(result.copy_error, 1.0)
    return int(np.argmin(better)) if not better.all() else len(better)


def _add_reconstruction(headline: Headline, measured: Measurements) -> None:
    found = measured.reconstructions
    if found is None or found.painted is None:
        return
    if found.painted > 0.0:
        headline.findings.append(
            f"The decoder paints {found.painted:.0%} of the pixel variance of held-out frames from their embeddings."
        )
    else:
        headline.badges.append(("warn", "Decoder paints no more than the mean frame"))
        headline.findings.append(
            "The decoder paints held-out frames no better than their mean: its pictures say nothing about "
            "the "
            "model. Train it longer (`jepa_decoder_training.num_epochs`)."
        )


def _add_training(headline: Headline, run: RunFolder) -> None:
    metric, best = run.config.early_stopping.metric_jepa, run.best_epoch
    epochs = run.epochs.get("jepa", [])
    if best is not None:
        headline.cards.append(
            Card("Best epoch", str(best["epoch"]), f"of {len(epochs)}; {metric} {number(best.get(metric))}")
        )
    seconds = run.seconds
    if seconds:
        detail = ", ".join(f"{phase} {duration(value)}" for phase, value in seconds.items())
        headline.cards.append(Card("Training time", duration(sum(seconds.values())), detail))
    rates = [epoch["samples_per_second"] for epoch in epochs if epoch.get("samples_per_second")]
    if rates:
        device = run.info.get("device", "unknown device")
        headline.cards.append(Card("Training speed", f"{np.median(rates):,.0f}/s", f"windows, on {device}"))


def number(value: float | None) -> str:
    """Three significant digits; `n/a` for None and NaN."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    """A number with its 95 % interval, or a word on why there is none."""
    if interval is None or not all(map(math.isfinite, interval)):
        return f"{number(value)} (no interval: too few episodes)"
    return f"{number(value)} ({number(interval[0])} to {number(interval[1])})"


def _interval_note(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "no interval: too few episodes"
    return f"95 %: {number(interval[0])} to {number(interval[1])}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
