"""Runs as processes: several at once, each by itself; failures, interruptions, and what a second call keeps.

The processes here are a script that behaves as it is told; real runs are in `tests/integration/test_compare.py`.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jepaworld.comparison import Comparison, compare, processes
from jepaworld.config import Config
from jepaworld.errors import CheckpointError, ConfigError, DatasetError
from tests.comparison.conftest import Grid, a_result

SCRIPT = """
import json, os, pathlib, signal, sys, time
settings, run, result = map(pathlib.Path, sys.argv[1:])
dim = int(next(line for line in settings.read_text().splitlines() if line.startswith("latent_dim")).split()[1])
with (run.parent.parent / "said").open("a") as said:
    said.write(f"{dim} begins\\n")
    said.flush()
    if dim == 5:
        print("error: the disk is on fire")
        sys.exit(2)
    if dim == 6:
        raise RuntimeError("a bug")
    if dim == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if dim == 9:
        time.sleep(30)
    time.sleep(0.2)
    result.write_text(RESULT)
    said.write(f"{dim} ends\\n")
"""
Start = Callable[..., Comparison]


@pytest.fixture
def start(tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """`start([4, 8])`: a comparison of these latent dimensions, without data."""
    script = f"RESULT = {a_result().model_dump_json()!r}\n{SCRIPT}"
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", script))
    monkeypatch.setattr("jepaworld.comparison.engine.collect", lambda *_, **__: None)

    def run(dims: list[int], seeds: int = 1, jobs: int = 1) -> Comparison:
        return compare(tiny_config(), {"latent_dim": dims}, seeds, tmp_path / "out", jobs=jobs)

    return run


def said(folder: Path) -> list[str]:
    """What the processes wrote, in order."""
    return (folder / "out" / "said").read_text().splitlines()


def test_a_run_that_fails_does_not_stop_the_others(start: Start) -> None:
    found = start([5, 6, 7, 8])
    assert found.failed == 3 and len(found.settings) == 4
    errors = {one.setting["latent_dim"]: one.runs[0].error for one in found.settings}
    assert errors[5] == "the disk is on fire" and errors[7] and "SIGKILL" in errors[7]
    assert errors[6] == "RuntimeError: a bug" and errors[8] is None
    page, rows = found.page.read_text(), list(csv.DictReader(found.table.read_text().splitlines()))
    for error in ("the disk is on fire", "RuntimeError: a bug", "SIGKILL"):
        assert error in page and any(error in row["error"] for row in rows)
    assert [row["success"] for row in rows if row["latent_dim"] == "8"] == ["0.5", "0.5"]


def test_a_second_call_keeps_what_is_finished_and_tries_the_rest_again(start: Start, tmp_path: Path) -> None:
    start([8, 5])
    before = len(said(tmp_path))
    found = start([5, 8, 10], seeds=2)
    again = said(tmp_path)[before:]
    assert again.count("8 begins") == 1, "the new seed"
    assert again.count("5 begins") == 2 and again.count("10 begins") == 2
    assert [len(one.results) for one in found.settings] == [0, 2, 2] and found.failed == 2
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["vary"] == {"latent_dim": [5, 8, 10]}
    assert start([8]).failed == 0 and len(said(tmp_path)) == before + len(again), "nothing is left to do"


def test_several_run_at_once(start: Start, tmp_path: Path) -> None:
    start([8, 10], jobs=2)
    assert said(tmp_path)[:2] in (["8 begins", "10 begins"], ["10 begins", "8 begins"])
    start([11, 12], jobs=1)
    assert said(tmp_path)[4:] == ["11 begins", "11 ends", "12 begins", "12 ends"]


def test_runs_that_share_a_training_wait_for_each_other(
    start: Start, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    assert start
    compare(tiny_config(), {"planning.horizon": [3, 4]}, 1, tmp_path / "out", jobs=2)
    assert said(tmp_path) == ["8 begins", "8 ends"] * 2


@pytest.mark.parametrize(("free", "expected"), [(0, 1), (2 * (2**31 + 2**27), 2), (2**40, 4)])
def test_a_gpu_takes_as_many_as_its_free_memory_holds(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    cells = grid({"latent_dim": [4, 8]})
    assert processes.fitting_jobs(cells) == 1, "a processor is filled by one"
    monkeypatch.setattr(processes, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(processes, "available_memory", lambda _: free)
    monkeypatch.setattr(processes, "memory_of", lambda config: config.latent_dim * 2**23)
    assert processes.fitting_jobs(cells) == expected


def test_an_interruption_ends_the_processes(start: Start, tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "out" / "said").exists() or len(said(tmp_path)) < 3:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        start([8, 9])
    assert said(tmp_path) == ["8 begins", "8 ends", "9 begins"]
    assert "not finished" in (tmp_path / "out" / "comparison.html").read_text()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in running


def test_a_folder_that_holds_something_else_is_left_alone(start: Start, tmp_path: Path) -> None:
    other = tmp_path / "out"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=rf"{re.escape(str(other))}.*--out"):
        start([8])
    assert [file.name for file in other.iterdir()] == ["thesis.tex"]


def test_a_damaged_result_says_so(start: Start, tmp_path: Path) -> None:
    start([8])
    (result,) = (tmp_path / "out" / "results").iterdir()
    result.write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(result))}.*Delete"):
        start([8])


def test_data_that_cannot_be_had_fail_the_runs_that_need_them(
    start: Start, tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: Config, **_: object) -> None:
        if config.num_episodes_data_collection == 13:
            raise DatasetError("unlucky")

    assert start
    monkeypatch.setattr("jepaworld.comparison.engine.collect", refuse)
    grid = {"num_episodes_data_collection": [12, 13]}
    found = compare(tiny_config(), grid, 1, tmp_path / "out", jobs=1, vary_data=True)
    assert [one.runs[0].error for one in found.settings] == [None, "unlucky"] and found.failed == 1
