"""Linear probes: how much of the environment's true state can be read off an embedding by a linear map.

Shapes: N frames, D inputs, K variables, E episodes. Everything in float64.

A probe is fitted on episodes that trained the model and judged on held-out ones. Frames of an episode are
alike, so that intervals are drawn over episodes and never over frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jepaworld.evaluation.encoding import encode_frames, gather_rows, sample_rows

if TYPE_CHECKING:
    from jepaworld.data.store import EpisodeDataset
    from jepaworld.models.jepa import JEPA

RIDGES = tuple(10.0**exponent for exponent in range(-6, 3))
"""Candidate ridge strengths, per frame: inputs have unit variance, so 1 shrinks a lone input by half."""

RESAMPLES = 2000
"""Bootstrap resamples: the ends of a 95 % interval then rest on 50 resamples each."""

PIXEL_SIDE = 16
"""Side of the pooled image that the pixel baseline reads: at most 768 numbers, still a closed-form fit."""


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted ridge regression.

    Attributes:
        weight: (D, K) on the raw inputs.
        bias: (K,).
        ridge: (K,) strength chosen for each variable, per frame.
    """

    weight: np.ndarray
    bias: np.ndarray
    ridge: np.ndarray

    def predict(self, z: np.ndarray | torch.Tensor) -> np.ndarray:
        """Read the variables off embeddings: (N, ...) flattened to (N, D) in, float64 (N, K) out."""
        return _matrix(z) @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a linear probe reads of one variable on held-out episodes.

    Attributes:
        variable: Name of the state variable, or `reward` (the one that follows the frame).
        index: Which entry of it, or None if it has only one.
        r2: Share of the held-out variance that is read, at most 1; None if the variable is constant.
        interval: 95 % bootstrap interval over held-out episodes; None with fewer than two episodes.
        baselines: R² of probes on something else than the trained embedding, by name.
        ridge: Ridge strength, chosen by leave-one-out on the training frames.
        num_train_episodes: Episodes that the probe was fitted on.
        num_train_frames: Frames of them.
        num_heldout_episodes: Episodes that it was judged on.
        num_heldout_frames: Frames of them.
        truth: (N,) true values on the held-out frames.
        prediction: (N,) what the probe read.
        owners: (N,) episode of each held-out frame.
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

    @property
    def name(self) -> str:
        """Variable and entry, for example `position[0]`."""
        return self.variable if self.index is None else f"{self.variable}[{self.index}]"

    def to_dict(self) -> dict[str, Any]:
        """The numbers without the arrays, for JSON."""
        return {
            "variable": self.name,
            "r2": self.r2,
            "interval_95": self.interval,
            "baselines_r2": self.baselines,
            "ridge": self.ridge,
            "num_train_episodes": self.num_train_episodes,
            "num_train_frames": self.num_train_frames,
            "num_heldout_episodes": self.num_heldout_episodes,
            "num_heldout_frames": self.num_heldout_frames,
        }


def fit_linear_probe(
    z_train: np.ndarray | torch.Tensor, y_train: np.ndarray, ridge: float | None = None
) -> LinearProbe:
    """Ridge regression in closed form on standardised inputs; the intercept is not penalised.

    Args:
        z_train: (N, ...) inputs, flattened to (N, D); constant inputs get no weight.
        y_train: (N, K) or (N,) variables.
        ridge: Strength per frame: the penalty is `ridge * N * |w|^2` on standardised inputs. None chooses
            from `RIDGES`, for each variable, the smallest leave-one-out error, in closed form.

    Returns:
        The probe.
    """
    z, y = _matrix(z_train), _matrix(y_train)
    count = len(z)
    assert count == len(y) and count >= 2
    mean, std, centre = z.mean(axis=0), z.std(axis=0), y.mean(axis=0)
    scale = np.where(_is_constant(z), np.inf, std)
    left, singular, right = np.linalg.svd((z - mean) / scale, full_matrices=False)
    projected = left.T @ (y - centre)  # (R, K)
    candidates = np.array(RIDGES if ridge is None else [ridge])
    kept = singular**2 / (singular**2 + candidates[:, None] * count + np.finfo(np.float64).tiny)  # (L, R)
    if ridge is None:
        best = _leave_one_out_errors(left, projected, y - centre, kept).argmin(axis=0)  # (K,)
    else:
        best = np.zeros(y.shape[1], dtype=np.int64)
    inverse = np.divide(kept, singular, out=np.zeros_like(kept), where=singular > 0)  # (L, R)
    weight = (right.T @ (inverse[best].T * projected)) / scale[:, None]
    return LinearProbe(weight=weight, bias=centre - mean @ weight, ridge=candidates[best])


