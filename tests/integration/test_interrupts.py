"""Ctrl-C on real processes: they end cleanly with exit code 130, say how to go on, and going on works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from jepaworld.config import Config, to_commented_yaml
from tests.integration.conftest import process, tree
from tests.integration.test_commands import ENVIRONMENT


def interrupt(running: subprocess.Popen[str], when: Callable[[], bool]) -> str:
    """Press Ctrl-C once the condition holds; the terminal sends it to all processes of the group. Returns stderr."""
    deadline = time.monotonic() + 60
    while not when():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline, "the moment to interrupt never came"
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert "Traceback" not in err
    assert running.returncode == 130, err
    return err


def test_collection(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "my_counter.py").write_text(ENVIRONMENT)
    config = tiny_config(
        environment_name="my_counter:Counter-v0", dataset_dir="data", collection={"num_workers": 2, "policy": "random"}
    )
    (tmp_path / "config.yaml").write_text(to_commented_yaml(config))
    data = tmp_path / "data"
    # 12 shards of an episode of 12 steps: about 3 s for two processes.
    err = interrupt(
        process("collect", "config.yaml", cwd=tmp_path, STEP_SECONDS="0.04"), lambda: (data / "shard-00001").is_dir()
    )
    assert "jepaworld collect config.yaml" in err, "how to go on"
    left = tree(data)
    assert not [name for name in left if "writing" in name]
    assert not (data / "shard-00011").exists()
    with process("collect", "config.yaml", cwd=tmp_path) as continued:
        _, err = continued.communicate(timeout=60)
    assert continued.returncode == 0 and "12 episodes, 156 frames" in err
    finished = tree(data)
    assert all(finished[name] == left[name] for name in left if name.startswith("shard"))


def test_training(tiny_config: Callable[..., Config], finished_run: Path, tmp_path: Path) -> None:
    config = tiny_config(
        dataset_dir=str(finished_run.parent / "data"),
        num_epochs=100_000,
        early_stopping={"patience": 100_000},
        jepa_decoder_training={"enabled": False},
    )
    (tmp_path / "config.yaml").write_text(to_commented_yaml(config))

    def steps(run: Path) -> int:
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
        return max((json.loads(line)["step"] for line in lines[:-1]), default=0)

    def the_run() -> Path:
        return next(iter((tmp_path / "runs").glob("*")), tmp_path)

    # Without --run, so that the message alone tells which folder it is.
    err = interrupt(process("train", "config.yaml", cwd=tmp_path), lambda: steps(the_run()) > 30)
    run = the_run().relative_to(tmp_path)
    assert f"jepaworld train --run {run} --resume" in err, "how to go on"
    assert json.loads((tmp_path / run / "run.json").read_text())["status"] == "interrupted"
    before = steps(tmp_path / run)
    resumed = process("train", "--run", run, "--resume", cwd=tmp_path)
    err = interrupt(resumed, lambda: steps(tmp_path / run) > before + 30)
    assert f"jepaworld train --run {run} --resume" in err
