"""Metrics of a run: JSON lines always, TensorBoard and Weights & Biases as the settings say."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from jepaworld.config import Config
from jepaworld.errors import CheckpointError, ConfigError
from jepaworld.utils.storage import atomic_write_bytes, storage_errors

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Every record of `metrics.jsonl`; none if the file is missing.

    A last line that is not whole is left out: the run is being written to, or was killed in the middle of it.

    Raises:
        CheckpointError: another line is damaged.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and {"kind", "phase", "epoch"} <= record.keys():
            records.append(record)
        elif number < len(lines):
            raise CheckpointError(f"{path}: damaged in line {number}. Remove that line, or restore the file.")
    return records


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
            self._file = self._path.open("a+b")
            self._cut(self._file.tell())

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
            self._file.write(_line(record))
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
        """Remove the records that a killed run wrote after its last resume state.

        Args:
            size: Bytes of the file at that state.
            phase: The phase that goes on.
            step: Its steps at that state; TensorBoard hides what it has from later ones.
        """
        with storage_errors(self._path):
            self._cut(size)
        if self._use_tensorboard:
            self._tensorboard_writer(phase, purge_step=step + 1)

    def close(self) -> None:
        """Finish all files."""
        self._file.close()
        for writer in self._tensorboard.values():
            writer.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _cut(self, size: int) -> None:
        """Keep the whole lines of the first `size` bytes; what a killed process wrote last may be half a line."""
        self._file.seek(0)
        whole = self._file.read(size).rpartition(b"\n")
        self._file.truncate(len(whole[0]) + len(whole[1]))
        self._file.seek(0, os.SEEK_END)

    def _tensorboard_writer(self, phase: str, purge_step: int | None = None) -> Any:
        """A writer per phase, because steps begin anew in each and purging goes by steps."""
        if phase not in self._tensorboard:
            # Imported late: it takes seconds, which a run without it should not pay.
            from torch.utils.tensorboard.writer import SummaryWriter

            folder = str(self._folder / TENSORBOARD_FOLDER / phase)
            self._tensorboard[phase] = SummaryWriter(folder, purge_step=purge_step)
        return self._tensorboard[phase]


def remove_records(folder: Path, phase: str) -> None:
    """Remove a phase from the metrics of a run, because it is trained anew.

    Raises:
        CheckpointError: the metrics are damaged.
        StorageError: they cannot be written; they are left as they were.
    """
    path = folder / METRICS_FILE
    kept = [record for record in read_records(path) if record["phase"] != phase]
    atomic_write_bytes(path, b"".join(_line(record) for record in kept))
    shutil.rmtree(folder / TENSORBOARD_FOLDER / phase, ignore_errors=True)


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()


def _start_wandb(folder: Path, config: Config) -> Any:
    if config.logging.wandb_project is None:
        return None
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"logging.wandb_project is {config.logging.wandb_project!r}, but wandb is not installed: "
            '`pip install "jepaworld[wandb]"`, or set it to null.'
        ) from error
    return wandb.init(
        project=config.logging.wandb_project,
        dir=folder,
        name=folder.name,
        id=folder.name,
        resume="allow",
        config=config.to_dict(),
    )
