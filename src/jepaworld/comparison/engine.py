"""A comparison from its configuration to its page: data, runs, evaluation, summary.

What lies in its folder:

* `comparison.json`: that it is one, and the grid of the last call
* `datasets/`: collected once for all runs whose settings of the data are equal
* `settings/`, `runs/`, `logs/`: configuration, run folder and output of each run
* `results/`: what is kept of each finished run; page and table are made from these alone
* `comparison.html`, `comparison.csv`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from jepaworld.comparison.cell import read_result
from jepaworld.comparison.grid import Cell, in_words, make_grid
from jepaworld.comparison.page import write_page, write_table
from jepaworld.comparison.processes import fitting_jobs, log_file, run_cells
from jepaworld.comparison.summary import Outcome, Summary, summarise
from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.envs.calls import close
from jepaworld.envs.make import make_env
from jepaworld.errors import ConfigError, JepaworldError
from jepaworld.utils.devices import resolve_device
from jepaworld.utils.progress import Progress
from jepaworld.utils.storage import alone_in, atomic_write_text, storage_errors
from jepaworld.utils.text import counted, share

MARK = "comparison.json"
FOLDERS = ("datasets", "settings", "runs", "logs", "results")


class Comparison(NamedTuple):
    """What `compare` leaves behind.

    Attributes:
        page: comparison.html.
        table: comparison.csv.
        settings: A summary of each setting.
        failed: Runs that failed.
    """

    page: Path
    table: Path
    settings: list[Summary]
    failed: int


def compare(
    config: Config,
    vary: Mapping[str, Sequence[Any]],
    seeds: int = 3,
    folder: str | Path = "comparisons/comparison",
    *,
    jobs: int | None = None,
    vary_data: bool = False,
    name: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Train and evaluate every combination of settings with several training seeds; write a page and a table.

    A second call goes on: finished runs are kept, half-trained ones resumed, failed ones tried again, new ones added. A
    run that fails does not stop the others.

    Args:
        config: What is not varied; its `seed` is that of the data and their split, unless `collection.seed` is set.
        vary: Values by setting.
        seeds: Training seeds 0 to seeds - 1 for each combination.
        folder: Of the comparison; its page shows the grid of the last call.
        jobs: Runs at once; None takes one on a processor, and as many as fit, at most four, on a GPU.
        vary_data: Whether the data may differ between settings.
        name: What is compared, for the page's title.
        progress: What the user sees; None only logs.

    Raises:
        ConfigError: the grid is not possible, or the folder holds something else; nothing is written then.
        EnvironmentNotUsableError: the environment cannot be made; nothing is written then.
        StorageError: the folder cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on.

    Example:
        ```
        grid = {"auxiliary_loss.type": ["vicreg", "sigreg"]}
        found = compare(load_config("two_room"), grid, folder="comparisons/losses")
        print(found.settings[0].reached, found.page)
        ```
    """
    progress, folder = progress or Progress(), Path(folder)
    cells = make_grid(config, vary, seeds, folder, vary_data)
    _require_possible(cells, progress)
    jobs = jobs or fitting_jobs(cells)
    if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty and holds no comparison. Choose another folder with --out.")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for part in FOLDERS:
            (folder / part).mkdir(exist_ok=True)
    with alone_in(folder, ConfigError(f"{folder}: another comparison runs in this folder. Choose another --out.")):
        grid = {"name": name, "vary": {key: list(values) for key, values in vary.items()}, "seeds": seeds}
        atomic_write_text(folder / MARK, json.dumps(grid, indent=1) + "\n")
        runs = _run(cells, folder, jobs, progress, name)
    failed = sum(run.status == "failed" for run in runs.values())
    return Comparison(folder / "comparison.html", folder / "comparison.csv", summarise(list(runs.values())), failed)


def _require_possible(cells: Sequence[Cell], progress: Progress) -> None:
    """Refuse what no run of the grid could do, and say what has no effect."""
    for device, execution in {(cell.config.device, cell.config.execution) for cell in cells}:
        resolve_device(device, execution)
    worlds = {json.dumps([cell.config.environment_name, cell.config.environment_kwargs]) for cell in cells}
    for environment_name, environment_kwargs in map(json.loads, sorted(worlds)):
        close(make_env(environment_name, environment_kwargs))
    notices = {notice: notice.split()[0] for cell in cells for notice in cell.config.notices()}
    for notice, key in notices.items():  # others are in the logs
        if any(f"{varied}.".startswith(f"{key}.") for varied in cells[0].setting):
            progress.warn(notice)


def _run(cells: Sequence[Cell], folder: Path, jobs: int, progress: Progress, name: str) -> dict[str, Outcome]:
    """All cells with what came of them; page and table are up to date whenever one ends."""
    runs = {cell.name: Outcome(cell, read_result(cell, folder)) for cell in cells}
    pending = [run.cell for run in runs.values() if run.result is None]
    done = len(cells) - len(pending)
    for cell, error in _collect(pending, progress):
        runs[cell.name] = Outcome(cell, None, error)
        pending.remove(cell)
    progress.message(f"{counted(len(cells), 'run')}, {done} finished before, {jobs} at once; logs in {folder / 'logs'}")
    progress.start("Runs", len(cells), len(cells) - len(pending))
    try:
        _write(runs, folder, jobs, name)
        with closing(run_cells(pending, folder, jobs)) as ended:  # whatever happens here, its processes end
            for cell, error in ended:
                run = runs[cell.name] = Outcome(cell, None if error else read_result(cell, folder), error)
                said = f"failed: {error} [{log_file(cell, folder)}]"
                if (reached := summarise([run])[0].reached) is not None:
                    said = f"{share(reached)} of the goals reached"
                progress.message(f"{in_words(cell.setting)}, seed {cell.seed}: {said}")
                progress.advance()
                _write(runs, folder, jobs, name)
    finally:
        progress.finish()
    return runs


def _collect(cells: Sequence[Cell], progress: Progress) -> list[tuple[Cell, str]]:
    """Collect the data of all cells, each once; those whose data cannot be had, with the reason."""
    failed: dict[str, str] = {}
    first = {cell.config.dataset_dir: cell for cell in reversed(cells) if cell.config.load_dataset_path is None}
    for path, cell in first.items():
        try:
            collect(cell.config, progress=progress)
        except JepaworldError as error:
            failed[path] = str(error)
    return [(cell, failed[cell.config.dataset_dir]) for cell in cells if cell.config.dataset_dir in failed]


def _write(runs: Mapping[str, Outcome], folder: Path, jobs: int, name: str) -> None:
    settings = summarise(list(runs.values()))
    write_page(folder / "comparison.html", settings, name, jobs)
    write_table(folder / "comparison.csv", settings)
