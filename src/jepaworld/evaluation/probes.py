"""Probes: how much of the environment's true state can be read off an embedding, by a linear map and by an MLP.

Shapes: N frames, D inputs, K variables, E episodes. Results are in float64.

Probes are fitted on episodes that trained the model and judged on held-out ones. What a linear probe reads is laid
out plainly in the embedding; what only the MLP reads is in it, but folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from jepaworld.evaluation.encoding import encode_frames, sample_rows
from jepaworld.evaluation.linear_probe import fit_linear_probe
from jepaworld.evaluation.mlp_probe import fit_mlp_probe
from jepaworld.evaluation.scores import as_matrix, bootstrap_r2, constant_columns, interval_95, r2_score

if TYPE_CHECKING:
    from jepaworld.data.store import EpisodeDataset
    from jepaworld.models.jepa import JEPA

PIXEL_SIDE = 16
"""Side of the pooled image that the pixel baseline reads: at most 768 numbers, still a closed-form fit."""

ProbeKind = Literal["linear", "mlp"]


@dataclass(frozen=True, eq=False)
class MLPReading:
    """What an MLP reads of one variable on held-out episodes, beside the linear probe of the same frames.

    Attributes:
        r2: As `ProbeResult.r2`.
        interval: As `ProbeResult.interval`.
        baselines: R² of MLPs on something else than the trained embedding, by name.
        gain: How much larger it is than the linear probe's R².
        gain_interval: 95 % interval of that, from resamples that both share.
        prediction: (N,) what it read.
    """

    r2: float | None
    interval: tuple[float, float] | None
    baselines: dict[str, float | None]
    gain: float | None
    gain_interval: tuple[float, float] | None
    prediction: np.ndarray = field(repr=False)


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a linear probe, and an MLP beside it, read of one variable on held-out episodes.

    Attributes:
        variable: Name of the state variable, or `reward` (the one that follows the frame).
        index: Which entry of it, or None if it has only one.
        r2: Share of the held-out variance that the linear probe reads, at most 1; None if the variable is constant.
        interval: 95 % bootstrap interval over held-out episodes; None with fewer than two episodes.
        baselines: R² of linear probes on something else than the trained embedding, by name.
        ridge: Ridge strength, chosen by leave-one-out on the training frames.
        num_train_episodes: Episodes that the probe was fitted on.
        num_train_frames: Frames of them.
        num_heldout_episodes: Episodes that it was judged on.
        num_heldout_frames: Frames of them.
        truth: (N,) true values on the held-out frames.
        prediction: (N,) what the linear probe read.
        owners: (N,) episode of each held-out frame.
        mlp: The same of an MLP, if one was asked for.
    """

    variable: str
    index: int | None
    r2: float | None
    interval: tuple[float, float] | None
    baselines: dict[str, float | None]
    ridge: float
    num_train_episodes: int
    num_train_frames: int
    num_heldout_episodes: int
    num_heldout_frames: int
    truth: np.ndarray = field(repr=False)
    prediction: np.ndarray = field(repr=False)
    owners: np.ndarray = field(repr=False)
    mlp: MLPReading | None = None

    @property
    def name(self) -> str:
        """Variable and entry, for example `position[0]`."""
        return self.variable if self.index is None else f"{self.variable}[{self.index}]"

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the arrays, for JSON."""
        mlp = self.mlp
        return {
            "variable": self.name,
            "r2": self.r2,
            "interval_95": self.interval,
            "baselines_r2": self.baselines,
            "ridge": self.ridge,
            "mlp": None
            if mlp is None
            else {
                "r2": mlp.r2,
                "interval_95": mlp.interval,
                "baselines_r2": mlp.baselines,
                "gain": mlp.gain,
                "gain_interval_95": mlp.gain_interval,
            },
            "num_train_episodes": self.num_train_episodes,
            "num_train_frames": self.num_train_frames,
            "num_heldout_episodes": self.num_heldout_episodes,
            "num_heldout_frames": self.num_heldout_frames,
        }


def mean_r2(
    results: Sequence[ProbeResult], *, kind: ProbeKind = "linear", seed: int = 0
) -> tuple[float | None, tuple[float, float] | None]:
    """Mean R² over the entries of one variable and its interval, from results on the same held-out frames.

    Args:
        results: One for each entry; those that are not measurable do not count.
        kind: Whose R²: the linear probe's or the MLP's, which must have been asked for.
        seed: Seed of the bootstrap.

    Returns:
        Mean and 95 % interval; None for what cannot be measured.
    """
    measurable = [result for result in results if result.r2 is not None]
    if not measurable:
        return None, None
    readings = [result if kind == "linear" else result.mlp for result in measurable]
    assert all(reading is not None for reading in readings), "no MLP was fitted"
    mean = float(np.mean([reading.r2 for reading in readings if reading is not None and reading.r2 is not None]))
    if measurable[0].num_heldout_episodes < 2:
        return mean, None
    y = np.stack([result.truth for result in measurable], axis=1)
    y_hat = np.stack([reading.prediction for reading in readings if reading is not None], axis=1)
    return mean, interval_95(bootstrap_r2(y, y_hat, measurable[0].owners, seed=seed).mean(axis=1))


def probe_states(
    model: JEPA,
    dataset: EpisodeDataset,
    train_episodes: np.ndarray,
    heldout_episodes: np.ndarray,
    *,
    max_frames: int = 4000,
    seed: int = 0,
    baseline_models: Mapping[str, JEPA] | None = None,
    pixel_baseline: bool = True,
    mlp: bool = True,
) -> list[ProbeResult]:
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

    Returns:
        One result for each entry of each state variable, then the reward.
    """
    train_rows, train_owners = sample_rows(dataset, train_episodes, max_frames, seed)
    rows, owners = sample_rows(dataset, heldout_episodes, max_frames, seed + 1)
    names, y_train = state_matrix(dataset, train_rows)
    _, y = state_matrix(dataset, rows)
    unfitted = constant_columns(y_train)  # nothing to learn from, whatever the held-out episodes say
    inputs: dict[str, tuple[Any, Any]] = {
        "": (encode_frames(model, dataset, train_rows), encode_frames(model, dataset, rows))
    }
    for name, other in (baseline_models or {}).items():
        inputs[name] = encode_frames(other, dataset, train_rows), encode_frames(other, dataset, rows)
    if pixel_baseline:
        inputs["pixels"] = _pooled_pixels(dataset, train_rows), _pooled_pixels(dataset, rows)

    probe = fit_linear_probe(inputs[""][0], y_train)
    linear, networks = {}, {}
    for name, (z_train, z) in inputs.items():
        fitted = fit_linear_probe(z_train, y_train) if name else probe
        linear[name] = _Judged.of(y, fitted.predict(z), owners, unfitted, seed)
        if mlp:
            network = fit_mlp_probe(z_train, y_train, train_owners, seed=seed)
            networks[name] = _Judged.of(y, network.predict(z), owners, unfitted, seed)
    return [
        ProbeResult(
            variable=variable,
            index=index,
            r2=linear[""].r2[k],
            interval=linear[""].interval(k),
            baselines={name: judged.r2[k] for name, judged in linear.items() if name},
            ridge=float(probe.ridge[k]),
            num_train_episodes=len(np.unique(train_owners)),
            num_train_frames=len(train_rows),
            num_heldout_episodes=len(np.unique(owners)),
            num_heldout_frames=len(rows),
            truth=y[:, k],
            prediction=linear[""].prediction[:, k],
            owners=owners,
            mlp=_mlp_reading(linear[""], networks, k) if mlp else None,
        )
        for k, (variable, index) in enumerate(names)
    ]


