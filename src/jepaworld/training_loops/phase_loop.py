"""A training phase: epochs, early stopping, checkpoints, metrics and exact resume, the same for JEPA and decoder."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.data.windows import WindowLoader
from jepaworld.errors import NonFiniteLossError
from jepaworld.losses.objective import Objective
from jepaworld.models import checkpoints
from jepaworld.runs.metrics import MetricsLog
from jepaworld.training_loops.epoch_loop import Meter, TrainingStep, train_validate_model_epoch
from jepaworld.utils.devices import use_bf16
from jepaworld.utils.progress import Progress

LATEST = "latest"
"""The metric by which every epoch is better than the one before."""


@dataclass
class Phase:
    """What distinguishes one training phase from another.

    Attributes:
        name: "jepa" or "decoder", as in the metrics.
        title: Shown beside the progress bar.
        kind: Kind of the checkpoint, see `checkpoints`.
        objective: Maps a batch to the loss.
        module: What checkpoints hold.
        step: One step of it, with optimizer and schedule.
        train: Training batches.
        validation: Validation batches, or `None`.
        num_epochs: Longest training.
        steps_per_epoch: Training steps in an epoch.
        metric: Name of the metric, lower is better, that picks the best checkpoint; LATEST for the last epoch.
        patience: Epochs without an improvement after which the phase ends.
        delta: Smallest decrease that counts as an improvement.
        after_epoch: Called with the epoch's number before its checkpoints; returns more metrics for the epoch.
    """

    name: str
    title: str
    kind: str
    objective: Objective
    module: nn.Module
    step: TrainingStep
    train: WindowLoader
    validation: WindowLoader | None
    num_epochs: int
    steps_per_epoch: int
    metric: str
    patience: int
    delta: float
    after_epoch: Callable[[int], dict[str, Any]]


@dataclass
class PhaseState:
    """How far a phase has come."""

    epoch: int = 1
    batches_done: int = 0
    best: float = math.inf
    best_epoch: int = 0
    finished: bool = False
    seconds: float = 0.0
    train_seconds: float = 0.0
    meter: dict[str, Any] | None = None


@dataclass
class Run:
    """What the phases of a run share.

    Attributes:
        folder: The run folder.
        config: Its configuration.
        action_space: For the checkpoints.
        device: Where everything is trained.
        log: Metrics.
        progress: What the user sees.
        stop_requested: True once the user asked to stop (Ctrl-C).
    """

    folder: Path
    config: Config
    action_space: gymnasium.Space
    device: torch.device
    log: MetricsLog
    progress: Progress
    stop_requested: Callable[[], bool] = field(default=lambda: False)

    def state_path(self, phase_name: str) -> Path:
        """Resume state of a phase."""
        return self.folder / "resume" / f"{phase_name}.safetensors"


def run_phase(phase: Phase, run: Run, resume: bool) -> PhaseState:
    """Train until the last epoch, early stopping or a request to stop.

    Args:
        phase: What to train.
        run: Where and how.
        resume: Go on from the phase's resume state, if there is one.

    Returns:
        The final state; `best_epoch` tells which epoch's weights the best checkpoint holds.

    Raises:
        KeyboardInterrupt: a stop was requested; the resume state is on disk.
        NonFiniteLossError: a loss is no longer finite; checkpoints are from before that.
    """
    return _PhaseRunner(phase, run).run(resume)


def _current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The objective's state with the names of this release; in 0.1.0 the losses on dynamics were `plannable`."""
    return {re.sub(r"^plannable\.", "dynamics_losses.", name): tensor for name, tensor in state.items()}


