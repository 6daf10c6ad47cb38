"""Probes: how much of the environment's true state can be read off an embedding, by a linear map and by an MLP.

Shapes: N frames, K columns, V entries of the state, E episodes. Results are in float64.

Probes are fitted on episodes that trained the model and judged on held-out ones. What a linear probe reads is laid
out plainly in the embedding; what only the MLP reads is in it, but folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from jepaworld.data.store import EpisodeDataset
from jepaworld.evaluation.encoding import encode_frames, probed, sample_rows
from jepaworld.evaluation.entries import (
    REWARD,
    Entry,
    Periods,
    column_starts,
    from_columns,
    read_columns,
    state_entries,
)
from jepaworld.evaluation.regression import LinearProbe, MLPProbe, fit_linear_probe, fit_mlp_probe, split_by_episode
from jepaworld.evaluation.results import Interval, MLPReading, Probe, ProbeKind
from jepaworld.evaluation.scores import bootstrap_r2, interval_95, r2_score, varying_entries
from jepaworld.models.protocol import WorldModel

PIXELS = "pixels"
PIXEL_SIDE = 16
"""Side of the pooled image that the pixel baseline reads: at most 768 numbers, still a closed-form fit."""

READABLE = 0.5
"""R² from which on a variable is followed through imagination; of one that is read worse the error would be the
probe's own."""

MLP_ADVANTAGE = 0.9
"""The MLP is taken if its squared error is below this share of the linear probe's: it is judged on the episodes that
also decided when to stop, and is the less predictable of the two away from real embeddings."""


def mean_r2(probes: Sequence[Probe], *, kind: ProbeKind = "linear", seed: int = 0) -> tuple[float | None, Interval]:
    """Mean R² over the entries of one variable and its 95 % interval, from probes on the same held-out frames.

    Args:
        probes: One for each entry; those that are not measurable do not count.
        kind: Whose R²: the linear probe's or the MLP's, which must have been asked for.
        seed: Seed of the bootstrap.

    Returns:
        Mean and interval; None for what cannot be measured.
    """
    measurable = [probe for probe in probes if probe.r2 is not None]
    if not measurable:
        return None, None
    readings = [reading for probe in measurable if (reading := probe if kind == "linear" else probe.mlp) is not None]
    mean = float(np.mean([reading.r2 for reading in readings if reading.r2 is not None]))
    y, y_hat = (np.concatenate(c, axis=1) for c in ([p.truth for p in measurable], [r.prediction for r in readings]))
    starts = np.cumsum([0, *(probe.truth.shape[1] for probe in measurable[:-1])])
    resampled = bootstrap_r2(y, y_hat, measurable[0].owners, starts=starts, seed=seed)
    return mean, interval_95(resampled.mean(axis=1))


