"""All numbers and pictures of a report, measured on the run's best model and its dataset.

Shapes: N frames or windows, P steps, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from jepaworld.data.store import EpisodeDataset, Split
from jepaworld.envs.spaces import Spaces
from jepaworld.evaluation.encoding import (
    encode_frames,
    paint,
    sample_rows,
)
from jepaworld.evaluation.imagination import ImaginationResult, imagination_error, imagine
from jepaworld.evaluation.probes import ProbeResult, probe_states
from jepaworld.evaluation.results import PlanningResults, read_planning
from jepaworld.evaluation.state_probes import choose_state_probes
from jepaworld.losses.collapse import CollapseDiagnostics, collapse_diagnostics
from jepaworld.models import JEPA, build, load, load_decoder
from jepaworld.models.state_decoder import JEPAStateDecoder
from jepaworld.runs.folder import RunFolder
from jepaworld.utils.devices import resolve_device
from jepaworld.utils.modules import device_of

MAX_FRAMES = 4000
"""Frames on each side of a probe: more change the third digit and take longer than the rest of the report."""

HORIZON = 16
SHOWN_STEPS = (0, 1, 2, 4, 6, 8, 12, 16)
UNTRAINED = "untrained encoder"
PIXELS = "pixels"

PREFERRED_STATES = ("state", "position", "pos", "agent_position", "agent_pos", "xy", "observation")
"""Names of the variable that stands in the headline, if the dataset has one of them. Another is not chosen: that which
is read best may be a counter that says nothing."""


class Reconstruction(NamedTuple):
    """A real frame beside what the decoder paints from its embedding; uint8 (C, H, W)."""

    episode: int
    step: int
    error: float
    real: np.ndarray
    decoded: np.ndarray


@dataclass(frozen=True, eq=False)
class Reconstructions:
    """Reconstructions of held-out frames.

    Attributes:
        error: Mean squared pixel error, pixels in [0, 1].
        mean_image_error: The same of always painting the mean of these frames.
        num_frames: Frames that both were measured on.
        chosen: Frames drawn by seed.
        worst: The frames with the largest error of all that were measured.
    """

    error: float
    mean_image_error: float
    num_frames: int
    chosen: list[Reconstruction]
    worst: list[Reconstruction]

    @property
    def painted(self) -> float | None:
        """Share of the pixel variance that is painted, at most 1; None if all frames are equal."""
        return 1.0 - self.error / self.mean_image_error if self.mean_image_error else None


class ImaginedStrip(NamedTuple):
    """Decoded imagination beside reality, one picture for each of `steps`; uint8 (len(steps), C, H, W)."""

    episode: int
    start: int
    error: float
    steps: list[int]
    real: np.ndarray
    decoded_real: np.ndarray
    decoded_imagined: np.ndarray


@dataclass
class Measurements:
    """What could be measured; a part that could not is None or empty and `missing` says why."""

    missing: list[str] = field(default_factory=list)
    dataset: dict[str, Any] | None = None
    heldout: str | None = None
    num_heldout_episodes: int = 0
    collapse: CollapseDiagnostics | None = None
    probes: list[ProbeResult] = field(default_factory=list)
    headline_variable: str | None = None
    planning: PlanningResults | None = None
    imagination: ImaginationResult | None = None
    reconstructions: Reconstructions | None = None
    strips: list[ImaginedStrip] = field(default_factory=list)
    worst_strips: list[ImaginedStrip] = field(default_factory=list)

    @property
    def headline_probe(self) -> list[ProbeResult]:
        """Results of the variable in the headline."""
        return [result for result in self.probes if result.variable == self.headline_variable]


def measure(run: RunFolder, device: str) -> Measurements:
    """Measure everything that the run's checkpoints and dataset allow.

    Args:
        run: The run.
        device: Device setting for the models.

    Raises:
        CheckpointError: a checkpoint is damaged.
        DatasetError: the dataset is damaged, or is not the one that the run was trained on.
    """
    measured = Measurements()
    model = _load(JEPA, run, device, measured)
    decoder = _load(JEPAStateDecoder, run, device, measured)
    measured.planning, problem = read_planning(run)
    measured.missing += [] if problem is None else [problem]
    dataset = _open_dataset(run, measured)
    if dataset is None:
        return measured
    split = run.split(dataset)
    measured.dataset = _summarise(dataset, split)
    name, heldout = _heldout(split)
    measured.heldout, measured.num_heldout_episodes = name, len(heldout)
    if name != "evaluation":
        measured.missing.append(
            f"This run keeps no evaluation episodes (evaluation_split is {run.config.evaluation_split:g}): "
            f"everything below is measured on {name} episodes and may flatter the model."
        )
    if model is not None:
        _measure_model(run, model, dataset, split.train, heldout, measured)
        if decoder is not None:
            _measure_decoder(run, model, decoder, dataset, heldout, measured)
    return measured


def _load(kind: type[JEPA] | type[JEPAStateDecoder], run: RunFolder, device: str, measured: Measurements) -> Any:
    """The run's best model of a kind; None if there is none yet. Damage is not forgiven."""
    training = run.config.jepa_decoder_training
    if kind is JEPAStateDecoder and not training.enabled:
        measured.missing.append(
            "There is no state decoder (jepa_decoder_training.enabled is false), so nothing can be painted: "
            f"no reconstructions, no decoded imagination. `jepaworld decode {run.path}` trains one."
        )
        return None
    path = run.checkpoint("jepa" if kind is JEPA else "jepa_decoder")
    if not path.is_file():
        what = "JEPA" if kind is JEPA else "state decoder"
        measured.missing.append(
            f"checkpoints/{path.name} does not exist: the {what} has not finished an epoch. Continue with "
            f"`jepaworld train --run {run.path} --resume`."
        )
        return None
    return (load if kind is JEPA else load_decoder)(run.path, resolve_device(device))


