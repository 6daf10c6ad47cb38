"""The table of `jepaworld evaluate`, from numbers that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from jepaworld.evaluation.results import (
    Heldout,
    Imagination,
    MLPReading,
    PlanningResults,
    Probe,
    Results,
    StateError,
)
from jepaworld.losses.collapse import CollapseDiagnostics
from jepaworld.report.summary import summary
from jepaworld.utils.text import WIDTH


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


PLANNING: dict[str, Any] = {
    "schema": 1,
    "checkpoint_sha256": "",
    "created": "",
    "seed": 0,
    "environment": "",
    "goals": "",
    "num_episodes": 200,
    "max_steps": 200,
    "excluded_solved": 0,
    "protocol": "200 episodes of at most 200 environment steps: " + "as the environment draws them, " * 8 + "seed 0",
    "groups": ["room=same", "room=other"],
    "agents": [
        agent("planner", median_steps_to_success=24.5, seconds_per_episode=1.234, seconds_per_plan=0.0123),
        agent("random"),
        agent("recorded", missing="nobody went there", any={}, end={}, seconds_per_episode=None),
    ],
}


def planning(**changes: Any) -> PlanningResults:
    return PlanningResults.model_validate(PLANNING | changes)


def probe(variable: str, r2: float | None, mlp: float | None) -> Probe:
    baselines: dict[str, float | None] = {"untrained encoder": None if r2 is None else r2 / 2}
    return Probe(
        variable=variable, state="state", r2=r2, mlp=MLPReading(r2=mlp), baselines_r2=baselines, num_heldout_frames=360
    )


@pytest.fixture
def results() -> Results:
    nothing = [math.nan] * 3
    state = StateError(
        variable="state", name="state", entries=[0], probe="mlp", imagined=[1.0, 2.0, 3.0], imagined_low_95=nothing,
        imagined_high_95=nothing, encoded=[0.5] * 3, copied=[4.0, 5.0, 6.0],
    )  # fmt: skip
    return Results(
        heldout=Heldout(split="evaluation", episodes=12),
        planning=planning(),
        collapse=CollapseDiagnostics(
            std=[1.0] * 64, std_mean=0.5, effective_rank=23.55, collapsed=False, reasons=(), num_samples=9
        ),
        probes=[probe("state[0]", 0.9876, 0.9912), probe("wall[0]", None, None)],
        imagination=Imagination(
            context_frames=1, step=[1, 2, 3], error=[0.1, 0.25, math.nan], error_low_95=nothing, error_high_95=nothing,
            copy_error=[0.5, 1.5, 2500.0], num_windows=[1] * 3, num_episodes=[1] * 3, target_variance=1.0,
            states=[state],
        ),
    )  # fmt: skip


def rows(text: str, title: str) -> list[list[str]]:
    """Cells of the lines from the one with this title to the next empty line, split at two blanks."""
    lines = text[text.index(title) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip().split("  ") if cell.strip()] for line in lines]


def test_success_beside_the_baselines(results: Results) -> None:
    found = rows(summary(results), "goals reached")
    assert found[:7] == [
        ["goals reached", "which", "at any time", "at the end", "episodes"],
        ["planner", "all", "49 % (44 to 51.5)", "40 % (35 to 42.5)", "200"],
        ["room=same", "60 % (55 to 62.5)", "55 % (50 to 57.5)", "100"],
        ["room=other", "38 % (33 to 40.5)", "25 % (20 to 27.5)", "100"],
        ["random policy", "all", "49 % (44 to 51.5)", "40 % (35 to 42.5)", "200"],
        ["room=same", "60 % (55 to 62.5)", "55 % (50 to 57.5)", "100"],
        ["room=other", "38 % (33 to 40.5)", "25 % (20 to 27.5)", "100"],
    ]
    assert found[8:] == [
        ["planner: the planner"],
        ["random policy: the random"],
        ["no recorded actions: nobody went there"],
    ]


def test_rest_and_the_spread_of_random_numbers_where_they_were_measured(results: Results) -> None:
    rest = {"all": rate(20, 200), "room=same": rate(15, 100), "room=other": rate(5, 100)}
    spread = {
        "any": {"rates": [0.49, 0.53], "mean": 0.51, "low": 0.44, "high": 0.58},
        "end": {"rates": [0.4, 0.38], "mean": 0.39, "low": 0.32, "high": 0.46},
    }
    results.planning = planning(agents=[agent("planner", rest=rest, spread=spread)])
    found = rows(summary(results), "goals reached")
    assert found[0] == ["goals reached", "which", "at any time", "at the end", "at rest", "episodes"]
    assert found[1][4:] == ["10 % (5 to 12.5)", "200"] and found[3][3:] == ["5 % (0 to 7.5)", "100"]
    said = " ".join(summary(results).split())
    assert "49, 53 %, mean 51 % (44 to 58); at the end 40, 38 %, mean 39 % (32 to 46)" in said


def test_the_rank_of_recorded_actions_where_it_was_measured(results: Results) -> None:
    rank = {"better_than": 0.934, "interval_95": [0.9, 0.96], "tasks": 200, "random": 100}
    assert "of random ones" not in summary(results)
    results.planning = planning(recorded_rank=rank)
    assert "nearer to the goal than 93.4 % (90 to 96) of random ones" in " ".join(summary(results).split())


def test_times(results: Results) -> None:
    found = rows(summary(results), "time           per episode")
    assert found[1:] == [["planner", "1.23 s", "12.3 ms", "24.5"], ["random policy", "21.3 ms", "n/a", "n/a"]]


def test_recorded_actions_have_rows_where_there_are_some(results: Results) -> None:
    recorded = agent("recorded", any={"all": rate(6, 6)}, end={"all": rate(6, 6)})
    results.planning = planning(agents=[*PLANNING["agents"][:2], recorded], groups=[])
    text = summary(results)
    assert rows(text, "goals reached")[3] == ["recorded actions", "all", "100 % (95 to 100)", "100 % (95 to 100)", "6"]
    assert "room=" not in text and "no recorded" not in text


def test_probes_without_those_of_constants(results: Results) -> None:
    found = rows(summary(results), "R2 of probes")
    assert found[:2] == [
        ["R2 of probes", "linear", "MLP", "linear, untrained encoder"],
        ["state[0]", "0.988", "0.991", "0.494"],
    ]
    said = " ".join(found[2] + found[3])
    assert said.startswith("on 360 frames of 12 evaluation episodes;") and said.endswith("wall[0]")
    results.probes.pop()
    assert "constant" not in summary(results)


def test_imagination_by_horizon(results: Results) -> None:
    assert rows(summary(results), "imagined steps")[:6] == [
        ["imagined steps", "1", "2", "3"],
        ["embedding error", "0.100", "0.250", "n/a"],
        ["if nothing moved", "0.500", "1.500", "2,500"],
        ["error of state, read by the MLP", "1.000", "2.000", "3.000"],
        ["read from the real frame", "0.500", "0.500", "0.500"],
        ["if nothing moved", "4.000", "5.000", "6.000"],
    ]


@pytest.mark.parametrize("collapsed", [True, False])
def test_the_verdict_on_collapse_is_the_one_of_the_page(collapsed: bool, results: Results) -> None:
    assert results.collapse is not None
    results.collapse = results.collapse.model_copy(update={"collapsed": collapsed, "reasons": ("It is flat.",)})
    assert ("It is flat." in summary(results)) == collapsed
    assert results.collapse.verdict in " ".join(summary(results).split())


def test_what_was_not_measured_is_said() -> None:
    text = summary(Results(planning=planning(), missing=["The dataset is missing.", "No more."]))
    assert text.endswith("not measured: The dataset is missing.\nnot measured: No more.")
    assert "embedding" not in text and "R2" not in text and "imagined" not in text


def test_lines_fit_the_terminal(results: Results) -> None:
    path = "/a/path/that/is/" + "long/" * 30
    results.missing = [f"`jepaworld decode {path}` trains one"]
    text = summary(results)
    assert all(len(line) <= WIDTH or path in line for line in text.splitlines())
    assert path in text, "a path can be copied from one line"
    assert PLANNING["protocol"] in " ".join(text.split())
    assert not any(line.endswith(" ") for line in text.splitlines())
