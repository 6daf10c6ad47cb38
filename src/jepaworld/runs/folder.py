"""What a run folder says about itself, without the models and the dataset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepaworld.config import Config, load_config
from jepaworld.data.store import EpisodeDataset, Split
from jepaworld.errors import CheckpointError, ConfigError, DatasetError
from jepaworld.models.checkpoints import CONFIG_FILE
from jepaworld.runs.metrics import METRICS_FILE
from jepaworld.runs.record import RUN_FILE, read_info


@dataclass(frozen=True)
class RunFolder:
    """A run as read from disk.

    Attributes:
        path: The folder.
        config: The resolved configuration.
        info: `run.json`: status, versions, device, seed, command, dataset, phases with their times; empty if
            the run was killed before it was written.
        epochs: Metrics of each epoch by phase (`jepa`, `decoder`), in order. A phase that was trained anew
            counts with its last training only.
    """

    path: Path
    config: Config
    info: dict[str, Any]
    epochs: dict[str, list[dict[str, Any]]]

    @property
    def finished(self) -> bool:
        """Whether training ended by itself."""
        return self.info.get("status") == "complete"

    @property
    def seconds(self) -> dict[str, float]:
        """Training time of each finished phase, in seconds."""
        return {name: phase["seconds"] for name, phase in self.info.get("phases", {}).items()}

    @property
    def best_epoch(self) -> dict[str, Any] | None:
        """The JEPA epoch whose weights were kept as the best; None before the first epoch ended."""
        epochs = self.epochs.get("jepa", [])
        marked = [epoch for epoch in epochs if epoch.get("best")]
        return marked[-1] if marked else None

    @property
    def dataset_path(self) -> Path:
        """The dataset that the run was trained on."""
        named = self.info.get("dataset", {}).get("path")
        return Path(named or self.config.load_dataset_path or self.config.dataset_dir)

    def open_dataset(self) -> EpisodeDataset | None:
        """The dataset that the run was trained on, checksums unchecked; None if it is gone.

        Raises:
            DatasetError: it is damaged, or is another one than the run was trained on.
        """
        path = self.dataset_path
        if not path.exists():
            return None
        dataset = EpisodeDataset.open(path, verify_checksums=False)
        expected = self.info.get("dataset", {}).get("fingerprint")
        if expected is not None and dataset.fingerprint != expected:
            raise DatasetError(
                f"{path}: is not the dataset that {self.path} was trained on (fingerprint {dataset.fingerprint[:12]}, "
                f"the run has {expected[:12]}), so that held-out episodes could have been trained on. Restore the old "
                "dataset, or move this one away to go on without it."
            )
        return dataset

    def split(self, dataset: EpisodeDataset) -> Split:
        """Which episodes the run trained on, validated on and kept for evaluation."""
        splits = self.config.early_stopping.validation_split, self.config.evaluation_split
        return dataset.split(*splits, self.config.seed)


def read_run(run_dir: str | Path) -> RunFolder:
    """Read a run folder.

    Raises:
        CheckpointError: it is missing, is no run folder, or a file of it is damaged.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such run folder. Name a folder that `jepaworld train` wrote.")
    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{path}: is no run folder, it has no {CONFIG_FILE}. Name a folder that `jepaworld train` wrote."
        )
    try:
        config = load_config(path / CONFIG_FILE)
    except ConfigError as error:
        raise CheckpointError(f"{path / CONFIG_FILE}: does not fit this version of jepaworld: {error}") from error
    return RunFolder(path, config, read_info(path / RUN_FILE), _read_epochs(path / METRICS_FILE))


def _read_epochs(path: Path) -> dict[str, list[dict[str, Any]]]:
    epochs: dict[str, list[dict[str, Any]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # the run is being written to, or was killed in the middle of the line
                break
            raise _damaged(path, f"line {number}: {error}") from error
        if record.get("kind") == "epoch":
            before = epochs.get(record["phase"], [])
            kept = [earlier for earlier in before if earlier["epoch"] < record["epoch"]]
            epochs[record["phase"]] = [*kept, record]
    return epochs


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged ({reason}). Restore it from a copy, or delete it to report without.")
