"""The report of a small real run, whole and with parts missing."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jepaworld.config import load_config, to_commented_yaml
from jepaworld.data.collect import collect
from jepaworld.data.store import file_checksum
from jepaworld.errors import CheckpointError, DatasetError
from jepaworld.evaluation import state_probes
from jepaworld.evaluation.imagination import ImaginationResult
from jepaworld.evaluation.measure import Measurements
from jepaworld.evaluation.probes import MLPReading, ProbeResult
from jepaworld.evaluation.rates import Rate
from jepaworld.evaluation.results import read_planning
from jepaworld.report import write_report
from jepaworld.report.headline import Headline, duration, make_headline, number, percent, useful_steps, with_interval
from jepaworld.report.planning_section import planning_section
from jepaworld.runs.folder import RunFolder
from jepaworld.training_engine import run_training
from jepaworld.utils.pictures import save_animation

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
    assert numbers["missing"] == [
        f"How well this model plans has not been measured: `jepaworld evaluate {run}` does it."
    ]
    assert 'id="planning"' not in page and numbers["planning"] is None


def test_numbers_are_those_of_the_run(run: Path) -> None:
    page, numbers = page_and_numbers(run)
    variables = [probe["variable"] for probe in numbers["probes"]]
    assert {"state[0]", "state[1]", "wall[0]", "reward"} <= set(variables)
    probes = dict(zip(variables, numbers["probes"], strict=True))
    assert numbers["headline_probe"]["variable"] == "state"
    assert numbers["headline_probe"]["r2"] == pytest.approx((probes["state[0]"]["r2"] + probes["state[1]"]["r2"]) / 2)
    assert probes["wall[0]"]["r2"] is None and probes["wall[0]"]["mlp"]["r2"] is None
    assert re.search(r"constant in these frames: [^.]*wall\[0\], wall\[1\][,.]", page)
    assert probes["state[0]"]["num_heldout_episodes"] == 3
    assert set(probes["state[0]"]["baselines_r2"]) == {"untrained encoder", "pixels"}
    assert numbers["imagination"]["step"] == list(range(1, 13))  # no longer than the episodes
    by_mlp = [probes[f"state[{i}]"]["mlp"] for i in (0, 1)]
    assert numbers["headline_probe"]["mlp_r2"] == pytest.approx((by_mlp[0]["r2"] + by_mlp[1]["r2"]) / 2)
    assert set(by_mlp[0]["baselines_r2"]) == {"untrained encoder", "pixels"}
    assert f"An MLP reads it with R² {number(numbers['headline_probe']['mlp_r2'])} (" in page
    assert number(by_mlp[0]["r2"]) in page and number(by_mlp[0]["baselines_r2"]["pixels"]) in page
    assert not any(state["variable"] == "state" for state in numbers["imagination"]["states"])  # R² below 0.5
    assert [epoch["epoch"] for epoch in numbers["epochs"]["jepa"]] == [1, 2]
    assert numbers["best_epoch"]["best"] is True
    assert len(numbers["collapse"]["std"]) == 8
    assert numbers["dataset"]["episodes"] == 12 and numbers["dataset"]["evaluation_episodes"] == 3
    assert page.count("Worst of") == 2 and page.count("Drawn by seed") == 2
    assert f"<code>{run}</code>" in page


def test_states_are_followed_through_imagination(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_probes, "READABLE", -100.0)  # two epochs teach this model nothing
    page, numbers = page_and_numbers(run)
    first, *others = numbers["imagination"]["states"]
    assert first["variable"] == "state" and first["entries"] == [0, 1] and first["probe"] in ("linear", "mlp")
    assert len(first["imagined"]) == len(first["imagined_low_95"]) == 12 and "goal" in [s["variable"] for s in others]
    kind = {"linear": "linear probe", "mlp": "MLP"}[first["probe"]]
    assert f'aria-label="Error of state, read by the {kind}"' in page
    table = page[page.index("if nothing moved</th>") :].partition("</table>")[0]
    interval = (first["imagined_low_95"][11], first["imagined_high_95"][11])
    assert with_interval(first["imagined"][11], interval) in table and number(first["copied"][3]) in table
    (finding,) = [finding for finding in numbers["findings"] if finding.startswith("After 12 imagined steps `state`")]
    assert with_interval(first["imagined"][11], interval) in finding and number(first["encoded"][11]) in finding


def test_same_run_gives_the_same_page(run: Path) -> None:
    assert page_and_numbers(run) == page_and_numbers(run)


def test_unfinished_run_before_its_first_epoch(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").write_text('{"kind": "step", "phase": "jepa", "epoch": 1, "step": 1}\n{"kind": "ep')
    (run / "run.json").unlink()
    page, numbers = page_and_numbers(run)
    assert "has not finished" in page and "has not finished an epoch" in page and "jepaworld evaluate" not in page
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
        (lambda run: shutil.rmtree(run), "is no run folder"),
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
    assert [(e["epoch"], e["x"]) for e in RunFolder.open(run).epochs["decoder"]] == [(1, 1), (2, 1)]


def success(successes: int, episodes: int) -> dict:
    return Rate(successes, episodes).to_dict()


def planning_of(run: Path) -> dict:
    """A content of planning.json for this run's checkpoint."""
    planner = {
        "name": "planner", "label": "cem, 12 steps", "missing": None,
        "any": {"all": success(197, 200), "room=same": success(100, 100), "room=other": success(97, 100)},
        "end": {"all": success(195, 200), "room=same": success(99, 100), "room=other": success(96, 100)},
        "median_steps_to_success": 31.0, "seconds_per_episode": 0.412, "seconds_per_plan": 0.0537,
    }  # fmt: skip
    random = planner | {
        "name": "random", "label": "random actions", "any": {"all": success(24, 200)}, "end": {"all": success(6, 200)},
        "median_steps_to_success": None, "seconds_per_plan": None,
    }  # fmt: skip
    recorded = {"name": "recorded", "label": "recorded", "missing": "nobody <went> there", "any": {}, "end": {}}
    return {
        "schema": 1, "checkpoint_sha256": file_checksum(run / "checkpoints" / "best_jepa.safetensors"),
        "created": "2025-01-02T03:04:05+0000", "seed": 7, "environment": "E", "protocol": "Played <200> episodes",
        "goals": "environment", "num_episodes": 200, "max_steps": 150, "excluded_solved": 9,
        "groups": ["room=same", "room=other"], "agents": [planner, random, recorded], "planning": {},
        "evaluation": {}, "episodes": [{"agent": "planner", "task": 0}], "duration_seconds": 66.0,
        "videos": [
            {"file": "video_0.webp", "task": 0, "group": "room=same", "success": True, "caption": "first & <fine>"},
            {"file": "video_1.webp", "task": 9, "group": "room=other", "success": False, "caption": "the other"},
        ],
    }  # fmt: skip


