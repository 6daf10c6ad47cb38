"""MLP probes: how much of the true state a small network reads off an embedding, linear or not.

Shapes: N frames, D inputs, K variables, M of them read by the same weights. Training is in float32, on the CPU.

One network reads all variables at once. A variable that no frame shows is soon learned by heart, one that is there
keeps getting better; each is therefore read by the weights of the epoch that was best for it on episodes that the
network was not trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jepaworld.evaluation.scores import as_matrix, constant_columns

HIDDEN = 128
"""Width of both hidden layers."""

VALIDATION_SHARE = 0.2
"""Share of the training episodes that decide when to stop."""

_EPOCHS, _MIN_STEPS = 40, 400  # few frames make few steps an epoch, hence more epochs
_BATCH_SIZE, _LEARNING_RATE, _WEIGHT_DECAY = 256, 3e-3, 0.3


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """A fitted network of two hidden layers.

    Attributes:
        epochs: (K,) epoch whose weights read each variable; 0 has seen nothing and reads the mean.
        validation_error: (K,) squared error on the validation frames over the variance of the fitted ones; slightly
            optimistic, because the epoch was chosen by it. 0 for variables that are constant.
    """

    epochs: np.ndarray
    validation_error: np.ndarray
    _input_mean: np.ndarray = field(repr=False)
    _input_scale: np.ndarray = field(repr=False)
    _centre: np.ndarray = field(repr=False)
    _spread: np.ndarray = field(repr=False)
    _weights: dict[int, list[Tensor]] = field(repr=False)
    """Of each epoch in `epochs`."""

    def predict(self, z: np.ndarray | Tensor) -> np.ndarray:
        """Read the variables off embeddings: (N, ...) flattened to (N, D) in, float64 (N, K) out."""
        x = _standardised(as_matrix(z), self._input_mean, self._input_scale)
        read = np.empty((len(x), len(self.epochs)))
        with torch.no_grad():
            for epoch, weights in self._weights.items():
                columns = self.epochs == epoch
                read[:, columns] = _forward(weights, x).double().numpy()[:, columns]
        return read * self._spread + self._centre


def split_by_episode(owners: np.ndarray, seed: int) -> np.ndarray:
    """Which frames decide when to stop: those of a fifth of the episodes, at least one, drawn by seed.

    Args:
        owners: (N,) episode of each frame. If there is only one episode, its last fifth is taken.
        seed: Seed of the draw.

    Returns:
        bool (N,), neither all nor none of them.
    """
    assert len(owners) >= 2
    episodes = np.unique(owners)
    if len(episodes) < 2:
        return np.arange(len(owners)) >= min(len(owners) - 1, round(len(owners) * (1 - VALIDATION_SHARE)))
    count = max(1, round(len(episodes) * VALIDATION_SHARE))
    return np.isin(owners, np.random.default_rng(seed).choice(episodes, size=count, replace=False))


def fit_mlp_probe(z_train: np.ndarray | Tensor, y_train: np.ndarray, owners: np.ndarray, *, seed: int = 0) -> MLPProbe:
    """Train a network on standardised inputs and variables, with early stopping for each variable.

    Args:
        z_train: (N, ...) inputs, flattened to (N, D).
        y_train: (N, K) or (N,) variables.
        owners: (N,) episode of each frame; a fifth of the episodes is not trained on and decides when to stop.
        seed: Of the first weights, the order of batches and the choice of episodes. Torch's global random state
            is neither used nor changed.

    Returns:
        The probe. Of a variable that is constant where it was fitted it reads that constant, of one that is somewhere
        NaN or infinite NaN; neither disturbs the others.
    """
    z, y = as_matrix(z_train), as_matrix(y_train)
    assert len(z) == len(y) == len(owners)
    finite = np.isfinite(y).all(axis=0)
    y = np.where(finite, y, 0.0)
    held = split_by_episode(owners, seed)
    input_mean, input_scale = _mean_and_scale(z[~held])
    centre, spread = _mean_and_scale(y[~held])
    x, target = _standardised(z, input_mean, input_scale), _standardised(y, centre, spread)
    with _one_thread():
        weights_of_epoch, epochs, errors = _train(x[~held], target[~held], x[held], target[held], seed)
    return MLPProbe(
        epochs=epochs,
        validation_error=errors,
        _input_mean=input_mean,
        _input_scale=input_scale,
        _centre=np.where(finite, centre, np.nan),
        _spread=np.where(np.isfinite(spread), spread, 0.0),
        _weights=weights_of_epoch,
    )


def _train(
    x: Tensor, target: Tensor, held_x: Tensor, held_target: Tensor, seed: int
) -> tuple[dict[int, list[Tensor]], np.ndarray, np.ndarray]:
    """Weights by epoch, the best epoch (K,) of each variable and its validation error (K,)."""
    generator = torch.Generator().manual_seed(seed)
    weights = _first_weights([x.shape[1], HIDDEN, HIDDEN, target.shape[1]], generator)
    optimizer = torch.optim.AdamW(weights, weight_decay=_WEIGHT_DECAY, fused=True)
    last_epoch = max(_EPOCHS, -(-_MIN_STEPS * _BATCH_SIZE // len(x)))
    epochs, errors = np.zeros(target.shape[1], np.int64), np.full(target.shape[1], np.inf)
    kept: dict[int, list[Tensor]] = {}
    for epoch in range(last_epoch + 1):  # epoch 0 reads the mean of every variable
        if epoch:
            optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1.0 - (epoch - 1) / last_epoch)
            for batch in torch.randperm(len(x), generator=generator).split(_BATCH_SIZE):
                optimizer.zero_grad()
                with torch.enable_grad():
                    functional.mse_loss(_forward(weights, x[batch]), target[batch]).backward()
                optimizer.step()
        with torch.no_grad():
            error = (_forward(weights, held_x) - held_target).square().mean(dim=0).double().numpy()
        better = error < errors
        if better.any():
            epochs[better], errors[better] = epoch, error[better]
            kept[epoch] = [weight.detach().clone() for weight in weights]
            kept = {number: kept[number] for number in np.unique(epochs).tolist()}
        elif epoch - epochs.max() >= last_epoch // 4:
            break
    return kept, epochs, errors


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layers this small are slower on several threads, and many times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _first_weights(sizes: list[int], generator: torch.Generator) -> list[Tensor]:
    """Weight (out, in) and bias (out,) of each layer, He's initialisation; the last layer starts at zero."""
    weights = []
    for fan_in, fan_out in pairwise(sizes):
        last = len(weights) == 2 * len(sizes) - 4
        scale = 0.0 if last else (2.0 / fan_in) ** 0.5
        weights += [torch.randn(fan_out, fan_in, generator=generator) * scale, torch.zeros(fan_out)]
    return [weight.requires_grad_() for weight in weights]


def _forward(weights: list[Tensor], x: Tensor) -> Tensor:
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = functional.silu(functional.linear(x, weight, bias))
    return functional.linear(x, weights[-2], weights[-1])


def _mean_and_scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (K,); infinite for constant columns, so that they become zero."""
    return values.mean(axis=0), np.where(constant_columns(values), np.inf, values.std(axis=0))


def _standardised(values: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Tensor:
    return torch.from_numpy((values - mean) / scale).float()
