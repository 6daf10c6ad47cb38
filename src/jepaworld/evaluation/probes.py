"""Probes: how much of the environment's true state can be read off an embedding, by a linear map and by an MLP.

Shapes: N frames, K columns, V entries of the state, E episodes. Results are in float64.

Probes are fitted on episodes that trained the model and judged on held-out ones. What a linear probe reads is laid
out plainly in the embedding; what only the MLP reads is in it, but folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from jepaworld.evaluation.encoding import encode_frames, probed, sample_rows
from jepaworld.evaluation.entries import Periods, column_starts, read_entries, state_entries, to_columns
from jepaworld.evaluation.linear_probe import fit_linear_probe
from jepaworld.evaluation.mlp_probe import fit_mlp_probe
from jepaworld.evaluation.results import Interval, MLPReading, Probe, ProbeKind
from jepaworld.evaluation.scores import bootstrap_r2, by_entry, constant_columns, interval_95, r2_score

if TYPE_CHECKING:
    from jepaworld.data.store import EpisodeDataset
    from jepaworld.models.protocol import WorldModel

PIXELS = "pixels"
PIXEL_SIDE = 16
"""Side of the pooled image that the pixel baseline reads: at most 768 numbers, still a closed-form fit."""


def mean_r2(
    probes: Sequence[Probe], *, kind: ProbeKind = "linear", seed: int = 0
) -> tuple[float | None, tuple[float, float] | None]:
    """Mean R² over the entries of one variable and its interval, from probes on the same held-out frames.

    Args:
        probes: One for each entry; those that are not measurable do not count.
        kind: Whose R²: the linear probe's or the MLP's, which must have been asked for.
        seed: Seed of the bootstrap.

    Returns:
        Mean and 95 % interval; None for what cannot be measured.
    """
    measurable = [probe for probe in probes if probe.r2 is not None]
    if not measurable:
        return None, None
    readings = [probe if kind == "linear" else probe.mlp for probe in measurable]
    assert all(reading is not None for reading in readings), "no MLP was fitted"
    mean = float(np.mean([reading.r2 for reading in readings if reading is not None and reading.r2 is not None]))
    if measurable[0].num_heldout_episodes < 2:
        return mean, None
    y = np.concatenate([probe.truth for probe in measurable], axis=1)
    y_hat = np.concatenate([reading.prediction for reading in readings if reading is not None], axis=1)
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
        train_episodes: (E,) episodes to fit the probes on.
        heldout_episodes: (E,) episodes to judge them on.
        max_frames: At most so many frames on each side.
        seed: Seed of the drawn frames, of the MLP and of the bootstrap.
        baseline_models: Models whose embeddings are probed in the same way, by name: a randomly initialised
            one shows what the architecture gives without training.
        pixel_baseline: Also probe the frames themselves, pooled to at most 16 x 16 pixels.
        mlp: Also fit an MLP on each of these; a second or two each.
        periods: Periods of known angles; others are found by their jumps.

    Returns:
        One result for each entry of each state variable, then the reward.
    """
    train_rows, train_owners = sample_rows(dataset, train_episodes, max_frames, seed)
    rows, owners = sample_rows(dataset, heldout_episodes, max_frames, seed + 1)
    entries = state_entries(dataset, train_episodes, periods)
    starts = column_starts(entries)
    y_train, y = (to_columns(read_entries(dataset, entries, some), entries) for some in (train_rows, rows))
    # Nothing to learn from, whatever the held-out episodes say.
    unfitted = by_entry(~constant_columns(y_train), starts) == 0

    def judge(y_hat: np.ndarray) -> _Judged:
        scores = r2_score(y, y_hat, starts)
        resampled = bootstrap_r2(y, y_hat, owners, starts=starts, seed=seed) if len(np.unique(owners)) >= 2 else None
        return _Judged(y_hat, [None if gone else r2 for gone, r2 in zip(unfitted, scores, strict=True)], resampled)

    inputs = {"": model, **(baseline_models or {}), **({PIXELS: None} if pixel_baseline else {})}
    linear, networks, ridge = {}, {}, np.empty(0)
    for name, source in inputs.items():
        z_train, z = (_inputs(source, dataset, some) for some in (train_rows, rows))
        fitted = fit_linear_probe(z_train, y_train)
        ridge = ridge if name else np.maximum.reduceat(fitted.ridge, starts)
        linear[name] = judge(fitted.predict(z))
        if mlp:
            networks[name] = judge(fit_mlp_probe(z_train, y_train, train_owners, seed=seed).predict(z))
    spans = [slice(first, last) for first, last in zip(starts, [*starts[1:], y.shape[1]], strict=True)]
    return [
        Probe(
            variable=entry.name,
            state=entry.variable,
            angle=entry.period is not None,
            r2=linear[""].r2[v],
            interval_95=linear[""].interval(v),
            baselines_r2={name: judged.r2[v] for name, judged in linear.items() if name},
            ridge=float(ridge[v]),
            num_train_episodes=len(np.unique(train_owners)),
            num_train_frames=len(train_rows),
            num_heldout_episodes=len(np.unique(owners)),
            num_heldout_frames=len(rows),
            truth=y[:, spans[v]],
            prediction=linear[""].prediction[:, spans[v]],
            owners=owners,
            mlp=_mlp_reading(linear[""], networks, v, spans[v]) if mlp else None,
        )
        for v, entry in enumerate(entries)
    ]


class _Judged(NamedTuple):
    """A probe's predictions (N, K) of all columns, with R² (V,) and its resamples (2000, V)."""

    prediction: np.ndarray
    r2: list[float | None]
    resampled: np.ndarray | None

    def interval(self, v: int) -> Interval:
        return None if self.resampled is None or self.r2[v] is None else interval_95(self.resampled[:, v])


def _mlp_reading(linear: _Judged, networks: dict[str, _Judged], v: int, span: slice) -> MLPReading:
    own = networks[""]
    gain = gain_interval = None
    if (r2 := own.r2[v]) is not None and (floor := linear.r2[v]) is not None:
        gain = r2 - floor
        if own.resampled is not None and linear.resampled is not None:
            gain_interval = interval_95(own.resampled[:, v] - linear.resampled[:, v])
    return MLPReading(
        r2=own.r2[v],
        interval_95=own.interval(v),
        baselines_r2={name: judged.r2[v] for name, judged in networks.items() if name},
        gain=gain,
        gain_interval_95=gain_interval,
        prediction=own.prediction[:, span],
    )


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
