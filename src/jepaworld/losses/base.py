"""What every auxiliary loss can do, and how it sums over devices."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Reduction:
    """Sums over the devices that share a batch; this one is for a single device, where a sum is what it was.

    A loss over batch statistics is not the mean of the devices' losses. So every statistic of the batch goes through
    `sum`, and the loss and its gradient are those of the whole batch on each device.

    Attributes:
        num_devices: How many share a batch, in equal parts.
    """

    num_devices: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Sum over devices, differentiable in every device's part."""
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Mean over devices."""
        return self.sum(values) / self.num_devices


def gram(x: Tensor) -> Tensor:
    """`x.mT @ x` of (..., N, D): (..., D, D).

    On a processor one batch after the other: a batched product rounds differently for some sizes, and several batches
    are to give the numbers that each gives alone. On a GPU at once, as launches cost more than the work.
    """
    if x.ndim == 2 or x.device.type != "cpu":
        return x.mT @ x
    return torch.stack([batch.T @ batch for batch in x.flatten(0, -3)]).unflatten(0, x.shape[:-2])


class AuxiliaryLoss(nn.Module, ABC):
    """Keeps embeddings from collapsing; `auxiliary_loss.weight` is applied by the objective, not here.

    Attributes:
        reduction: How statistics of a batch are summed over devices; set from outside where there are several.
    """

    reduction: Reduction = Reduction()

    @abstractmethod
    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Regularise embeddings (..., N, D): statistics over the N samples, the mean over leading axes.

        Returns:
            `(loss, terms)`: the scalar with the loss's own coefficients applied, and its named terms, unweighted and
            detached, for the log. In float32 under any autocast, and without waiting for the device.
        """
