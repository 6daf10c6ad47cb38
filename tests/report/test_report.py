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
from jepaworld.errors import CheckpointError, DatasetError
from jepaworld.evaluation import probes
from jepaworld.evaluation.measure import Pictures
from jepaworld.evaluation.results import Imagination, MLPReading, Probe, Results, read_planning
from jepaworld.evaluation.scores import Rate
from jepaworld.report import write_report
from jepaworld.report.headline import add_headline
from jepaworld.report.page import render_page
from jepaworld.runs.folder import RunFolder
from jepaworld.training_engine import run_training
from jepaworld.utils.pictures import save_animation
from jepaworld.utils.storage import file_checksum
from jepaworld.utils.text import number, with_interval

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
    assert sources and all(s.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,", "#")) for s in sources)
    assert "url(" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert "nan" not in re.sub(r'base64,[^"]*', "", page).lower().split()
    assert "has not finished" not in page
    assert numbers["finished"] and numbers["heldout"] == {"split": "evaluation", "episodes": 3}
    assert len(numbers["missing"]) == 1 and f"jepaworld evaluate {run}" in numbers["missing"][0]
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
    monkeypatch.setattr(probes, "READABLE", -100.0)  # two epochs teach this model nothing
    page, numbers = page_and_numbers(run)
    first, *others = numbers["imagination"]["states"]
    assert first["variable"] == "state" and first["entries"] == [0, 1] and first["probe"] in ("linear", "mlp")
    assert len(first["imagined"]) == len(first["imagined_low_95"]) == 12 and "goal" in [s["variable"] for s in others]
    kind = {"linear": "linear probe", "mlp": "MLP"}[first["probe"]]
    assert f'alt="Error of state, read by the {kind}"' in page
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
    assert "There is no state decoder" in page and "data:image/png" not in page
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
    assert f"{run}/&lt;gone&gt;" in page and "is missing" in page and 'alt="JEPA loss"' in page
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
    return Rate.of([True] * successes + [False] * (episodes - successes)).model_dump()


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
        "evaluation": {}, "episodes":
        [{"agent": "planner", "task": 0, "any": True, "end": True}], "duration_seconds": 66.0,
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
        "100 % (96.3 to 100)", "96 % (90.2 to 98.4)", "12 % (8.2 to 17.2)", ">31<", ">0.412 s<", ">53.7 ms<",
        "No recorded actions: nobody &lt;went&gt; there", "3 of 200 goals were", "shown here: 1",
        "reached</span> first &amp; &lt;fine&gt;", "not reached</span> the other", "video_1.webp is missing", "66 s",
        'alt="Goals reached, with 95 % intervals"', "room=other",
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
        in page.replace("\N{NO-BREAK SPACE}", " ")
    )
    assert "Plans beat a random policy" in page
    assert numbers["planning"]["agents"][0]["any"]["room=other"] == success(97, 100)
    assert numbers["planning"]["schema"] == 1 and not numbers["planning"]["episodes"]


def test_rest_and_spread_are_on_the_page_where_they_were_measured(run: Path) -> None:
    content = planning_of(run)
    write_planning(run, content)
    assert "at rest" not in page_and_numbers(run)[0]
    planner, random, recorded = content["agents"]
    rest = {"all": success(150, 200), "room=same": success(90, 100), "room=other": success(60, 100)}
    spread = {"any": {"rates": [0.985, 0.97], "mean": 0.9775, "low": 0.95, "high": 0.99}}
    planner |= {"rest": rest, "spread": spread}
    write_planning(run, content | {"agents": [planner, random | {"rest": {"all": success(0, 200)}}, recorded]})
    page, numbers = page_and_numbers(run)
    section = page[page.index('<section id="planning">') :].replace("\N{NO-BREAK SPACE}", " ")
    assert "there at rest" in section and "75 % (68.6 to 80.5)" in section and "60 % (50.2 to 69.1)" in section
    assert any("rest" in finding and "75 % (68.6 to 80.5)" in finding for finding in numbers["findings"])
    assert any("98.5, 97 %, mean 97.8 % (95 to 99)" in finding for finding in numbers["findings"])


def headline_of(results: Results) -> Results:
    add_headline(results)
    return results


def measured_with(run: Path, content: dict) -> Results:
    write_planning(run, content)
    planning, problem = read_planning(RunFolder.open(run))
    assert problem is None
    return headline_of(Results(planning=planning))


def verdicts(results: Results) -> set[tuple[str, str]]:
    return {(badge.kind, badge.text) for badge in results.badges}


