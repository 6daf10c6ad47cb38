"""What a reader wants to know first: verdicts, findings in plain sentences, key numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jepaworld.evaluation.measure import UNTRAINED
from jepaworld.evaluation.probes import PIXELS
from jepaworld.evaluation.results import AgentResult, Badge, Card, Outcome, PlanningResults, ProbeKind, Reading, Results
from jepaworld.utils.text import counted, duration, interval, number, percent, ranges, share, with_interval

PROBE_NAMES: dict[ProbeKind, str] = {"linear": "linear probe", "mlp": "MLP"}
AGENT_NAMES = {"planner": "planner", "random": "random policy", "recorded": "recorded actions"}

OUTCOME_NAMES: dict[Outcome, str] = {"any": "at any time", "end": "at the end", "rest": "at rest"}

NOTABLE_GAIN = 0.05
"""Difference of R² from which on it is worth a sentence that an MLP reads more than a linear map."""


def add_headline(results: Results) -> None:
    """Fill `badges`, `findings` and `cards` from the other results."""
    results.badges, results.findings, results.cards = [], [], []
    for part in (_collapse, _planning, _probe, _folded, _imagination, _state, _reconstruction, _training):
        part(results)


def unfinished(results: Results) -> str | None:
    """A sentence if the run has not ended."""
    if results.finished:
        return None
    status, epochs = results.run.get("status", "unknown"), len(results.epochs.get("jepa", []))
    return (
        f"This run has not finished (status: {status}; {epochs} of at most {results.config.get('num_epochs')} JEPA "
        "epochs). The report shows what is there."
    )


def _badge(results: Results, kind: str, text: str) -> None:
    results.badges.append(Badge(kind=kind, text=text))


def _card(results: Results, label: str, value: str, note: str) -> None:
    results.cards.append(Card(label=label, value=value, note=note))


def _collapse(results: Results) -> None:
    found = results.collapse
    if found is None:
        _badge(results, "", "Collapse not measured")
        return
    verdict = ("bad", "Collapsed embedding") if found.collapsed else ("good", "No collapse")
    _badge(results, *verdict)
    results.findings.append(found.verdict)
    _card(results, "Effective rank", number(found.effective_rank), f"of {len(found.std)} dimensions (RankMe)")


def _planning(results: Results) -> None:
    found = results.planning
    planner = found and found.agent("planner")
    if not found or not planner:
        return
    reached, ended = planner.any["all"], planner.end["all"]
    finding = (
        f"Plans reach {share(reached)} of {counted(reached.episodes, 'goal')} within "
        f"{counted(found.max_steps, 'environment step')}"
    )
    note = f"95 %: {percent(reached.low)} to {percent(reached.high)}"
    if random := found.agent("random"):
        chance = random.any["all"]
        finding += f"; a random policy {share(chance)}"
        note += f"; random {percent(chance.rate)} %"
        beaten = reached.low > chance.high
        _badge(results, "good" if beaten else "warn", f"Plans {'beat' if beaten else 'do not beat'} a random policy")
    if ended.successes != reached.successes:
        finding += f". When the episode ends, plans are at {share(ended)}"
        note += f"; at the end {percent(ended.rate)} %"
    if planner.rest:
        finding += f". At the end and at rest are {share(planner.rest['all'])}"
    results.findings.append(finding + ".")
    results.findings += spread_in_words(planner) + rank_in_words(found)
    _card(results, "Goals reached by planning", f"{percent(reached.rate)} %", note)
    if (recorded := found.agent("recorded")) and recorded.any["all"].high < 0.95:
        _badge(results, "warn", "Recorded actions miss their goals")
        results.findings.append(
            f"The recorded actions themselves reach only {share(recorded.any['all'])} of the goals: the environment "
            "does not repeat what was recorded, or success is defined too narrowly."
        )


def spread_in_words(planner: AgentResult) -> list[str]:
    """A sentence on how much the planner's random numbers decide; none if there was a single stream."""
    told = [
        f"{when} {', '.join(percent(rate) for rate in found.rates)} %, mean {percent(found.mean)} % "
        f"({percent(found.low)} to {percent(found.high)})"
        for outcome, when in OUTCOME_NAMES.items()
        if (found := planner.spread.get(outcome)) is not None
    ]
    streams = len(planner.spread["any"].rates) if told else 0
    return [f"With {streams} streams of the planner's random numbers: {'; '.join(told)}."] if told else []


def rank_in_words(found: PlanningResults) -> list[str]:
    """A sentence on where the recorded actions rank among random ones; none if nothing was recorded."""
    rank = found.recorded_rank
    if rank is None:
        return []
    ends = rank.interval_95
    within = f" ({percent(ends[0])} to {percent(ends[1])})" if ends else ""
    return [
        "By what the model expects, the recorded actions end nearer to the goal than "
        f"{percent(rank.better_than)} %{within} of random ones (50 % is chance)."
    ]


