"""From a run folder to `report.html` and `report.json`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jepaworld.evaluation.measure import Measurements, measure
from jepaworld.evaluation.probes import mean_r2
from jepaworld.report.headline import Headline, make_headline
from jepaworld.report.page import render_page
from jepaworld.runs.folder import RunFolder
from jepaworld.utils.storage import atomic_write_text


def write_report(run_dir: str | Path, *, device: str = "auto") -> Path:
    """Measure a run's best model on held-out episodes and write `report.html` and `report.json` into the run.

    Reads only the run folder and the dataset that it names. What is not there (no decoder, no finished epoch,
    no dataset) is left out, and the page says so.

    Args:
        run_dir: A folder that training wrote, finished or not.
        device: Where the models run: auto, cpu, cuda, cuda:N or mps.

    Returns:
        Path of the HTML page: one file without scripts that loads nothing from elsewhere.

    Raises:
        CheckpointError: the folder is missing or is no run, or a file of it is damaged.
        DatasetError: the dataset is damaged, or is not the one that the run was trained on.
        StorageError: the report cannot be written.
    """
    run = RunFolder.open(run_dir)
    # Models draw their first weights, on the CPU; the caller's random numbers go on as if they had not.
    with torch.random.fork_rng(devices=[]):
        measured = measure(run, device)
    headline = make_headline(run, measured)
    page = render_page(run, measured, headline)
    numbers = json.dumps(_finite(_numbers(run, measured, headline)), indent=1, allow_nan=False)
    atomic_write_text(run.report_numbers, numbers + "\n")
    atomic_write_text(run.report_page, page)
    return run.report_page


def _numbers(run: RunFolder, measured: Measurements, headline: Headline) -> dict[str, Any]:
    mean, interval = mean_r2(measured.headline_probe)
    mlp, mlp_interval = mean_r2(measured.headline_probe, kind="mlp")
    collapse, pictures = measured.collapse, measured.reconstructions
    return {
        "environment": run.config.environment_name,
        "finished": run.finished,
        "missing": measured.missing,
        "findings": headline.findings,
        "heldout": {"split": measured.heldout, "episodes": measured.num_heldout_episodes},
        "best_epoch": run.best_epoch,
        "collapse": None
        if collapse is None
        else {**asdict(collapse), "std": collapse.std.tolist(), "reasons": list(collapse.reasons)},
        "headline_probe": {
            "variable": measured.headline_variable,
            "r2": mean,
            "interval_95": interval,
            "mlp_r2": mlp,
            "mlp_interval_95": mlp_interval,
        },
        "planning": None if measured.planning is None else measured.planning.model_dump(by_alias=True),
        "probes": [result.to_dict() for result in measured.probes],
        "imagination": None if measured.imagination is None else measured.imagination.to_dict(),
        "reconstruction": None
        if pictures is None
        else {
            "mean_squared_error": pictures.error,
            "mean_image_squared_error": pictures.mean_image_error,
            "num_frames": pictures.num_frames,
        },
        "epochs": run.epochs,
        "dataset": measured.dataset,
        "run": run.info,
        "notices": run.config.notices(),
        "config": run.config.to_dict(),
    }


def _finite(value: Any) -> Any:
    """The same tree with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