def _open_dataset(run: RunFolder, measured: Measurements) -> EpisodeDataset | None:
    dataset = run.open_dataset()
    if dataset is None:
        measured.missing.append(
            f"The dataset {run.dataset_path} is missing, so that only what training logged is shown: no probes, no "
            "imagination, no pictures. Restore it or collect it again (`jepaworld collect`), then write the "
            "report again."
        )
    return dataset


def _heldout(split: Split) -> tuple[str, np.ndarray]:
    for name, episodes in (("evaluation", split.evaluation), ("validation", split.validation)):
        if len(episodes):
            return name, episodes
    return "training", split.train


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
    run: RunFolder,
    model: JEPA,
    dataset: EpisodeDataset,
    train: np.ndarray,
    heldout: np.ndarray,
    measured: Measurements,
) -> None:
    seed = run.config.seed
    rows, _ = sample_rows(dataset, heldout, MAX_FRAMES, seed)
    if len(rows) >= 2:
        measured.collapse = collapse_diagnostics(encode_frames(model, dataset, rows))
    if measured.collapse is not None and not np.isfinite(measured.collapse.std_mean):
        measured.missing.append("The model gives NaN or infinite embeddings: nothing else can be measured.")
        return
    measured.probes = probe_states(
        model,
        dataset,
        train,
        heldout,
        max_frames=MAX_FRAMES,
        seed=seed,
        baseline_models={UNTRAINED: _untrained(run, dataset, device_of(model))},
    )
    measured.headline_variable = _headline_variable(measured.probes)
    state_probes = choose_state_probes(model, dataset, train, max_frames=MAX_FRAMES, seed=seed)
    state_probes.sort(key=lambda probe: probe.variable != measured.headline_variable)
    horizon = min(HORIZON, int(dataset.episode_lengths[heldout].max()))
    measured.imagination = imagination_error(model, dataset, heldout, horizon, seed=seed, state_probes=state_probes)


def _untrained(run: RunFolder, dataset: EpisodeDataset, device: torch.device) -> JEPA:
    """The same architecture with other random weights."""
    torch.manual_seed(run.config.seed + 1)
    return build(run.config, Spaces.of(run.config, dataset.action_space)).to(device)


def _headline_variable(probes: Sequence[ProbeResult]) -> str | None:
    """The state variable that stands for all, by its name; None if there is none of these names."""
    names = {result.variable for result in probes if result.r2 is not None}
    return next((name for name in PREFERRED_STATES if name in names), None)


def _measure_decoder(
    run: RunFolder,
    model: JEPA,
    decoder: JEPAStateDecoder,
    dataset: EpisodeDataset,
    heldout: np.ndarray,
    measured: Measurements,
) -> None:
    source = "encode_target" if run.config.jepa_decoder_training.embedding_source == "target" else "encode_online"
    rows, owners = sample_rows(dataset, heldout, 512, run.config.seed)
    real = dataset.gather("frames", rows)
    decoded = paint(decoder, encode_frames(model, dataset, rows, encoder=source))
    pixels = real.astype(np.float32) / 255.0
    errors = ((decoded.astype(np.float32) / 255.0 - pixels) ** 2).mean(axis=(1, 2, 3))
    rng = np.random.default_rng(run.config.seed)
    chosen = np.sort(rng.choice(len(rows), size=min(8, len(rows)), replace=False))
    worst = np.argsort(-errors, kind="stable")[:4]

    def pictures(indices: np.ndarray) -> list[Reconstruction]:
        steps = rows - dataset.episode_starts[owners]
        return [Reconstruction(int(owners[i]), int(steps[i]), float(errors[i]), real[i], decoded[i]) for i in indices]

    measured.reconstructions = Reconstructions(
        error=float(errors.mean()),
        mean_image_error=float(((pixels - pixels.mean(axis=0)) ** 2).mean()),
        num_frames=len(rows),
        chosen=pictures(chosen),
        worst=pictures(worst),
    )
    result = measured.imagination
    if result is None:
        return
    windows = np.arange(len(result.window_rows))
    drawn = rng.choice(windows, size=min(3, len(windows)), replace=False)
    worst = np.argsort(-np.nan_to_num(result.window_errors), kind="stable")[:2]
    measured.strips = [_strip(model, decoder, dataset, result, index, source) for index in np.sort(drawn)]
    measured.worst_strips = [_strip(model, decoder, dataset, result, index, source) for index in worst]


def _strip(
    model: JEPA,
    decoder: JEPAStateDecoder,
    dataset: EpisodeDataset,
    result: ImaginationResult,
    index: int,
    source: str,
) -> ImaginedStrip:
    row, length = result.window_rows[index], int(result.window_lengths[index])
    owner = int(result.window_owners[index])
    steps = [step for step in SHOWN_STEPS if step <= length]
    if steps[-1] != length:
        steps.append(length)
    imagined = imagine(model, dataset, np.array([row]), np.array([length]), length, result.context)[0]  # (P, D)
    rows = row + np.array(steps)
    encoded = encode_frames(model, dataset, rows, encoder="encode_target")
    first = encode_frames(model, dataset, rows[:1])
    decoded_imagined = paint(decoder, torch.cat([first, imagined])[steps])
    if source == "encode_online":
        encoded = encode_frames(model, dataset, rows, encoder="encode_online")
    return ImaginedStrip(
        episode=owner,
        start=int(row - dataset.episode_starts[owner]),
        error=float(result.window_errors[index]),
        steps=steps,
        real=dataset.gather("frames", rows),
        decoded_real=paint(decoder, encoded),
        decoded_imagined=decoded_imagined,
    )