def _probe(results: Results) -> None:
    found, heldout = results.headline_probe, results.heldout
    if found is None or heldout is None:
        return
    probes = results.headline_probes
    linear, mlp = _mean_baselines(probes), _mean_baselines([probe.mlp for probe in probes if probe.mlp is not None])
    beside = f"; an untrained encoder gives {number(linear[UNTRAINED])}" if UNTRAINED in linear else ""
    beside += f", the pixels themselves {number(linear[PIXELS])}" if PIXELS in linear else ""
    untrained = f", from an untrained encoder {number(mlp[UNTRAINED])}" if UNTRAINED in mlp else ""
    results.findings.append(
        f"A linear probe reads `{found.variable}` from the embedding with R² "
        f"{with_interval(found.r2, found.interval_95)} on {counted(heldout.episodes, f'{heldout.split} episode')}"
        f"{beside}. An MLP reads it with R² {with_interval(found.mlp_r2, found.mlp_interval_95)}{untrained}."
    )
    ends = "" if found.interval_95 is None else "95 %: "
    note = f"{ends}{interval(found.interval_95)}; MLP {number(found.mlp_r2)}"
    _card(results, f"Probe R², {found.variable}", number(found.r2), note)


def _mean_baselines(readings: Sequence[Reading]) -> dict[str, float]:
    """Mean of each baseline over the entries of a variable that are measurable."""
    names = readings[0].baselines_r2 if readings else {}
    values = {name: [r2 for one in readings if (r2 := one.baselines_r2[name]) is not None] for name in names}
    return {name: float(np.mean(entries)) for name, entries in values.items() if entries}


def _folded(results: Results) -> None:
    """Entries that an MLP reads, but a linear map does not."""
    found = []
    for probe in results.probes:
        mlp = probe.mlp
        if mlp is None or mlp.r2 is None or mlp.gain is None or mlp.gain_interval_95 is None:
            continue
        if mlp.r2 > 0.0 and mlp.gain_interval_95[0] > 0.0 and mlp.gain >= NOTABLE_GAIN:
            found.append((mlp.gain, f"`{probe.variable}` (R² {number(mlp.r2)} instead of {number(probe.r2)})"))
    if found:
        shown = [text for _, text in sorted(found, key=lambda entry: -entry[0])]
        more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
        results.findings.append(
            f"An MLP reads what a linear map reads less well or not at all: {', '.join(shown[:4])}{more}."
        )


def _imagination(results: Results) -> None:
    found = results.imagination
    if found is None:
        return
    if not math.isfinite(found.error[-1]):
        results.findings.append("Imagination error has no scale, because the target embeddings are constant.")
        return
    better, last = found.better_steps, found.step[-1]
    error = with_interval(found.error[-1], (found.error_low_95[-1], found.error_high_95[-1]))
    if better:
        seen = "one frame" if found.context_frames == 1 else f"{found.context_frames} frames"
        which = "" if len(better) == last else f" ({ranges(better)})"
        judgement = (
            f"Imagined from {seen}, embeddings are better than keeping that frame and than the mean embedding at "
            f"{len(better)} of {counted(last, 'step')}{which}"
        )
    else:
        _badge(results, "warn", "Imagination does not beat its baselines")
        judgement = "Imagination does not beat keeping the first frame or the mean embedding at any step"
    results.findings.append(
        f"{judgement}; after {counted(last, 'step')} the error is {error} of the embedding's variance (keeping the "
        f"first frame {number(found.copy_error[-1])}, the mean embedding 1)."
    )
    note = f"steps {ranges(better)}; " if better else ""
    note += f"final error {number(found.error[-1])}, copying {number(found.copy_error[-1])}, mean 1"
    _card(results, "Useful imagined steps", f"{len(better)} of {last}", note)


def _state(results: Results) -> None:
    """How far imagination is from the truth in the headline's variable."""
    headline, imagination = results.headline_probe, results.imagination
    states = imagination.states if headline and imagination else []
    state = next((state for state in states if headline and state.variable == headline.variable), None)
    if state is not None and math.isfinite(state.imagined[-1]):
        ends = (state.imagined_low_95[-1], state.imagined_high_95[-1])
        results.findings.append(
            f"After {counted(len(state.imagined), 'imagined step')} `{state.name}`, read by the "
            f"{PROBE_NAMES[state.probe]}, is {with_interval(state.imagined[-1], ends)} away from the truth on average; "
            f"read from the real frame {number(state.encoded[-1])}, if nothing had moved {number(state.copied[-1])}."
        )


def _reconstruction(results: Results) -> None:
    painted = results.reconstruction and results.reconstruction.painted
    if painted is None:
        return
    if painted > 0.0:
        results.findings.append(
            f"The decoder paints {percent(round(painted, 2))} % of the pixel variance of held-out frames from their "
            "embeddings."
        )
    else:
        _badge(results, "warn", "Decoder paints no more than the mean frame")
        results.findings.append(
            "The decoder paints held-out frames no better than their mean: its pictures say nothing about the model. "
            "Train it longer (`jepa_decoder_training.num_epochs`)."
        )


def _training(results: Results) -> None:
    epochs, best = results.epochs.get("jepa", []), results.best_epoch
    if best is not None:
        metric = results.config.get("early_stopping", {}).get("metric_jepa")
        how = f"{metric} {number(best[metric])}" if metric in best else "the last one is kept"
        _card(results, "Best epoch", str(best["epoch"]), f"of {len(epochs)}; {how}")
    seconds = {name: phase["seconds"] for name, phase in results.run.get("phases", {}).items()}
    if seconds:
        detail = ", ".join(f"{phase} {duration(value)}" for phase, value in seconds.items())
        _card(results, "Training time", duration(sum(seconds.values())), detail)
    rates = [epoch["samples_per_second"] for epoch in epochs if epoch.get("samples_per_second")]
    if rates:
        device = results.run.get("device", "unknown device")
        _card(results, "Training speed", f"{np.median(rates):,.0f}/s", f"windows, on {device}")
