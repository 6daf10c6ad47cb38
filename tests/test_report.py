"""The report of a small real run, whole and with parts missing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jepaworld.config import load_config, to_commented_yaml
from jepaworld.data.collect import collect
from jepaworld.errors import CheckpointError, DatasetError
from jepaworld.evaluation.imagination import ImaginationResult
from jepaworld.report import write_report
from jepaworld.report.headline import duration, number, useful_steps, with_interval
from jepaworld.report.run_folder import read_run
from jepaworld.training_engine import run_training

SECTIONS = ("imagination", "reconstructions", "state", "collapse", "training", "data", "run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset and a run of two short epochs."""
    folder = tmp_path_factory.mktemp("report")
    config = load_config(
        None,
        [
            "num_episodes_data_collection=12",
            "max_steps_per_episode_data_collection=12",
            "collection.num_workers=1",
            f"dataset_dir={folder / 'dataset'}",
            "evaluation_split=0.25",
            "num_epochs=2",
            "batch_size=16",
            "latent_dim=8",
            "encoder_type=mlp",
            "encoder_params.mlp.hidden_dim=16",
            "decoder_dim=8",
            "decoder_heads=2",
            "decoder_depth=1",
            "decoder_patch_size=32",
            "jepa_decoder_training.num_epochs=1",
            "jepa_decoder_training.batch_size=16",
            "device=cpu",
            "logging.tensorboard=false",
        ],
    )
    collect(config)
    run_training(config, folder / "run")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return shutil.copytree(trained / "run", tmp_path / "run")


def page_and_numbers(run: Path) -> tuple[str, dict]:
    path = write_report(run)
    assert path == run / "report.html"
    numbers = json.loads((run / "report.json").read_text(), parse_constant=pytest.fail)
    return path.read_text(encoding="utf-8"), numbers


def change_config(run: Path, *overrides: str) -> None:
    (run / "config.yaml").write_text(to_commented_yaml(load_config(run / "config.yaml", overrides)))


def test_page_has_all_sections_and_loads_nothing(run: Path) -> None:
    before = torch.get_rng_state()
    page, numbers = page_and_numbers(run)
    assert torch.equal(torch.get_rng_state(), before)
    for name in SECTIONS:
        assert f'<section id="{name}">' in page and f'href="#{name}"' in page
    assert not re.findall(r"https?:|<script|<link|@import|xmlns", page)
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources and all(s.startswith(("data:image/png;base64,", "#")) for s in sources)
    assert not re.findall(r"url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert "nan" not in re.sub(r'base64,[^"]*', "", page).lower().split()
    assert "has not finished" not in page
    assert numbers["finished"] and numbers["heldout"] == {"split": "evaluation", "episodes": 3}
    assert numbers["missing"] == []


def test_numbers_are_those_of_the_run(run: Path) -> None:
    page, numbers = page_and_numbers(run)
    variables = [probe["variable"] for probe in numbers["probes"]]
    assert {"state[0]", "state[1]", "wall[0]", "reward"} <= set(variables)
    probes = dict(zip(variables, numbers["probes"], strict=True))
    assert numbers["headline_probe"]["variable"] == "state"
    assert numbers["headline_probe"]["r2"] == pytest.approx((probes["state[0]"]["r2"] + probes["state[1]"]["r2"]) / 2)
    assert probes["wall[0]"]["r2"] is None and "not measurable" in page
    assert probes["state[0]"]["num_heldout_episodes"] == 3
    assert set(probes["state[0]"]["baselines_r2"]) == {"untrained encoder", "pixels"}
    assert numbers["imagination"]["step"] == list(range(1, 13))  # no longer than the episodes
    assert numbers["imagination"]["state"]["variable"] == "state"
    assert [epoch["epoch"] for epoch in numbers["epochs"]["jepa"]] == [1, 2]
    assert numbers["best_epoch"]["best"] is True
    assert len(numbers["collapse"]["std"]) == 8
    assert numbers["dataset"]["episodes"] == 12 and numbers["dataset"]["evaluation_episodes"] == 3
    assert page.count("Worst of") == 2 and page.count("Drawn by seed") == 2
    assert f"<code>{run}</code>" in page


def test_same_run_gives_the_same_page(run: Path) -> None:
    assert page_and_numbers(run) == page_and_numbers(run)