def probe_states(
    model: WorldModel,
    dataset: EpisodeDataset,
    train_episodes: np.ndarray,
    heldout_episodes: np.ndarray,
    *,
    max_frames: int = 4000,
    seed: int = 0,
    baseline_models: Mapping[str, WorldModel] | None = None,
    pixel_baseline: bool = True,
    mlp: bool = True,
    periods: Periods | None = None,
) -> list[Probe]:
    """Probe the embedding that the predictor takes for every state variable of the dataset and the reward.

    Args:
        model: The trained model.
        dataset: The stored episodes.
        train_episodes: (E,) to fit the probes on.
        heldout_episodes: (E,) to judge them on.
        max_frames: At most so many frames on each side.
        seed: Seed of the drawn frames, of the MLP and of the bootstrap.
        baseline_models: Models, by name, that are probed in the same way: one with random weights, say.
        pixel_baseline: Also probe the frames themselves, pooled to at most 16 x 16 pixels.
        mlp: Also fit an MLP on each of these; a second or two each.
        periods: Periods of known angles; others are found by their jumps.

    Returns:
        One result for each entry of each state variable, then the reward.
    """
    entries = state_entries(dataset, train_episodes, periods)
    starts = column_starts(entries)
    train_rows, train_owners = sample_rows(dataset, train_episodes, max_frames, seed)
    rows, owners = sample_rows(dataset, heldout_episodes, max_frames, seed + 1)
    y_train, y = (read_columns(dataset, entries, some) for some in (train_rows, rows))
    fitted = varying_entries(y_train, starts)  # of others there is nothing to learn, whatever held-out episodes say

    def judge(y_hat: np.ndarray) -> _Judged:
        scores = [r2 if learned else None for learned, r2 in zip(fitted, r2_score(y, y_hat, starts), strict=True)]
        return _Judged(y_hat, scores, bootstrap_r2(y, y_hat, owners, starts=starts, seed=seed))

    linear, networks, ridge = {}, {}, {}
    for name, source in {"": model, **(baseline_models or {}), **({PIXELS: None} if pixel_baseline else {})}.items():
        z_train, z = (_inputs(source, dataset, some) for some in (train_rows, rows))
        probe = fit_linear_probe(z_train, y_train)
        linear[name], ridge[name] = judge(probe.predict(z)), np.maximum.reduceat(probe.ridge, starts)
        if mlp:
            networks[name] = judge(fit_mlp_probe(z_train, y_train, train_owners, seed=seed).predict(z))
    about = {
        "num_train_episodes": len(np.unique(train_owners)),
        "num_train_frames": len(train_rows),
        "num_heldout_episodes": len(np.unique(owners)),
        "num_heldout_frames": len(rows),
        "owners": owners,
    }
    spans = [slice(start, start + entry.width) for start, entry in zip(starts, entries, strict=True)]
    return [
        _probe(entry, v, span, linear, networks, truth=y[:, span], ridge=float(ridge[""][v]), **about)
        for v, (entry, span) in enumerate(zip(entries, spans, strict=True))
    ]


class _Judged(NamedTuple):
    """What a probe reads on held-out frames."""

    prediction: np.ndarray  # (N, K)
    r2: list[float | None]  # (V,)
    resampled: np.ndarray  # (RESAMPLES, V)


def _probe(
    entry: Entry, v: int, span: slice, linear: Mapping[str, _Judged], networks: Mapping[str, _Judged], **about: Any
) -> Probe:
    """What both kinds of probe read of one entry; the model's own embedding is named ""."""
    mlp = None
    if networks:
        network, floor, gain = networks[""], linear[""], {}
        if (r2 := network.r2[v]) is not None and (linear_r2 := floor.r2[v]) is not None:
            gain["gain"] = r2 - linear_r2
            # Resamples are the same of both, so that what one episode adds to both cancels.
            gain["gain_interval_95"] = interval_95(network.resampled[:, v] - floor.resampled[:, v])
        mlp = MLPReading(**_reading(networks, v, span), **gain)
    angle = entry.period is not None
    return Probe(variable=entry.name, state=entry.variable, angle=angle, mlp=mlp, **_reading(linear, v, span), **about)


def _reading(judged: Mapping[str, _Judged], v: int, span: slice) -> dict[str, Any]:
    """The fields of a `Reading` of an entry."""
    own = judged[""]
    return {
        "r2": own.r2[v],
        "interval_95": None if own.r2[v] is None else interval_95(own.resampled[:, v]),
        "baselines_r2": {name: one.r2[v] for name, one in judged.items() if name},
        "prediction": own.prediction[:, span],
    }


def _inputs(model: WorldModel | None, dataset: EpisodeDataset, rows: np.ndarray) -> torch.Tensor:
    """What is probed: embeddings, or without a model frames of at most 16 x 16 pixels in [0, 1]."""
    if model is not None:
        return probed(encode_frames(model, dataset, rows))
    parts = []
    for first in range(0, len(rows), 512):  # so that never all frames are in memory as floats
        frames = torch.from_numpy(dataset.gather("frames", rows[first : first + 512])).float() / 255.0
        side = min(PIXEL_SIDE, frames.shape[-1])
        parts.append(torch.nn.functional.adaptive_avg_pool2d(frames, side).flatten(1))
    return torch.cat(parts)


# --- probes that follow a state through imagination ------------------------------------------------------------------


