"""One training step from top to bottom, and the epoch that repeats it.

Shapes: B windows, K loss terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.errors import ConfigError, NonFiniteLossError
from jepaworld.losses.objective import Objective, Terms
from jepaworld.utils.devices import autocast


class TrainingStep:
    """One step: batch, forward, losses, backward, clip, optimizer, target update.

    It works on tensors alone and waits for nothing: losses stay on the device until `Meter` reads them, the learning
    rate is a tensor that is filled in place, clipping computes its factor on the device.

    Args:
        objective: What is minimised. All its parameters that require a gradient are trained.
        config: `weight_decay`, `gradient_clip_norm`, `warmup_steps`, `learning_rate_schedule`.
        learning_rate: Peak learning rate.
        total_steps: Steps of the whole phase, at which a cosine schedule reaches 0.
        device: Where the parameters are.
        bf16: Whether the forward pass is in bf16 autocast.

    Attributes:
        step_count: Steps made so far.

    Example:
        ```
        step = TrainingStep(objective, config, 1e-3, total_steps=1000, device=device, bf16=False)
        terms = step(batch)  # every loss term and the gradient norm, scalars on the device
        ```
    """

    def __init__(
        self,
        objective: Objective,
        config: Config,
        learning_rate: float,
        total_steps: int,
        device: torch.device,
        bf16: bool,
    ) -> None:
        self.objective, self.device, self.bf16 = objective, device, bf16
        self.parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.clip_norm = math.inf if config.gradient_clip_norm is None else config.gradient_clip_norm
        self.peak, self.schedule = learning_rate, config.learning_rate_schedule
        self.warmup_steps, self.total_steps = min(config.warmup_steps, total_steps), total_steps
        self.step_count = 0
        # The fused kernel reads a float32 rate on a GPU and a float64 one on a processor.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.rate = torch.zeros((), dtype=dtype, device=device)
        decayed, others = parameter_groups(objective)
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.graph = StepGraph(self._step) if use_graph(config.execution, device, objective) else None
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.rate,
            fused=True,
            capturable=self.graph is not None,  # counts its steps on the device
        )

    def __call__(self, batch: Batch) -> Terms:
        """Train on a batch of windows; returns the loss terms, detached scalars on the device until the next step."""
        self.rate.fill_(self.learning_rate)
        terms = self._step(batch) if self.graph is None else self.graph(batch)
        self.step_count += 1
        return terms

    def _step(self, batch: Batch) -> Terms:
        # Forward and losses. Half precision where that gains speed; losses work in float32 by themselves.
        with autocast(self.device, self.bf16):
            loss, terms = self.objective(batch)
        # Backward. Gradients are freed first: a sum over steps would train on old weights.
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Clip all gradients by one factor, so that a rare steep batch does not throw the weights far.
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        # After the step, so that the target encoder follows the weights that the next step starts from.
        self.objective.update_targets()
        return {**terms, self.objective.loss_name: loss.detach(), "gradient_norm": norm}

    @property
    def learning_rate(self) -> float:
        """Rate of the coming step, a function of the number of steps alone: linear warm-up, then constant or cosine."""
        if self.step_count < self.warmup_steps:
            return self.peak * (self.step_count + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.peak
        progress = (self.step_count - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    def state(self) -> dict[str, Any]:
        """Moments of the optimizer by the place of their parameter, and the number of steps, for the resume state."""
        moments = (self.optimizer.state.get(parameter) for parameter in self.parameters)
        return {
            "optimizer": {str(place): dict(entry) for place, entry in enumerate(moments) if entry},
            "step_count": self.step_count,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        for place, entry in state["optimizer"].items():
            parameter = self.parameters[int(place)]
            self.optimizer.state[parameter] = {name: value.to(self.device) for name, value in entry.items()}
        self.step_count = state["step_count"]


class StepGraph:
    """Captures a step in one CUDA graph and replays it: one launch instead of thousands, the same kernels.

    Launching the kernels of a small model one by one takes longer than the GPU takes to run them. The first steps are
    eager, as libraries set themselves up in them. All batches have one shape.

    Args:
        step: The step; its Python runs once while it is captured and never again, so that it must do all it does in
            operations on tensors that stay where they are.

    Raises:
        ConfigError: the step cannot be captured; raised by the first call after the eager steps.
    """

    EAGER_STEPS = 3

    def __init__(self, step: Callable[[Batch], Terms]) -> None:
        self.step = step
        self.graph: torch.cuda.CUDAGraph | None = None
        self.eager_steps = 0

    def __call__(self, batch: Batch) -> Terms:
        """The terms of the step, overwritten by the next one."""
        if self.eager_steps < self.EAGER_STEPS:
            self.eager_steps += 1
            return self._eager(batch)
        if self.graph is None:
            self._capture(batch)
        assert self.graph is not None
        for static, values in zip(self.batch, batch, strict=True):
            static.copy_(values)
        self.graph.replay()
        return self.terms

    def _capture(self, batch: Batch) -> None:
        self.batch, graph = Batch(*map(torch.empty_like, batch)), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):  # notes the kernels down without running them
                self.terms = self.step(self.batch)
        except RuntimeError as error:  # something in the step waits for the device, or asks what is on it
            raise ConfigError(f"execution: this step cannot be captured ({error}). Use execution=eager.") from error
        self.graph = graph

    def _eager(self, batch: Batch) -> Terms:
        """On another stream, as a capture is: cuBLAS and others keep a workspace for each kind of stream."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            terms = self.step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return terms


