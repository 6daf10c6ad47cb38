"""Held out means held out.

Corrupting every evaluation episode changes no weight, no chosen epoch, no decoder. Corrupting every validation episode
changes no weight of any epoch. Corrupting every episode that was trained on changes no task. All of it is seen from
outside, in the files of a dataset and of a run, whatever the code in between is called.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepaworld import run_training
from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.evaluation_engine import evaluate_run
from jepaworld.report import write_report
from jepaworld.runs.folder import RunFolder

MakeConfig = Callable[..., Config]
Split = dict[str, list[int]]


def corrupt(data: Path, episodes: list[int]) -> None:
    """Replace frames, actions and states of some episodes by noise; nothing in the folder tells that."""
    rng = np.random.default_rng(1)
    first = 0
    for shard in sorted(data.glob("shard-*")):
        lengths = np.array(json.loads((shard / "shard.json").read_text())["episode_lengths"])
        starts = np.cumsum(lengths + 1) - (lengths + 1)
        for file in ("frames", "actions", "state.state", "state.goal", "state.wall"):
            rows = np.load(shard / f"{file}.npy", mmap_mode="r+")
            for episode in set(episodes) & set(range(first, first + len(lengths))):
                noisy = rows[starts[episode - first] : starts[episode - first] + lengths[episode - first] + 1]
                noisy[:] = rng.integers(256, size=noisy.shape) if file == "frames" else rng.uniform(-1, 1, noisy.shape)
            rows.flush()
        first += len(lengths)


@pytest.fixture(scope="module")
def home(tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset `data`; not to be changed."""
    home = tmp_path_factory.mktemp("clean")
    collect(tiny_config(dataset_dir=str(home / "data")))
    return home


@pytest.fixture(scope="module")
def train(home: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`train("evaluation", seed=1)`: a run on a copy of the data in which all episodes of these parts are noise."""
    done: dict[str, Path] = {}

    def make(*parts: str, **changes: Any) -> Path:
        name = f"{parts} {changes}"
        if name not in done:
            folder = tmp_path_factory.mktemp("home")
            shutil.copytree(home / "data", folder / "data")
            if parts:
                split = split_of(make(**changes))
                corrupt(folder / "data", [episode for part in parts for episode in split[part]])
            settings: dict[str, Any] = {
                # Relative, so that the configurations in the checkpoints are equal.
                "load_dataset_path": "data",
                "verify_checksums": False,
                "num_transitions": 3,
                "num_epochs": 3,
                # Running statistics would take up frames that are only looked at, if that were done in training mode.
                "encoder_params": {"cnn": {"norm": "batch"}},
                "dynamics_losses": {"inverse_dynamics_weight": 0.1, "rollout_weight": 0.1, "rollout_steps": 2},
                "jepa_decoder_training": {"num_epochs": 2},
            }
            with contextlib.chdir(folder):
                run_training(tiny_config(**(settings | changes)), "run")
            done[name] = folder / "run"
        return done[name]

    return make


def split_of(run: Path) -> Split:
    """Episodes by part, as the run itself says it."""
    folder = RunFolder.open(run)
    dataset = folder.open_dataset()
    assert dataset is not None
    return {name: episodes.tolist() for name, episodes in folder.split(dataset)._asdict().items()}


def metrics(run: Path, *prefixes: str) -> list[dict[str, Any]]:
    """Every record without times; of certain prefixes only, if there are any."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in record.items() if "second" not in name and name.startswith(prefixes or "")}
        for record in records
    ]


def files(run: Path, *patterns: str) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for pattern in patterns for path in sorted(run.glob(pattern))}
    assert found
    return found


def chosen(run: Path) -> dict[str, Any]:
    phases = json.loads((run / "run.json").read_text())["phases"]
    return {name: phase | {"seconds": None} for name, phase in phases.items()}


def test_the_parts_share_no_episode(train: Callable[..., Path]) -> None:
    split = split_of(train())
    assert sorted(episode for part in split.values() for episode in part) == list(range(12))
    assert {name: len(part) for name, part in split.items()} == {"train": 6, "validation": 3, "evaluation": 3}


@pytest.mark.parametrize(
    "changes",
    [{}, {"early_stopping": {"patience": 1, "delta": 10.0}, "jepa_decoder_training": {"num_epochs": 1}}, {"seed": 1}],
    ids=["to the end", "stopped early", "another seed of training"],
)
def test_corrupting_evaluation_episodes_changes_nothing(changes: dict[str, Any], train: Callable[..., Path]) -> None:
    clean, corrupted = train(**changes), train("evaluation", **changes)
    assert files(corrupted, "checkpoints/*") == files(clean, "checkpoints/*")
    assert metrics(corrupted) == metrics(clean)
    assert chosen(corrupted) == chosen(clean)
    assert files(corrupted, "validation_plots/*") == files(clean, "validation_plots/*")


