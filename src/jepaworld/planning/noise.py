"""Noise of candidate plans that is correlated over environment steps.

White noise tries plans that tremble on the spot; correlated noise goes somewhere. Both kinds here are Gaussian with
variance 1 at every step and are made from white noise by one matrix, so that they cost one matrix product.

Shapes: B environments, S candidate plans, P plan steps, A = k * a numbers of a block of k environment steps, T = P * k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from jepaworld.planning.plan_space import PlanSpace

CPU = torch.device("cpu")


@lru_cache(maxsize=64)  # a copy to a GPU waits for it
def ar1_mixing(steps: int, smoothness: float, device: torch.device = CPU) -> Tensor:
    """The matrix that makes AR(1) noise `x' = s x + sqrt(1 - s^2) e`, stationary from the first step on.

    Args:
        steps: T.
        smoothness: s, the correlation of neighbouring steps, 0 to below 1; those n apart have s ** n.
        device: Where the matrix is wanted.

    Returns:
        float32 (T, T), not to be modified; `white @ matrix` correlates white noise (..., T).
    """
    time = torch.arange(steps, dtype=torch.float64)
    since = time[None, :] - time[:, None]
    response = torch.where(since >= 0, smoothness ** since.clamp(min=0), 0.0)
    response[1:] *= math.sqrt(1.0 - smoothness**2)  # all but the first step, which begins with variance 1
    return response.float().to(device)


@lru_cache(maxsize=64)
def power_law_mixing(steps: int, exponent: float, device: torch.device = CPU) -> Tensor:
    """As `ar1_mixing`, for noise whose power at frequency f is proportional to 1 / f ** exponent, at least 0.

    0 is white, 1 pink, 2 red noise; as iCEM uses it (arXiv 2008.06389, section 3.1, after Timmer and König 1995). The
    constant part is given the power of the lowest frequency, 1 / T.
    """
    time = torch.arange(steps, dtype=torch.float64)
    frequency = torch.fft.rfftfreq(steps, dtype=torch.float64)
    amplitude = frequency.clamp(min=1.0 / steps) ** (-exponent / 2)
    # A frequency between 0 and 1/2 is made of two numbers, cosine and sine; 0 and 1/2 of one, which the sine lacks.
    paired = (frequency > 0) & (frequency < 0.5)
    angle = 2 * math.pi * frequency[:, None] * time
    scale = torch.where(paired, math.sqrt(2.0), 1.0) * amplitude
    waves = torch.cat([scale[:, None] * angle.cos(), (scale[:, None] * angle.sin())[paired]])
    return (waves / waves.square().sum(dim=0).mean().sqrt()).float().to(device)  # variance 1


def draw(fill: Callable[..., Tensor], generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Random numbers (B, *shape) by `fill`, such as `torch.Tensor.normal_`; each environment's from its own generator.

    One call for each environment, so that what one draws does not depend on how many there are.
    """
    values = torch.empty(len(generators), *shape, device=generators[0].device)
    for row, generator in zip(values, generators, strict=True):
        fill(row, generator=generator)
    return values


def plan_noise(space: PlanSpace, num_samples: int, mixing: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Noise float32 (B, S, P, A) for candidate plans of a `Box` space.

    `mixing` (T, T) correlates it over environment steps, inside and across blocks; each of the a entries of an
    environment action has noise of its own.
    """
    noise = draw(Tensor.normal_, generators, num_samples, space.entries, len(mixing)) @ mixing
    return noise.transpose(-1, -2).reshape(len(generators), num_samples, -1, space.width)
