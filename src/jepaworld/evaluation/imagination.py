"""How far imagination drifts from what really happened.

Shapes: N windows, P steps, E episodes, D latent (one axis or more), K state entries.

From one real frame, or as many as its predictor uses, the model imagines the recorded actions; step h is compared with
the embedding of the real frame h steps later. Beside it stands the copy baseline, for which nothing ever changes; a
model that has learned dynamics must beat it. The error of predicting the mean is 1 by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepaworld.evaluation.encoding import evaluation_mode
from jepaworld.evaluation.scores import resample_counts
from jepaworld.evaluation.state_probes import StateProbe
from jepaworld.models.protocol import context_length
from jepaworld.utils.modules import device_of

if TYPE_CHECKING:
    from jepaworld.data.store import EpisodeDataset
    from jepaworld.models.jepa import JEPA


@dataclass(frozen=True, eq=False)
class StateError:
    """Distance between the true state and the one that a probe reads, by imagined step.

    Attributes:
        probe: Which state variable, which entries of it, and what reads them.
        imagined: (P,) mean Euclidean distance over these entries from imagined embeddings, in the variable's own unit.
        low: (P,) lower end of its 95 % interval.
        high: (P,) upper end.
        encoded: (P,) the same read from the embeddings of the real frames: what the probe itself gets wrong.
        copied: (P,) distance of the state at the first frame: how far things moved.
    """

    probe: StateProbe
    imagined: np.ndarray
    low: np.ndarray
    high: np.ndarray
    encoded: np.ndarray
    copied: np.ndarray


@dataclass(frozen=True, eq=False)
class ImaginationResult:
    """Imagination error by step; index 0 is the first imagined step. NaN where no window is long enough.

    Attributes:
        context: Real frames that imagination begins with, as many as the predictor uses.
        error: (P,) mean squared embedding error over the variance of the target embeddings: 0 is perfect, 1
            is as good as always predicting the mean.
        low: (P,) lower end of its 95 % bootstrap interval over episodes; NaN with fewer than two.
        high: (P,) upper end.
        copy_error: (P,) the same error if the embedding of the first frame is kept.
        num_windows: (P,) windows that reach this step.
        num_episodes: (P,) episodes that reach this step.
        target_variance: Mean variance of a dimension of the target embeddings; 0 leaves every error NaN.
        window_rows: (N,) global row of each window's first frame.
        window_owners: (N,) its episode.
        window_lengths: (N,) its steps, at most P.
        window_errors: (N,) its error, mean over its steps.
        states: Error in each state variable that a probe was given for.
    """

    context: int
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    copy_error: np.ndarray
    num_windows: np.ndarray
    num_episodes: np.ndarray
    target_variance: float
    window_rows: np.ndarray
    window_owners: np.ndarray
    window_lengths: np.ndarray
    window_errors: np.ndarray
    states: tuple[StateError, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The numbers by step, for JSON; NaN becomes None."""
        table: dict[str, Any] = {
            "context_frames": self.context,
            "step": list(range(1, len(self.error) + 1)),
            "error": _plain(self.error),
            "error_low_95": _plain(self.low),
            "error_high_95": _plain(self.high),
            "copy_error": _plain(self.copy_error),
            "num_windows": self.num_windows.tolist(),
            "num_episodes": self.num_episodes.tolist(),
            "target_variance": self.target_variance,
        }
        table["states"] = [
            {
                "variable": state.probe.variable,
                "entries": list(state.probe.entries),
                "probe": state.probe.kind,
                "imagined": _plain(state.imagined),
                "imagined_low_95": _plain(state.low),
                "imagined_high_95": _plain(state.high),
                "encoded": _plain(state.encoded),
                "copied": _plain(state.copied),
            }
            for state in self.states
        ]
        return table


class _Batch(NamedTuple):
    """Windows that were imagined together; steps past a window's end are meaningless and masked out."""

    windows: slice
    imagined: Tensor
    """(n, P, D) on the CPU."""
    target: Tensor
    """(n, P + 1, D), the first frame included."""


