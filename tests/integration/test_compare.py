"""`jepaworld compare` with real runs: a grid of two settings and two seeds, its page and table, and going on."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jepaworld.comparison.cell import run_cell
from jepaworld.config import Config, load_config, to_commented_yaml
from jepaworld.data.store import EpisodeDataset
from jepaworld.utils.progress import Progress
from tests.integration.conftest import SHORT_EVALUATION, Command, Outcome, process, refused, tree
from tests.integration.test_interrupts import interrupt

GRID = ("--vary", "auxiliary_loss.type=vicreg,none", "--seeds", 2, "--jobs", 2, "--out", "out")


@pytest.fixture(scope="module")
def compared(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The folder that the command was called in, and what it printed."""
    home = tmp_path_factory.mktemp("compared")
    (home / "tiny.yaml").write_text(to_commented_yaml(tiny_config(jepa_decoder_training={"enabled": False})))
    with process("compare", "tiny.yaml", *SHORT_EVALUATION, *GRID, cwd=home) as running:
        out, err = running.communicate(timeout=120)
    return home, Outcome(running.returncode, out, err)


def table(home: Path) -> list[dict[str, str]]:
    """The rows of the CSV file."""
    return list(csv.DictReader((home / "out" / "comparison.csv").read_text().splitlines()))


def test_a_grid_is_trained_and_evaluated(compared: tuple[Path, Outcome]) -> None:
    home, outcome = compared
    assert outcome.code == 0, outcome.err
    assert "vicreg" in outcome.out and "look at out/comparison.html" in outcome.err
    rows = table(home)
    assert [(row["auxiliary_loss.type"], row["seed"]) for row in rows] == [
        (loss, seed) for loss in ("vicreg", "none") for seed in ("0", "1", "all")
    ]
    for row in rows:
        assert 0.0 <= float(row["success_low"]) <= float(row["success"]) <= float(row["success_high"]) <= 1.0
        measured = ("effective_rank", "imagination_error", "minutes", "linear_r2_state", "mlp_r2_state", "parameters")
        assert all(row[name] for name in measured), row
    single = [float(row["success"]) for row in rows[:2]]
    assert float(rows[2]["success"]) == pytest.approx(sum(single) / 2)


def test_initialisation_alone_varies_between_seeds(compared: tuple[Path, Outcome]) -> None:
    home, _ = compared
    (data,) = (home / "out" / "datasets").iterdir()
    runs = [json.loads(file.read_text()) for file in (home / "out" / "runs").glob("*/run.json")]
    fingerprint = EpisodeDataset.open(data, verify_checksums=False).fingerprint
    assert [run["dataset"]["fingerprint"] for run in runs] == [fingerprint] * 4
    assert {run["dataset"]["split_seed"] for run in runs} == {0}
    assert sorted(run["seed"] for run in runs) == [0, 0, 1, 1]
    results = [json.loads(file.read_text()) for file in (home / "out" / "results").glob("*.json")]
    assert len({tuple(result["owners"]) for result in results}) == 1


def test_the_page_is_one_file_and_its_links_lead_somewhere(compared: tuple[Path, Outcome]) -> None:
    home, _ = compared
    page = (home / "out" / "comparison.html").read_text()
    assert "<script" not in page and "http" not in page and "vicreg" in page
    links = re.findall(r'href="([^"#]+)"', page)
    assert len(links) == 8 and all((home / "out" / link).is_file() for link in links)
    for row in table(home):
        assert f"{100 * float(row['success']):.1f}".removesuffix(".0") + " %" in page.replace("\N{NO-BREAK SPACE}", " ")


def test_a_finished_training_is_evaluated_and_not_trained_again(compared: tuple[Path, Outcome]) -> None:
    out = compared[0] / "out"
    result = next((out / "results").glob("*.json"))
    settings = out / "settings" / f"{result.stem}.yaml"
    (run,) = (run for run in (out / "runs").iterdir() if load_config(run / "config.yaml") == load_config(settings))
    before, known = tree(out / "runs"), json.loads(result.read_text())
    other = out.parent / "again.json"
    run_cell(settings, run, other, Progress())
    again, after = json.loads(other.read_text()), tree(out / "runs")
    assert again["reached"] == known["reached"] and again["parameters"] == known["parameters"]
    assert all(after[name] == before[name] for name in before if "/checkpoints" in name or "/metrics" in name)


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "mentioned"),
    [
        (["--vary", "latent_dims=4"], ["latent_dims", "latent_dim"]),
        (["--vary", "batch_size=1"], ["batch_size", "1", "at least 2"]),
        (["--vary", "batch_size="], ["batch_size", "empty"]),
        (["--vary", "batch_size=4,4"], ["batch_size=4", "same run"]),
        (["--vary", "image_size=16,32"], ["image_size", "--vary-data"]),
        (["--vary", "seed=1,2"], ["seed", "--seeds"]),
        (["device=cuda:9"], ["device", "cuda:9"]),
        (["environment_name=jepaworld/TwoRom-v0"], ["jepaworld/TwoRom-v0", "jepaworld/TwoRoom-v0"]),
        (["environment_kwargs={colour: red}"], ["environment_kwargs", "colour"]),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_written(
    arguments: list[str], mentioned: list[str], jepaworld: Command, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(config_file.parent)
    before = tree(config_file.parent)
    refused(jepaworld("compare", config_file, *arguments), *mentioned)
    assert tree(config_file.parent) == before


def test_runs_end_with_the_comparison_and_go_on_with_it(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    long = {"num_epochs": 100_000, "early_stopping": {"patience": 100_000}, "jepa_decoder_training": {"enabled": False}}
    (tmp_path / "long.yaml").write_text(to_commented_yaml(tiny_config(**long)))
    command = "compare", "long.yaml", "--seeds", "1"

    def the_run() -> Path:
        return next(iter((tmp_path / "comparisons" / "long" / "runs").glob("*")), tmp_path)

    def steps() -> int:
        file = the_run() / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return json.loads(lines[-2])["step"] if len(lines) > 1 else 0

    def status() -> str:
        return json.loads((the_run() / "run.json").read_text())["status"]

    killed = process(*command, cwd=tmp_path)
    while steps() < 30:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.02)
    killed.kill()  # its run is in a session of its own, and learns of it by the pipe
    killed.communicate()
    deadline = time.monotonic() + 30
    while status() != "interrupted":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = steps()
    err = interrupt(process(*command, cwd=tmp_path), lambda: steps() > before + 30)
    assert "jepaworld compare long.yaml --seeds 1" in err, "how to go on"
    assert status() == "interrupted" and (tmp_path / "comparisons" / "long" / "comparison.html").is_file()
