"""What probes are fitted by: ridge regression in closed form, and a small network.

Shapes: N frames, D inputs, K variables, R singular values, L ridge strengths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from jepaworld.evaluation.scores import as_matrix, constant_columns
from jepaworld.utils.devices import one_thread

RIDGES = tuple(10.0**exponent for exponent in range(-6, 3))
"""Candidate ridge strengths, per frame: inputs have unit variance, so 1 shrinks a lone input by half."""

HIDDEN = 128
"""Width of both hidden layers."""

VALIDATION_SHARE = 0.2
"""Share of the training episodes that decide when to stop."""

_EPOCHS, _MIN_STEPS = 40, 400  # few frames make few steps an epoch, hence more epochs
_BATCH_SIZE, _LEARNING_RATE, _WEIGHT_DECAY = 256, 3e-3, 0.3


class _Scale(NamedTuple):
    """Mean and standard deviation (K,); infinite for constant columns, so that they become zero."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Self:
        return cls(values.mean(axis=0), np.where(constant_columns(values), np.inf, values.std(axis=0)))

    def standardised(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) / self.std


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted ridge regression."""

    weight: np.ndarray  # (D, K) on the raw inputs
    bias: np.ndarray  # (K,)
    ridge: np.ndarray  # (K,) strength chosen for each variable, per frame

    def predict(self, z: np.ndarray | Tensor) -> np.ndarray:
        """Read the variables off embeddings: (N, ...) flattened to (N, D) in, float64 (N, K) out."""
        return as_matrix(z) @ self.weight + self.bias


def fit_linear_probe(z_train: np.ndarray | Tensor, y_train: np.ndarray, ridge: float | None = None) -> LinearProbe:
    """Ridge regression in closed form, in float64 on standardised inputs; the intercept is not penalised.

    Args:
        z_train: (N, ...) inputs, N at least 2, flattened to (N, D); constant inputs get no weight.
        y_train: (N, K) or (N,) variables.
        ridge: Strength per frame: the penalty is `ridge * N * |w|^2` on standardised inputs. None chooses from
            `RIDGES`, for each variable, the smallest leave-one-out error, in closed form.
    """
    z, y = as_matrix(z_train), as_matrix(y_train)
    assert len(z) == len(y) >= 2
    inputs, centre = _Scale.of(z), y.mean(axis=0)
    left, singular, right = np.linalg.svd(inputs.standardised(z), full_matrices=False)
    projected = left.T @ (y - centre)  # (R, K)
    candidates = np.array(RIDGES if ridge is None else [ridge])
    kept = singular**2 / (singular**2 + candidates[:, None] * len(z) + np.finfo(np.float64).tiny)  # (L, R)
    best = _leave_one_out_errors(left, projected, y - centre, kept).argmin(axis=0)  # (K,)
    inverse = np.divide(kept, singular, out=np.zeros_like(kept), where=singular > 0)  # (L, R)
    weight = (right.T @ (inverse[best].T * projected)) / inputs.std[:, None]
    return LinearProbe(weight, centre - inputs.mean @ weight, candidates[best])


def _leave_one_out_errors(left: np.ndarray, projected: np.ndarray, y: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Mean squared leave-one-out errors (L, K): each residual over one minus its frame's leverage."""
    leverages = left**2 @ kept.T + 1.0 / len(left)  # (N, L)
    errors = []
    for share, leverage in zip(kept, leverages.T, strict=True):
        residual = y - left @ (share[:, None] * projected)
        # A leverage of 1 is a frame that decides its own prediction: leaving it out says nothing.
        errors.append(((residual / np.maximum(1.0 - leverage, 1e-9)[:, None]) ** 2).mean(axis=0))
    return np.stack(errors)


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """A fitted network of two hidden layers, trained in float32 on the CPU.

    One network reads all variables at once. A variable that no frame shows is soon learned by heart, one that is there
    keeps getting better; each is therefore read by the weights of the epoch that was best for it on episodes that the
    network was not trained on.
    """

    epochs: np.ndarray  # (K,) epoch whose weights read each variable; 0 has seen nothing and reads the mean
    validation_error: np.ndarray  # (K,) squared error over the fitted variance; optimistic, as it chose the epoch
    _inputs: _Scale = field(repr=False)
    _outputs: _Scale = field(repr=False)
    _weights: dict[int, list[Tensor]] = field(repr=False)  # of each epoch in `epochs`

    def predict(self, z: np.ndarray | Tensor) -> np.ndarray:
        """Read the variables off embeddings: (N, ...) flattened to (N, D) in, float64 (N, K) out."""
        x = torch.from_numpy(self._inputs.standardised(as_matrix(z))).float()
        read = np.empty((len(x), len(self.epochs)))
        with torch.no_grad():
            for epoch, weights in self._weights.items():
                columns = self.epochs == epoch
                read[:, columns] = _forward(weights, x).double().numpy()[:, columns]
        return read * self._outputs.std + self._outputs.mean


def split_by_episode(owners: np.ndarray, seed: int) -> np.ndarray:
    """Which frames decide when to stop: those of a fifth of the episodes, at least one, drawn by seed.

    Args:
        owners: (N,) episode of each frame, N at least 2. If there is only one episode, its last fifth is taken.
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
    y, held = np.where(finite, y, 0.0), split_by_episode(owners, seed)
    inputs, outputs = _Scale.of(z[~held]), _Scale.of(y[~held])
    x, target = (torch.from_numpy(s.standardised(values)).float() for s, values in ((inputs, z), (outputs, y)))
    with one_thread():  # layers this small are slower on several, and many times slower on a busy machine
        weights, epochs, errors = _train(x[~held], target[~held], x[held], target[held], seed)
    outputs = _Scale(np.where(finite, outputs.mean, np.nan), np.where(np.isfinite(outputs.std), outputs.std, 0.0))
    return MLPProbe(epochs, errors, inputs, outputs, weights)


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
        elif epoch - epochs.max() >= last_epoch // 4:  # nothing has become better for long
            break
    return kept, epochs, errors


def _first_weights(sizes: list[int], generator: torch.Generator) -> list[Tensor]:
    """Weight (out, in) and bias (out,) of each layer, He's initialisation; the last layer starts at zero."""
    weights = []
    for fan_in, fan_out in pairwise(sizes):
        weights += [torch.randn(fan_out, fan_in, generator=generator) * (2.0 / fan_in) ** 0.5, torch.zeros(fan_out)]
    weights[-2].zero_()
    return [weight.requires_grad_() for weight in weights]


def _forward(weights: list[Tensor], x: Tensor) -> Tensor:
    *hidden, last = zip(weights[::2], weights[1::2], strict=True)
    for weight, bias in hidden:
        x = functional.silu(functional.linear(x, weight, bias))
    return functional.linear(x, *last)