class _PhaseRunner:
    def __init__(self, phase: Phase, run: Run) -> None:
        self.phase, self.owner = phase, run
        self.state = PhaseState()
        self.meter = Meter(run.config.logging.log_every_steps)
        self.bf16 = use_bf16(run.config.mixed_precision, run.device, phase.objective)
        self.started = 0.0

    def run(self, resume: bool) -> PhaseState:
        phase, run, state = self.phase, self.owner, self.state
        if resume and run.state_path(phase.name).exists():
            self._restore()
            if state.finished:
                run.progress.message(f"{phase.title}: was trained before; {self._result()}")
                return state
        self.started = time.perf_counter() - state.seconds
        # Saved before the first step too, so that a resumed run knows where in the metrics this phase began.
        self._save()
        total = phase.num_epochs * phase.steps_per_epoch
        run.progress.start(phase.title, total, (state.epoch - 1) * phase.steps_per_epoch + state.batches_done)
        try:
            while not state.finished:
                self._epoch()
        except NonFiniteLossError as error:
            raise NonFiniteLossError(self._explain(error)) from error
        finally:
            run.progress.finish()
        run.progress.message(f"{phase.title}: {self._result()}")
        return state

    def _result(self) -> str:
        state = self.state
        if self.phase.metric == LATEST:
            return f"{state.epoch - 1} epochs, {state.seconds:.0f} s"
        return (
            f"best {self.phase.metric} {state.best:.4g} at epoch {state.best_epoch} of {state.epoch - 1}, "
            f"{state.seconds:.0f} s"
        )

    def _epoch(self) -> None:
        phase, run, state = self.phase, self.owner, self.state
        began = time.perf_counter() - state.train_seconds
        with closing(phase.train.epoch(state.epoch, state.batches_done)) as batches:
            means = train_validate_model_epoch(
                phase.objective,
                # The order of an epoch is random, so its first steps are a random sample of it.
                islice(batches, phase.steps_per_epoch - state.batches_done),
                self.meter,
                run.device,
                self.bf16,
                phase.step,
                lambda: self._after_step(began),
            )
        state.train_seconds = time.perf_counter() - began
        metrics: dict[str, Any] = {f"train_{name}": value for name, value in means.items()}
        metrics["samples_per_second"] = self.meter.samples / state.train_seconds
        if phase.validation is not None:
            validated = train_validate_model_epoch(
                phase.objective,
                phase.validation.all_windows(),
                Meter(run.config.logging.log_every_steps),
                run.device,
                self.bf16,
            )
            metrics |= {f"val_{name}": value for name, value in validated.items()}
        self._end_epoch(metrics)

    def _after_step(self, began: float) -> None:
        phase, run, state = self.phase, self.owner, self.state
        state.batches_done += 1
        step = phase.step.step_count
        last = state.batches_done == phase.steps_per_epoch
        save = step % run.config.checkpoint_every_steps == 0 and not last
        stop = run.stop_requested()
        note = ""
        if step % self.meter.log_every_steps == 0 or last or save or stop:
            # Nothing may be saved before the losses up to here are known to be finite.
            recent = self.meter.read_recent(step)
            note = f"epoch {state.epoch}  loss {recent[phase.objective.loss_name]:.4f}"
            run.log.write(
                "step",
                phase.name,
                state.epoch,
                step,
                self._seconds(),
                {f"train_{name}": value for name, value in recent.items()} | {"learning_rate": phase.step.rate.item()},
            )
        run.progress.advance(1, note)
        if save or (stop and not last):
            state.train_seconds = time.perf_counter() - began
            self._save()
        if stop and not last:
            raise KeyboardInterrupt

    def _end_epoch(self, metrics: dict[str, Any]) -> None:
        phase, run, state = self.phase, self.owner, self.state
        metrics |= phase.after_epoch(state.epoch)
        value = -float(state.epoch) if phase.metric == LATEST else metrics[phase.metric]
        best = value < state.best - phase.delta or state.best_epoch == 0
        if best:
            state.best, state.best_epoch = value, state.epoch
        record = metrics | {"best": best}
        run.log.write("epoch", phase.name, state.epoch, phase.step.step_count, self._seconds(), record)
        for which in ("last", "best") if best else ("last",):
            path = checkpoints.checkpoint_path(run.folder, run.config, phase.kind, which)
            checkpoints.save(path, phase.module, phase.kind, run.config, run.action_space)
        state.finished = state.epoch == phase.num_epochs or state.epoch - state.best_epoch >= phase.patience
        state.epoch += 1
        state.batches_done, state.train_seconds = 0, 0.0
        self.meter.reset()
        self._save()
        if run.stop_requested():
            raise KeyboardInterrupt

    def _seconds(self) -> float:
        self.state.seconds = time.perf_counter() - self.started
        return self.state.seconds

    def _save(self) -> None:
        phase, state = self.phase, self.state
        self._seconds()
        state.meter = self.meter.state() if state.batches_done else None
        checkpoints.save_state(
            self.owner.state_path(phase.name),
            {
                "phase": vars(state).copy(),
                "objective": phase.objective.state_dict(),
                **phase.step.state(),
                "random": checkpoints.random_state(),
                "metrics_bytes": self.owner.log.flush(),
            },
        )

    def _restore(self) -> None:
        phase = self.phase
        saved = checkpoints.load_state(self.owner.state_path(phase.name))
        self.state.__dict__.update(saved["phase"])
        if self.state.meter is not None:
            self.meter.load_state(self.state.meter)
        if self.state.finished:
            return  # the best checkpoint holds the result, and later phases may have written metrics since
        phase.objective.load_state_dict(_current_names(saved["objective"]))
        phase.step.load_state(saved)
        checkpoints.set_random_state(saved["random"])
        self.owner.log.rewind(saved["metrics_bytes"], phase.name, phase.step.step_count)

    def _explain(self, error: NonFiniteLossError) -> str:
        phase, run = self.phase, self.owner
        path = checkpoints.checkpoint_path(run.folder, run.config, phase.kind)
        kept = (
            f"The last good checkpoint is {path} (epoch {self.state.best_epoch})."
            if self.state.best_epoch
            else "No epoch was finished, so there is no checkpoint yet."
        )
        return (
            f"{phase.title} stopped: {error} {kept} Lower the learning rate, set gradient_clip_norm, or try "
            "mixed_precision=off."
        )
