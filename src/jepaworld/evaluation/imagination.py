"""How far imagination drifts from what really happened.

Shapes: N windows, P steps, E episodes, V entries of the state; *latent is (D,) or tokens (M, D).

From one real frame, or as many as its predictor uses, the model imagines the recorded actions; step h is compared with
the embedding of the real frame h steps later. Beside it stands the copy baseline, for which nothing ever changes; a
model that has learned dynamics must beat it. The error of predicting the mean is 1 by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepaworld.data.store import EpisodeDataset
from jepaworld.evaluation.entries import distances, read_entries
from jepaworld.evaluation.probes import StateProbe
from jepaworld.evaluation.results import Imagination, StateError
from jepaworld.evaluation.scores import episode_sums, interval_95, resample_counts
from jepaworld.models.protocol import WorldModel, context_length
from jepaworld.utils.modules import device_of, in_eval_mode


@dataclass(frozen=True, eq=False)
class Windows:
    """Where imagination begins, and how far it can be compared."""

    rows: np.ndarray  # int64 (N,) global row of each window's first frame
    owners: np.ndarray  # int64 (N,) its episode
    lengths: np.ndarray  # int64 (N,) recorded transitions from there that count
    context: int = 1  # K, frames that the model sees: the first one and the K - 1 before it in the episode

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    def __getitem__(self, chosen: slice) -> Windows:
        """Some of them."""
        return Windows(self.rows[chosen], self.owners[chosen], self.lengths[chosen], self.context)

    def steps(self, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """Global rows (N, P + 1) of each window's frames, and bool (N, P) which imagined steps are real.

        Past its end a window repeats its last frame, so that every row exists.
        """
        offsets = np.arange(horizon + 1)
        return self.rows[:, None] + np.minimum(offsets, self.lengths[:, None]), offsets[1:] <= self.lengths[:, None]


def choose_windows(
    dataset: EpisodeDataset, episodes: np.ndarray, horizon: int, per_episode: int, seed: int, context: int = 1
) -> Windows:
    """Draw windows of `horizon` whole steps; an episode that is shorter gives one window, all of it.

    Args:
        dataset: The stored episodes.
        episodes: (E,) episode indices.
        horizon: Longest window, in transitions.
        per_episode: Draw at most so many different starts in each episode.
        seed: Seed of the draw.
        context: Frames of the episode that must be there before the first step, the first frame included.
    """
    rng, windows = np.random.default_rng(seed), []
    for episode in np.asarray(episodes, dtype=np.int64):
        available = int(dataset.whole_lengths[episode]) - (context - 1)
        if available < 1:
            continue
        starts, first = max(1, available - horizon + 1), dataset.episode_starts[episode] + context - 1
        for start in np.sort(rng.choice(starts, size=min(per_episode, starts), replace=False)):
            windows.append((first + start, episode, min(horizon, available)))
    return Windows(*np.array(windows, np.int64).reshape(-1, 3).T, context=context)


def imagine(model: WorldModel, dataset: EpisodeDataset, windows: Windows, horizon: int) -> Tensor:
    """Imagine the recorded actions from frames and what was before them.

    Returns:
        (N, P, *latent) imagined embeddings on the CPU. Those past a window's end repeat its last action and have
        no real counterpart.
    """
    device = device_of(model)
    future = windows.rows[:, None] + np.minimum(np.arange(horizon), windows.lengths[:, None] - 1)
    past = windows.rows[:, None] + np.arange(1 - windows.context, 1)
    frames, actions = _gather(dataset, "frames", past).to(device), _gather(dataset, "actions", future).to(device)
    # Only a model that looks back must know this argument.
    played = {"context_actions": _gather(dataset, "actions", past[:, :-1]).to(device)} if windows.context > 1 else {}
    with torch.no_grad(), in_eval_mode(model):
        return model.rollout(model.encode(frames), actions, **played).float().cpu()


def imagination_error(
    model: WorldModel,
    dataset: EpisodeDataset,
    episodes: np.ndarray,
    horizon: int = 16,
    *,
    windows_per_episode: int = 4,
    seed: int = 0,
    batch_size: int = 32,
    state_probes: Sequence[StateProbe] = (),
) -> Imagination:
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
    windows = choose_windows(dataset, episodes, horizon, windows_per_episode, seed, context_length(model))
    if not len(windows):  # no episode is longer than what the model could look back on
        windows = choose_windows(dataset, episodes, horizon, windows_per_episode, seed)
    assert len(windows), "no episode has a whole transition"
    valid = windows.steps(horizon)[1]
    errors, away, variance = _compare(model, dataset, windows, horizon, batch_size, state_probes)
    errors = np.where(valid, errors / (variance or np.nan), np.nan)

    def by_step(values: np.ndarray) -> _Curve:
        return _mean_by_step(values, valid, windows.owners, seed)

    (error, low, high), (copy_error, _, _) = map(by_step, errors)
    return Imagination(
        context_frames=windows.context,
        step=list(range(1, horizon + 1)),
        error=error,
        error_low_95=low,
        error_high_95=high,
        copy_error=copy_error,
        num_windows=valid.sum(axis=0).tolist(),
        num_episodes=[len(np.unique(windows.owners[column])) for column in valid.T],
        target_variance=variance,
        states=[_state_error(probe, *map(by_step, one)) for probe, one in zip(state_probes, away, strict=True)],
        windows=windows,
        window_errors=np.where(valid, errors[0], 0.0).sum(axis=1) / windows.lengths,
    )


def _compare(
    model: WorldModel,
    dataset: EpisodeDataset,
    windows: Windows,
    horizon: int,
    batch_size: int,
    probes: Sequence[StateProbe],
) -> tuple[np.ndarray, np.ndarray, float]:
    """Squared errors (2, N, P), imagined and of the copy; distances of each probe (.., 3, N, P); target variance."""
    errors, away = np.empty((2, len(windows), horizon)), np.empty((len(probes), 3, len(windows), horizon))
    variance = _Variance()
    # Embeddings are held for one batch of windows only; of all windows the errors are kept.
    for first in range(0, len(windows), batch_size):
        batch = slice(first, first + batch_size)
        rows, counts = windows[batch].steps(horizon)
        imagined = imagine(model, dataset, windows[batch], horizon)
        with torch.no_grad(), in_eval_mode(model):
            target = model.encode_target(_gather(dataset, "frames", rows).to(device_of(model))).float().cpu()
        now, real = target[:, :1], target[:, 1:]
        for kind, z in enumerate((imagined, now)):
            errors[kind, batch] = (z.double() - real.double()).square().flatten(2).mean(dim=2).numpy()
        variance.add(real[torch.from_numpy(counts)])
        for probe, distance in zip(probes, away, strict=True):
            distance[:, batch] = _state_distances(dataset, rows, imagined, real, probe)
    return errors, away, variance.mean


def _gather(dataset: EpisodeDataset, name: str, rows: np.ndarray) -> Tensor:
    """Stored values at rows (N, P): (N, P, ...)."""
    return torch.from_numpy(dataset.gather(name, rows.reshape(-1))).unflatten(0, rows.shape)


class _Variance:
    """Mean variance over the dimensions of embeddings that come in batches; sums are about the first batch's mean."""

    def __init__(self) -> None:
        self.count, self.about, self.sums, self.squares = 0, None, 0.0, 0.0

    def add(self, z: Tensor) -> None:
        values = z.flatten(1).double().numpy()
        self.about = values.mean(axis=0) if self.about is None else self.about
        self.count += len(values)
        self.sums = self.sums + (values - self.about).sum(axis=0)
        self.squares = self.squares + ((values - self.about) ** 2).sum(axis=0)

    @property
    def mean(self) -> float:
        return float(np.mean(self.squares / self.count - (self.sums / self.count) ** 2))


