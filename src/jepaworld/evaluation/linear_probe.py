"""Linear probes in closed form: ridge regression from an embedding to variables.

Shapes: N frames, D inputs, K variables. Everything in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jepaworld.evaluation.scores import as_matrix, constant_columns

RIDGES = tuple(10.0**exponent for exponent in range(-6, 3))
"""Candidate ridge strengths, per frame: inputs have unit variance, so 1 shrinks a lone input by half."""


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
        return as_matrix(z) @ self.weight + self.bias


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
    z, y = as_matrix(z_train), as_matrix(y_train)
    count = len(z)
    assert count == len(y) and count >= 2
    mean, std, centre = z.mean(axis=0), z.std(axis=0), y.mean(axis=0)
    scale = np.where(constant_columns(z), np.inf, std)
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