def test_a_verdict_on_planning_needs_intervals_apart(run: Path) -> None:
    content = planning_of(run)
    planner, random, recorded = content["agents"]
    planner["end"] = planner["any"]
    results = measured_with(run, content)
    assert ("good", "Plans beat a random policy") in verdicts(results) and len(results.findings) == 1
    assert "When the episode ends" not in results.findings[0]
    random["any"]["all"] = success(193, 200)  # less, but not clearly
    assert ("warn", "Plans do not beat a random policy") in verdicts(measured_with(run, content))
    recorded |= {"missing": None, "any": {"all": success(100, 200)}, "end": {"all": success(100, 200)}}
    results = measured_with(run, content)
    assert ("warn", "Recorded actions miss their goals") in verdicts(results)
    assert "50 % (43.1 to 56.9) of the goals" in results.findings[-1]
    recorded["any"]["all"] = success(196, 200)
    assert len(measured_with(run, content).findings) == 1
    random["missing"] = "none asked for"
    results = measured_with(run, content)
    assert len(results.findings) == 1 and "random" not in results.findings[0]
    assert results.cards[0].note == "95 %: 95.7 to 99.5"


def test_planning_without_failures_says_so(run: Path) -> None:
    content = planning_of(run)
    content["agents"][0]["any"]["all"] = success(200, 200)
    content["videos"] = content["videos"][:1]
    results = measured_with(run, content)
    assert "there are no failures to show" in render_page(results, Pictures())
    content["videos"] = []
    assert "wrote no videos" in render_page(measured_with(run, content), Pictures())


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


def reading(variable: str, r2: float, by_mlp: float, gain_low: float) -> Probe:
    mlp = MLPReading(r2=by_mlp, gain=by_mlp - r2, gain_interval_95=(gain_low, 1.0))
    return Probe(variable=variable, state=variable, r2=r2, mlp=mlp)


def test_what_only_an_mlp_reads_is_a_finding_where_it_matters() -> None:
    cases = [
        reading("angle", 0.2, 0.9, 0.5),
        reading("small", 0.9, 0.94, 0.02),
        reading("unsure", 0.2, 0.9, -0.1),
        reading("nothing", -0.5, -0.01, 0.1),
    ]
    (finding,) = headline_of(Results(probes=cases)).findings
    assert "`angle` (R² 0.900 instead of 0.200)" in finding
    assert not any(name in finding for name in ("small", "unsure", "nothing`"))
    cases = [reading(f"v{i}", 0.1, 0.5 + i / 20, 0.1) for i in range(6)]
    (finding,) = headline_of(Results(probes=cases)).findings
    assert finding.endswith("`v2` (R² 0.600 instead of 0.100) and 2 more.") and "`v1`" not in finding


USELESS = {("warn", "Imagination does not beat its baselines")}


def imagined(error: list[float], high: list[float], copy: list[float]) -> Imagination:
    return Imagination(
        context_frames=1,
        step=list(range(1, len(error) + 1)),
        error=error,
        error_low_95=high,
        error_high_95=high,
        copy_error=copy,
        num_windows=[9] * len(error),
        num_episodes=[3] * len(error),
        target_variance=1.0,
    )


def test_steps_are_useful_wherever_both_baselines_are_worse() -> None:
    assert imagined([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]).better_steps == [1, 2, 3]
    assert imagined([0.1, 0.2, 0.3], [0.2, 0.7, 0.4], [0.5, 0.6, 0.7]).better_steps == [1, 3]
    assert imagined([0.8, 0.9], [0.9, 1.1], [2.0, 2.0]).better_steps == [1]  # the mean embedding is at 1
    assert imagined([0.6, 0.1], [0.7, 0.2], [0.5, 0.6]).better_steps == [2]
    assert imagined([0.1, 0.2], [np.nan, np.nan], [0.5, 0.6]).better_steps == [1, 2]


def test_a_model_that_is_better_from_the_third_step_on_is_not_said_to_be_useless() -> None:
    copy = [0.05, 0.08, *(0.1 * step for step in range(3, 17))]
    error = [0.1 * 0.9 * step if step <= 9 else 1.5 for step in range(1, 17)]
    results = headline_of(Results(imagination=imagined(error, error, copy)))
    (finding,) = results.findings
    assert "at 7 of 16 steps (3 to 9)" in finding and not verdicts(results) & USELESS
    assert next(card for card in results.cards if "steps" in card.label).value == "7 of 16"
    useless = headline_of(Results(imagination=imagined([0.5], [0.5], [0.1])))
    assert USELESS & verdicts(useless) and "after 1 step " in useless.findings[0]
