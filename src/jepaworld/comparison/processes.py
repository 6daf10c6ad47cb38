"""Runs in processes of their own, several at once: what one does to its process is no harm to the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from jepaworld.comparison.cell import result_file
from jepaworld.comparison.grid import Cell
from jepaworld.config import to_commented_yaml
from jepaworld.training_costs import memory_of
from jepaworld.utils.devices import available_memory, resolve_device
from jepaworld.utils.signals import handled
from jepaworld.utils.storage import atomic_write_text

COMMAND = (sys.executable, "-m", "jepaworld", "run-cell")
MOST_JOBS = 4
# The estimate knows neither what the allocator keeps in reserve nor CUDA's own memory.
RESERVE, CUDA_BYTES = 2, 2 * 2**30


class _Running(NamedTuple):
    cell: Cell
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: int  # where in the log

    def close(self) -> None:
        """Close the files that a process which has ended leaves behind."""
        self.log.close()
        assert self.process.stdin is not None
        self.process.stdin.close()


def log_file(cell: Cell, folder: Path) -> Path:
    """Where a cell's process writes what it says."""
    return folder / "logs" / f"{cell.name}.log"


def fitting_jobs(cells: Sequence[Cell]) -> int:
    """Runs that fit side by side on the device; 1 where it is a processor, which one run fills."""
    device = resolve_device(cells[0].config.device)
    if device.type != "cuda":
        return 1
    with torch.random.fork_rng(devices=[]):
        largest = max(memory_of(cell.config) for cell in cells if cell.seed == 0)
    return max(1, min(MOST_JOBS, available_memory(device) // (RESERVE * largest + CUDA_BYTES)))


def run_cells(cells: Sequence[Cell], folder: Path, jobs: int) -> Generator[tuple[Cell, str | None], None, None]:
    """Run cells, at most `jobs` at once, and give each as it ends, with the reason if it failed.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the processes have been ended, in order unless it came twice.
    """
    pending, running = list(cells), list[_Running]()
    with handled(_interrupt, signal.SIGTERM):
        try:
            while pending or running:
                # Cells that share a training wait for each other.
                taken = {one.cell.run for one in running}
                ready = next((cell for cell in pending if cell.run not in taken), None)
                if ready is not None and len(running) < jobs:
                    pending.remove(ready)
                    running.append(_start(ready, folder, jobs))
                    continue
                ended = next((one for one in running if one.process.poll() is not None), None)
                if ended is None:
                    time.sleep(0.05)
                    continue
                running.remove(ended)
                ended.close()
                yield ended.cell, _failure(ended, folder)
        finally:
            _end(running)


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _start(cell: Cell, folder: Path, jobs: int) -> _Running:
    settings = folder / "settings" / f"{cell.name}.yaml"
    atomic_write_text(settings, to_commented_yaml(cell.config))
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    log = log_file(cell, folder).open("ab")
    process = subprocess.Popen(
        [*COMMAND, settings, cell.run, result_file(cell, folder)],
        env=threads | os.environ,
        stdin=subprocess.PIPE,  # closed by the system if this process is killed, which tells the cell to end
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C comes to this process alone, which ends the others once
    )
    return _Running(cell, process, log, log.tell())


def _end(running: Sequence[_Running]) -> None:
    """Ask processes to end, which keeps what they have trained; at a second Ctrl-C they are killed."""
    try:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()
    finally:
        for one in running:
            one.process.kill()
            one.process.wait()
            one.close()


def _failure(one: _Running, folder: Path) -> str | None:
    """Why a process left no result: its message, the signal that ended it, or its last line."""
    code = one.process.returncode
    if code == 0:
        return None
    with log_file(one.cell, folder).open("rb") as log:
        log.seek(one.began)
        said = log.read().decode(errors="replace")
    _, found, message = said.rpartition("error: ")
    if code == 2 and found:
        return " ".join(message.split())
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return next((line.strip() for line in reversed(said.splitlines()) if line.strip()), f"exit code {code}")