def test_unfinished_run_before_its_first_epoch(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").write_text('{"kind": "step", "phase": "jepa", "epoch": 1, "step": 1}\n{"kind": "ep')
    (run / "run.json").unlink()
    page, numbers = page_and_numbers(run)
    assert "has not finished" in page and "has not finished an epoch" in page
    assert not numbers["finished"] and numbers["collapse"] is None and numbers["dataset"]["episodes"] == 12
    assert all(f'<section id="{name}">' in page for name in SECTIONS)


def test_without_decoder_there_are_numbers_but_no_pictures(run: Path) -> None:
    change_config(run, "jepa_decoder_training.enabled=false")
    page, numbers = page_and_numbers(run)
    assert "There is no state decoder" in page and "<img" not in page
    assert numbers["reconstruction"] is None and numbers["imagination"]["error"][0] is not None


def test_without_evaluation_episodes_validation_is_used_and_named(run: Path) -> None:
    change_config(run, "evaluation_split=0.0")
    page, numbers = page_and_numbers(run)
    assert numbers["heldout"] == {"split": "validation", "episodes": 1}
    assert "may flatter the model" in page and "held-out (evaluation)" not in page
    assert "no interval" in page  # one episode


def test_without_the_dataset_the_curves_remain(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    info["dataset"]["path"] = str(run / "<gone>")
    (run / "run.json").write_text(json.dumps(info))
    page, numbers = page_and_numbers(run)
    assert f"The dataset {run}/&lt;gone&gt; is missing" in page and 'aria-label="JEPA loss"' in page
    assert numbers["dataset"] is None and numbers["probes"] == []


def test_another_dataset_is_refused(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    info["dataset"]["fingerprint"] = "0" * 64
    (run / "run.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=r"is not the dataset.*Restore"):
        write_report(run)


def test_collapsed_model_is_said_so(run: Path) -> None:
    import safetensors
    import safetensors.torch

    path = run / "checkpoints" / "best_jepa.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = {
        name: torch.zeros_like(w) if "encoder" in name else w for name, w in safetensors.torch.load_file(path).items()
    }
    safetensors.torch.save_file(weights, path, metadata)
    page, numbers = page_and_numbers(run)
    assert numbers["collapse"]["collapsed"] and "Collapsed embedding" in page and "Scale collapse" in page
    assert numbers["imagination"]["error"][0] is None and "No collapse" not in page


def test_user_text_is_escaped(run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    info["command"] = "<script>alert(1)</script>"
    (run / "run.json").write_text(json.dumps(info))
    page, _ = page_and_numbers(run)
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "there is no such run folder"),
        (lambda run: (run / "config.yaml").unlink(), "has no config.yaml"),
        (lambda run: (run / "config.yaml").write_text("nonsense: 1\n"), "does not fit this version"),
        (lambda run: (run / "run.json").write_text("{"), "run.json: damaged"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), "line 1"),
        (lambda run: (run / "checkpoints" / "best_jepa.safetensors").write_bytes(b"x"), "damaged"),
    ],
)
def test_damage_is_an_error_with_a_remedy(run: Path, spoil, message: str) -> None:
    spoil(run)
    with pytest.raises(CheckpointError, match=message):
        write_report(run)


def test_of_a_phase_trained_anew_only_the_last_training_counts(run: Path) -> None:
    lines = [
        {"kind": "epoch", "phase": "decoder", "epoch": e, "x": x} for e, x in [(1, 0), (2, 0), (3, 0), (1, 1), (2, 1)]
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(e["epoch"], e["x"]) for e in read_run(run).epochs["decoder"]] == [(1, 1), (2, 1)]


def result(error: list[float], high: list[float], copy: list[float]) -> ImaginationResult:
    nothing = np.zeros(0)
    arrays = [np.array(values) for values in (error, high, high, copy)]
    return ImaginationResult(*arrays, nothing, nothing, 1.0, nothing, nothing, nothing, nothing)


def test_useful_steps_end_where_a_baseline_is_as_good() -> None:
    assert useful_steps(result([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.5, 0.6, 0.7])) == 3
    assert useful_steps(result([0.1, 0.2, 0.3], [0.2, 0.7, 0.4], [0.5, 0.6, 0.7])) == 1
    assert useful_steps(result([0.8, 0.9], [0.9, 1.1], [2.0, 2.0])) == 1  # the mean embedding is at 1
    assert useful_steps(result([0.6, 0.1], [0.7, 0.2], [0.5, 0.6])) == 0
    assert useful_steps(result([0.1, 0.2], [np.nan, np.nan], [0.5, 0.6])) == 2


def test_numbers_are_written_for_people() -> None:
    found = [number(v) for v in (None, float("nan"), 0.0, 1.23456e-5, 0.98765, 12.3456, 1234.5)]
    assert found == ["n/a", "n/a", "0.000", "1.2e-05", "0.988", "12.35", "1,234"]
    assert with_interval(0.5, (0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert with_interval(0.5, None) == "0.500 (no interval: too few episodes)"
    assert [duration(s) for s in (1.23, 42, 600, 7200)] == ["1.2 s", "42 s", "10.0 min", "2.0 h"]