def write_planning(run: Path, content: dict) -> None:
    (run / "evaluation").mkdir(exist_ok=True)
    (run / "evaluation" / "planning.json").write_text(json.dumps(content))


def test_planning_has_its_section_card_and_finding(run: Path) -> None:
    content = planning_of(run)
    write_planning(run, content)
    frames = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)
    save_animation(run / "evaluation" / "video_0.webp", [frames])
    page, numbers = page_and_numbers(run)
    assert numbers["missing"] == [] and 'href="#planning"' in page
    section = page[page.index('<section id="planning">') : page.index('<section id="imagination">')]
    for text in (
        "Played &lt;200&gt; episodes", "left out: 9", "seed 7", "98.5 % (95.7 to 99.5)", "97.5 % (94.3 to 98.9)",
        "100 % (96.3 to 100)", "96 % (90.2 to 98.4)", "12 % (8.2 to 17.2)", ">31<", ">0.412<", ">0.054<",
        "No recorded actions: nobody &lt;went&gt; there", "3 of 200 goals were not reached; failures shown here: 1",
        "reached</span> first &amp; &lt;fine&gt;", "not reached</span> the other", "video_1.webp is missing", "66 s",
        'aria-label="Goals reached, with 95 % intervals"', "room=other",
    ):  # fmt: skip
        assert text in section.replace("\N{NO-BREAK SPACE}", " "), text
    found = re.search(r"data:image/webp;base64,([^\"]+)", section)
    assert found and base64.b64decode(found[1]) == (run / "evaluation" / "video_0.webp").read_bytes()
    assert (
        "Plans reach 98.5 % (95.7 to 99.5) of 200 goals within 150 environment steps; a random policy 12 % "
        "(8.2 to 17.2). When the episode ends, plans are at 97.5 % (94.3 to 98.9)." in numbers["findings"]
    )
    assert (
        '<div class="value">98.5 %</div><div class="note">95 %: 95.7 to 99.5; random 12 %; at the end 97.5 %</div>'
        in page
    )
    assert "Plans beat a random policy" in page
    assert numbers["planning"]["agents"][0]["any"]["room=other"] == success(97, 100)
    assert numbers["planning"]["schema"] == 1 and "episodes" not in numbers["planning"]


def measured_with(run: Path, content: dict) -> Headline:
    write_planning(run, content)
    folder = RunFolder.open(run)
    planning, problem = read_planning(folder)
    assert problem is None
    return make_headline(folder, Measurements(planning=planning))


