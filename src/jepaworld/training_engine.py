"""A training run from its configuration: data, JEPA phase, state decoder phase; setup, resume and what is kept of it.

The mathematics is elsewhere: losses in `losses`, the step in `training_loops.epoch_loop`.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from jepaworld.config import Config, load_config, to_commented_yaml
from jepaworld.data.collect import collect
from jepaworld.data.store import EpisodeDataset, Split
from jepaworld.data.windows import WindowLoader
from jepaworld.envs.spaces import space_to_dict
from jepaworld.errors import CheckpointError, ConfigError, DatasetError
from jepaworld.losses.collapse import collapse_diagnostics
from jepaworld.models import checkpoints
from jepaworld.models.jepa import JEPA
from jepaworld.runs.metrics import MetricsLog, forget_phase
from jepaworld.runs.record import (
    RUN_FILE,
    RunRecord,
    alone_in_run,
    default_run_dir,
    differences,
    open_run_folder,
    read_info,
)
from jepaworld.training_loops.epoch_loop import JEPAObjective, Updater
from jepaworld.training_loops.jepa_decoder_loop import train_jepa_state_decoder
from jepaworld.training_loops.phase_loop import Phase, Run, run_phase
from jepaworld.utils.devices import autocast, resolve_device, use_bf16
from jepaworld.utils.progress import Progress
from jepaworld.utils.storage import atomic_write_text

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
    with alone_in_run(folder):
        open_run_folder(folder, config, resume)
        for notice in config.notices():
            progress.warn(notice)
        record = RunRecord(folder, config, device)
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
    with alone_in_run(folder):
        saved = load_config(folder / checkpoints.CONFIG_FILE)
        settings = (config or saved).to_dict()
        settings["jepa_decoder_training"]["enabled"] = True
        config = Config.model_validate(settings)
        decoder_keys = {key for key in Config.model_fields if key.startswith("decoder_")}
        decoder_keys |= {"jepa_decoder_training", "device", "logging", "learning_rate", "mixed_precision"}
        other = [key for key in differences(saved, config) if key.split(".")[0] not in decoder_keys]
        if other:
            raise ConfigError(
                f"{', '.join(other)}: cannot change when only the decoder is trained: the JEPA of {folder} was trained "
                "with another value. Train a new run instead."
            )
        device = resolve_device(config.device)
        named = read_info(folder / RUN_FILE).get("dataset", {}).get("path")
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
        record = RunRecord(folder, config, device)
        with record.outcome():
            record.note_dataset(dataset, split)
            progress.message(f"state decoder of {jepa_path}")
            with _running(folder, config, dataset, device, progress) as run:
                _train_decoder(run, dataset, split, record.decide_buffer(dataset), False, record)
    return RunResult(folder, record.content)


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
    run: Run, dataset: EpisodeDataset, split: Split, buffer_bytes: int | None, resume: bool, record: RunRecord
) -> None:
    config = run.config
    torch.manual_seed(config.seed)
    model = JEPA.from_config(config, dataset.action_space).to(run.device)
    if config.load_model_path is not None:
        _load_weights(model, config, dataset, run.progress)
        run.progress.message(f"JEPA loaded from {config.load_model_path}")
    if config.training_options.skip_jepa_training_if_loaded:
        path = checkpoints.checkpoint_path(run.folder, config, "jepa")
        checkpoints.save(path, model, "jepa", config, run.action_space)
        run.progress.message("JEPA training skipped (training_options.skip_jepa_training_if_loaded)")
        return
    objective = JEPAObjective.from_config(config, model, dataset.action_space)

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
            objective.parameters(),
            config.learning_rate_jepa or config.learning_rate,
            config,
            config.num_epochs * steps_per_epoch,
        ),
        train=train,
        validation=validation,
        num_epochs=config.num_epochs,
        steps_per_epoch=steps_per_epoch,
        metric=config.early_stopping.metric_jepa,
        shown="loss_jepa",
        patience=config.early_stopping.patience,
        delta=config.early_stopping.delta,
        after_epoch=_CollapseWatch(model, dataset, diagnosed, run),
    )
    record.note_phase(phase.name, run_phase(phase, run, resume))


def _train_decoder(
    run: Run, dataset: EpisodeDataset, split: Split, buffer_bytes: int | None, resume: bool, record: RunRecord
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
        self.frames = torch.from_numpy(dataset.gather("frames", rows))

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


def _warn_of_other_split(other: Config, config: Config, progress: Progress) -> None:
    """Say so where episodes that this run holds out may be some that the loaded model was trained on."""
    keys = ("seed", "evaluation_split", "early_stopping.validation_split")
    differing = [key for key in keys if key in differences(other, config)]
    if differing:
        progress.warn(
            f"load_model_path: the loaded model was trained with another {' and '.join(differing)}, so that on the "
            "same dataset it has seen episodes that are held out here: probes and recorded goals would flatter it. "
            "Take its values, or evaluate on other data."
        )


def _load_weights(model: JEPA, config: Config, dataset: EpisodeDataset, progress: Progress) -> None:
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
        for key in differences(checkpoint.config, config)
        if key.split(".")[0] in architecture and _shapes_weights(key, config)
    ]
    if differing:
        raise CheckpointError(
            f"load_model_path: {checkpoint.path} does not fit this configuration:\n"
            + "\n".join(differing)
            + "\nChange these settings, or leave load_model_path out to train from scratch."
        )
    checkpoints.restore(model, checkpoint)
    _warn_of_other_split(checkpoint.config, config, progress)


def _shapes_weights(key: str, config: Config) -> bool:
    """Whether a setting, if it differs, makes a checkpoint useless for the configured model."""
    if key.startswith("encoder_params."):
        return key.startswith(f"encoder_params.{config.encoder_type}.") and not key.endswith("dropout")
    return key not in ("jepa_model.ema_decay", "jepa_model.predictor_dropout_rate")


# --- data ----------------------------------------------------------------------------------------------------------


def _split(dataset: EpisodeDataset, config: Config) -> Split:
    splits = config.early_stopping.validation_split, config.evaluation_split
    return dataset.split(*splits, config.seed)


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


def _dataset_begun_with(record: RunRecord, config: Config) -> EpisodeDataset | None:
    """The dataset that a resumed run was begun with, wherever the command is started now; `None` if it is not there."""
    begun = record.content.get("dataset")
    if begun is None or not Path(begun["path"]).is_dir():
        return None
    return EpisodeDataset.open(begun["path"], verify_checksums=config.verify_checksums)


def _dataset(config: Config, progress: Progress) -> EpisodeDataset:
    if config.load_dataset_path is None:
        return collect(config, progress=progress)
    dataset = EpisodeDataset.open(config.load_dataset_path, verify_checksums=config.verify_checksums)
    if not dataset.spec.complete:
        progress.warn(
            f"{dataset.path}: its collection was interrupted; training on the {len(dataset.episode_lengths)} of "
            f"{dataset.spec.num_episodes} episodes that are there."
        )
    for key in ENVIRONMENT_KEYS:
        described = dataset.spec if hasattr(dataset.spec, key) else dataset.provenance
        found, expected = getattr(described, key), getattr(config, key)
        if found != expected:
            raise DatasetError(
                f"{dataset.path}: was collected with {key} = {found!r}, but the configuration says {expected!r}. Set "
                f"{key} to {found!r} or use another dataset."
            )
    return dataset


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
