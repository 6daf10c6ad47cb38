"""What 0.1.0 wrote can still be read, evaluated, reported and resumed.

`files.zip` was made by 0.1.0 from one configuration, mode default with every loss on dynamics (then `plannable`):
`dataset`, the finished run `run`, and the run `interrupted` that was stopped in the second epoch of its JEPA.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from jepaworld import run_training
from jepaworld.data.store import EpisodeDataset
from jepaworld.evaluation_engine import evaluate_run
from jepaworld.models import checkpoints, load, load_decoder
from jepaworld.report import write_report
from jepaworld.runs.folder import RunFolder
from jepaworld.runs.metrics import read_records


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy that knows where its dataset is, as if it had been made here."""
    with zipfile.ZipFile(Path(__file__).with_name("files.zip")) as files:
        files.extractall(tmp_path)
    for name in ("run", "interrupted"):
        record = tmp_path / name / "run.json"
        record.write_text(record.read_text().replace('"path": "dataset"', f'"path": "{tmp_path / "dataset"}"'))
    return tmp_path


def test_a_dataset_is_whole(old: Path) -> None:
    dataset = EpisodeDataset.open(old / "dataset", verify_checksums=True)
    assert (len(dataset.episode_lengths), dataset.num_frames) == (12, 156)
    assert dataset.episode(0).frames.shape == (13, 3, 16, 16)
    # The run names it by its fingerprint.
    assert RunFolder.open(old / "run").open_dataset() is not None


def test_models_of_a_run(old: Path) -> None:
    model = load(old / "run")
    frames = torch.randint(256, (1, 1, 3, 16, 16), dtype=torch.uint8)
    painted = load_decoder(old / "run")(model.encode(frames)[0])
    assert painted.shape == (1, 3, 16, 16) and bool(painted.isfinite().all())
    weights = checkpoints.load(old / "run", "jepa").weights
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("seed", "heldout"), [(0, [4, 5, 11]), (5, [2, 3, 4])])
def test_a_run_keeps_the_split_that_it_was_trained_with(seed: int, heldout: list[int], old: Path) -> None:
    """0.1.0 split by the seed of the training, whatever the seed of the dataset."""
    config = old / "run" / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 0\n", f"\nseed: {seed}\n"))
    run = RunFolder.open(old / "run")
    assert run.config.seed == seed
    dataset = run.open_dataset()
    assert dataset is not None and run.split(dataset).evaluation.tolist() == heldout


def test_a_run_is_evaluated_and_reported(old: Path) -> None:
    before = json.loads((old / "run" / "evaluation" / "planning.json").read_text())
    write_report(old / "run", device="cpu")
    report = json.loads((old / "run" / "report.json").read_text())
    assert report["planning"]["created"] == before["created"], "the results that 0.1.0 measured"
    assert report["reconstruction"]["num_frames"] > 0
    after = evaluate_run(old / "run")
    assert after.checkpoint_sha256 == before["checkpoint_sha256"]
    assert after.num_episodes == before["num_episodes"] == 4


def test_an_interrupted_run_ends_as_if_it_had_not_been(old: Path) -> None:
    config = RunFolder.open(old / "interrupted").config
    assert config.dynamics_losses.rollout_weight == 1.0
    assert run_training(config, old / "interrupted", resume=True).summary["status"] == "complete"
    resumed, whole = (read_records(old / name / "metrics.jsonl") for name in ("interrupted", "run"))
    assert [(r["kind"], r["phase"], r["step"]) for r in resumed] == [(r["kind"], r["phase"], r["step"]) for r in whole]
    for one, other in zip(resumed, whole, strict=True):
        for name in other:
            if "loss" in name or name == "learning_rate":
                # To the digit on the machine that made them; other processors round differently.
                assert one[name] == pytest.approx(other[name], rel=1e-4), (one["phase"], one["step"], name)
    assert RunFolder.open(old / "interrupted").info["dataset"]["split_seed"] == 0