def test_a_verdict_on_planning_needs_intervals_apart(run: Path) -> None:
    content = planning_of(run)
    planner, random, recorded = content["agents"]
    planner["end"] = planner["any"]
    headline = measured_with(run, content)
    assert ("good", "Plans beat a random policy") in headline.badges and len(headline.findings) == 1
    assert "When the episode ends" not in headline.findings[0]
    random["any"]["all"] = success(193, 200)  # less, but not clearly
    assert ("warn", "Plans do not beat a random policy") in measured_with(run, content).badges
    recorded |= {"missing": None, "any": {"all": success(100, 200)}, "end": {"all": success(100, 200)}}
    headline = measured_with(run, content)
    assert ("warn", "Recorded actions miss their goals") in headline.badges
    assert "reach only 50 % (43.1 to 56.9) of the goals" in headline.findings[-1]
    recorded["any"]["all"] = success(196, 200)
    assert len(measured_with(run, content).findings) == 1
    random["missing"] = "none asked for"
    headline = measured_with(run, content)
    assert headline.findings == ["Plans reach 98.5 % (95.7 to 99.5) of 200 goals within 150 environment steps."]
    assert headline.cards[0].note == "95 %: 95.7 to 99.5"


def test_planning_without_failures_says_so(run: Path) -> None:
    content = planning_of(run)
    content["agents"][0]["any"]["all"] = success(200, 200)
    write_planning(run, content)
    planning, _ = read_planning(RunFolder.open(run))
    assert planning is not None and "there are no failures to show" in planning_section(planning)
    without_videos = planning.model_copy(update={"videos": []})
    assert "wrote no videos" in planning_section(without_videos)


def test_planning_of_another_checkpoint_is_not_shown(run: Path) -> None:
    content = planning_of(run) | {"checkpoint_sha256": "ab" * 32}
    write_planning(run, content)
    page, numbers = page_and_numbers(run)
    (problem,) = numbers["missing"]
    assert "about another model" in problem and "abababababab" in problem and f"jepaworld evaluate {run}" in problem
    assert (
        'id="planning"' not in page
        and "98.5 %" not in page.replace("\N{NO-BREAK SPACE}", " ")
        and numbers["planning"] is None
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content.update(schema=2), r"planning\.json: damaged, or written by another.*\(schema"),
        (lambda content: content["agents"][0]["any"]["all"].update(rate="many"), r"agents\.0\.any\.all\.rate"),
        (lambda content: content["videos"][0].update(file="../../secret.png"), r"videos\.0\.file"),
        (lambda content: content["agents"][1].update(any={}), r"agent 'random' has no success.*jepaworld evaluate"),
    ],
)
def test_damaged_planning_is_an_error_with_a_remedy(run: Path, spoil, message: str) -> None:
    content = planning_of(run)
    spoil(content)
    write_planning(run, content)
    with pytest.raises(CheckpointError, match=message):
        read_planning(RunFolder.open(run))


def reading(variable: str, r2: float, by_mlp: float, gain_low: float) -> ProbeResult:
    nothing = np.zeros(0)
    mlp = MLPReading(by_mlp, None, {}, by_mlp - r2, (gain_low, 1.0), nothing)
    return ProbeResult(variable, None, r2, None, {}, 1.0, 1, 1, 2, 1, nothing, nothing, nothing, mlp)


def test_what_only_an_mlp_reads_is_a_finding_where_it_matters(run: Path) -> None:
    cases = [
        reading("angle", 0.2, 0.9, 0.5),
        reading("small", 0.9, 0.94, 0.02),
        reading("unsure", 0.2, 0.9, -0.1),
        reading("nothing", -0.5, -0.01, 0.1),
    ]
    headline = make_headline(RunFolder.open(run), Measurements(probes=cases))
    assert [finding for finding in headline.findings if "MLP" in finding] == [
        "An MLP reads what a linear map reads less well or not at all: `angle` (R² 0.900 instead of 0.200)."
    ]
    cases = [reading(f"v{i}", 0.1, 0.5 + i / 20, 0.1) for i in range(6)]
    finding = make_headline(RunFolder.open(run), Measurements(probes=cases)).findings[0]
    assert finding.endswith("`v2` (R² 0.600 instead of 0.100) and 2 more.") and "`v1`" not in finding


def result(error: list[float], high: list[float], copy: list[float]) -> ImaginationResult:
    nothing = np.zeros(0)
    arrays = [np.array(values) for values in (error, high, high, copy)]
    return ImaginationResult(1, *arrays, nothing, nothing, 1.0, nothing, nothing, nothing, nothing)


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
    assert [percent(rate) for rate in (0.985, 0.12, 1.0, 0.0, 0.0177)] == ["98.5", "12", "100", "0", "1.8"]
    assert [duration(s) for s in (1.23, 42, 600, 7200)] == ["1.2 s", "42 s", "10.0 min", "2.0 h"]
