"""Does the embedding still tell samples apart? Numbers and one verdict, for the console and for the report.

Shapes: N samples, D dimensions of the embedding, M tokens, C H W image.

Three ways to collapse, each seen by another number:

* scale: every sample gets nearly the same point (standard deviation, mean cosine);
* scale with structure kept: the cloud shrinks towards a point but looks healthy once standardised, which is
  what a loss that standardises its input cannot see (absolute standard deviation);
* dimension: the samples lie on a line or on very few directions (effective rank).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jepaworld.utils.modules import device_of, in_eval_mode
from jepaworld.utils.records import Number, Record
from jepaworld.utils.text import number

SCALE_ABSOLUTE = 1e-3
"""Smallest mean standard deviation that is not a scale collapse. VICReg keeps it near 1, fresh encoders have
0.004 to 0.03 on Two Rooms; below 1e-3 the prediction error is under 1e-6 whatever the predictor does, and
beside an action embedding of unit scale the state no longer counts."""

SCALE_RELATIVE = 2.0**-8
"""Smallest share of variation in the embeddings' root mean square length. It is the step of bfloat16: what
varies less is a constant plus rounding for everything that reads the embedding in mixed precision. Fresh
encoders have 0.02 to 0.13 on Two Rooms; trained there without an auxiliary loss in mode none, 0.001."""

COSINE = 1.0 - SCALE_RELATIVE**2
"""Largest mean cosine. For vectors of similar length 1 - cosine is the square of the relative variation: the
same limit, seen in the directions alone."""

RANK_ABSOLUTE = 1.5
"""Smallest effective rank: one dominant direction and little else. An environment with two degrees of
freedom has an embedding of rank 2 even if it is linear in its state, so that the limit must be below 2."""

RANK_RELATIVE = 0.02
"""Smallest effective rank as a share of min(N, D): in a wide embedding, 2 % of what there is room for."""


class CollapseDiagnostics(Record):
    """How spread out a batch of embeddings is; every number is NaN if the embeddings are not finite.

    Attributes:
        std: D values, standard deviation of each dimension over the batch (unbiased), in units of the embedding;
            `std_mean`, `std_min` and `std_max` sum it up.
        relative_variation: Root of the total variance over root of the mean squared length, in [0, 1]; 0 is a
            constant embedding.
        effective_rank: RankMe (see `collapse_diagnostics`), in [1, min(N, D)].
        centred_rank: The same of the embeddings without their mean; the alarm looks at this one.
        mean_cosine: Mean cosine similarity of different samples, in [-1, 1].
        collapsed: Whether there is any reason for an alarm.
        reasons: A plain sentence for each alarm.
        num_samples: N.
    """

    std: list[Number]
    std_mean: Number = math.nan
    std_min: Number = math.nan
    std_max: Number = math.nan
    relative_variation: Number = math.nan
    effective_rank: Number = math.nan
    centred_rank: Number = math.nan
    mean_cosine: Number = math.nan
    collapsed: bool
    reasons: tuple[str, ...]
    num_samples: int

    @property
    def finite(self) -> bool:
        """Whether the embeddings hold neither NaN nor infinite values."""
        return math.isfinite(self.std_mean)

    @property
    def verdict(self) -> str:
        """The judgement as a sentence, or one for each alarm."""
        if self.collapsed:
            return "The embedding has collapsed, and a low prediction loss means nothing. " + " ".join(self.reasons)
        return (
            f"The embedding keeps frames apart: mean standard deviation {number(self.std_mean)}, effective rank "
            f"{number(self.effective_rank)} of {len(self.std)}."
        )

    def as_metrics(self) -> dict[str, float | bool]:
        """The numbers under their names in the metrics log, which takes no NaN: those are left out."""
        names = ("std_mean", "std_min", "effective_rank", "mean_cosine")
        finite = {f"collapse/{name}": value for name in names if math.isfinite(value := getattr(self, name))}
        return {**finite, "collapse/collapsed": self.collapsed}


@torch.no_grad()
def judge_collapse(model: Any, frames: Tensor, batch_size: int = 256) -> CollapseDiagnostics:
    """Encode frames and judge the embeddings: the one judgement of the watch during training and of the report.

    Looks at `encode`, whose embeddings the predictor takes, in eval mode and in float32 under any autocast: the
    rounding of bfloat16 looks like structure of full rank once an embedding varies by little beside its mean.

    Args:
        model: A world model; each of its modules is afterwards in the mode that it had.
        frames: uint8 (N, C, H, W), N >= 2 different frames, on any device.
        batch_size: Frames at once.

    Returns:
        The diagnostics, of tokens those of their mean.
    """
    device = device_of(model)
    with in_eval_mode(model), torch.autocast(device.type, enabled=False):
        parts = [model.encode(part.to(device).unsqueeze(1))[:, 0].float().cpu() for part in frames.split(batch_size)]
    return collapse_diagnostics(torch.cat(parts))


@torch.no_grad()
def collapse_diagnostics(z: Tensor) -> CollapseDiagnostics:
    """Measure the spread of a batch of embeddings and judge it.

    The effective rank is RankMe (arXiv 2210.02885, equation 1): the exponential of the entropy of the singular values
    of Z, normalised to sum 1. As published, Z is not centred: a constant embedding with any small noise then has rank
    1, whereas centring would give the noise full rank. But a large common offset lowers the number, and a line away
    from the origin has rank up to 2: the alarm for dimensional collapse looks at the centred embeddings, beside the
    alarms for scale that see the constant. Differs from the paper in: no epsilon is added to the normalised singular
    values (0 log 0 is 0); a rank of all zeros is 1.

    Args:
        z: (N, D) embeddings of N >= 2 different frames, on any device, or (N, M, D) tokens, which are averaged to the
            one vector of a frame: tokens differ by their place in every picture, even if all pictures look the
            same to the encoder. Copied to the CPU: call it once per epoch, not in each step.

    Returns:
        The diagnostics. If an embedding is NaN or infinite, all numbers are NaN and the verdict is collapsed.
    """
    # Float64, and thus the CPU (MPS has none): squared singular values span twice as many digits as singular values.
    z = z.detach().to("cpu").double()
    z = z if z.ndim == 2 else z.flatten(1, -2).mean(dim=1)
    num_samples, dimensions = z.shape
    assert num_samples >= 2, "one sample has no spread"
    if not bool(torch.isfinite(z).all()):
        reasons = ("The embeddings contain NaN or infinite values: the training has diverged.",)
        nothing = [math.nan] * dimensions
        return CollapseDiagnostics(std=nothing, collapsed=True, reasons=reasons, num_samples=num_samples)
    std = z.std(dim=0, unbiased=True)
    centred = z - z.mean(dim=0)
    length = z.square().sum(dim=1).mean().sqrt().item()
    relative = (centred.square().sum(dim=1).mean().sqrt().item() / length) if length > 0.0 else 0.0
    centred_rank, cosine = _effective_rank(centred), _mean_cosine(z)
    reasons = _reasons(std.mean().item(), relative, cosine, centred_rank, min(num_samples, dimensions))
    return CollapseDiagnostics(
        std=std.float().tolist(),
        std_mean=std.mean().item(),
        std_min=std.min().item(),
        std_max=std.max().item(),
        relative_variation=relative,
        effective_rank=_effective_rank(z),
        centred_rank=centred_rank,
        mean_cosine=cosine,
        collapsed=bool(reasons),
        reasons=reasons,
        num_samples=num_samples,
    )


def _effective_rank(z: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of z (N, D)."""
    # The smaller of the two Gram matrices has all singular values that are not zero.
    gram = z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    total = singular.sum()
    if total == 0.0:
        return 1.0
    # The eigenvalues of an exactly singular Gram matrix are rounding noise, not directions of the data.
    singular = torch.where(singular > singular.max() * 1e-7, singular, 0.0)
    p = singular / singular.sum()
    return torch.special.entr(p).sum().exp().item()


