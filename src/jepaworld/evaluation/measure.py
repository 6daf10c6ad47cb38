"""All numbers and pictures of a report, measured on the run's best model and its dataset.

Shapes: N frames or windows, P steps, C H W image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from jepaworld.config import Config, components
from jepaworld.data.store import EpisodeDataset, Split
from jepaworld.envs.spaces import Spaces
from jepaworld.evaluation.encoding import encode_frames, paint, sample_rows
from jepaworld.evaluation.entries import declared_periods
from jepaworld.evaluation.imagination import imagination_error, imagine
from jepaworld.evaluation.probes import choose_state_probes, mean_r2, probe_states
from jepaworld.evaluation.results import HeadlineProbe, Heldout, Imagination, Reconstruction, Results, read_planning
from jepaworld.losses.collapse import judge_collapse
from jepaworld.models import build, load, load_decoder
from jepaworld.models.protocol import encoder_of
from jepaworld.models.state_decoder import JEPAStateDecoder
from jepaworld.runs.folder import RunFolder
from jepaworld.utils.devices import resolve_device
from jepaworld.utils.modules import device_of

MAX_FRAMES = 4000
"""Frames on each side of a probe: more change the third digit and take longer than the rest of the report."""

HORIZON = 16
SHOWN_STEPS = (0, 1, 2, 4, 6, 8, 12, 16)
UNTRAINED = "untrained encoder"

PREFERRED_STATES = ("state", "position", "pos", "agent_position", "agent_pos", "xy", "observation")
"""Names of the variable that stands in the headline, if the dataset has one of them. Another is not chosen: that which
is read best may be a counter that says nothing."""


class FramePair(NamedTuple):
    """A real frame beside what the decoder paints from its embedding; uint8 (C, H, W)."""

    episode: int
    step: int
    error: float
    real: np.ndarray
    decoded: np.ndarray


class Strip(NamedTuple):
    """Decoded imagination beside reality, one picture for each of `steps`; uint8 (len(steps), C, H, W)."""

    episode: int
    start: int
    error: float
    steps: list[int]
    real: np.ndarray
    decoded_real: np.ndarray
    decoded_imagined: np.ndarray


@dataclass
class Pictures:
    """What the page shows beside the numbers; empty without a decoder. Drawn by seed, and the worst of all."""

    frames: list[FramePair] = field(default_factory=list)
    worst_frames: list[FramePair] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    worst_strips: list[Strip] = field(default_factory=list)


def measure(run: RunFolder, device: str) -> tuple[Results, Pictures]:
    """Measure everything that the run's checkpoints and dataset allow, on held-out episodes.

    Args:
        run: The run.
        device: Device setting for the models.

    Raises:
        CheckpointError: a checkpoint is damaged.
        DatasetError: the dataset is damaged, or is not the one that the run was trained on.
    """
    config, where, pictures = run.config, resolve_device(device), Pictures()
    results = Results(
        environment=config.environment_name,
        description=_description(config),
        path=str(run.path),
        finished=run.finished,
        best_epoch=run.best_epoch,
        epochs=run.epochs,
        run=run.info,
        notices=config.notices(),
        config=config.to_dict(),
    )
    model = load(run.path, where) if _is_there(run, "jepa", "JEPA", results) else None
    decoder = None
    if not config.jepa_decoder_training.enabled:
        results.missing.append(
            "There is no state decoder (jepa_decoder_training.enabled is false), so nothing can be painted: "
            f"no reconstructions, no decoded imagination. `jepaworld decode {run.path}` trains one."
        )
    elif _is_there(run, "jepa_decoder", "state decoder", results):
        decoder = load_decoder(run.path, where)
    planning, problem = read_planning(run)
    results.planning = planning and planning.model_copy(update={"episodes": []})  # they stay in planning.json
    results.missing += [problem] if problem else []
    dataset = run.open_dataset()
    if dataset is None:
        results.missing.append(
            f"The dataset {run.dataset_path} is missing: no probes, no imagination, no pictures. Restore it or collect "
            "it again (`jepaworld collect`), then write the report again."
        )
        return results, pictures
    split = run.split(dataset)
    results.dataset = _summarise(dataset, split)
    # A run that keeps no episodes for evaluation is measured on what comes next to it.
    splits = {"evaluation": split.evaluation, "validation": split.validation, "training": split.train}
    name, heldout = next((name, episodes) for name, episodes in splits.items() if len(episodes))
    results.heldout = Heldout(split=name, episodes=len(heldout))
    if name != "evaluation":
        results.missing.append(
            f"This run keeps no evaluation episodes (evaluation_split is {config.evaluation_split:g}): everything "
            f"below is measured on {name} episodes, and may flatter the model."
        )
    if model is not None:
        _measure_model(config, model, dataset, split.train, heldout, results)
        if decoder is not None and results.imagination is not None:
            painted = _paint(config, model, decoder, dataset, heldout, results.imagination)
            results.reconstruction, pictures = painted
    return results, pictures


def _description(config: Config) -> str:
    parts, model = components.model_parts(config), components.label("model", config.model_type)
    if not parts:
        return f"{model} · seed {config.seed}"
    if "auxiliary_loss" in parts:
        loss = components.label("auxiliary_loss", config.auxiliary_loss.type)
        model = f"target encoder mode {config.jepa_model.target_encoder_mode} · {loss}"
    encoder = components.label("encoder", config.encoder_type)
    return f"{model} · {encoder} encoder, {config.latent_dim} dimensions · seed {config.seed}"


def _is_there(run: RunFolder, kind: str, what: str, results: Results) -> bool:
    """Whether there is a checkpoint to load; one that is damaged is an error then, and not missing."""
    path = run.checkpoint(kind)
    if not path.is_file():
        results.missing.append(
            f"checkpoints/{path.name} does not exist: the {what} has not finished an epoch. Continue with "
            f"`jepaworld train --run {run.path} --resume`."
        )
    return path.is_file()


def _summarise(dataset: EpisodeDataset, split: Split) -> dict[str, Any]:
    lengths, spec, provenance = dataset.episode_lengths, dataset.spec, dataset.provenance
    return {
        "path": str(dataset.path),
        "fingerprint": dataset.fingerprint,
        "environment": provenance.environment_name,
        "policy": provenance.policy,
        "seed": provenance.seed,
        "complete": spec.complete,
        "episodes": len(lengths),
        "transitions": int(lengths.sum()),
        "frames": dataset.num_frames,
        "shortest_episode": int(lengths.min()),
        "median_episode": float(np.median(lengths)),
        "longest_episode": int(lengths.max()),
        "image": f"{spec.input_channels} x {spec.image_size} x {spec.image_size}",
        "frame_skipping": spec.frame_skipping,
        "action_space": str(dataset.action_space),
        "state_variables": {name: list(shape) for name, shape in dataset.state_variables.items()},
        "train_episodes": len(split.train),
        "validation_episodes": len(split.validation),
        "evaluation_episodes": len(split.evaluation),
    }


def _measure_model(
    config: Config, model: Any, dataset: EpisodeDataset, train: np.ndarray, heldout: np.ndarray, results: Results
) -> None:
    """Fill in collapse, probes and imagination."""
    rows, _ = sample_rows(dataset, heldout, MAX_FRAMES, config.seed)
    if len(rows) >= 2:
        results.collapse = judge_collapse(model, torch.from_numpy(dataset.gather("frames", rows)))
        if not results.collapse.finite:
            results.missing.append("The model gives NaN or infinite embeddings: nothing else can be measured.")
            return
    # The same architecture with other random weights than the run began with: what is read without training.
    torch.manual_seed(config.seed + 1)
    untrained = build(config, Spaces.of(config, dataset.action_space)).to(device_of(model))
    periods = declared_periods(config.evaluation.success, dataset)
    options: dict[str, Any] = {"max_frames": MAX_FRAMES, "seed": config.seed, "periods": periods}
    results.probes = probe_states(model, dataset, train, heldout, baseline_models={UNTRAINED: untrained}, **options)
    headline = results.headline_probe = _headline_probe(results)
    followed = choose_state_probes(model, dataset, train, **options)
    if headline is not None:
        followed.sort(key=lambda probe: probe.variable != headline.variable)
    horizon = min(HORIZON, int(dataset.whole_lengths[heldout].max()))
    if horizon == 0:
        results.missing.append("No held-out episode has a whole transition: imagination cannot be measured.")
        return
    results.imagination = imagination_error(model, dataset, heldout, horizon, seed=config.seed, state_probes=followed)


def _headline_probe(results: Results) -> HeadlineProbe | None:
    """The state variable that stands for all, by its name; None if there is none of these names."""
    names = {probe.state for probe in results.probes if probe.r2 is not None}
    variable = next((name for name in PREFERRED_STATES if name in names), None)
    if variable is None:
        return None
    entries = [probe for probe in results.probes if probe.state == variable]
    (r2, interval), (mlp, mlp_interval) = mean_r2(entries), mean_r2(entries, kind="mlp")
    return HeadlineProbe(variable=variable, r2=r2, interval_95=interval, mlp_r2=mlp, mlp_interval_95=mlp_interval)


def _paint(
    config: Config,
    model: Any,
    decoder: JEPAStateDecoder,
    dataset: EpisodeDataset,
    heldout: np.ndarray,
    imagination: Imagination,
) -> tuple[Reconstruction, Pictures]:
    """Held-out frames and imagined ones as the decoder paints them."""
    encode = encoder_of(model, config.jepa_decoder_training.embedding_source)
    rows, owners = sample_rows(dataset, heldout, 512, config.seed)
    real = dataset.gather("frames", rows)
    decoded = paint(decoder, encode_frames(model, dataset, rows, encode=encode))
    pixels = real.astype(np.float32) / 255.0
    errors = ((decoded.astype(np.float32) / 255.0 - pixels) ** 2).mean(axis=(1, 2, 3))
    mean_image_error = float(((pixels - pixels.mean(axis=0)) ** 2).mean())

    def pair(i: int) -> FramePair:
        step = int(rows[i] - dataset.episode_starts[owners[i]])
        return FramePair(int(owners[i]), step, float(errors[i]), real[i], decoded[i])

    def strip(i: int) -> Strip:
        # Of all windows only the errors were kept, so that the few that are shown are imagined again.
        window = imagination.windows[i : i + 1]
        row, episode, length = window.rows[0], window.owners[0], int(window.lengths[0])
        steps = sorted({step for step in SHOWN_STEPS if step <= length} | {length})
        shown, first = row + np.array(steps), encode_frames(model, dataset, window.rows)
        imagined = torch.cat([first, imagine(model, dataset, window, length)[0]])[steps]
        return Strip(
            episode=int(episode),
            start=int(row - dataset.episode_starts[episode]),
            error=float(imagination.window_errors[i]),
            steps=steps,
            real=dataset.gather("frames", shown),
            decoded_real=paint(decoder, encode_frames(model, dataset, shown, encode=encode)),
            decoded_imagined=paint(decoder, imagined),
        )

    rng = np.random.default_rng(config.seed)
    windows, window_errors = len(imagination.windows), np.nan_to_num(imagination.window_errors)
    pictures = Pictures(
        frames=[pair(i) for i in np.sort(rng.choice(len(rows), size=min(8, len(rows)), replace=False))],
        worst_frames=[pair(i) for i in np.argsort(-errors, kind="stable")[:4]],
        strips=[strip(i) for i in np.sort(rng.choice(windows, size=min(3, windows), replace=False))],
        worst_strips=[strip(i) for i in np.argsort(-window_errors, kind="stable")[:2]],
    )
    return Reconstruction(
        mean_squared_error=float(errors.mean()), mean_image_squared_error=mean_image_error, num_frames=len(rows)
    ), pictures
