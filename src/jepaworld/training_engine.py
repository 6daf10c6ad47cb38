"""A training run from its configuration: data, JEPA phase, state decoder phase.

The mathematics is elsewhere: losses in `losses`, the step in `training_loops.epoch_loop`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from torch import nn

from jepaworld.config import Config
from jepaworld.config.changes import DECODE, differences, require_equal
from jepaworld.data.collect import collect
from jepaworld.data.store import EpisodeDataset
from jepaworld.data.windows import WindowLoader
from jepaworld.envs.calls import close
from jepaworld.envs.make import make_env
from jepaworld.envs.spaces import Spaces, space_to_dict
from jepaworld.errors import CheckpointError, ConfigError, DatasetError, NonFiniteLossError
from jepaworld.losses.collapse import judge_collapse
from jepaworld.losses.objective import make_objective
from jepaworld.models import build, checkpoints, load
from jepaworld.models.building import check_encoder
from jepaworld.runs.folder import RunFolder, require_names
from jepaworld.runs.metrics import MetricsLog
from jepaworld.runs.record import RunRecord
from jepaworld.training_loops.jepa_decoder_loop import train_jepa_state_decoder
from jepaworld.training_loops.phase_loop import Phase, Run, run_phase
from jepaworld.utils.devices import resolve_device
from jepaworld.utils.progress import Progress
from jepaworld.utils.signals import stop_on_signal

DIAGNOSED_FRAMES = 2048
# Settings that must agree between a model or dataset and the configuration that uses it.
ENVIRONMENT_KEYS = ("environment_name", "environment_kwargs", "image_size", "input_channels", "frame_skipping")


class RunResult(NamedTuple):
    """What training leaves behind.

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
    device = resolve_device(config.device, config.execution)
    folder = RunFolder.default(config) if run_dir is None else RunFolder(run_dir, config)
    if config.load_dataset_path is None and "dataset" not in folder.info:
        # It will be collected from: an extra that is missing is told before anything is written.
        close(make_env(config.environment_name, config.environment_kwargs))
    check_encoder(config)
    with folder.alone():
        folder.enter(resume)
        for notice in config.notices():
            progress.warn(notice)
        record = RunRecord(folder, device)
        with record.outcome():
            if not (resume and folder.phase_is_finished("jepa")):
                # Whatever decoder there is, it was trained on weights that are about to change.
                folder.remove_decoder(weights=True)
                record.content["phases"].pop("decoder", None)
            # A resumed run finds its dataset wherever the command is started now.
            known = folder.open_dataset(config.verify_checksums) if "dataset" in folder.info else None
            with _running(record, known or _new_dataset(config, progress), progress) as run:
                _train_jepa(run, record, resume)
                if config.jepa_decoder_training.enabled:
                    _train_decoder(run, record, resume)
    return RunResult(folder.path, record.content)


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
    progress = progress or Progress()
    saved = RunFolder.open(run_dir)
    jepa_path = checkpoints.load(saved.path, "jepa").path  # before anything changes, as it may be damaged
    with saved.alone():
        settings = (config or saved.config).to_dict()
        settings["jepa_decoder_training"]["enabled"] = True
        folder = RunFolder(run_dir, Config.model_validate(settings))
        require_names(folder.config)
        require_equal(saved.config, folder.config, DECODE, "Only the decoder is trained anew. Train a new run instead.")
        if not saved.phase_is_finished("jepa"):
            raise ConfigError(
                f"{run_dir}: its JEPA is not trained to the end, so that a decoder would be one of older weights. "
                f"Finish it first: `jepaworld train --run {run_dir} --resume`."
            )
        device = resolve_device(folder.config.device, folder.config.execution)
        dataset = folder.open_dataset(folder.config.verify_checksums)
        if dataset is None:
            raise DatasetError(f"{folder.dataset_path}: the run's dataset is missing. Restore it.")
        _require_batches(dataset, folder, device)
        # What can be refused was refused: from here on the old decoder's traces are lost.
        saved.remove_decoder()
        folder.write_config()
        record = RunRecord(folder, device)
        with record.outcome():
            progress.message(f"state decoder of {jepa_path}")
            with _running(record, dataset, progress) as run:
                _train_decoder(run, record, False)
    return RunResult(folder.path, record.content)


