"""The run folder: made for one training at a time, opened anew or to go on, and its record run.json."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from jepaworld.config import Config, load_config, to_commented_yaml
from jepaworld.data.store import EpisodeDataset, Split
from jepaworld.errors import CheckpointError, ConfigError, DatasetError
from jepaworld.models import checkpoints
from jepaworld.runs.metrics import METRICS_FILE
from jepaworld.training_loops.phase_loop import LATEST, PhaseState
from jepaworld.utils.devices import available_memory
from jepaworld.utils.storage import alone_in, atomic_write_text, storage_errors

RUN_FILE = "run.json"
AFTER_TRAINING = ("planning", "evaluation")
"""Sections of the configuration that training does not look at."""


@contextmanager
def alone_in_run(folder: Path) -> Iterator[None]:
    """Make the run folder and keep a second training out of it.

    Raises:
        ConfigError: another process trains in it.
        StorageError: it cannot be made.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    busy = ConfigError(f"{folder}: another process is training in this folder. Wait for it, or choose another --run.")
    with alone_in(folder, busy):
        yield


def default_run_dir(config: Config) -> Path:
    """runs/ENVIRONMENT-DATE-TIME, where a run goes that was given no folder."""
    name = re.sub(r"[^a-z0-9]+", "-", config.environment_name.rpartition("/")[2].lower()).strip("-")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def open_run_folder(folder: Path, config: Config, resume: bool) -> None:
    """Make the folder, or check that the run in it is the one to go on with.

    Raises:
        ConfigError: it holds another run, or something else.
        CheckpointError: its run.json is damaged.
        StorageError: it cannot be written.
    """
    config_path = folder / checkpoints.CONFIG_FILE
    # A mistyped path or a diverging first epoch must not stand in the way of the second try. What failed before
    # its first epoch was over kept no model, but with --resume goes on from where it was.
    begun = any((folder / checkpoints.CHECKPOINT_FOLDER).glob("*"))
    if resume or read_info(folder / RUN_FILE).get("status") != "failed":
        begun = begun or any((folder / "resume").glob("*.safetensors"))
    if config_path.exists() and begun:
        if not resume:
            raise ConfigError(
                f"{folder}: already holds a run. Add --resume to go on with it, or choose another folder with --run."
            )
        differing = [
            key for key in differences(load_config(config_path), config) if key.split(".")[0] not in AFTER_TRAINING
        ]
        if differing:
            raise ConfigError(
                f"{folder}: cannot be resumed with another configuration; these settings differ: "
                f"{', '.join(differing)}. Take the run's own {config_path}, or start a new run; its "
                "load_model_path can name this one."
            )
    elif not config_path.exists() and folder.is_dir() and any(entry.name[0] != "." for entry in folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty and holds no run. Choose another folder with --run.")
    with storage_errors(folder):
        if not begun:
            for name in (RUN_FILE, METRICS_FILE, "resume/jepa.safetensors"):
                (folder / name).unlink(missing_ok=True)
        for part in (checkpoints.CHECKPOINT_FOLDER, "resume"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    atomic_write_text(config_path, to_commented_yaml(config))


def read_info(path: Path) -> dict[str, Any]:
    """What run.json says; nothing if there is none."""
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        info = error
    if not isinstance(info, dict):
        raise CheckpointError(
            f"{path}: damaged ({info}). Restore it from a copy, or delete it: what it says of the dataset and the "
            "times is lost then."
        )
    return info


def differences(one: Config, other: Config) -> list[str]:
    """Dotted paths of the settings in which two configurations differ."""

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict) and node and prefix.count(".") < 4:
            for key, value in node.items():
                yield from leaves(value, f"{prefix}.{key}" if prefix else key)
        else:
            yield prefix, node

    first, second = dict(leaves(one.to_dict(), "")), dict(leaves(other.to_dict(), ""))
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


class RunRecord:
    """run.json: what the run is made of, and what became of it."""

    def __init__(self, folder: Path, config: Config, device: torch.device) -> None:
        self.path, self.config, self.device = folder / RUN_FILE, config, device
        self.content = read_info(self.path)
        self.content |= {
            "status": "running",
            "command": " ".join(sys.argv),
            "seed": config.seed,
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version()}
            | {name: metadata.version(name) for name in ("jepaworld", "torch", "numpy", "gymnasium")},
        }
        self.content.setdefault("started", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        self.content.setdefault("phases", {})
        self.write()

    def write(self) -> None:
        """Bring the record to the disk."""
        atomic_write_text(self.path, json.dumps(self.content, indent=2) + "\n")

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Keep whether the run was completed, interrupted or failed."""
        try:
            yield
        except BaseException as error:
            self.content["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            if not isinstance(error, KeyboardInterrupt):
                self.content["error"] = str(error)
            self.write()
            raise
        self.content["status"] = "complete"
        self.content.pop("error", None)
        self.write()

    def note_dataset(self, dataset: EpisodeDataset, split: Split) -> None:
        """Keep which dataset this is.

        Raises:
            DatasetError: the run was begun with another one.
        """
        entry = {
            "path": str(dataset.path.resolve()),
            "fingerprint": dataset.fingerprint,
            "episodes": len(dataset.episode_lengths),
            "frames": dataset.num_frames,
            "train_episodes": len(split.train),
            "validation_episodes": len(split.validation),
            "evaluation_episodes": len(split.evaluation),
        }
        begun = self.content.get("dataset", entry)
        if begun["fingerprint"] != entry["fingerprint"]:
            raise DatasetError(
                f"{dataset.path}: is not the dataset that this run was begun with (fingerprint "
                f"{entry['fingerprint'][:12]}, was {begun['fingerprint'][:12]}). Restore that one or start a new run."
            )
        self.content["dataset"] = entry
        self.write()

    def decide_buffer(self, dataset: EpisodeDataset) -> int | None:
        """Bytes of the frame buffer, `None` to keep all frames on the device; decided once in the life of a run."""
        if "data_location" not in self.content:
            location = self.config.data_location
            if location == "auto":
                frame_bytes = self.config.input_channels * self.config.image_size**2
                fits = dataset.num_frames * frame_bytes <= available_memory(self.device) / 2
                location = "device" if fits else "disk"
            self.content["data_location"] = location
            self.write()
        return None if self.content["data_location"] == "device" else self.config.data_buffer_megabytes * 2**20

    def note_phase(self, name: str, state: PhaseState) -> None:
        """Keep how long a phase took and how it ended; `best` is None where no metric chose the epoch."""
        chosen = name != "jepa" or self.config.early_stopping.metric_jepa != LATEST
        self.content["phases"][name] = {
            "seconds": round(state.seconds, 1),
            "epochs": state.epoch - 1,
            "best_epoch": state.best_epoch,
            "best": state.best if chosen else None,
        }
        self.write()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"
