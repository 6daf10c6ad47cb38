"""A training run from its configuration: data, JEPA phase, state decoder phase; setup, resume and what is kept of it.

The mathematics is elsewhere: losses in `losses`, the step in `training_loops.epoch_loop`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from jepaworld import checkpoints
from jepaworld.config import Config, load_config, to_commented_yaml
from jepaworld.data.collect import collect
from jepaworld.data.store import EpisodeDataset
from jepaworld.data.windows import Split, WindowLoader, split_episodes
from jepaworld.devices import autocast, available_memory, resolve_device, use_bf16
from jepaworld.envs.spaces import space_to_dict
from jepaworld.errors import CheckpointError, ConfigError, DatasetError
from jepaworld.evaluation.collapse import collapse_diagnostics
from jepaworld.losses import make_auxiliary_loss
from jepaworld.metrics_log import METRICS_FILE, MetricsLog, forget_phase
from jepaworld.models.jepa import JEPA
from jepaworld.progress import Progress
from jepaworld.storage import alone_in, atomic_write_text, storage_errors
from jepaworld.training_loops.epoch_loop import JEPAObjective, Updater
from jepaworld.training_loops.jepa_decoder_loop import train_jepa_state_decoder
from jepaworld.training_loops.phase_loop import Phase, PhaseState, Run, run_phase

RUN_FILE = "run.json"
DIAGNOSED_FRAMES = 2048
# Settings that must agree between a model or dataset and the configuration that uses it.
ENVIRONMENT_KEYS = ("environment_name", "environment_kwargs", "image_size", "input_channels", "frame_skipping")


class RunResult(NamedTuple):
    """What `run_training` leaves behind.

    Attributes:
        run_dir: The run folder.
        summary: The content of its run.json.
    """

    run_dir: Path
    summary: dict[str, Any]


def run_training(
    config: Config, run_dir: str | Path | None = None, resume: bool = False, progress: Progress | None = None
) -> RunResult:
    """Collect or load data, train the JEPA, then its state decoder.

    Args:
        config: The configuration.
        run_dir: Folder of the run; `None` makes runs/<environment>-<date>-<time>.
        resume: Go on with the run in `run_dir`, bit for bit as if it had not been interrupted; start it if the
            folder holds none yet.
        progress: What the user sees; `None` only logs.

    Returns:
        The run folder and its summary.

    Raises:
        JepaworldError: a subclass for each problem that the user can mend, see `jepaworld.errors`.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the run can be resumed.
    """
    progress = progress or Progress()
    device = resolve_device(config.device)
    folder = Path(run_dir) if run_dir is not None else default_run_dir(config)
    with _alone_in_run(folder):
        _open_run_folder(folder, config, resume)
        for notice in config.notices():
            progress.warn(notice)
        record = _RunRecord(folder, config, device)
        with record.outcome():
            dataset = _dataset_begun_with(record, config) or _dataset(config, progress)
            split = _split(dataset, config)
            # For both phases now: a decoder that cannot be trained should not be found out after the JEPA was.
            _require_batches(dataset, split, config, device)
            record.note_dataset(dataset, split)
            buffer_bytes = record.decide_buffer(dataset)
            with _running(folder, config, dataset, device, progress) as run:
                _train_jepa(run, dataset, split, buffer_bytes, resume, record)
                if config.jepa_decoder_training.enabled:
                    _train_decoder(run, dataset, split, buffer_bytes, resume, record)
    return RunResult(folder, record.content)


def train_decoder_of_run(
    run_dir: str | Path, config: Config | None = None, progress: Progress | None = None
) -> RunResult:
    """Train the state decoder of an existing run anew, from its best JEPA.

    Args:
        run_dir: The run folder.
        config: The run's configuration with other decoder settings; `None` takes it as it is. It replaces the
            run's config.yaml.
        progress: What the user sees; `None` only logs.

    Raises:
        JepaworldError: a subclass for each problem that the user can mend.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    folder = Path(run_dir)
    progress = progress or Progress()
    jepa_path = checkpoints.load(folder, "jepa").path
    with _alone_in_run(folder):
        saved = load_config(folder / checkpoints.CONFIG_FILE)
        settings = (config or saved).to_dict()
        settings["jepa_decoder_training"]["enabled"] = True
        config = Config.model_validate(settings)
        decoder_keys = {key for key in Config.model_fields if key.startswith("decoder_")}
        decoder_keys |= {"jepa_decoder_training", "device", "logging", "learning_rate", "mixed_precision"}
        other = [key for key in _differences(saved, config) if key.split(".")[0] not in decoder_keys]
        if other:
            raise ConfigError(
                f"{', '.join(other)}: cannot change when only the decoder is trained: the JEPA of {folder} was trained "
                "with another value. Train a new run instead."
            )
        device = resolve_device(config.device)
        named = _read_info(folder / RUN_FILE).get("dataset", {}).get("path")
        path = named or config.load_dataset_path or config.dataset_dir
        dataset = EpisodeDataset.open(path, verify_checksums=config.verify_checksums)
        split = _split(dataset, config)
        _require_batches(dataset, split, config, device)
        # From here on the old decoder's traces are lost; what can be refused was refused before. The resume state goes
        # first: whatever happens after it, no finished decoder is taken for the new one.
        (folder / "resume" / "decoder.safetensors").unlink(missing_ok=True)
        forget_phase(folder, "decoder")
        shutil.rmtree(folder / saved.jepa_decoder_training.validation_plot_dir, ignore_errors=True)
        atomic_write_text(folder / checkpoints.CONFIG_FILE, to_commented_yaml(config))
        record = _RunRecord(folder, config, device)
        with record.outcome():
            record.note_dataset(dataset, split)
            progress.message(f"state decoder of {jepa_path}")
            with _running(folder, config, dataset, device, progress) as run:
                _train_decoder(run, dataset, split, record.decide_buffer(dataset), False, record)
    return RunResult(folder, record.content)