@contextmanager
def _running(record: RunRecord, dataset: EpisodeDataset, progress: Progress) -> Iterator[Run]:
    """What the phases share, with the logs open and signals caught."""
    folder, device = record.folder, record.device
    # For both phases now: a decoder that cannot be trained should not be found out after the JEPA was.
    _require_batches(dataset, folder, device)
    record.note_dataset(dataset)
    buffer_bytes = record.decide_buffer(dataset)
    log = MetricsLog(folder.path, folder.config)
    try:
        with stop_on_signal() as stop_requested:
            yield Run(folder, dataset, folder.split(dataset), device, buffer_bytes, log, progress, stop_requested)
    finally:
        log.close()


# --- phases --------------------------------------------------------------------------------------------------------


def _train_jepa(run: Run, record: RunRecord, resume: bool) -> None:
    config, folder = run.config, run.folder
    goes_on = resume and folder.resume_state("jepa").exists()
    if resume and not goes_on and folder.phase_is_finished("jepa"):
        run.progress.message("JEPA: was trained before")  # or loaded: it stays, whatever load_model_path holds by now
        return
    _warn_of_short_episodes(run)
    torch.manual_seed(config.seed)
    spaces = Spaces.of(config, run.dataset.action_space)
    if config.action_scaling == "statistics" and isinstance(spaces.action_space, gymnasium.spaces.Box):
        # Of the training episodes alone: what is held out decides nothing about the model.
        spaces = replace(spaces, action_statistics=run.dataset.action_statistics(run.split.train))
    model = build(config, spaces).to(run.device)
    if config.load_model_path is not None and not goes_on:  # else the resume state holds every weight
        _load_weights(model, run)
        run.progress.message(f"JEPA loaded from {config.load_model_path}")
    if config.training_options.skip_jepa_training_if_loaded:
        checkpoints.save(folder.checkpoint("jepa"), model, "jepa", config, run.dataset.action_space)
        run.progress.message("JEPA training skipped (training_options.skip_jepa_training_if_loaded)")
        return
    phase = Phase(
        name="jepa",
        title="JEPA",
        objective=make_objective(config, model, spaces),
        module=model,
        learning_rate=config.learning_rate_jepa or config.learning_rate,
        num_transitions=config.num_transitions,
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        steps_per_epoch=config.steps_per_epoch,
        metric=config.early_stopping.metric_jepa,
        patience=config.early_stopping.patience,
        delta=config.early_stopping.delta,
        seed=config.seed,
        after_epoch=_CollapseWatch(model, run),
    )
    record.note_phase(phase.name, run_phase(phase, run, resume))


def _train_decoder(run: Run, record: RunRecord, resume: bool) -> None:
    model = load(run.folder.path, run.device)
    record.note_phase("decoder", train_jepa_state_decoder(model, run, resume))


class _CollapseWatch:
    """Judges after each epoch, on frames that do not change, whether the embeddings have collapsed."""

    def __init__(self, model: Any, run: Run) -> None:
        self.model, self.run, self.warned = model, run, False
        dataset, episodes = run.dataset, run.watched
        spans = zip(dataset.episode_starts[episodes], dataset.episode_lengths[episodes], strict=True)
        rows = np.concatenate([start + np.arange(length + 1) for start, length in spans])
        rows = np.sort(np.random.default_rng(run.config.seed).permutation(rows)[:DIAGNOSED_FRAMES])
        self.frames = torch.from_numpy(dataset.gather("frames", rows))

    def __call__(self, epoch: int) -> dict[str, Any]:
        diagnostics = judge_collapse(self.model, self.frames, self.run.config.batch_size)
        if not diagnostics.finite:
            raise NonFiniteLossError(f"epoch {epoch}: the embeddings are no longer finite.")
        if diagnostics.collapsed and not self.warned:
            self.run.progress.warn(f"epoch {epoch}: {diagnostics.verdict}")
        elif self.warned and not diagnostics.collapsed:
            self.run.progress.message(f"epoch {epoch}: the representation is no longer collapsed")
        self.warned = diagnostics.collapsed
        return diagnostics.as_metrics()