class StateProbe(NamedTuple):
    """The better probe of the readable entries of one state variable; angles are apart, as their unit is another."""

    variable: str
    entries: tuple[Entry, ...]
    size: int  # how many numbers the variable has
    kind: ProbeKind
    r2: float  # smallest R² of an entry on the training episodes that it was chosen by
    probe: LinearProbe | MLPProbe
    columns: np.ndarray  # which columns of the probe are those of the entries

    @property
    def indices(self) -> list[int]:
        """Places of the entries in the variable."""
        return [entry.place or 0 for entry in self.entries]

    @property
    def name(self) -> str:
        """Variable and, if not all, entries: `state[0, 2]`, `state (20 of 128 entries)`, `pose[2] (angle)`."""
        turn = "" if self.entries[0].period is None else " (angle)"
        if len(self.entries) == self.size:
            return self.variable + turn
        if len(self.entries) > 4:
            return f"{self.variable} ({len(self.entries)} of {self.size} entries)" + turn
        return f"{self.variable}[{', '.join(map(str, self.indices))}]" + turn

    def read(self, z: torch.Tensor) -> np.ndarray:
        """Entries (N, V) in the variable's unit from embeddings (N, *latent)."""
        return from_columns(self.probe.predict(probed(z))[:, self.columns], self.entries)


def choose_state_probes(
    model: WorldModel,
    dataset: EpisodeDataset,
    train_episodes: np.ndarray,
    *,
    max_frames: int = 4000,
    seed: int = 0,
    periods: Periods | None = None,
) -> list[StateProbe]:
    """For every state variable the probe that reads it better, to follow it through imagination.

    Probes are fitted on `encode_target`, because that is what imagined embeddings are to resemble. Which entries of
    a variable can be read, and whether the linear probe or the MLP reads them better, is decided on a fifth of the
    training episodes, so that held-out episodes stay unseen; the linear probe is then fitted on all of them.

    Args:
        model: The trained model.
        dataset: The stored episodes.
        train_episodes: (E,) episodes to fit and choose on.
        max_frames: At most so many frames of them.
        seed: Seed of the drawn frames and of the MLP.
        periods: Periods of known angles; others are found by their jumps.

    Returns:
        Variables of which some entry is read with R² of at least `READABLE`, the best read first.
    """
    rows, owners = sample_rows(dataset, train_episodes, max_frames, seed)
    entries = state_entries(dataset, train_episodes, periods)
    starts, y = column_starts(entries), read_columns(dataset, entries, rows)
    z = probed(encode_frames(model, dataset, rows, encode=model.encode_target))
    held = split_by_episode(owners, seed)
    if (~held).sum() < 2:
        return []
    part, network = fit_linear_probe(z[~held], y[~held]), fit_mlp_probe(z, y, owners, seed=seed)
    whole: dict[ProbeKind, LinearProbe | MLPProbe] = {"linear": fit_linear_probe(z, y), "mlp": network}
    judged: dict[ProbeKind, LinearProbe | MLPProbe] = {"linear": part, "mlp": network}
    scores = {kind: np.array(r2_score(y[held], p.predict(z[held]), starts), float) for kind, p in judged.items()}
    # NaN where nothing could be learned, or nothing can be read.
    scores = {kind: np.where(varying_entries(y[~held], starts), r2, np.nan) for kind, r2 in scores.items()}
    found = []
    for variable, period in sorted({(e.variable, e.period or 0.0) for e in entries if e.variable != REWARD}):
        members = [v for v, e in enumerate(entries) if (e.variable, e.period or 0.0) == (variable, period)]
        readable = [v for v in members if np.fmax(scores["linear"], scores["mlp"])[v] >= READABLE]
        if not readable:
            continue
        errors = {kind: (1.0 - scores[kind][readable]).sum() for kind in whole}
        kind: ProbeKind = "mlp" if errors["mlp"] < MLP_ADVANTAGE * errors["linear"] else "linear"
        columns = np.concatenate([starts[v] + np.arange(entries[v].width) for v in readable])
        size, r2 = sum(entry.variable == variable for entry in entries), float(scores[kind][readable].min())
        found.append(StateProbe(variable, tuple(entries[v] for v in readable), size, kind, r2, whole[kind], columns))
    return sorted(found, key=lambda chosen: -chosen.r2)
