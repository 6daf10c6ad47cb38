"""What every auxiliary loss can do."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class AuxiliaryLoss(nn.Module, ABC):
    """Keeps embeddings from collapsing; `auxiliary_loss.weight` is applied by the loop, not here."""

    @abstractmethod
    def calculate_reg_terms(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Regularise one batch of embeddings (N, D).

        Returns:
            `(loss, terms)`: the scalar with the loss's own coefficients applied, and its named terms, unweighted and
            detached, for the log.
        """