def _leave_one_out_errors(left: np.ndarray, projected: np.ndarray, y: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Mean squared leave-one-out errors (L, K): each residual over one minus its frame's leverage."""
    leverages = left**2 @ kept.T + 1.0 / len(left)  # (N, L)
    errors = []
    for share, leverage in zip(kept, leverages.T, strict=True):
        residual = y - left @ (share[:, None] * projected)
        # A leverage of 1 is a frame that decides its own prediction: leaving it out says nothing.
        errors.append((residual / np.maximum(1.0 - leverage, 1e-9)[:, None]).__pow__(2).mean(axis=0))
    return np.stack(errors)


def r2_score(y: np.ndarray, y_hat: np.ndarray) -> list[float | None]:
    """Coefficient of determination of each variable, against the mean of `y` itself.

    Args:
        y: (N, K) or (N,) true values, held out.
        y_hat: Same shape, predictions.

    Returns:
        K values of at most 1; None where `y` is constant, so that there is nothing to explain.
    """
    y, y_hat = _matrix(y), _matrix(y_hat)
    assert y.shape == y_hat.shape
    residual = ((y - y_hat) ** 2).sum(axis=0)
    total = ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    constant = _is_constant(y)
    return [None if constant[k] else float(1.0 - residual[k] / total[k]) for k in range(y.shape[1])]


def bootstrap_r2(
    y: np.ndarray, y_hat: np.ndarray, owners: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """R² of resampled held-out episodes, drawn with replacement, all frames of a drawn episode together.

    Args:
        y: (N, K) true values.
        y_hat: (N, K) predictions.
        owners: (N,) episode of each frame.
        seed: Seed of the draws.
        resamples: How many.

    Returns:
        (resamples, K); NaN where all drawn episodes together are constant.
    """
    y, y_hat = _matrix(y), _matrix(y_hat)
    y, y_hat = y - y.mean(axis=0), y_hat - y.mean(axis=0)
    _, codes = np.unique(owners, return_inverse=True)
    episodes = int(codes.max()) + 1

    def per_episode(values: np.ndarray) -> np.ndarray:
        sums = np.zeros((episodes, values.shape[1]))
        np.add.at(sums, codes, values)
        return sums

    drawn = resample_counts(episodes, seed=seed, resamples=resamples)
    count = drawn @ np.bincount(codes)[:, None]
    residual = drawn @ per_episode((y - y_hat) ** 2)
    total = drawn @ per_episode(y**2) - (drawn @ per_episode(y)) ** 2 / count
    constant = total <= 1e-12 * (y**2).sum(axis=0)
    return np.where(constant, np.nan, 1.0 - residual / np.where(constant, 1.0, total))


def resample_counts(episodes: int, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each episode is drawn in each bootstrap resample: float64 (resamples, episodes)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(episodes, np.full(episodes, 1.0 / episodes), size=resamples).astype(np.float64)


def interval_95(resampled: np.ndarray) -> tuple[float, float] | None:
    """The 2.5th and 97.5th percentile of bootstrap values (resamples,); None if none of them is finite."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def mean_r2(results: Sequence[ProbeResult], *, seed: int = 0) -> tuple[float | None, tuple[float, float] | None]:
    """Mean R² over the entries of one variable and its interval, from results on the same held-out frames."""
    measurable = [result for result in results if result.r2 is not None]
    if not measurable:
        return None, None
    mean = float(np.mean([result.r2 for result in measurable if result.r2 is not None]))
    if measurable[0].num_heldout_episodes < 2:
        return mean, None
    y, y_hat = (np.stack([getattr(r, name) for r in measurable], axis=1) for name in ("truth", "prediction"))
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
) -> list[ProbeResult]:
    """Probe the embedding that the predictor takes for every state variable of the dataset and the reward.

    Args:
        model: The trained model.
        dataset: The stored episodes.
        train_episodes: (E,) episodes to fit the probes on.
        heldout_episodes: (E,) episodes to judge them on.
        max_frames: At most so many frames on each side.
        seed: Seed of the drawn frames and of the bootstrap.
        baseline_models: Models whose embeddings are probed in the same way, by name: a randomly initialised
            one shows what the architecture gives without training.
        pixel_baseline: Also probe the frames themselves, pooled to at most 16 x 16 pixels.

    Returns:
        One result for each entry of each state variable, then the reward.
    """
    train_rows, train_owners = sample_rows(dataset, train_episodes, max_frames, seed)
    rows, owners = sample_rows(dataset, heldout_episodes, max_frames, seed + 1)
    names, y_train = _variables(dataset, train_rows)
    _, y = _variables(dataset, rows)
    probe = fit_linear_probe(encode_frames(model, dataset, train_rows), y_train)
    y_hat = probe.predict(encode_frames(model, dataset, rows))
    baselines: dict[str, list[float | None]] = {}
    for name, other in (baseline_models or {}).items():
        floor = fit_linear_probe(encode_frames(other, dataset, train_rows), y_train)
        baselines[name] = r2_score(y, floor.predict(encode_frames(other, dataset, rows)))
    if pixel_baseline:
        floor = fit_linear_probe(_pooled_pixels(dataset, train_rows), y_train)
        baselines["pixels"] = r2_score(y, floor.predict(_pooled_pixels(dataset, rows)))
    scores, episodes = r2_score(y, y_hat), len(np.unique(owners))
    resampled = bootstrap_r2(y, y_hat, owners, seed=seed) if episodes >= 2 else None
    unfitted = _is_constant(y_train)  # nothing to learn from, whatever the held-out episodes say
    return [
        ProbeResult(
            variable=variable,
            index=index,
            r2=None if unfitted[k] else scores[k],
            interval=(None if resampled is None or unfitted[k] or scores[k] is None else interval_95(resampled[:, k])),
            baselines={name: None if unfitted[k] else values[k] for name, values in baselines.items()},
            ridge=float(probe.ridge[k]),
            num_train_episodes=len(np.unique(train_owners)),
            num_train_frames=len(train_rows),
            num_heldout_episodes=episodes,
            num_heldout_frames=len(rows),
            truth=y[:, k],
            prediction=y_hat[:, k],
            owners=owners,
        )
        for k, (variable, index) in enumerate(names)
    ]


def _variables(dataset: EpisodeDataset, rows: np.ndarray) -> tuple[list[tuple[str, int | None]], np.ndarray]:
    """Names and values (N, K) of all entries of the state variables, then the reward after each frame."""
    names: list[tuple[str, int | None]] = []
    columns = []
    for variable in sorted(dataset.state_variables):
        values = _matrix(gather_rows(dataset, f"state.{variable}", rows))
        single = values.shape[1] == 1
        names += [(variable, None if single else index) for index in range(values.shape[1])]
        columns.append(values)
    names.append(("reward", None))
    columns.append(_matrix(gather_rows(dataset, "rewards", rows)))
    return names, np.concatenate(columns, axis=1)


def _pooled_pixels(dataset: EpisodeDataset, rows: np.ndarray) -> np.ndarray:
    """Frames averaged down to at most 16 x 16 pixels, flattened, in [0, 1]."""
    parts = []
    for first in range(0, len(rows), 512):  # so that never all frames are in memory as floats
        frames = torch.from_numpy(gather_rows(dataset, "frames", rows[first : first + 512])).float() / 255.0
        side = min(PIXEL_SIDE, frames.shape[-1])
        parts.append(torch.nn.functional.adaptive_avg_pool2d(frames, side).flatten(1))
    return torch.cat(parts).numpy()


def _matrix(values: np.ndarray | torch.Tensor) -> np.ndarray:
    """Values as float64 (N, K)."""
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return array.astype(np.float64).reshape(len(array), -1)


def _is_constant(values: np.ndarray) -> np.ndarray:
    """Which columns of (N, K) do not change by more than float32 rounding."""
    return np.ptp(values, axis=0) <= 1e-6 * np.abs(values).max(axis=0)
