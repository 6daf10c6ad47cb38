"""Commands as a user runs them: most in this process, some as real processes; a tiny dataset and a finished run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jepaworld import cli, run_training
from jepaworld.config import Config, to_commented_yaml
from jepaworld.report import write_report
from tests.conftest import heed_interrupts


class Outcome(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """All output with single blanks, as the help is wrapped to the terminal."""
        return " ".join((self.out + self.err).split())


Command = Callable[..., Outcome]


def refused(outcome: Outcome, *mentioned: object) -> None:
    """Exit code 2 and one message that mentions all of these, without a traceback."""
    assert outcome.code == 2, outcome
    assert "error: " in outcome.err, outcome.err
    message = outcome.err[outcome.err.index("error: ") :]
    assert "Traceback" not in outcome.err + outcome.out
    for text in mentioned:
        assert str(text) in message, f"{text!r} is not in {message!r}"


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder by its relative path, with a checksum; folders too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def process(*arguments: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the installed command in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("jepaworld")), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes, as on a disk that is nearly full."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def jepaworld(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`jepaworld("train", path, "batch_size=4")`: the command in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["jepaworld", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports, which take longer than all else here, are empty: for tests about something else."""
    monkeypatch.setattr("jepaworld.report.write_report", empty_report)


def empty_report(run: Path, device: str) -> Path:
    """In place of `write_report`."""
    assert device
    planning = Path(run) / "evaluation" / "planning.json"
    numbers = {"planning": json.loads(planning.read_text()) if planning.is_file() else None}
    (Path(run) / "report.json").write_text(json.dumps(numbers))
    return Path(run) / "report.html"


@pytest.fixture(scope="session")
def finished_run(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its report, in a folder that also holds its dataset `data`; not to be changed."""
    home = tmp_path_factory.mktemp("finished")
    run = run_training(tiny_config(dataset_dir=str(home / "data")), home / "run").run_dir
    write_report(run)
    return run


SHORT_EVALUATION = (
    "evaluation.num_episodes=6",
    "evaluation.num_envs=4",
    "evaluation.max_steps=10",
    "evaluation.reset_options=[{goal_room: same}, {goal_room: other}]",
    "planning.horizon=3",
    "planning.num_samples=8",
    "planning.num_iterations=2",
    "planning.num_elites=3",
)
"""Overrides with which `evaluate` takes a second."""


@pytest.fixture(scope="session")
def evaluated(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run that `jepaworld evaluate` was called on, not to be changed, and what it printed."""
    run = shutil.copytree(finished_run, tmp_path_factory.mktemp("evaluated") / "run")
    command = [sys.executable, "-m", "jepaworld", "evaluate", str(run), *SHORT_EVALUATION]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return run, Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run for tests that spoil it; its dataset is the shared one."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def data_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished dataset for tests that spoil it."""
    return shutil.copytree(finished_run.parent / "data", tmp_path / "spoilt")


@pytest.fixture
def config_file(tiny_config: Callable[..., Config], finished_run: Path, tmp_path: Path) -> Path:
    """The tiny configuration as a file, on the shared dataset."""
    path = tmp_path / "config.yaml"
    path.write_text(to_commented_yaml(tiny_config(dataset_dir=str(finished_run.parent / "data"))))
    return path
