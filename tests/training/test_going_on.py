"""Runs that are gone on with: what a phase keeps of its beginning, stale decoders, damaged files, lost sources."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from jepaworld import load_config, run_training
from jepaworld.config import Config
from jepaworld.errors import CheckpointError, ConfigError, NonFiniteLossError
from jepaworld.report import write_report
from jepaworld.runs.folder import RunFolder
from jepaworld.runs.metrics import read_records
from jepaworld.training_costs import describe_config
from jepaworld.training_engine import train_decoder_of_run
from tests.training.conftest import weights
from tests.training.test_engine import Killed, kill_at

MakeConfig = Callable[..., Config]


def killed(config: Config, run: Path, step: int = 10) -> Path:
    """A run whose power went off; step 10 of 18 is in the second epoch of the JEPA."""
    with pytest.raises(Killed):
        run_training(config, run, progress=kill_at(step))
    return run


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_unfinished_jepa_gets_no_decoder(training_config: MakeConfig, tmp_path: Path) -> None:
    run = killed(training_config(), tmp_path / "run")
    before = everything(run)
    with pytest.raises(ConfigError, match="--resume"):
        train_decoder_of_run(run)
    assert everything(run) == before


@pytest.mark.parametrize("recorded", [False, True])
def test_a_decoder_of_older_weights_is_trained_anew(
    recorded: bool, training_config: MakeConfig, tmp_path: Path
) -> None:
    """As 0.1.0 left it, where `decode` took an unfinished run."""
    whole = run_training(training_config(), tmp_path / "whole").run_dir
    stale = run_training(training_config(num_epochs=1), tmp_path / "stale").run_dir
    assert weights(stale)["best_jepa_decoder.safetensors"] != weights(whole)["best_jepa_decoder.safetensors"]
    run = killed(training_config(), tmp_path / "run")
    for name in ("best_jepa_decoder", "last_jepa_decoder"):
        shutil.copy(stale / "checkpoints" / f"{name}.safetensors", run / "checkpoints")
    shutil.copy(stale / "resume" / "decoder.safetensors", run / "resume")
    if recorded:
        content = json.loads((run / "run.json").read_text())
        content["phases"]["decoder"] = json.loads((stale / "run.json").read_text())["phases"]["decoder"]
        (run / "run.json").write_text(json.dumps(content))
    run_training(training_config(), run, resume=True)
    assert weights(run) == weights(whole)


def test_a_phase_goes_on_with_the_settings_that_it_began_with(training_config: MakeConfig, tmp_path: Path) -> None:
    run = killed(training_config(), tmp_path / "run")
    config = run / "config.yaml"
    original = config.read_text()
    config.write_text(original.replace("learning_rate: 0.001\n", "learning_rate: 0.1\n", 1))
    changed = load_config(config)
    assert changed.learning_rate == 0.1
    with pytest.raises(ConfigError, match="learning_rate"):
        run_training(changed, run, resume=True)
    config.write_text(original)
    run_training(training_config(), run, resume=True)
    assert weights(run) == weights(run_training(training_config(), tmp_path / "whole").run_dir)


def test_settings_of_a_new_decoder_do_not_reach_the_jepa(training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(jepa_decoder_training={"learning_rate": None})
    run = run_training(config, tmp_path / "run").run_dir
    before = weights(run)
    # The JEPA's own rate stays what the run says that it was.
    with pytest.raises(ConfigError, match="learning_rate"):
        train_decoder_of_run(run, config.model_copy(update={"learning_rate": 0.1}))
    train_decoder_of_run(run, config.with_overrides(["jepa_decoder_training.learning_rate=0.1", "decoder_depth=1"]))
    run_training(load_config(run / "config.yaml"), run, resume=True)
    assert {name: weights(run)[name] for name in before if name.endswith("jepa.safetensors")} == {
        name: content for name, content in before.items() if name.endswith("jepa.safetensors")
    }
    records = read_records(run / "metrics.jsonl")
    rates = {
        phase: {r["learning_rate"] for r in records if r["phase"] == phase and r["kind"] == "step"}
        for phase in ("jepa", "decoder")
    }
    assert max(rates["jepa"]) <= 0.001 < max(rates["decoder"])


@pytest.mark.parametrize(("phase", "rate"), [("jepa", 1e30), ("jepa", 1e39), ("decoder", 1e39)])
def test_weights_that_the_last_step_of_an_epoch_spoils(
    phase: str, rate: float, training_config: MakeConfig, tmp_path: Path
) -> None:
    """No validation looks at them. With 1e30 they are still finite, and what they make of a frame is not."""
    config = training_config(
        steps_per_epoch=1,
        warmup_steps=0,
        gradient_clip_norm=None,
        early_stopping={"validation_split": 0.0, "metric_jepa": "latest"},
        learning_rate_jepa=rate if phase == "jepa" else 1e-3,
        jepa_decoder_training={
            "learning_rate": rate,
            "steps_per_epoch": 1,
            "early_stopping": {"metric": "train_loss_jepa_decoder"},
        },
    )
    with pytest.raises(NonFiniteLossError, match="no longer finite"):
        run_training(config, tmp_path / "run")
    assert len(weights(tmp_path / "run")) == (0 if phase == "jepa" else 2), "nothing spoilt is kept"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


HALF = b'{"kind": "step", "phase": "dec'


@pytest.mark.parametrize("rest", [HALF, b"\0\0\0\0", b'"text"', b"{}", b"\xff\xfe"])
def test_half_a_line_is_no_record(rest: bytes, tmp_path: Path) -> None:
    line = b'{"kind": "epoch", "phase": "jepa", "epoch": 1, "step": 3}\n'
    (tmp_path / "metrics.jsonl").write_bytes(line + rest)
    assert read_records(tmp_path / "metrics.jsonl") == [json.loads(line)]


def test_half_a_line_at_the_end_of_the_metrics(training_config: MakeConfig, tmp_path: Path) -> None:
    run = run_training(training_config(num_epochs=1), tmp_path / "run").run_dir
    metrics = run / "metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + HALF)
    assert len(RunFolder.open(run).epochs["jepa"]) == 1
    run_training(load_config(run / "config.yaml"), run, resume=True)
    assert metrics.read_bytes() == whole
    metrics.write_bytes(whole + HALF)
    train_decoder_of_run(run)
    lines = metrics.read_bytes().splitlines()
    assert len(lines) == len(whole.splitlines()) and all(json.loads(line)["kind"] for line in lines)


def test_metrics_that_are_damaged_in_the_middle(training_config: MakeConfig, tmp_path: Path) -> None:
    run = run_training(training_config(num_epochs=1), tmp_path / "run").run_dir
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([lines[0], HALF + b"\n", *lines[1:]]))
    before = everything(run)
    for use in (train_decoder_of_run, lambda run: write_report(run, device="cpu")):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl.*line 2"):
            use(run)
    assert everything(run) == before


def test_metrics_that_somebody_shortened_are_not_filled_up(training_config: MakeConfig, tmp_path: Path) -> None:
    run = killed(training_config(), tmp_path / "run")
    metrics = run / "metrics.jsonl"
    kept = metrics.read_bytes().splitlines(keepends=True)[:3]
    metrics.write_bytes(b"".join(kept)[:-5])
    run_training(training_config(), run, resume=True)
    lines = metrics.read_bytes().splitlines(keepends=True)
    assert lines[:2] == kept[:2] and all(json.loads(line) for line in lines)


@pytest.mark.parametrize("step", [4, 22])
def test_a_loaded_model_is_not_needed_any_more(step: int, training_config: MakeConfig, tmp_path: Path) -> None:
    first = run_training(training_config(num_epochs=1), tmp_path / "first").run_dir
    config = training_config(load_model_path=str(first))
    whole = run_training(config, tmp_path / "whole").run_dir
    run = killed(config, tmp_path / "run", step)
    shutil.rmtree(first)
    run_training(config, run, resume=True)
    assert weights(run) == weights(whole)


def test_a_model_that_was_taken_as_it_was_stays(training_config: MakeConfig, tmp_path: Path) -> None:
    """Its decoder would be one of other weights, if the model were loaded again from where another one is by now."""
    first = run_training(training_config(num_epochs=1), tmp_path / "first").run_dir
    config = training_config(load_model_path=str(first), training_options={"skip_jepa_training_if_loaded": True})
    run = run_training(config, tmp_path / "run").run_dir
    before = weights(run)
    shutil.rmtree(first)
    run_training(training_config(num_epochs=2), first)
    run_training(config, run, resume=True)
    assert weights(run) == before


def test_a_finished_run_needs_no_resume_states(training_config: MakeConfig, tmp_path: Path) -> None:
    run = run_training(training_config(num_epochs=1), tmp_path / "run").run_dir
    before = weights(run)
    shutil.rmtree(run / "resume")
    run_training(training_config(num_epochs=1), run, resume=True)
    assert weights(run) == before
    train_decoder_of_run(run)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"early_stopping": {"checkpoint_path_jepa": "last_jepa.safetensors"}}, "checkpoint_path_jepa"),
        ({"jepa_decoder_training": {"checkpoint_path": "Last_jepa.safetensors"}}, "checkpoint_path"),
        ({"jepa_decoder_training": {"checkpoint_path": "best_jepa.safetensors"}}, "checkpoint_path"),
        ({"jepa_decoder_training": {"validation_plot_dir": "evaluation"}}, "validation_plot_dir"),
        ({"jepa_decoder_training": {"validation_plot_dir": "Run.json"}}, "validation_plot_dir"),
    ],
)
def test_two_things_of_one_name(changes: dict[str, Any], key: str, training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(**changes)
    with pytest.raises(ConfigError, match=key):
        run_training(config, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(ConfigError, match=key):
        describe_config(config)


def test_a_package_on_the_path_that_is_not_installed(
    training_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", no_version)
    result = run_training(training_config(num_epochs=1, jepa_decoder_training={"enabled": False}), tmp_path / "run")
    assert result.summary["versions"]["torch"] == "unknown" != result.summary["versions"]["jepaworld"]