def use_graph(execution: str, device: torch.device, objective: nn.Module) -> bool:
    """Whether steps are captured by the setting `execution`: "auto", "eager" or "graph".

    "auto" captures on CUDA where every module is of this package or of torch: what the Python of others does in each
    step (count, print, wait for the device) is not known.
    """
    if execution == "auto":
        known = {type(module).__module__.partition(".")[0] for module in objective.modules()} <= {"jepaworld", "torch"}
        return device.type == "cuda" and known
    return execution == "graph"


def parameter_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters with and without weight decay.

    Decay draws matrices and kernels towards zero. Gains of norms, biases, positions, class tokens and learned queries
    are left alone: zero means nothing special for them.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    is_matrix = [parameter.ndim >= 2 and "weight" in name.rpartition(".")[2] for name, parameter in named]
    decayed = [parameter for (_, parameter), matrix in zip(named, is_matrix, strict=True) if matrix]
    others = [parameter for (_, parameter), matrix in zip(named, is_matrix, strict=True) if not matrix]
    return decayed, others


class Meter:
    """Sums loss terms on the device, in one tensor that stays where it is, and reads them only when asked.

    Attributes:
        samples: Windows since the beginning of the epoch.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._names: list[str] = []
        self._totals = torch.empty(0)  # (3, K): since the last read, since the beginning by samples, finite steps
        self._unread = 0
        self._loaded: dict[str, float] = {}

    def reset(self) -> None:
        """Begin an epoch."""
        self.samples, self._unread, self._loaded = 0, 0, {}
        self._totals.zero_()

    @torch.no_grad()
    def add(self, terms: dict[str, Tensor], samples: int) -> None:
        """Take the terms of a batch of `samples` windows."""
        values = torch.stack([term.float() for term in terms.values()])
        if not self._names:
            self._names = list(terms)
            # Float64 sums are exact enough to average any number of steps; MPS has none.
            dtype = torch.float32 if values.device.type == "mps" else torch.float64
            loaded = [self._loaded.get(name, 0.0) for name in terms]
            rows = [[0.0] * len(terms), loaded, [0.0] * len(terms)]
            self._totals = torch.tensor(rows, dtype=dtype, device=values.device)
        values = values.to(self._totals.dtype)
        self._totals[:2] += torch.stack([values, values * samples])
        # A sum never recovers from NaN or infinity, so that this counts the steps before the first of them.
        self._totals[2] += self._totals[0].isfinite()
        self._unread += 1
        self.samples += samples

    def read_recent(self, last_step: int) -> dict[str, float]:
        """Means over the steps since the last read, in one transfer from the device.

        Args:
            last_step: Number of the step that was added last, for the message.

        Raises:
            NonFiniteLossError: a term of one of these steps is NaN or infinite.
        """
        sums, _, finite = self._totals.tolist()
        # The term that was the first: a step later all of them are NaN.
        good_steps, total, name = min(zip(finite, sums, self._names, strict=True), key=lambda entry: entry[0])
        if not math.isfinite(total):
            raise NonFiniteLossError(f"step {last_step - self._unread + int(good_steps) + 1}: {name} is {total}.")
        means = {name: total / self._unread for name, total in zip(self._names, sums, strict=True)}
        self._totals[0].zero_()
        self._totals[2].zero_()
        self._unread = 0
        return means

    def means(self) -> dict[str, float]:
        """Means over all samples since the beginning of the epoch."""
        assert self.samples, "no batch was added"
        return {name: total / self.samples for name, total in self._sums().items()}

    def state(self) -> dict[str, Any]:
        """For the resume state."""
        return {"sums": self._sums(), "samples": self.samples}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self.samples, self._loaded = state["samples"], dict(state["sums"])

    def _sums(self) -> dict[str, float]:
        return dict(zip(self._names, self._totals[1].tolist(), strict=True)) if self._names else dict(self._loaded)


def train_validate_model_epoch(
    objective: Objective,
    batches: Iterable[Batch],
    meter: Meter,
    device: torch.device,
    bf16: bool,
    step: TrainingStep | None = None,
    after_step: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train for an epoch, or validate if there is no training step.

    Args:
        objective: What to minimise.
        batches: Batches on the device.
        meter: Takes the terms, the loss itself among them; fresh, or restored in a resumed epoch.
        device: Where model and batches are.
        bf16: Whether forward passes are in bf16 autocast.
        step: Trains; `None` validates, without gradients and in eval mode.
        after_step: Called after each training step is complete, for logging and checkpoints.

    Returns:
        The mean of each term over the epoch.

    Raises:
        NonFiniteLossError: a term or the gradient norm became NaN or infinite; `after_step` may find it earlier, at a
            log step, and say which step it was.
    """
    objective.train(step is not None)
    with torch.set_grad_enabled(step is not None):
        for batch in batches:
            if step is not None:
                terms = step(batch)
            else:
                with autocast(device, bf16):
                    loss, terms = objective(batch)
                terms = {**terms, objective.loss_name: loss}
            meter.add(terms, len(batch.frames))
            if after_step is not None:
                after_step()
    means = meter.means()
    for name, value in means.items():
        if not math.isfinite(value):
            raise NonFiniteLossError(f"{name} is {value} in {'training' if step else 'validation'}.")
    return means