def test_corrupting_validation_episodes_changes_no_weight(train: Callable[..., Path]) -> None:
    latest = {"early_stopping": {"metric_jepa": "latest"}}  # so that the decoder is one of the same JEPA
    clean, corrupted = train(**latest), train("validation", **latest)
    weights = "checkpoints/*jepa.safetensors", "checkpoints/last_*"
    assert files(corrupted, *weights) == files(clean, *weights)
    assert metrics(corrupted, "train_", "epoch", "phase") == metrics(clean, "train_", "epoch", "phase")
    # And it is the validation episodes that early stopping, the decoder's too, and the collapse watch look at.
    epochs = [
        [record for record in metrics(run) if record["kind"] == "epoch" and record["phase"] == phase]
        for phase in ("jepa", "decoder")
        for run in (clean, corrupted)
    ]
    for name in ("val_loss_jepa", "collapse/std_mean"):
        assert all(a[name] != b[name] for a, b in zip(epochs[0], epochs[1], strict=True))
    assert all(a["val_loss_jepa_decoder"] != b["val_loss_jepa_decoder"] for a, b in zip(*epochs[2:], strict=True))
    assert files(corrupted, "validation_plots/*") != files(clean, "validation_plots/*")


def test_the_best_epoch_is_the_one_with_the_lowest_validation_loss(train: Callable[..., Path]) -> None:
    for parts in ((), ("validation",)):
        run = train(*parts, jepa_decoder_training={"num_epochs": 3})
        for phase, name in (("jepa", "val_loss_jepa"), ("decoder", "val_loss_jepa_decoder")):
            losses = [r[name] for r in metrics(run) if (r["kind"], r["phase"]) == ("epoch", phase)]
            assert chosen(run)[phase]["best_epoch"] == 1 + losses.index(min(losses))
            assert chosen(run)[phase]["best"] == min(losses)


def test_every_training_episode_is_trained_on(train: Callable[..., Path]) -> None:
    clean = train()
    split = split_of(clean)
    assert files(train("train"), "checkpoints/last_*") != files(clean, "checkpoints/last_*")
    dataset = RunFolder.open(clean).open_dataset()
    assert dataset is not None
    windows = sum(int(dataset.episode_lengths[episode]) - 3 + 1 for episode in split["train"])
    steps = [r["step"] for r in metrics(clean) if (r["kind"], r["phase"]) == ("epoch", "jepa")]
    assert steps[0] == windows // 8


def test_training_seeds_share_what_is_held_out(train: Callable[..., Path]) -> None:
    one, other = train(), train(seed=1)
    assert split_of(one) == split_of(other)
    assert files(one, "checkpoints/last_*") != files(other, "checkpoints/last_*")


@pytest.fixture(scope="module")
def evaluated(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`evaluated("train")`: the clean run, evaluated and reported on data in which these parts are noise."""
    clean = train()

    def make(*parts: str) -> Path:
        folder = tmp_path_factory.mktemp("evaluated")
        shutil.copytree(clean.parent, folder, dirs_exist_ok=True)
        record = folder / "run" / "run.json"
        record.write_text(record.read_text().replace(str(clean.parent / "data"), str(folder / "data")))
        corrupt(folder / "data", [episode for part in parts for episode in split_of(clean)[part]])
        assert RunFolder.open(folder / "run").dataset_path == folder / "data"
        evaluation = ("goals=recorded", "num_episodes=6", "max_steps=6", "num_envs=3", "goal_steps=3")
        planning = ("horizon=3", "num_samples=8", "num_iterations=2", "num_elites=3")
        overrides = [f"evaluation.{entry}" for entry in evaluation] + [f"planning.{entry}" for entry in planning]
        evaluate_run(folder / "run", overrides)
        write_report(folder / "run", device="cpu")
        return folder / "run"

    return make


def test_corrupting_what_was_trained_on_changes_no_task_and_no_measure(evaluated: Callable[..., Path]) -> None:
    clean, corrupted = evaluated(), evaluated("train", "validation")
    first, second = (json.loads((run / "evaluation" / "planning.json").read_text()) for run in (clean, corrupted))
    assert first["goals"] == "recorded" and len(first["episodes"]) >= 6
    for key in ("episodes", "excluded_solved", "groups"):
        assert second[key] == first[key]
    # Frames, goals and imagined plans.
    assert files(corrupted, "evaluation/*.webp") == files(clean, "evaluation/*.webp")
    first, second = (json.loads((run / "report.json").read_text()) for run in (clean, corrupted))
    for key in ("collapse", "imagination", "reconstruction", "heldout"):
        assert first[key] is not None and second[key] == first[key], key