class _Judged(NamedTuple):
    """A probe's predictions (N, K) of all variables, with R² (K,) and its resamples (2000, K)."""

    prediction: np.ndarray
    r2: list[float | None]
    resampled: np.ndarray | None

    @classmethod
    def of(cls, y: np.ndarray, y_hat: np.ndarray, owners: np.ndarray, unfitted: np.ndarray, seed: int) -> _Judged:
        scores = r2_score(y, y_hat)
        resampled = bootstrap_r2(y, y_hat, owners, seed=seed) if len(np.unique(owners)) >= 2 else None
        return cls(y_hat, [None if unfitted[k] else score for k, score in enumerate(scores)], resampled)

    def interval(self, k: int) -> tuple[float, float] | None:
        return None if self.resampled is None or self.r2[k] is None else interval_95(self.resampled[:, k])


def _mlp_reading(linear: _Judged, networks: dict[str, _Judged], k: int) -> MLPReading:
    own = networks[""]
    gain = interval = None
    if (r2 := own.r2[k]) is not None and (floor := linear.r2[k]) is not None:
        gain = r2 - floor
        if own.resampled is not None and linear.resampled is not None:
            interval = interval_95(own.resampled[:, k] - linear.resampled[:, k])
    baselines = {name: judged.r2[k] for name, judged in networks.items() if name}
    return MLPReading(own.r2[k], own.interval(k), baselines, gain, interval, own.prediction[:, k])


def state_matrix(dataset: EpisodeDataset, rows: np.ndarray) -> tuple[list[tuple[str, int | None]], np.ndarray]:
    """All entries of the state variables, in the order of their names, then the reward after each frame.

    Args:
        dataset: The stored episodes.
        rows: (N,) global rows.

    Returns:
        Variable and entry of each column, as in `ProbeResult`, and the values, float64 (N, K).
    """
    names: list[tuple[str, int | None]] = []
    columns = []
    for variable in sorted(dataset.state_variables):
        values = as_matrix(dataset.gather(f"state.{variable}", rows))
        single = values.shape[1] == 1
        names += [(variable, None if single else index) for index in range(values.shape[1])]
        columns.append(values)
    names.append(("reward", None))
    columns.append(as_matrix(dataset.gather("rewards", rows)))
    return names, np.concatenate(columns, axis=1)


def _pooled_pixels(dataset: EpisodeDataset, rows: np.ndarray) -> np.ndarray:
    """Frames averaged down to at most 16 x 16 pixels, flattened, in [0, 1]."""
    parts = []
    for first in range(0, len(rows), 512):  # so that never all frames are in memory as floats
        frames = torch.from_numpy(dataset.gather("frames", rows[first : first + 512])).float() / 255.0
        side = min(PIXEL_SIDE, frames.shape[-1])
        parts.append(torch.nn.functional.adaptive_avg_pool2d(frames, side).flatten(1))
    return torch.cat(parts).numpy()
