"""An evaluation as plain text tables, for the terminal; the numbers are written as on the report's page."""

from __future__ import annotations

from collections.abc import Iterator

from jepaworld.evaluation.results import OUTCOMES, Outcome, PlanningResults, Results
from jepaworld.report.headline import AGENT_NAMES, OUTCOME_NAMES, PROBE_NAMES, rank_in_words, spread_in_words
from jepaworld.utils.text import columns, counted, duration, number, share, wrapped


def summary(results: Results) -> str:
    """Planning success, times, collapse, probes, imagination error by horizon, and what could not be measured."""
    planning = results.planning
    sections = [
        *([] if planning is None else [_success(planning), _speed(planning)]),
        [] if results.collapse is None else wrapped(results.collapse.verdict),
        _probes(results),
        _imagination(results),
        (line for reason in results.missing for line in wrapped(f"not measured: {reason}")),
    ]
    return "\n\n".join("\n".join(lines) for section in sections if (lines := list(section)))


def _success(planning: PlanningResults) -> Iterator[str]:
    yield from wrapped(planning.protocol)
    yield ""
    at_rest = any(agent.rest for agent in planning.agents)
    outcomes: tuple[Outcome, ...] = OUTCOMES if at_rest else OUTCOMES[:2]
    rows = [["goals reached", "which", *(OUTCOME_NAMES[name] for name in outcomes), "episodes"]]
    notes = ["in parentheses: 95 % intervals"]
    for agent in planning.agents:
        name = AGENT_NAMES[agent.name]
        if agent.missing is not None:
            notes.append(f"no {name}: {agent.missing}")
            continue
        notes.append(f"{name}: {agent.label}")
        notes += spread_in_words(agent)
        for group in ("all", *planning.groups):
            if group in agent.any:
                rates = [getattr(agent, outcome)[group] for outcome in outcomes]
                title = name if group == "all" else ""
                rows.append([title, group, *map(share, rates), str(agent.any[group].episodes)])
    notes += rank_in_words(planning)
    yield from columns(rows, left=2 + len(outcomes))
    for note in notes:
        yield from wrapped(note)


def _speed(planning: PlanningResults) -> Iterator[str]:
    rows = [["time", "per episode", "per plan", "median environment steps to the goal"]]
    for agent in planning.agents:
        if agent.missing is None:
            steps = agent.median_steps_to_success
            times = duration(agent.seconds_per_episode), duration(agent.seconds_per_plan)
            rows.append([AGENT_NAMES[agent.name], *times, "n/a" if steps is None else f"{steps:g}"])
    yield from columns(rows)


def _probes(results: Results) -> Iterator[str]:
    if not results.probes or results.heldout is None:
        return
    names = list(results.probes[0].baselines_r2)
    rows = [["R2 of probes", "linear", "MLP", *(f"linear, {name}" for name in names)]]
    for probe in results.probes:
        if probe.r2 is not None:
            values = [probe.r2, probe.mlp and probe.mlp.r2, *(probe.baselines_r2[name] for name in names)]
            rows.append([probe.variable, *map(number, values)])
    yield from columns(rows)
    constant = [probe.variable for probe in results.probes if probe.r2 is None]
    frames = counted(results.probes[0].num_heldout_frames, "frame")
    episodes = counted(results.heldout.episodes, f"{results.heldout.split} episode")
    note = f"on {frames} of {episodes}; 1 is perfect, 0 no better than the mean"
    yield from wrapped(note + (f"; constant there, so nothing to read: {', '.join(constant)}" if constant else ""))


def _imagination(results: Results) -> Iterator[str]:
    found = results.imagination
    if found is None:
        return
    curves = [("embedding error", found.error), ("  if nothing moved", found.copy_error)]
    for state in found.states:
        title = f"error of {state.name}, read by the {PROBE_NAMES[state.probe]}"
        read = (title, state.imagined), ("  read from the real frame", state.encoded)
        curves += [*read, ("  if nothing moved", state.copied)]
    rows = [["imagined steps", *(str(found.step[place]) for place in found.shown)]]
    rows += [[title, *(number(curve[place]) for place in found.shown)] for title, curve in curves]
    yield from columns(rows)
    note = "embedding error: mean squared, in units of the embedding's variance; guessing the mean embedding gives 1"
    units = "; errors of variables: mean distance in their own unit" if found.states else ""
    yield from wrapped(note + units)