def _mean_cosine(z: Tensor) -> float:
    """Mean cosine of different rows, in O(N D): |sum of units|^2 holds every pair twice and every row once.

    A row of zeros has no direction and counts as cosine 0 with every other.
    """
    unit = torch.nn.functional.normalize(z, dim=1, eps=1e-300)
    pairs = z.shape[0] * (z.shape[0] - 1)
    return ((unit.sum(dim=0).square().sum() - unit.square().sum()) / pairs).item()


def _reasons(std_mean: float, relative: float, cosine: float, rank: float, room: int) -> tuple[str, ...]:
    """A sentence for each alarm."""
    reasons = []
    if std_mean < SCALE_ABSOLUTE:
        reasons.append(f"Scale collapse: mean standard deviation {std_mean:.1e} (alarm below {SCALE_ABSOLUTE:g}).")
    if relative < SCALE_RELATIVE:
        reasons.append(
            f"Scale collapse: samples differ by {relative:.1e} of the embedding's length (alarm below "
            f"{SCALE_RELATIVE:.2g})."
        )
    if cosine > COSINE:
        reasons.append(f"All embeddings point the same way: mean cosine {cosine:.6f} (alarm above {COSINE:g}).")
    limit = max(RANK_ABSOLUTE, RANK_RELATIVE * room)
    if room > 1 and rank < limit:  # one sample or one dimension cannot have more than rank 1
        reasons.append(
            f"Dimensional collapse: the centred embeddings use {rank:.2f} of {room} possible directions (alarm below "
            f"{limit:.2g})."
        )
    return tuple(reasons)
