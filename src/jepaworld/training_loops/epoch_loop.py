"""One epoch of training or validation, and what the JEPA is trained on.

Shapes: B windows, T transitions, C H W image, D latent, A action block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import gymnasium
import torch
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.errors import NonFiniteLossError
from jepaworld.losses import AuxiliaryLoss, make_auxiliary_loss
from jepaworld.losses.dynamics import DynamicsLosses
from jepaworld.models.jepa import JEPA, JEPAOutput
from jepaworld.utils.devices import autocast


class Objective(nn.Module, ABC):
    """What a phase minimises; its parameters and buffers are in the resume state."""

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and every term for the log, detached; the scalar itself is one of them."""

    @abstractmethod
    def after_step(self) -> None:
        """What follows each optimizer step."""


class JEPAObjective(Objective):
    """`L_pred + auxiliary_loss.weight * L_aux`, and what makes embeddings plannable where that is switched on.

    `L_pred` is the mean squared error between predictions and targets. `L_aux` is the auxiliary loss of
    `online_s_t`, averaged with that of `online_s_t_plus_1` where the mode gives one; the weight is applied here and
    nowhere else.

    Args:
        model: The JEPA.
        auxiliary_loss: Regularises a batch of embeddings.
        weight: `auxiliary_loss.weight`.
        dynamics_losses: Further losses, off where left out; their inverse-dynamics head is trained with the model.
    """

    def __init__(
        self, model: JEPA, auxiliary_loss: AuxiliaryLoss, weight: float, dynamics_losses: DynamicsLosses | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.auxiliary_loss = auxiliary_loss
        self.weight = weight
        self.dynamics_losses = dynamics_losses or DynamicsLosses()

    @classmethod
    def from_config(cls, config: Config, model: JEPA, action_space: gymnasium.Space) -> JEPAObjective:
        """The configured losses of a model, on its device."""
        dynamics_losses = DynamicsLosses.from_config(config, action_space)
        objective = cls(model, make_auxiliary_loss(config), config.auxiliary_loss.weight, dynamics_losses)
        return objective.to(next(model.parameters()).device)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and terms of a batch of windows."""
        output = self.model(batch.frames, batch.actions)
        prediction = (output.predicted.float() - output.target.float()).square().mean()
        auxiliary, terms = self.auxiliary_terms(output)
        further, further_terms = self.dynamics_losses(self.model, output, batch.actions)
        total = prediction + self.weight * auxiliary
        for loss in further:
            total = total + loss
        return total, {
            "prediction_loss": prediction.detach(),
            "auxiliary_loss": auxiliary.detach(),
            **terms,
            **further_terms,
            "loss_jepa": total.detach(),
        }

    def auxiliary_terms(self, output: JEPAOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """The unweighted auxiliary loss and its named terms `auxiliary/...`, averaged over the mode's embeddings."""
        inputs = [z for z in (output.online_s_t, output.online_s_t_plus_1) if z is not None]
        results = [self.auxiliary_loss.calculate_reg_terms(z.flatten(0, -2)) for z in inputs]
        loss = torch.stack([loss for loss, _ in results]).mean()
        names = results[0][1]
        return loss, {f"auxiliary/{name}": torch.stack([terms[name] for _, terms in results]).mean() for name in names}

    def after_step(self) -> None:
        """Let the target encoder follow."""
        self.model._update_target_encoder_ema()


class Updater:
    """Backward pass, gradient clipping, learning rate schedule and optimizer step.

    The learning rate is a function of the number of steps alone: a linear warm-up, then constant or a cosine to 0.

    Args:
        parameters: The parameters to train; those without `requires_grad` are left out.
        learning_rate: Peak learning rate.
        config: `weight_decay`, `gradient_clip_norm`, `warmup_steps`, `learning_rate_schedule`.
        total_steps: Steps of the whole phase, at which the cosine reaches 0.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, config: Config, total_steps: int
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.peak = learning_rate
        self.clip_norm = config.gradient_clip_norm if config.gradient_clip_norm is not None else math.inf
        self.schedule = config.learning_rate_schedule
        self.warmup_steps = min(config.warmup_steps, total_steps)
        self.total_steps = total_steps
        self.step_count = 0

    @property
    def learning_rate(self) -> float:
        """Rate of the coming step."""
        if self.step_count < self.warmup_steps:
            return self.peak * (self.step_count + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.peak
        progress = (self.step_count - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def step(self, loss: Tensor) -> Tensor:
        """One update from a loss; returns the gradient norm before clipping, a scalar on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self.step_count += 1
        return norm


class Meter:
    """Keeps losses on the device and reads them only when asked, so that a step waits for nothing.

    Args:
        log_every_steps: Steps between two reads; each read says which step had a term that was not finite.
    """

    def __init__(self, log_every_steps: int) -> None:
        self.log_every_steps = log_every_steps
        self.sums: dict[str, float] = {}
        self.samples = 0
        self._unread: list[tuple[dict[str, Tensor], int]] = []

    def add(self, terms: dict[str, Tensor], samples: int) -> None:
        """Take the terms of a batch of `samples` windows."""
        self._unread.append((terms, samples))

    def read_recent(self, last_step: int) -> dict[str, float]:
        """Means over the steps since the last read.

        Args:
            last_step: Number of the step that was added last, for the message.

        Raises:
            NonFiniteLossError: a term of one of these steps is NaN or infinite.
        """
        rows = self._read()
        for step, row in enumerate(rows, start=last_step - len(rows) + 1):
            for name, value in row.items():
                if not math.isfinite(value):
                    raise NonFiniteLossError(f"step {step}: {name} is {value}.")
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def means(self) -> dict[str, float]:
        """Means over all samples since the beginning of the epoch."""
        self._read()
        assert self.samples, "no batch was added"
        return {name: total / self.samples for name, total in self.sums.items()}

    def state(self) -> dict[str, object]:
        """For the resume state."""
        self._read()
        return {"sums": self.sums, "samples": self.samples}

    def load_state(self, state: dict) -> None:
        """Put back what `state` returned."""
        self.sums, self.samples = dict(state["sums"]), state["samples"]

    def _read(self) -> list[dict[str, float]]:
        """Fetch the unread terms from the device in one transfer and add them to the sums."""
        if not self._unread:
            return []
        names = list(self._unread[0][0])
        values = torch.stack([terms[name].float() for terms, _ in self._unread for name in names]).tolist()
        rows = [
            dict(zip(names, values[first : first + len(names)], strict=True))
            for first in range(0, len(values), len(names))
        ]
        for row, (_, samples) in zip(rows, self._unread, strict=True):
            self.samples += samples
            for name, value in row.items():
                self.sums[name] = self.sums.get(name, 0.0) + value * samples
        self._unread.clear()
        return rows


def train_validate_model_epoch(
    objective: Objective,
    batches: Iterable[Batch],
    meter: Meter,
    device: torch.device,
    bf16: bool,
    updater: Updater | None = None,
    after_step: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train for an epoch, or validate if there is no updater.

    Args:
        objective: What to minimise.
        batches: Batches on the device.
        meter: Takes the terms; fresh, or restored in a resumed epoch.
        device: Where model and batches are.
        bf16: Whether forward passes are in bf16 autocast.
        updater: Makes the optimizer steps; `None` validates, without gradients and in eval mode.
        after_step: Called after each training step is complete, for logging and checkpoints.

    Returns:
        The mean of each term over the epoch.

    Raises:
        NonFiniteLossError: a term or the gradient norm became NaN or infinite; `after_step` may find it earlier, at a
            log step, and say which step it was.
    """
    objective.train(updater is not None)
    with torch.set_grad_enabled(updater is not None):
        for batch in batches:
            with autocast(device, bf16):
                loss, terms = objective(batch)
            if updater is not None:
                terms["gradient_norm"] = updater.step(loss)
                objective.after_step()
            meter.add(terms, len(batch.frames))
            if after_step is not None:
                after_step()
    means = meter.means()
    for name, value in means.items():
        if not math.isfinite(value):
            raise NonFiniteLossError(f"{name} is {value} in {'training' if updater else 'validation'}.")
    return means
