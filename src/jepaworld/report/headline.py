"""What a reader wants to know first: verdict, findings in plain sentences, key numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jepaworld.config import Config
from jepaworld.evaluation.imagination import ImaginationResult
from jepaworld.evaluation.measure import UNTRAINED, Measurements
from jepaworld.evaluation.probes import mean_r2
from jepaworld.evaluation.rates import Rate
from jepaworld.report.figures import PROBE_NAMES
from jepaworld.runs.folder import RunFolder
from jepaworld.training_loops.phase_loop import LATEST

_LOSSES = {
    "vicreg": "VICReg",
    "barlow_twins": "Barlow Twins",
    "dino": "DINO centring",
    "none": "no auxiliary loss",
}
NOTABLE_GAIN = 0.05
"""Difference of R² from which on it is worth a sentence that an MLP reads more than a linear map."""

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
    _add_planning(headline, measured)
    _add_probe(headline, measured)
    _add_folded(headline, measured)
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


def _add_planning(headline: Headline, measured: Measurements) -> None:
    found = measured.planning
    planner = None if found is None else found.agent("planner")
    if found is None or planner is None or planner.missing is not None:
        return
    reached, random, recorded = planner.any["all"], found.agent("random"), found.agent("recorded")
    finding = (
        f"Plans reach {share_with_interval(reached)} of {reached.episodes} goals within {found.max_steps} environment "
        "steps"
    )
    note = f"95 %: {percent(reached.low)} to {percent(reached.high)}"
    if random is not None and random.missing is None:
        chance = random.any["all"]
        finding += f"; a random policy {share_with_interval(chance)}"
        note += f"; random {percent(chance.rate)} %"
        beaten = reached.low > chance.high
        headline.badges.append(
            ("good", "Plans beat a random policy") if beaten else ("warn", "Plans do not beat a random policy")
        )
    if planner.end["all"].successes != reached.successes:
        finding += f". When the episode ends, plans are at {share_with_interval(planner.end['all'])}"
        note += f"; at the end {percent(planner.end['all'].rate)} %"
    headline.findings.append(finding + ".")
    headline.cards.append(Card("Goals reached by planning", f"{percent(reached.rate)} %", note))
    if recorded is not None and recorded.missing is None and recorded.any["all"].high < 0.95:
        headline.badges.append(("warn", "Recorded actions miss their goals"))
        headline.findings.append(
            f"The recorded actions themselves reach only {share_with_interval(recorded.any['all'])} of the goals: the "
            "environment does not repeat what was recorded, or success is defined too narrowly."
        )


def _add_probe(headline: Headline, measured: Measurements) -> None:
    results = measured.headline_probe
    mean, interval = mean_r2(results)
    if mean is None:
        return
    name, episodes = measured.headline_variable, measured.num_heldout_episodes
    floors = _mean_by_name([result.baselines for result in results])
    beside = f"; an untrained encoder gives {number(floors[UNTRAINED])}" if UNTRAINED in floors else ""
    if "pixels" in floors:
        beside += f", the pixels themselves {number(floors['pixels'])}"
    by_mlp, mlp_interval = mean_r2(results, kind="mlp")
    mlp_floors = _mean_by_name([result.mlp.baselines for result in results if result.mlp is not None])
    headline.findings.append(
        f"A linear probe reads `{name}` from the embedding with R² {with_interval(mean, interval)} on {episodes} "
        f"{measured.heldout} episodes{beside}. An MLP reads it with R² {with_interval(by_mlp, mlp_interval)}"
        + (f", from an untrained encoder {number(mlp_floors[UNTRAINED])}." if UNTRAINED in mlp_floors else ".")
    )
    headline.cards.append(Card(f"Probe R², {name}", number(mean), f"{_interval_note(interval)}; MLP {number(by_mlp)}"))


def _mean_by_name(tables: list[dict[str, float | None]]) -> dict[str, float]:
    """Mean of each baseline over the entries of a variable that are measurable."""
    values = {name: [found for table in tables if (found := table[name]) is not None] for name in tables[0]}
    return {name: float(np.mean(entries)) for name, entries in values.items() if entries}


def _add_folded(headline: Headline, measured: Measurements) -> None:
    """Variables that an MLP reads, but a linear map does not."""
    found = []
    for result in measured.probes:
        mlp = result.mlp
        if mlp is None or mlp.r2 is None or mlp.gain is None or mlp.gain_interval is None:
            continue
        if mlp.r2 > 0.0 and mlp.gain >= NOTABLE_GAIN and mlp.gain_interval[0] > 0.0:
            found.append((mlp.gain, f"`{result.name}` (R² {number(mlp.r2)} instead of {number(result.r2)})"))
    if found:
        found.sort(key=lambda entry: -entry[0])
        names = [text for _, text in found[:4]]
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        headline.findings.append(
            f"An MLP reads what a linear map reads less well or not at all: {', '.join(names)}{more}."
        )


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
    seen = "one frame" if result.context == 1 else f"{result.context} frames"
    at_end = (
        f"after {last + 1} steps the error is {with_interval(result.error[last], interval)} of the "
        "embedding's "
        f"variance (keeping the first frame {number(result.copy_error[last])}, the mean embedding 1)."
    )
    if useful:
        headline.findings.append(
            f"Imagined from {seen}, embeddings are better than keeping that frame and than the mean embedding "
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
    state = next((state for state in result.states if state.probe.variable == measured.headline_variable), None)
    if state is not None and np.isfinite(state.imagined[last]):
        headline.findings.append(
            f"After {last + 1} imagined steps `{state.probe.name}`, read by the {PROBE_NAMES[state.probe.kind]}, is "
            f"{with_interval(state.imagined[last], (state.low[last], state.high[last]))} away from the truth on "
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
        how = "the last one is kept" if metric == LATEST else f"{metric} {number(best.get(metric))}"
        headline.cards.append(Card("Best epoch", str(best["epoch"]), f"of {len(epochs)}; {how}"))
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


def percent(rate: float) -> str:
    """A share from 0 to 1 in percent: `98.5`, `12`, `100`."""
    return f"{100 * rate:.1f}".removesuffix(".0")


def share_with_interval(rate: Rate) -> str:
    """`98.5 % (95.7 to 99.5)`."""
    return f"{percent(rate.rate)} % ({percent(rate.low)} to {percent(rate.high)})"


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
