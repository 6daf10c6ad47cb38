"""What a reader wants to know first: verdicts, findings in plain sentences, key numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jepaworld.evaluation.measure import UNTRAINED
from jepaworld.evaluation.probes import PIXELS
from jepaworld.evaluation.results import Badge, Card, Probe, ProbeKind, Reading, Results
from jepaworld.utils.text import counted, duration, interval, number, percent, ranges, share, with_interval

PROBE_NAMES: dict[ProbeKind, str] = {"linear": "linear probe", "mlp": "MLP"}
AGENT_NAMES = {"planner": "planner", "random": "random policy", "recorded": "recorded actions"}

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
    _badge(results, *(("bad", "Collapsed embedding") if found.collapsed else ("good", "No collapse")))
    results.findings.append(found.verdict)
    _card(results, "Effective rank", number(found.effective_rank), f"of {len(found.std)} dimensions (RankMe)")


def _planning(results: Results) -> None:
    found = results.planning
    planner = None if found is None else found.agent("planner")
    if found is None or planner is None or planner.missing is not None:
        return
    reached, random, recorded = planner.any["all"], found.agent("random"), found.agent("recorded")
    finding = (
        f"Plans reach {share(reached)} of {counted(reached.episodes, 'goal')} within "
        f"{counted(found.max_steps, 'environment step')}"
    )
    note = f"95 %: {percent(reached.low)} to {percent(reached.high)}"
    if random is not None and random.missing is None:
        chance = random.any["all"]
        finding += f"; a random policy {share(chance)}"
        note += f"; random {percent(chance.rate)} %"
        beaten = reached.low > chance.high
        verdict = ("good", "Plans beat a random policy") if beaten else ("warn", "Plans do not beat a random policy")
        _badge(results, *verdict)
    if planner.end["all"].successes != reached.successes:
        finding += f". When the episode ends, plans are at {share(planner.end['all'])}"
        note += f"; at the end {percent(planner.end['all'].rate)} %"
    results.findings.append(finding + ".")
    _card(results, "Goals reached by planning", f"{percent(reached.rate)} %", note)
    if recorded is not None and recorded.missing is None and recorded.any["all"].high < 0.95:
        _badge(results, "warn", "Recorded actions miss their goals")
        results.findings.append(
            f"The recorded actions themselves reach only {share(recorded.any['all'])} of the goals: the environment "
            "does not repeat what was recorded, or success is defined too narrowly."
        )


def _probe(results: Results) -> None:
    found, heldout = results.headline_probe, results.heldout
    if found is None or heldout is None:
        return
    probes = results.headline_probes
    linear, mlp = _mean_baselines(probes), _mean_baselines([probe.mlp for probe in probes if probe.mlp is not None])
    beside = f"; an untrained encoder gives {number(linear[UNTRAINED])}" if UNTRAINED in linear else ""
    beside += f", the pixels themselves {number(linear[PIXELS])}" if PIXELS in linear else ""
    untrained = f", from an untrained encoder {number(mlp[UNTRAINED])}" if UNTRAINED in mlp else ""
    r2, mlp_r2 = with_interval(found.r2, found.interval_95), with_interval(found.mlp_r2, found.mlp_interval_95)
    results.findings.append(
        f"A linear probe reads `{found.variable}` from the embedding with R² {r2} on "
        f"{counted(heldout.episodes, f'{heldout.split} episode')}{beside}. An MLP reads it with R² {mlp_r2}{untrained}."
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

    def gain(probe: Probe) -> float:
        mlp = probe.mlp
        if mlp is None or mlp.r2 is None or mlp.gain is None or mlp.gain_interval_95 is None:
            return 0.0
        return mlp.gain if mlp.r2 > 0.0 and mlp.gain_interval_95[0] > 0.0 else 0.0

    found = sorted((probe for probe in results.probes if gain(probe) >= NOTABLE_GAIN), key=gain, reverse=True)
    if found:
        shown = [f"`{p.variable}` (R² {number(p.mlp.r2)} instead of {number(p.r2)})" for p in found[:4] if p.mlp]
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        results.findings.append(
            f"An MLP reads what a linear map reads less well or not at all: {', '.join(shown)}{more}."
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
    at_end = (
        f"after {counted(last, 'step')} the error is {error} of the embedding's variance (keeping the first frame "
        f"{number(found.copy_error[-1])}, the mean embedding 1)."
    )
    if better:
        seen = "one frame" if found.context_frames == 1 else f"{found.context_frames} frames"
        which = "" if len(better) == last else f" ({ranges(better)})"
        results.findings.append(
            f"Imagined from {seen}, embeddings are better than keeping that frame and than the mean embedding at "
            f"{len(better)} of {counted(last, 'step')}{which}; {at_end}"
        )
    else:
        _badge(results, "warn", "Imagination does not beat its baselines")
        results.findings.append(
            f"Imagination does not beat keeping the first frame or the mean embedding at any step; {at_end}"
        )
    note = f"steps {ranges(better)}; " if better else ""
    note += f"final error {number(found.error[-1])}, copying {number(found.copy_error[-1])}, mean 1"
    _card(results, "Useful imagined steps", f"{len(better)} of {last}", note)


def _state(results: Results) -> None:
    """How far imagination is from the truth in the headline's variable."""
    states = [] if results.imagination is None or results.headline_probe is None else results.imagination.states
    variable = results.headline_probe.variable if results.headline_probe is not None else ""
    state = next((state for state in states if state.variable == variable), None)
    if state is not None and math.isfinite(state.imagined[-1]):
        ends = (state.imagined_low_95[-1], state.imagined_high_95[-1])
        results.findings.append(
            f"After {counted(len(state.imagined), 'imagined step')} `{state.name}`, read by the "
            f"{PROBE_NAMES[state.probe]}, is {with_interval(state.imagined[-1], ends)} away from the truth on average; "
            f"read from the real frame {number(state.encoded[-1])}, if nothing had moved {number(state.copied[-1])}."
        )


def _reconstruction(results: Results) -> None:
    found = results.reconstruction
    if found is None or found.painted is None:
        return
    if found.painted > 0.0:
        results.findings.append(
            f"The decoder paints {percent(round(found.painted, 2))} % of the pixel variance of held-out frames from "
            "their embeddings."
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