def choose_windows(
    dataset: EpisodeDataset, episodes: np.ndarray, horizon: int, per_episode: int, seed: int, context: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw windows of `horizon` steps; an episode that is shorter gives one window, all of it.

    Args:
        dataset: The stored episodes.
        episodes: (E,) episode indices.
        horizon: Longest window, in transitions.
        per_episode: Draw at most so many different starts in each episode.
        seed: Seed of the draw.
        context: Frames of the episode that must be there before the first step, the first frame included.

    Returns:
        `rows`, `owners`, `lengths`, each int64 (N,): first frame (global row), episode, transitions.
    """
    rng = np.random.default_rng(seed)
    rows, owners, lengths = [], [], []
    for episode in np.asarray(episodes, dtype=np.int64):
        available = int(dataset.episode_lengths[episode]) - (context - 1)
        if available < 1:
            continue
        starts = max(1, available - horizon + 1)
        for start in np.sort(rng.choice(starts, size=min(per_episode, starts), replace=False)):
            rows.append(dataset.episode_starts[episode] + context - 1 + start)
            owners.append(episode)
            lengths.append(min(horizon, available))
    return np.array(rows, np.int64), np.array(owners, np.int64), np.array(lengths, np.int64)


def imagine(
    model: JEPA, dataset: EpisodeDataset, rows: np.ndarray, lengths: np.ndarray, horizon: int, context: int = 1
) -> Tensor:
    """Imagine the recorded actions from frames and what was before them.

    Args:
        model: The model; its mode is restored afterwards.
        dataset: The stored episodes.
        rows: (N,) global rows of the first frames.
        lengths: (N,) recorded transitions from there.
        horizon: P.
        context: K, frames that the model sees, `rows` and the K - 1 before them in the episode.

    Returns:
        (N, P, D) imagined embeddings on the CPU. Those past a window's end repeat its last action and have
        no real counterpart.
    """
    steps = rows[:, None] + np.minimum(np.arange(horizon), lengths[:, None] - 1)
    actions = dataset.gather("actions", steps.reshape(-1)).reshape(len(rows), horizon, -1)
    past = rows[:, None] + np.arange(1 - context, 1)
    frames = torch.from_numpy(dataset.gather("frames", past.reshape(-1))).unflatten(0, past.shape)
    device = device_of(model)
    played = {}
    if context > 1:
        between = dataset.gather("actions", past[:, :-1].reshape(-1)).reshape(len(rows), context - 1, -1)
        played["context_actions"] = torch.from_numpy(between).to(device)
    with evaluation_mode(model):
        z = model.encode(frames.to(device))
        return model.rollout(z, torch.from_numpy(actions).to(device), **played).float().cpu()


def imagination_error(
    model: JEPA,
    dataset: EpisodeDataset,
    episodes: np.ndarray,
    horizon: int = 16,
    *,
    windows_per_episode: int = 4,
    seed: int = 0,
    batch_size: int = 32,
    state_probes: Sequence[StateProbe] = (),
) -> ImaginationResult:
    """Compare imagined embeddings with those of the real frames, step by step.

    Args:
        model: The trained model.
        dataset: The stored episodes.
        episodes: (E,) held-out episodes.
        horizon: P, steps to imagine. An episode that is shorter counts for the steps that it has.
        windows_per_episode: Starts drawn in each episode.
        seed: Seed of the starts and of the bootstrap.
        batch_size: Windows at once.
        state_probes: Probes of state variables, as `choose_state_probes` gives them: fitted on `encode_target`,
            because that is what imagined embeddings are to resemble.

    Returns:
        Errors by step, with intervals and the copy baseline.
    """
    context = context_length(model)
    rows, owners, lengths = choose_windows(dataset, episodes, horizon, windows_per_episode, seed, context)
    if not len(rows):  # no episode is longer than what the model could look back on
        context = 1
        rows, owners, lengths = choose_windows(dataset, episodes, horizon, windows_per_episode, seed)
    assert len(rows), "no episode has a transition"
    steps, valid = _window_rows(rows, lengths, horizon)
    errors, copies = np.full((2, len(rows), horizon), np.nan)
    distances = np.full((len(state_probes), 3, len(rows), horizon), np.nan)
    moments = _Moments()
    for batch in _imagined_batches(model, dataset, rows, lengths, horizon, batch_size, context):
        real = batch.target[:, 1:]
        mask = torch.from_numpy(valid[batch.windows])
        errors[batch.windows] = _squared_error(batch.imagined, real)
        copies[batch.windows] = _squared_error(batch.target[:, :1], real)
        moments.add(real[mask])
        for probe, of_probe in zip(state_probes, distances, strict=True):
            of_probe[:, batch.windows] = _state_distances(dataset, steps[batch.windows], batch, probe)
    variance = moments.variance()
    scale = variance if variance > 0.0 else np.nan
    errors, copies = (np.where(valid, values / scale, np.nan) for values in (errors, copies))
    error, low, high = _mean_by_step(errors, valid, owners, seed)
    states = []
    for probe, of_probe in zip(state_probes, distances, strict=True):
        imagined, encoded, copied = (_mean_by_step(values, valid, owners, seed) for values in of_probe)
        states.append(StateError(probe, *imagined, encoded[0], copied[0]))
    return ImaginationResult(
        context=context,
        error=error,
        low=low,
        high=high,
        copy_error=_mean_by_step(copies, valid, owners, seed)[0],
        num_windows=valid.sum(axis=0),
        num_episodes=np.array([len(np.unique(owners[column])) for column in valid.T]),
        target_variance=variance,
        window_rows=rows,
        window_owners=owners,
        window_lengths=lengths,
        window_errors=np.where(valid, errors, 0.0).sum(axis=1) / lengths,
        states=tuple(states),
    )


def _imagined_batches(
    model: JEPA,
    dataset: EpisodeDataset,
    rows: np.ndarray,
    lengths: np.ndarray,
    horizon: int,
    batch_size: int,
    context: int,
) -> Iterator[_Batch]:
    device = device_of(model)
    for first in range(0, len(rows), batch_size):
        windows = slice(first, min(first + batch_size, len(rows)))
        imagined = imagine(model, dataset, rows[windows], lengths[windows], horizon, context)
        steps, _ = _window_rows(rows[windows], lengths[windows], horizon)
        frames = torch.from_numpy(dataset.gather("frames", steps.reshape(-1)))
        frames = frames.unflatten(0, steps.shape).to(device)
        with evaluation_mode(model):
            yield _Batch(windows, imagined, model.encode_target(frames).float().cpu())


def _window_rows(rows: np.ndarray, lengths: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Global rows (N, P + 1) of each window's frames, and bool (N, P) which imagined steps are real.

    Past its end a window repeats its last frame, so that every row exists.
    """
    offsets = np.arange(horizon + 1)
    return rows[:, None] + np.minimum(offsets, lengths[:, None]), offsets[1:] <= lengths[:, None]


class _Moments:
    """Count, mean and sum of squared deviations of embeddings that come in batches (Chan's update)."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(()), np.zeros(())

    def add(self, z: Tensor) -> None:
        values = z.flatten(1).double().numpy()
        count, mean = len(values), values.mean(axis=0)
        total, shift = self.count + count, mean - self.mean
        self.squares = self.squares + ((values - mean) ** 2).sum(axis=0)
        self.squares = self.squares + shift**2 * (self.count * count / total)
        self.mean, self.count = self.mean + shift * (count / total), total

    def variance(self) -> float:
        return float((self.squares / self.count).mean())


def _squared_error(z: Tensor, target: Tensor) -> np.ndarray:
    """Mean squared error over the latent's axes: (n, P, D) to (n, P)."""
    return (z.double() - target.double()).square().flatten(2).mean(dim=2).numpy()


def _state_distances(dataset: EpisodeDataset, steps: np.ndarray, batch: _Batch, probe: StateProbe) -> np.ndarray:
    """Distances (3, n, P) to the true state: imagined, read from the real frame, state of the first frame."""
    truth = dataset.gather(f"state.{probe.variable}", steps.reshape(-1)).astype(np.float64)
    truth = truth.reshape(*steps.shape, -1)[..., list(probe.entries)]
    shape = truth[:, 1:].shape
    imagined = probe.probe.predict(batch.imagined.flatten(0, 1)).reshape(shape)
    encoded = probe.probe.predict(batch.target[:, 1:].flatten(0, 1)).reshape(shape)
    guesses = (imagined, encoded, np.broadcast_to(truth[:, :1], shape))
    return np.stack([np.linalg.norm(guess - truth[:, 1:], axis=2) for guess in guesses])


def _mean_by_step(
    values: np.ndarray, valid: np.ndarray, owners: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over windows (N, P) of each step, and its 95 % interval from resampled episodes, each (P,)."""
    _, codes = np.unique(owners, return_inverse=True)
    sums, counts = np.zeros((2, int(codes.max()) + 1, values.shape[1]))
    np.add.at(sums, codes, np.where(valid, values, 0.0))
    np.add.at(counts, codes, valid.astype(np.float64))
    mean = _ratio(sums.sum(axis=0), counts.sum(axis=0))
    drawn = resample_counts(len(sums), seed=seed)
    resampled = _ratio(drawn @ sums, drawn @ counts)
    low, high = np.full((2, values.shape[1]), np.nan)
    for step, column in enumerate(resampled.T):
        finite = column[np.isfinite(column)]
        if (counts[:, step] > 0).sum() >= 2 and len(finite):
            low[step], high[step] = np.percentile(finite, [2.5, 97.5])
    return mean, low, high


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
