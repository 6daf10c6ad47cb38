"""The table of `jepaworld evaluate`, from numbers that are known."""

from __future__ import annotations

from typing import Any

import pytest

from jepaworld.report.summary import WIDTH, summary


def rate(successes: int, episodes: int) -> dict[str, Any]:
    share = successes / episodes
    return {
        "successes": successes,
        "episodes": episodes,
        "rate": share,
        "low": max(share - 0.05, 0.0),
        "high": min(share + 0.025, 1.0),
    }


def agent(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "label": f"the {name}",
        "missing": None,
        "any": {"all": rate(98, 200), "room=same": rate(60, 100), "room=other": rate(38, 100)},
        "end": {"all": rate(80, 200), "room=same": rate(55, 100), "room=other": rate(25, 100)},
        "median_steps_to_success": None,
        "seconds_per_episode": 0.0213,
        "seconds_per_plan": None,
    } | changes


@pytest.fixture
def planning() -> dict[str, Any]:
    return {
        "protocol": "200 episodes of at most 200 environment steps: "
        + "as the environment draws them, " * 8
        + "seed 0",
        "groups": ["room=same", "room=other"],
        "agents": [
            agent("planner", median_steps_to_success=24.5, seconds_per_episode=1.234, seconds_per_plan=0.0123),
            agent("random"),
            agent("recorded", missing="nobody went there", any={}, end={}, seconds_per_episode=None),
        ],
    }


def probe(variable: str, r2: float | None, mlp: float | None) -> dict[str, Any]:
    return {
        "variable": variable,
        "r2": r2,
        "mlp": {"r2": mlp},
        "baselines_r2": {"untrained encoder": None if r2 is None else r2 / 2},
        "num_heldout_frames": 360,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    state = {
        "variable": "state",
        "probe": "mlp",
        "imagined": [1.0, 2.0, 3.0],
        "encoded": [0.5] * 3,
        "copied": [4.0, 5.0, 6.0],
    }
    return {
        "missing": [],
        "heldout": {"split": "evaluation", "episodes": 12},
        "collapse": {"collapsed": False, "effective_rank": 23.55, "std": [1.0] * 64, "std_mean": 0.5, "mean_cosine": 0},
        "probes": [probe("state[0]", 0.9876, 0.9912), probe("wall[0]", None, None)],
        "imagination": {
            "step": [1, 2, 3],
            "error": [0.1, 0.25, None],
            "copy_error": [0.5, 1.5, 2500.0],
            "states": [state],
        },
    }


def rows(text: str, title: str) -> list[list[str]]:
    """Cells of the lines from the one with this title to the next empty line, split at two blanks."""
    lines = text[text.index(title) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip().split("  ") if cell.strip()] for line in lines]


def test_success_beside_the_baselines(planning: dict[str, Any], report: dict[str, Any]) -> None:
    found = rows(summary(planning, report), "goals reached")
    assert found[:7] == [
        ["goals reached", "which", "at any time", "at the end", "episodes"],
        ["plans", "all", "49 % (44 to 51.5)", "40 % (35 to 42.5)", "200"],
        ["room=same", "60 % (55 to 62.5)", "55 % (50 to 57.5)", "100"],
        ["room=other", "38 % (33 to 40.5)", "25 % (20 to 27.5)", "100"],
        ["random policy", "all", "49 % (44 to 51.5)", "40 % (35 to 42.5)", "200"],
        ["room=same", "60 % (55 to 62.5)", "55 % (50 to 57.5)", "100"],
        ["room=other", "38 % (33 to 40.5)", "25 % (20 to 27.5)", "100"],
    ]
    assert found[7:] == [
        ["in parentheses: Wilson's 95 % interval"],
        ["plans: the planner"],
        ["random policy: the random"],
        ["no recorded actions: nobody went there"],
    ]


def test_times(planning: dict[str, Any], report: dict[str, Any]) -> None:
    found = rows(summary(planning, report), "time           per episode")
    assert found[1:] == [["plans", "1.23 s", "12.30 ms", "24.5"], ["random policy", "21.30 ms", "-", "-"]]


def test_recorded_actions_have_rows_where_there_are_some(planning: dict[str, Any], report: dict[str, Any]) -> None:
    planning["agents"][2] = agent("recorded", any={"all": rate(6, 6)}, end={"all": rate(6, 6)})
    planning["groups"] = []
    text = summary(planning, report)
    assert rows(text, "goals reached")[3] == ["recorded actions", "all", "100 % (95 to 100)", "100 % (95 to 100)", "6"]
    assert "room=" not in text and "no recorded" not in text


def test_probes_without_those_of_constants(planning: dict[str, Any], report: dict[str, Any]) -> None:
    found = rows(summary(planning, report), "R2 of probes")
    assert found[:2] == [
        ["R2 of probes", "linear", "MLP", "linear, untrained encoder"],
        ["state[0]", "0.988", "0.991", "0.494"],
    ]
    said = " ".join(found[2] + found[3])
    assert said.startswith("on 360 frames of 12 evaluation episodes;") and said.endswith("nothing to read: wall[0]")
    report["probes"].pop()
    assert "constant" not in summary(planning, report)


def test_imagination_by_horizon(planning: dict[str, Any], report: dict[str, Any]) -> None:
    assert rows(summary(planning, report), "imagined steps")[:6] == [
        ["imagined steps", "1", "2", "3"],
        ["embedding error", "0.100", "0.250", "-"],
        ["if nothing moved", "0.500", "1.500", "2,500"],
        ["error of state, read by MLP", "1.000", "2.000", "3.000"],
        ["read from the real frame", "0.500", "0.500", "0.500"],
        ["if nothing moved", "4.000", "5.000", "6.000"],
    ]


@pytest.mark.parametrize("collapsed", [True, False])
def test_collapse(collapsed: bool, planning: dict[str, Any], report: dict[str, Any]) -> None:
    report["collapse"]["collapsed"] = collapsed
    said = "embedding: COLLAPSED; " if collapsed else "embedding: no collapse; "
    assert said + "effective rank 23.55 of 64" in summary(planning, report)


def test_what_was_not_measured_is_said(planning: dict[str, Any], report: dict[str, Any]) -> None:
    report |= {"collapse": None, "probes": [], "imagination": None, "missing": ["The dataset is missing.", "No more."]}
    text = summary(planning, report)
    assert text.endswith("not measured: The dataset is missing.\nnot measured: No more.")
    assert "embedding" not in text and "R2" not in text and "imagined" not in text


def test_lines_fit_the_terminal(planning: dict[str, Any], report: dict[str, Any]) -> None:
    path = "/a/path/that/is/" + "long/" * 30
    report["missing"] = [f"`jepaworld decode {path}` trains one"]
    text = summary(planning, report)
    assert all(len(line) <= WIDTH or path in line for line in text.splitlines())
    assert path in text, "a path can be copied from one line"
    assert planning["protocol"] in " ".join(text.split())
    assert not any(line.endswith(" ") for line in text.splitlines())
