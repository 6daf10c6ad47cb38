"""The record of a run, run.json: what the run is made of, and what became of it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jepaworld.data.store import EpisodeDataset
from jepaworld.runs.folder import RunFolder
from jepaworld.runs.state import PhaseState
from jepaworld.utils.devices import available_memory
from jepaworld.utils.outside import version
from jepaworld.utils.storage import atomic_write_text

LATEST = "latest"
"""The metric by which every epoch is better than the one before."""


class RunRecord:
    """Writes run.json.

    Args:
        folder: The run, already entered.
        device: Where it is trained.

    Attributes:
        content: What the file holds.
    """

    def __init__(self, folder: RunFolder, device: torch.device) -> None:
        self.folder, self.config, self.device = folder, folder.config, device
        self.content = folder.info | {
            "status": "running",
            "command": " ".join(sys.argv),
            "seed": self.config.seed,
            "device": _device_name(device),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("jepaworld", "torch", "numpy", "gymnasium")},
        }
        self.content.setdefault("started", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
        self.content.setdefault("phases", {})
        self.write()

    def write(self) -> None:
        """Bring the record to the disk."""
        atomic_write_text(self.folder.record_file, json.dumps(self.content, indent=2) + "\n")

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

    def note_dataset(self, dataset: EpisodeDataset) -> None:
        """Keep which dataset this is, and how it is split.

        Raises:
            DatasetError: the run was trained on another one, or no episode is left to train on.
        """
        self.folder.require_same(dataset)
        split = self.folder.split(dataset)
        self.content["dataset"] = {
            "path": str(dataset.path.resolve()),
            "fingerprint": dataset.fingerprint,
            "episodes": len(dataset.episode_lengths),
            "frames": dataset.num_frames,
            "split_seed": self.folder.split_seed(dataset),
            "train_episodes": len(split.train),
            "validation_episodes": len(split.validation),
            "evaluation_episodes": len(split.evaluation),
        }
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
