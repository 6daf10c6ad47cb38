"""One run of a comparison: trained, evaluated, and what is kept of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from jepaworld.comparison.grid import Cell
from jepaworld.config import load_config
from jepaworld.config.changes import AFTER_TRAINING
from jepaworld.errors import CheckpointError
from jepaworld.evaluation.results import PlanningResults, ProbeKind, Results
from jepaworld.evaluation_engine import evaluate_run
from jepaworld.models import load
from jepaworld.models.size import count_trained
from jepaworld.report import read_results, write_report
from jepaworld.runs.folder import RunFolder
from jepaworld.training_engine import run_training
from jepaworld.utils.progress import Progress
from jepaworld.utils.records import Number, Record
from jepaworld.utils.storage import atomic_write_text


class Measure(Record):
    """A number of one run with its 95 % interval over episodes; NaN where there is none."""

    value: Number = math.nan
    low: Number = math.nan
    high: Number = math.nan


class CellResult(Record):
    """What is kept of a finished run.

    Attributes:
        reached: Whether each task's goal was reached at any time.
        ended: Whether each task ended at its goal.
        owners: The recorded episode of each task; its own number where the environment drew it.
        random: Share of goals that the random policy reached at any time.
        protocol: How these were measured.
        linear: R² of the linear probes by state variable, mean over its entries.
        mlp: The same of the MLPs.
        effective_rank: Of the embeddings on held-out frames.
        collapsed: Whether the embedding was judged to have collapsed.
        imagination: Error at the last imagined step, in units of the embedding's variance.
        imagined_steps: That step.
        seconds: Training time by phase.
        parameters: Trained parameters of the model.
        device: Where it was trained.
    """

    reached: list[bool]
    ended: list[bool]
    owners: list[int]
    random: Number
    protocol: str
    linear: dict[str, Measure]
    mlp: dict[str, Measure]
    effective_rank: Number
    collapsed: bool
    imagination: Measure
    imagined_steps: int
    seconds: dict[str, float]
    parameters: int
    device: str


def run_cell(settings: Path, run: Path, result: Path, progress: Progress) -> None:
    """Train, or go on, then evaluate and write the result.

    Args:
        settings: The cell's configuration, written by `compare`.
        run: Run folder.
        result: File of the `CellResult`.
        progress: What its log shows.

    Raises:
        JepaworldError: as of training and evaluation.
    """
    config, folder = load_config(settings, trust=True), RunFolder(run)
    if not folder.finished:
        # A run that was begun keeps its own device and logging.
        begun = load_config(folder.config_file, trust=True) if folder.config_file.is_file() else config
        run_training(begun, run, resume=True, progress=progress)
    sections = ((key, getattr(config, key).model_dump(mode="json")) for key in AFTER_TRAINING)
    planning = evaluate_run(run, [f"{key}={json.dumps(content)}" for key, content in sections], progress)
    write_report(run, device=planning.device)
    found = _result(RunFolder(run), planning, read_results(run))
    atomic_write_text(result, found.model_dump_json(indent=1) + "\n")


def read_result(cell: Cell, folder: Path) -> CellResult | None:
    """What is kept of a cell; None if it has not finished.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = result_file(cell, folder)
    if not file.is_file():
        return None
    try:
        return CellResult.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{file}: damaged. Delete it, and the same command evaluates its run again.") from error


def result_file(cell: Cell, folder: Path) -> Path:
    """Where the result of a cell lies in the folder of the comparison."""
    return folder / "results" / f"{cell.name}.json"


def _result(run: RunFolder, planning: PlanningResults, results: Results) -> CellResult:
    # Of several planner seeds the first: a task's other outcomes are no further tasks.
    played = (task for task in planning.episodes if task.agent == "planner" and task.planner_seed == 0)
    tasks = sorted(played, key=lambda task: task.task)
    random, imagined, collapse = planning.agent("random"), results.imagination, results.collapse
    return CellResult(
        reached=[task.any for task in tasks],
        ended=[task.end for task in tasks],
        owners=[task.task if task.episode is None else task.episode for task in tasks],
        random=math.nan if random is None or random.missing is not None else random.any["all"].rate,
        protocol=planning.protocol,
        linear=_probes(results, "linear"),
        mlp=_probes(results, "mlp"),
        effective_rank=math.nan if collapse is None else collapse.effective_rank,
        collapsed=collapse is not None and collapse.collapsed,
        imagination=Measure()
        if imagined is None
        else Measure(value=imagined.error[-1], low=imagined.error_low_95[-1], high=imagined.error_high_95[-1]),
        imagined_steps=0 if imagined is None else imagined.step[-1],
        seconds=run.seconds,
        parameters=count_trained(load(run.path)),
        device=str(run.info["device"]),
    )


def _probes(results: Results, kind: ProbeKind) -> dict[str, Measure]:
    """R² of each state variable, mean over its entries; so are the ends, as entries may well err together."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for probe in results.probes:
        reading = probe if kind == "linear" else probe.mlp
        if reading is not None and reading.r2 is not None:
            found.setdefault(probe.state, []).append((reading.r2, *(reading.interval_95 or (math.nan, math.nan))))
    means = {state: np.mean(values, axis=0) for state, values in found.items()}
    return {state: Measure(value=mean[0], low=mean[1], high=mean[2]) for state, mean in means.items()}