@contextmanager
def _alone_in_run(folder: Path) -> Iterator[None]:
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


@contextmanager
def _running(
    folder: Path, config: Config, dataset: EpisodeDataset, device: torch.device, progress: Progress
) -> Iterator[Run]:
    """What the phases share, with the logs open and signals caught."""
    log = MetricsLog(folder, config)
    try:
        with _stop_on_signal() as stop_requested:
            yield Run(folder, config, dataset.action_space, device, log, progress, stop_requested)
    finally:
        log.close()


# --- phases --------------------------------------------------------------------------------------------------------


def _train_jepa(
    run: Run, dataset: EpisodeDataset, split: Split, buffer_bytes: int | None, resume: bool, record: _RunRecord
) -> None:
    config = run.config
    torch.manual_seed(config.seed)
    model = JEPA.from_config(config, dataset.action_space).to(run.device)
    if config.load_model_path is not None:
        _load_weights(model, config, dataset)
        run.progress.message(f"JEPA loaded from {config.load_model_path}")
    if config.training_options.skip_jepa_training_if_loaded:
        path = checkpoints.checkpoint_path(run.folder, config, "jepa")
        checkpoints.save(path, model, "jepa", config, run.action_space)
        run.progress.message("JEPA training skipped (training_options.skip_jepa_training_if_loaded)")
        return
    objective = JEPAObjective(model, make_auxiliary_loss(config).to(run.device), config.auxiliary_loss.weight)

    def loader(episodes: np.ndarray) -> WindowLoader:
        return WindowLoader(
            dataset, episodes, config.num_transitions, config.batch_size, run.device, buffer_bytes, config.seed
        )

    train = loader(split.train)
    steps_per_epoch = min(len(train), config.steps_per_epoch or len(train))
    validation = loader(split.validation) if len(split.validation) else None
    diagnosed = split.validation if len(split.validation) else split.train
    phase = Phase(
        name="jepa",
        title="JEPA",
        kind="jepa",
        objective=objective,
        module=model,
        updater=Updater(
            model.parameters(),
            config.learning_rate_jepa or config.learning_rate,
            config,
            config.num_epochs * steps_per_epoch,
        ),
        train=train,
        validation=validation,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        metric=config.early_stopping.metric_jepa,
        patience=config.early_stopping.patience,
        delta=config.early_stopping.delta,
        after_epoch=_CollapseWatch(model, dataset, diagnosed, run),
    )
    record.note_phase(phase.name, run_phase(phase, run, resume))


