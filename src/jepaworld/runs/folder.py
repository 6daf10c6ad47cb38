"""The run folder: what lies where in it, what it says about itself, and how a training enters it.

* `config.yaml`: the resolved configuration
* `run.json`: what the run is made of and what became of it, see `runs.record`
* `metrics.jsonl`, `tensorboard/`: see `runs.metrics`
* `checkpoints/`: best and last weights of JEPA and decoder
* `resume/`: what each phase goes on from, see `runs.state`
* `validation_plots/`: frames and their reconstructions, after each epoch of the decoder
* `evaluation/`, `plan/`, `report.html`, `report.json`: what the commands `evaluate`, `plan` and `report` leave
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from jepaworld.config import Config, load_config, to_commented_yaml
from jepaworld.config.changes import AFTER_TRAINING, require_equal
from jepaworld.data.store import EpisodeDataset, Split
from jepaworld.errors import CheckpointError, ConfigError, DatasetError
from jepaworld.models.checkpoints import CHECKPOINT_FOLDER, CONFIG_FILE, checkpoint_path
from jepaworld.runs.metrics import METRICS_FILE, TENSORBOARD_FOLDER, read_records, remove_records
from jepaworld.runs.state import load_state
from jepaworld.utils.storage import alone_in, atomic_write_text, storage_errors

RECORD_FILE = "run.json"
RESUME_FOLDER = "resume"
REPORT_FILES = ("report.html", "report.json")
EVALUATION_FOLDER, PLAN_FOLDER = "evaluation", "plan"
CHECKPOINT_KINDS = {"jepa": "jepa", "decoder": "jepa_decoder"}
"""Kind of the checkpoints, by phase."""
_ENTRIES = {CONFIG_FILE, RECORD_FILE, METRICS_FILE, TENSORBOARD_FOLDER, "wandb", CHECKPOINT_FOLDER, RESUME_FOLDER}
_ENTRIES |= {*REPORT_FILES, EVALUATION_FOLDER, PLAN_FOLDER}


class RunFolder:
    """A run on disk; what is asked of it is read when it is asked.

    Args:
        path: The folder; it need not be there yet.
        config: The configuration; None takes that of the folder.

    Attributes:
        config_file, record_file, metrics_file, plan_folder, report_page, report_numbers, planning_file: Where these
            lie, whether they are there or not.

    Example:
        ```
        run = RunFolder.open("runs/first")
        dataset = run.open_dataset()
        print(run.best_epoch, run.split(dataset).evaluation, run.checkpoint("jepa"))
        ```
    """

    def __init__(self, path: str | Path, config: Config | None = None) -> None:
        self.path = Path(path)
        self.config_file, self.record_file, self.metrics_file, self.plan_folder = (
            self.path / name for name in (CONFIG_FILE, RECORD_FILE, METRICS_FILE, PLAN_FOLDER)
        )
        self.report_page, self.report_numbers = (self.path / name for name in REPORT_FILES)
        self.planning_file = self.path / EVALUATION_FOLDER / "planning.json"
        if config is not None:
            self.config = config

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A folder that training wrote.

        Raises:
            CheckpointError: it is missing, is no run folder, or its configuration cannot be read.
        """
        run = cls(path)
        if not run.config_file.is_file():
            raise CheckpointError(
                f"{path}: is no run folder, it has no {CONFIG_FILE}. Name a folder that `jepaworld train` wrote."
            )
        try:
            return cls(path, load_config(run.config_file))
        except ConfigError as error:
            raise CheckpointError(f"{run.config_file}: does not fit this version of jepaworld: {error}") from error

    @classmethod
    def default(cls, config: Config) -> Self:
        """runs/ENVIRONMENT-DATE-TIME, where a run goes that was given no folder."""
        name = re.sub(r"[^a-z0-9]+", "-", config.environment_name.rpartition("/")[2].lower()).strip("-")
        return cls(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", config)

    # --- what lies where

    @property
    def plots_folder(self) -> Path:
        """Reconstructions of validation frames."""
        return self.path / self.config.jepa_decoder_training.validation_plot_dir

    def checkpoint(self, kind: str, which: str = "best") -> Path:
        """Weights of a `kind` "jepa" or "jepa_decoder", of the "best" or the "last" epoch."""
        return checkpoint_path(self.path, self.config, kind, which)

    def resume_state(self, phase: str) -> Path:
        """What the phase "jepa" or "decoder" goes on from."""
        return self.path / RESUME_FOLDER / f"{phase}.safetensors"

    # --- what it says

    @cached_property
    def config(self) -> Config:
        """The resolved configuration."""
        return load_config(self.config_file)

    @property
    def info(self) -> dict[str, Any]:
        """`run.json`: status, versions, device, seed, command, dataset, phases; empty if there is none.

        Raises:
            CheckpointError: it is damaged.
        """
        if not self.record_file.is_file():
            return {}
        try:
            info = json.loads(self.record_file.read_bytes())
        except ValueError as error:
            info = error
        if not isinstance(info, dict):
            raise CheckpointError(
                f"{self.record_file}: damaged ({info}). Restore it from a copy, or delete it: what it says of the "
                "dataset and the times is lost then."
            )
        return info

    @cached_property
    def epochs(self) -> dict[str, list[dict[str, Any]]]:
        """Metrics of each epoch by phase, in order; of a phase that was trained anew only the last training.

        Raises:
            CheckpointError: they are damaged.
        """
        epochs: dict[str, list[dict[str, Any]]] = {}
        for record in read_records(self.metrics_file):
            if record["kind"] == "epoch":
                before = epochs.get(record["phase"], [])
                kept = [earlier for earlier in before if earlier["epoch"] < record["epoch"]]
                epochs[record["phase"]] = [*kept, record]
        return epochs

    @property
    def finished(self) -> bool:
        """Whether training ended by itself."""
        return self.info.get("status") == "complete"

    @property
    def seconds(self) -> dict[str, float]:
        """Training time of each finished phase."""
        return {name: phase["seconds"] for name, phase in self.info.get("phases", {}).items()}

    @property
    def best_epoch(self) -> dict[str, Any] | None:
        """The JEPA epoch whose weights were kept as the best; None before the first epoch ended."""
        marked = [epoch for epoch in self.epochs.get("jepa", []) if epoch.get("best")]
        return marked[-1] if marked else None

    def phase_is_finished(self, phase: str) -> bool:
        """Whether a phase is over, as its resume state says, or else the record."""
        if self.resume_state(phase).exists():
            return load_state(self.resume_state(phase))["phase"]["finished"]
        if phase == "jepa" and self.config.training_options.skip_jepa_training_if_loaded:
            return self.checkpoint("jepa").exists()
        return not self.info or phase in self.info.get("phases", {})

    # --- its dataset

    @property
    def dataset_path(self) -> Path:
        """The dataset that the run was trained on."""
        named = self.info.get("dataset", {}).get("path")
        return Path(named or self.config.load_dataset_path or self.config.dataset_dir)

    def open_dataset(self, verify_checksums: bool = False) -> EpisodeDataset | None:
        """The dataset that the run was trained on; None if it is gone.

        Raises:
            DatasetError: it is damaged, or is another one than the run was trained on.
        """
        if not self.dataset_path.exists():
            return None
        dataset = EpisodeDataset.open(self.dataset_path, verify_checksums=verify_checksums)
        self.require_same(dataset)
        return dataset

    def require_same(self, dataset: EpisodeDataset) -> None:
        """Refuse another dataset than the run's: held-out episodes of one could have been trained on in the other.

        Raises:
            DatasetError: with both fingerprints.
        """
        expected = self.info.get("dataset", {}).get("fingerprint", dataset.fingerprint)
        if dataset.fingerprint != expected:
            raise DatasetError(
                f"{dataset.path}: is not the dataset that {self.path} was trained on (fingerprint "
                f"{dataset.fingerprint[:12]}, the run has {expected[:12]}). Restore the old one, or move this one away."
            )

    def split_seed(self, dataset: EpisodeDataset) -> int:
        """Seed of the split that the run was trained with; of a new run, the dataset's own."""
        known = self.info.get("dataset")
        if known is None:
            return dataset.provenance.seed
        return known.get("split_seed", self.config.seed)  # 0.1.0 split by the seed of the training

    def split(self, dataset: EpisodeDataset) -> Split:
        """Which episodes the run trains on, validates on and keeps for evaluation."""
        shares = self.config.early_stopping.validation_split, self.config.evaluation_split
        return dataset.split(*shares, self.split_seed(dataset))

    # --- entering it

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Make the folder and keep a second training out of it.

        Raises:
            ConfigError: another process trains in it.
            StorageError: it cannot be made.
        """
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        busy = ConfigError(f"{self.path}: another process trains in this folder. Wait for it, or choose another --run.")
        with alone_in(self.path, busy):
            yield

    def enter(self, resume: bool) -> None:
        """Write the configuration into the folder, or check that the run in it is the one to go on with.

        Raises:
            ConfigError: it holds another run, or something else, or settings give two things one name.
            CheckpointError: its run.json is damaged.
            StorageError: it cannot be written.
        """
        require_names(self.config)
        known = self.config_file.exists()
        if known and self._holds_a_run(resume):
            if not resume:
                raise ConfigError(
                    f"{self.path}: already holds a run. Go on with it by --resume, or choose another folder with --run."
                )
            remedy = f"Resume with the run's own {self.config_file}, or start a new run with load_model_path."
            require_equal(load_config(self.config_file), self.config, AFTER_TRAINING, remedy)
        elif not known and any(entry.name[0] != "." for entry in self.path.iterdir()):
            raise ConfigError(f"{self.path}: is not empty and holds no run. Choose another folder with --run.")
        else:
            with storage_errors(self.path):
                for path in (self.record_file, self.metrics_file, self.resume_state("jepa")):
                    path.unlink(missing_ok=True)
        with storage_errors(self.path):
            for name in (CHECKPOINT_FOLDER, RESUME_FOLDER):
                (self.path / name).mkdir(exist_ok=True)
        self.write_config()

    def _holds_a_run(self, resume: bool) -> bool:
        """Whether there is something to lose: a mistyped path or a diverging first epoch does not block a second try.

        What failed before its first epoch was over kept no model, but with --resume goes on from where it was.
        """
        if any((self.path / CHECKPOINT_FOLDER).glob("*")):
            return True
        if not resume and self.info.get("status") == "failed":
            return False
        return any((self.path / RESUME_FOLDER).glob("*.safetensors"))

    def write_config(self) -> None:
        """Replace config.yaml."""
        atomic_write_text(self.config_file, to_commented_yaml(self.config))

    def remove_decoder(self, weights: bool = False) -> None:
        """Remove what a decoder's training left, because it is trained anew; its weights if they are of no use now.

        The resume state goes first: whatever happens after it, no finished decoder is taken for the new one.

        Raises:
            CheckpointError: the metrics are damaged; nothing is removed then.
        """
        read_records(self.metrics_file)
        with storage_errors(self.path):
            self.resume_state("decoder").unlink(missing_ok=True)
            for which in ("best", "last") if weights else ():
                self.checkpoint(CHECKPOINT_KINDS["decoder"], which).unlink(missing_ok=True)
        remove_records(self.path, "decoder")
        shutil.rmtree(self.plots_folder, ignore_errors=True)


def require_names(config: Config) -> None:
    """Refuse settings that give two things in a run folder one name.

    Raises:
        ConfigError: with the setting.
    """
    stopping, decoder = config.early_stopping, config.jepa_decoder_training
    taken = {checkpoint_path(Path(), config, kind, "last").name for kind in CHECKPOINT_KINDS.values()}
    for key, name, others in (
        ("early_stopping.checkpoint_path_jepa", stopping.checkpoint_path_jepa, taken),
        ("jepa_decoder_training.checkpoint_path", decoder.checkpoint_path, {*taken, stopping.checkpoint_path_jepa}),
        ("jepa_decoder_training.validation_plot_dir", decoder.validation_plot_dir, _ENTRIES),
    ):
        if name.lower() in {other.lower() for other in others}:  # some file systems do not tell A from a
            raise ConfigError(f"{key} is {name}, which something else in the run is named. Choose another name.")
