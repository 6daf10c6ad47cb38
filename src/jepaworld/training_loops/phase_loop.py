"""A training phase: epochs, early stopping, checkpoints, metrics and exact resume, the same for JEPA and decoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from jepaworld.config import Config, config_from_dict
from jepaworld.config.changes import require_equal, unseen
from jepaworld.data.store import EpisodeDataset, Split
from jepaworld.data.windows import WindowLoader
from jepaworld.errors import NonFiniteLossError
from jepaworld.losses.objective import Objective
from jepaworld.models import checkpoints
from jepaworld.runs.folder import CHECKPOINT_KINDS, RunFolder
from jepaworld.runs.metrics import MetricsLog
from jepaworld.runs.record import LATEST
from jepaworld.runs.state import PhaseState, load_state, random_state, save_state, set_random_state
from jepaworld.training_loops.epoch_loop import Meter, TrainingStep, train_validate_model_epoch
from jepaworld.utils.devices import use_bf16
from jepaworld.utils.progress import Progress


@dataclass
class Run:
    """What the phases of a run share.

    Attributes:
        folder: The run folder, with the configuration.
        dataset: What is trained on.
        split: Its episodes; those for evaluation are not touched.
        device: Where everything is trained.
        buffer_bytes: Memory for frames, see `WindowLoader`.
        log: Metrics.
        progress: What the user sees.
        stop_requested: True once the user asked to stop (Ctrl-C).
    """

    folder: RunFolder
    dataset: EpisodeDataset
    split: Split
    device: torch.device
    buffer_bytes: int | None
    log: MetricsLog
    progress: Progress
    stop_requested: Callable[[], bool] = field(default=lambda: False)

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.folder.config

    @property
    def watched(self) -> np.ndarray:
        """Episodes to look at during training: for validation, or those trained on where there are none."""
        return self.split.validation if len(self.split.validation) else self.split.train


@dataclass
class Phase:
    """What distinguishes one training phase from another.

    Attributes:
        name: "jepa" or "decoder", as in the metrics.
        title: Shown beside the progress bar.
        objective: Maps a batch to the loss.
        module: What checkpoints hold.
        learning_rate: Peak learning rate.
        num_transitions: T of its windows.
        batch_size: B.
        num_epochs: Longest training.
        steps_per_epoch: Most training steps in an epoch; None for as many as there are batches.
        metric: Name of the metric, lower is better, that picks the best checkpoint; LATEST for the last epoch.
        patience: Epochs without an improvement after which the phase ends.
        delta: Smallest decrease that counts as an improvement.
        seed: Of the order of windows.
        after_epoch: Called with the epoch's number before its checkpoints; returns more metrics for the epoch.
    """

    name: str
    title: str
    objective: Objective
    module: nn.Module
    learning_rate: float
    num_transitions: int
    batch_size: int
    num_epochs: int
    steps_per_epoch: int | None
    metric: str
    patience: int
    delta: float
    seed: int
    after_epoch: Callable[[int], dict[str, Any]]


def run_phase(phase: Phase, run: Run, resume: bool) -> PhaseState:
    """Train until the last epoch, early stopping or a request to stop.

    Args:
        phase: What to train.
        run: Where and how.
        resume: Go on from the phase's resume state, if there is one.

    Returns:
        The final state; `best_epoch` tells which epoch's weights the best checkpoint holds.

    Raises:
        ConfigError: the phase began with other settings.
        KeyboardInterrupt: a stop was requested; the resume state is on disk.
        NonFiniteLossError: losses, embeddings or weights are no longer finite; checkpoints are from before that.
    """
    return _PhaseRunner(phase, run).run(resume)


class _PhaseRunner:
    def __init__(self, phase: Phase, run: Run) -> None:
        self.phase, self.owner, self.config = phase, run, run.config
        self.kind = CHECKPOINT_KINDS[phase.name]
        self.state = PhaseState()
        self.started = 0.0
        self.meter = Meter()
        self.bf16 = use_bf16(self.config.mixed_precision, run.device, phase.objective)
        self.train = self._loader(run.split.train)
        self.validation = self._loader(run.split.validation) if len(run.split.validation) else None
        self.steps_per_epoch = min(len(self.train), phase.steps_per_epoch or len(self.train))
        self.total_steps = phase.num_epochs * self.steps_per_epoch
        self.step = TrainingStep(
            phase.objective, self.config, phase.learning_rate, self.total_steps, run.device, self.bf16
        )

    def _loader(self, episodes: np.ndarray) -> WindowLoader:
        phase, run = self.phase, self.owner
        windows = phase.num_transitions, phase.batch_size
        return WindowLoader(run.dataset, episodes, *windows, run.device, run.buffer_bytes, phase.seed)

    def run(self, resume: bool) -> PhaseState:
        phase, run, state = self.phase, self.owner, self.state
        if resume and run.folder.resume_state(phase.name).exists():
            self._restore()
            if state.finished:
                run.progress.message(f"{phase.title}: was trained before; {self._result()}")
                return state
        self.started = time.perf_counter() - state.seconds
        # Saved before the first step too, so that a resumed run knows where in the metrics this phase began.
        self._save()
        run.progress.start(phase.title, self.total_steps, (state.epoch - 1) * self.steps_per_epoch + state.batches_done)
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
        best = f"best {self.phase.metric} {state.best:.4g} at epoch {state.best_epoch}"
        return f"{best} of {state.epoch - 1}, {state.seconds:.0f} s"

    def _epoch(self) -> None:
        phase, run, state = self.phase, self.owner, self.state
        began = time.perf_counter() - state.train_seconds
        with closing(self.train.epoch(state.epoch, state.batches_done)) as batches:
            means = train_validate_model_epoch(
                phase.objective,
                # The order of an epoch is random, so its first steps are a random sample of it.
                islice(batches, self.steps_per_epoch - state.batches_done),
                self.meter,
                run.device,
                self.bf16,
                self.step,
                lambda: self._after_step(began),
            )
        state.train_seconds = time.perf_counter() - began
        metrics: dict[str, Any] = {f"train_{name}": value for name, value in means.items()}
        metrics["samples_per_second"] = self.meter.samples / state.train_seconds
        if self.validation is not None:
            validated = train_validate_model_epoch(
                phase.objective,
                self.validation.all_windows(),
                Meter(),
                run.device,
                self.bf16,
            )
            metrics |= {f"val_{name}": value for name, value in validated.items()}
        self._end_epoch(metrics)

    def _after_step(self, began: float) -> None:
        phase, run, state = self.phase, self.owner, self.state
        state.batches_done += 1
        step = self.step.step_count
        last = state.batches_done == self.steps_per_epoch
        save = step % self.config.checkpoint_every_steps == 0 and not last
        stop = run.stop_requested()
        note = ""
        if step % self.config.logging.log_every_steps == 0 or last or save or stop:
            # Nothing may be saved before the losses up to here are known to be finite.
            recent = self.meter.read_recent(step)
            note = f"epoch {state.epoch}  loss {recent[phase.objective.loss_name]:.4f}"
            values = {f"train_{name}": value for name, value in recent.items()}
            values["learning_rate"] = self.step.rate.item()
            run.log.write("step", phase.name, state.epoch, step, self._seconds(), values)
        run.progress.advance(1, note)
        if save or (stop and not last):
            state.train_seconds = time.perf_counter() - began
            self._save()
        if stop and not last:
            raise KeyboardInterrupt

    def _end_epoch(self, metrics: dict[str, Any]) -> None:
        phase, run, state = self.phase, self.owner, self.state
        # The last step may have spoilt the weights after its own loss was taken.
        self._require_finite()
        metrics |= phase.after_epoch(state.epoch)
        value = -float(state.epoch) if phase.metric == LATEST else metrics[phase.metric]
        best = value < state.best - phase.delta or state.best_epoch == 0
        if best:
            state.best, state.best_epoch = value, state.epoch
        record = metrics | {"best": best}
        run.log.write("epoch", phase.name, state.epoch, self.step.step_count, self._seconds(), record)
        for which in ("last", "best") if best else ("last",):
            path = run.folder.checkpoint(self.kind, which)
            checkpoints.save(path, phase.module, self.kind, self.config, run.dataset.action_space)
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

    def _require_finite(self) -> None:
        weights = self.phase.objective.state_dict()
        # One transfer for all of them: asked one by one, a GPU would be waited for hundreds of times.
        finite = torch.stack([tensor.isfinite().all() for tensor in weights.values()]).tolist()
        for name, is_finite in zip(weights, finite, strict=True):
            if not is_finite:
                raise NonFiniteLossError(f"step {self.step.step_count}: weights of {name} are no longer finite.")

    def _save(self) -> None:
        phase, state, run = self.phase, self.state, self.owner
        self._require_finite()
        self._seconds()
        state.meter = self.meter.state() if state.batches_done else None
        content = {
            "phase": vars(state).copy(),
            # A phase goes on with the settings that it began with, whatever config.yaml says by then.
            "settings": self.config.to_dict(),
            "objective": phase.objective.state_dict(),
            **self.step.state(),
            "random": random_state(),
            "metrics_bytes": run.log.flush(),
        }
        save_state(run.folder.resume_state(phase.name), content)

    def _restore(self) -> None:
        phase, run = self.phase, self.owner
        saved = load_state(run.folder.resume_state(phase.name))
        self.state.__dict__.update(saved["phase"])
        if self.state.finished:
            return  # the best checkpoint holds the result, and later phases may have written metrics since
        if "settings" in saved:  # 0.1.0 kept none
            remedy = "Take these values for resuming, or start a new run."
            require_equal(config_from_dict(saved["settings"]), self.config, unseen(phase.name, self.config), remedy)
        if self.state.meter is not None:
            self.meter.load_state(self.state.meter)
        phase.objective.load_state_dict(saved["objective"])
        self.step.load_state(saved)
        set_random_state(saved["random"])
        run.log.rewind(saved["metrics_bytes"], phase.name, self.step.step_count)

    def _explain(self, error: NonFiniteLossError) -> str:
        path = self.owner.folder.checkpoint(self.kind)
        kept = (
            f"The last good checkpoint is {path} (epoch {self.state.best_epoch})."
            if self.state.best_epoch
            else "No epoch was finished, so there is no checkpoint yet."
        )
        remedy = "Lower the learning rate, set gradient_clip_norm, or try mixed_precision=off."
        return f"{self.phase.title} stopped: {error} {kept} {remedy}"
