"""Metrics of a run: JSON lines always, TensorBoard and Weights & Biases as the settings say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from jepaworld.config import Config
from jepaworld.errors import ConfigError
from jepaworld.utils.storage import atomic_write_text, storage_errors

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends one JSON object a line to `metrics.jsonl`; a resumed run first cuts off what came after its state.

    Args:
        folder: The run folder.
        config: Its `logging` section says what is written beside the JSON lines.

    Raises:
        ConfigError: `logging.wandb_project` is set, but wandb is not installed.
        StorageError: the file cannot be written.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder = folder
        self._path = folder / METRICS_FILE
        self._tensorboard: dict[str, Any] = {}
        self._use_tensorboard = config.logging.tensorboard
        self._wandb = _start_wandb(folder, config)
        with storage_errors(self._path):
            self._file = self._path.open("ab")

    def write(self, kind: str, phase: str, epoch: int, step: int, seconds: float, values: dict[str, Any]) -> None:
        """Append a record.

        Args:
            kind: "step" or "epoch".
            phase: "jepa" or "decoder".
            epoch: Number of the epoch, from 1.
            step: Optimizer steps of this phase so far.
            seconds: Time of this phase so far.
            values: Metrics by name.
        """
        record = {"kind": kind, "phase": phase, "epoch": epoch, "step": step, "seconds": round(seconds, 3), **values}
        with storage_errors(self._path):
            self._file.write((json.dumps(record, allow_nan=False) + "\n").encode())
            if kind == "epoch":
                self._file.flush()
        if self._use_tensorboard:
            writer = self._tensorboard_writer(phase)
            for name, value in values.items():
                writer.add_scalar(f"{kind}/{name}", float(value), step)
        if self._wandb is not None:
            self._wandb.log(
                {f"{phase}/{kind}/{name}": value for name, value in values.items()} | {f"{phase}/step": step}
            )

    def flush(self) -> int:
        """Bring everything to the disk and return the size of the file in bytes."""
        with storage_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        for writer in self._tensorboard.values():
            writer.flush()
        return self._file.tell()

    def rewind(self, size: int, phase: str, step: int) -> None:
        """Forget the records that a killed run wrote after its last resume state.

        Args:
            size: Bytes of the file at that state.
            phase: The phase that goes on.
            step: Its steps at that state; TensorBoard hides what it has from later ones.
        """
        with storage_errors(self._path):
            self._file.truncate(size)
            self._file.seek(size)
        if self._use_tensorboard:
            self._tensorboard_writer(phase, purge_step=step + 1)

    def close(self) -> None:
        """Finish all files."""
        self._file.close()
        for writer in self._tensorboard.values():
            writer.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _tensorboard_writer(self, phase: str, purge_step: int | None = None) -> Any:
        """A writer per phase, because steps begin anew in each and purging goes by steps."""
        if phase not in self._tensorboard:
            # Imported late: it takes seconds, which a run without it should not pay.
            from torch.utils.tensorboard.writer import SummaryWriter

            folder = str(self._folder / "tensorboard" / phase)
            self._tensorboard[phase] = SummaryWriter(folder, purge_step=purge_step)
        return self._tensorboard[phase]


def forget_phase(folder: Path, phase: str) -> None:
    """Remove a phase's records from the metrics of a run, because it is trained anew.

    Raises:
        StorageError: the file cannot be written; it is left as it was.
    """
    path = folder / METRICS_FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    atomic_write_text(path, "".join(line for line in lines if json.loads(line)["phase"] != phase))
    shutil.rmtree(folder / "tensorboard" / phase, ignore_errors=True)


def _start_wandb(folder: Path, config: Config) -> Any:
    if config.logging.wandb_project is None:
        return None
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"logging.wandb_project is {config.logging.wandb_project!r}, but wandb is not installed. Install it with "
            '`pip install "jepaworld[wandb]"` or set logging.wandb_project to null.'
        ) from error
    return wandb.init(
        project=config.logging.wandb_project,
        dir=folder,
        name=folder.name,
        id=folder.name,
        resume="allow",
        config=config.to_dict(),
    )