def _train_decoder(
    run: Run, dataset: EpisodeDataset, split: Split, buffer_bytes: int | None, resume: bool, record: _RunRecord
) -> None:
    jepa = JEPA.from_pretrained(run.folder, run.device)
    record.note_phase("decoder", train_jepa_state_decoder(jepa, dataset, split, buffer_bytes, run, resume))


class _CollapseWatch:
    """Collapse diagnostics of the online encoder after each epoch, on frames that do not change."""

    def __init__(self, model: JEPA, dataset: EpisodeDataset, episodes: np.ndarray, run: Run) -> None:
        self.model, self.run = model, run
        self.warned = False
        self.bf16 = use_bf16(run.config.mixed_precision, run.device, model)
        rng = np.random.default_rng(run.config.seed)
        rows = np.concatenate(
            [
                start + np.arange(length + 1)
                for start, length in zip(
                    dataset.episode_starts[episodes], dataset.episode_lengths[episodes], strict=True
                )
            ]
        )
        rows = np.sort(rng.permutation(rows)[:DIAGNOSED_FRAMES])
        self.frames = torch.from_numpy(np.concatenate([dataset.rows("frames", row, row + 1) for row in rows.tolist()]))

    @torch.no_grad()
    def __call__(self, epoch: int) -> dict[str, Any]:
        self.model.eval()
        with autocast(self.run.device, self.bf16):
            z = torch.cat(
                [
                    self.model.encode_online(part.to(self.run.device).unsqueeze(1)).flatten(0, 1).float()
                    for part in self.frames.split(self.run.config.batch_size)
                ]
            )
        diagnostics = collapse_diagnostics(z)
        if diagnostics.collapsed and not self.warned:
            self.run.progress.warn(f"epoch {epoch}: the representation has collapsed. {' '.join(diagnostics.reasons)}")
        elif self.warned and not diagnostics.collapsed:
            self.run.progress.message(f"epoch {epoch}: the representation is no longer collapsed")
        self.warned = diagnostics.collapsed
        return diagnostics.as_metrics()


def _load_weights(model: JEPA, config: Config, dataset: EpisodeDataset) -> None:
    assert config.load_model_path is not None
    checkpoint = checkpoints.load(config.load_model_path, "jepa")
    differing = [
        f"  {key}: checkpoint {getattr(checkpoint.config, key)!r}, configuration {getattr(config, key)!r}"
        for key in ENVIRONMENT_KEYS
        if getattr(checkpoint.config, key) != getattr(config, key)
    ]
    if space_to_dict(checkpoint.action_space) != space_to_dict(dataset.action_space):
        differing.append(f"  action space: checkpoint {checkpoint.action_space}, dataset {dataset.action_space}")
    architecture = ("encoder_type", "encoder_params", "latent_dim", "action_emb_dim", "jepa_model")
    differing += [
        f"  {key}: checkpoint and configuration differ"
        for key in _differences(checkpoint.config, config)
        if key.split(".")[0] in architecture and _shapes_weights(key, config)
    ]
    if differing:
        raise CheckpointError(
            f"load_model_path: {checkpoint.path} does not fit this configuration:\n"
            + "\n".join(differing)
            + "\nChange these settings, or leave load_model_path out to train from scratch."
        )
    checkpoints.restore(model, checkpoint)


def _shapes_weights(key: str, config: Config) -> bool:
    """Whether a setting, if it differs, makes a checkpoint useless for the configured model."""
    if key.startswith("encoder_params."):
        return key.startswith(f"encoder_params.{config.encoder_type}.") and not key.endswith("dropout")
    return key not in ("jepa_model.ema_decay", "jepa_model.predictor_dropout_rate")


# --- data ----------------------------------------------------------------------------------------------------------