def _state_distances(
    dataset: EpisodeDataset, rows: np.ndarray, imagined: Tensor, real: Tensor, probe: StateProbe
) -> np.ndarray:
    """Distances (3, n, P) to the true state: imagined, read from the real frame, state of the first frame."""
    truth = read_entries(dataset, probe.entries, rows.reshape(-1)).reshape(*rows.shape, -1)
    guesses = [probe.read(z.flatten(0, 1)).reshape(truth[:, 1:].shape) for z in (imagined, real)]
    return np.stack([distances(guess, truth[:, 1:], probe.entries) for guess in (*guesses, truth[:, :1])])


_Curve = tuple[list[float], list[float], list[float]]
"""Mean by step, and the ends of its interval."""


def _state_error(probe: StateProbe, imagined: _Curve, encoded: _Curve, copied: _Curve) -> StateError:
    return StateError(
        variable=probe.variable,
        name=probe.name,
        entries=probe.indices,
        probe=probe.kind,
        imagined=imagined[0],
        imagined_low_95=imagined[1],
        imagined_high_95=imagined[2],
        encoded=encoded[0],
        copied=copied[0],
    )


def _mean_by_step(values: np.ndarray, valid: np.ndarray, owners: np.ndarray, seed: int) -> _Curve:
    """Mean over windows (N, P) of each step, and its 95 % interval from resampled episodes, NaN with fewer than two."""
    sums, counts = episode_sums(np.where(valid, values, 0.0), owners), episode_sums(valid, owners)
    drawn = resample_counts(len(sums), seed=seed)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN where no episode reaches a step
        mean, resampled = sums.sum(axis=0) / counts.sum(axis=0), (drawn @ sums) / (drawn @ counts)
    resampled[:, (counts > 0).sum(axis=0) < 2] = np.nan
    ends = np.array([interval_95(column) or (np.nan, np.nan) for column in resampled.T])
    return mean.tolist(), ends[:, 0].tolist(), ends[:, 1].tolist()
