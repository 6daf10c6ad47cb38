"""From a run folder to `report.html` and `report.json`, and back."""

from __future__ import annotations

from pathlib import Path

import torch

from jepaworld.evaluation.measure import measure
from jepaworld.evaluation.results import Results
from jepaworld.report.headline import add_headline
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
        results, pictures = measure(run, device)
    add_headline(results)
    page = render_page(results, pictures)
    atomic_write_text(run.report_numbers, results.to_json())
    atomic_write_text(run.report_page, page)
    return run.report_page


def read_results(run_dir: str | Path) -> Results:
    """The numbers of the run's last report."""
    return Results.model_validate_json(RunFolder(run_dir).report_numbers.read_bytes())