def _split(dataset: EpisodeDataset, config: Config) -> Split:
    splits = config.early_stopping.validation_split, config.evaluation_split
    return split_episodes(len(dataset.episode_lengths), *splits, config.seed)


def _require_batches(dataset: EpisodeDataset, split: Split, config: Config, device: torch.device) -> None:
    """Refuse data that a phase cannot be trained on.

    Raises:
        DatasetError: fewer training samples than a batch, or less than two validation samples.
    """
    phases = []
    if not config.training_options.skip_jepa_training_if_loaded:
        phases.append(("batch_size", config.num_transitions, config.batch_size))
    if config.jepa_decoder_training.enabled:
        phases.append(("jepa_decoder_training.batch_size", 0, config.jepa_decoder_training.batch_size))
    for key, transitions, batch_size in phases:
        sizes = transitions, batch_size, device, None, config.seed
        WindowLoader(dataset, split.train, *sizes).require_full_batch(key)
        if len(split.validation):
            WindowLoader(dataset, split.validation, *sizes).require_two_windows()


def _dataset_begun_with(record: _RunRecord, config: Config) -> EpisodeDataset | None:
    """The dataset that a resumed run was begun with, wherever the command is started now; `None` if it is not there."""
    begun = record.content.get("dataset")
    if begun is None or not Path(begun["path"]).is_dir():
        return None
    return EpisodeDataset.open(begun["path"], verify_checksums=config.verify_checksums)


def _dataset(config: Config, progress: Progress) -> EpisodeDataset:
    if config.load_dataset_path is None:
        return collect(config, progress=progress)
    dataset = EpisodeDataset.open(config.load_dataset_path, verify_checksums=config.verify_checksums)
    if not dataset.manifest.complete:
        progress.warn(
            f"{dataset.path}: its collection was interrupted; training on the {len(dataset.episode_lengths)} of "
            f"{dataset.manifest.num_episodes} episodes that are there."
        )
    for key in ENVIRONMENT_KEYS:
        found, expected = getattr(dataset.manifest, key), getattr(config, key)
        if found != expected:
            raise DatasetError(
                f"{dataset.path}: was collected with {key} = {found!r}, but the configuration says {expected!r}. Set "
                f"{key} to {found!r} or use another dataset."
            )
    return dataset


# --- run folder ----------------------------------------------------------------------------------------------------


def default_run_dir(config: Config) -> Path:
    """runs/ENVIRONMENT-DATE-TIME, where a run goes that was given no folder."""
    name = re.sub(r"[^a-z0-9]+", "-", config.environment_name.rpartition("/")[2].lower()).strip("-")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _open_run_folder(folder: Path, config: Config, resume: bool) -> None:
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
    if resume or _read_info(folder / RUN_FILE).get("status") != "failed":
        begun = begun or any((folder / "resume").glob("*.safetensors"))
    if config_path.exists() and begun:
        if not resume:
            raise ConfigError(
                f"{folder}: already holds a run. Add --resume to go on with it, or choose another folder with --run."
            )
        differing = _differences(load_config(config_path), config)
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


def _read_info(path: Path) -> dict[str, Any]:
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


def _differences(one: Config, other: Config) -> list[str]:
    """Dotted paths of the settings in which two configurations differ."""

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict) and node and prefix.count(".") < 4:
            for key, value in node.items():
                yield from leaves(value, f"{prefix}.{key}" if prefix else key)
        else:
            yield prefix, node

    first, second = dict(leaves(one.to_dict(), "")), dict(leaves(other.to_dict(), ""))
    return sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))


class _RunRecord:
    """run.json: what the run is made of, and what became of it."""

    def __init__(self, folder: Path, config: Config, device: torch.device) -> None:
        self.path, self.config, self.device = folder / RUN_FILE, config, device
        self.content = _read_info(self.path)
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
        self.content["phases"][name] = {
            "seconds": round(state.seconds, 1),
            "epochs": state.epoch - 1,
            "best_epoch": state.best_epoch,
            "best": state.best,
        }
        self.write()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM end the run after the current step, and a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signal handlers belong to the main thread
        return
    requested = False

    def request(_number: int, _frame: Any) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