def _load_weights(model: nn.Module, run: Run) -> None:
    """Begin with the weights at `load_model_path`.

    Raises:
        CheckpointError: they are of another environment, action space or architecture.
    """
    config, path = run.config, run.config.load_model_path
    assert path is not None
    checkpoint = checkpoints.load(path, "jepa")
    other = checkpoint.config
    differing = [
        f"  {key}: checkpoint {getattr(other, key)!r}, configuration {getattr(config, key)!r}"
        for key in ENVIRONMENT_KEYS
        if getattr(other, key) != getattr(config, key)
    ]
    if space_to_dict(checkpoint.action_space) != space_to_dict(run.dataset.action_space):
        differing.append(f"  action space: checkpoint {checkpoint.action_space}, dataset {run.dataset.action_space}")
    keys = [key for key in differences(other, config) if _shapes_weights(key, config)]
    differing += [f"  {key}: checkpoint and configuration differ" for key in keys]
    if differing:
        raise CheckpointError(
            f"load_model_path: {checkpoint.path} does not fit this configuration:\n"
            + "\n".join(differing)
            + "\nChange these settings, or leave load_model_path out to train from scratch."
        )
    checkpoints.restore(model, checkpoint)
    _warn_of_other_split(checkpoint, run)


def _shapes_weights(key: str, config: Config) -> bool:
    """Whether a setting, if it differs, makes a checkpoint useless for the configured model."""
    if key.startswith("encoder_params."):
        return key.startswith(f"encoder_params.{config.encoder_type}.") and not key.endswith("dropout")
    if key.startswith(("jepa_model.ema_decay", "jepa_model.predictor_dropout_rate", "jepa_model.prediction_")):
        return False
    shaping = ("model_type", "model_params", "encoder_type", "latent_dim", "image_normalization", "action_scaling")
    return key.split(".")[0] in (*shaping, "action_emb_dim", "jepa_model")


def _warn_of_other_split(checkpoint: checkpoints.Checkpoint, run: Run) -> None:
    """Say so where episodes that this run holds out may be some that the loaded model was trained on."""
    keys = ("evaluation_split", "early_stopping.validation_split")
    differing = [key for key in keys if key in differences(checkpoint.config, run.config)]
    seed, home = checkpoint.config.dataset_seed, checkpoint.path.resolve().parent
    if home.name == checkpoints.CHECKPOINT_FOLDER:  # a file that was copied elsewhere has no record beside it
        other = RunFolder(home.parent, checkpoint.config)
        seed = other.split_seed(run.dataset) if "dataset" in other.info else seed
    differing += ["seed of the split"] if seed != run.folder.split_seed(run.dataset) else []
    if differing:
        run.progress.warn(
            f"load_model_path: the loaded model was trained with another {' and '.join(differing)}, so that on the "
            "same dataset it has seen episodes that are held out here: probes and recorded goals would flatter it. "
            "Take its values, or evaluate on other data."
        )


# --- data ----------------------------------------------------------------------------------------------------------


def _require_batches(dataset: EpisodeDataset, folder: RunFolder, device: torch.device) -> None:
    """Refuse data that a phase cannot be trained on.

    Raises:
        DatasetError: fewer training samples than a batch, or less than two validation samples.
    """
    config, split, decoder = folder.config, folder.split(dataset), folder.config.jepa_decoder_training
    phases = []
    if not config.training_options.skip_jepa_training_if_loaded:
        phases.append(("batch_size", config.num_transitions, config.batch_size))
    if decoder.enabled:
        phases.append(("jepa_decoder_training.batch_size", 0, decoder.batch_size))
    for key, transitions, batch_size in phases:
        sizes = transitions, batch_size, device, None, config.seed
        reason = f"{key} = {batch_size}. Lower {key} or collect more episodes"
        WindowLoader(dataset, split.train, *sizes).require_windows(batch_size, reason)
        if len(split.validation):
            reason = "the two to validate on. Raise early_stopping.validation_split or collect more or longer episodes"
            WindowLoader(dataset, split.validation, *sizes).require_windows(2, reason)


def _warn_of_short_episodes(run: Run) -> None:
    """Count and name the training episodes that are too short to be trained on."""
    sizes = run.config.num_transitions, run.config.batch_size, run.device, None, run.config.seed
    short = WindowLoader(run.dataset, run.split.train, *sizes).too_short()
    if len(short):
        numbers = [str(run.dataset.episode_number(int(index))) for index in short[:10]]
        run.progress.warn(
            f"{run.dataset.path}: {len(short)} of {len(run.split.train)} training episode(s) have fewer than "
            f"num_transitions = {run.config.num_transitions} whole transitions and are not trained on: "
            f"{', '.join(numbers)}{', ...' if len(short) > len(numbers) else ''}."
        )


def _new_dataset(config: Config, progress: Progress) -> EpisodeDataset:
    """The dataset at `load_dataset_path`, or one that is collected.

    Raises:
        DatasetError: it is of another environment, damaged or missing.
    """
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
