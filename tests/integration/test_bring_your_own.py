"""The page about environments from outside: its files are written and its commands run as they stand."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from jepaworld.report import write_report
from tests.integration.conftest import Command, empty_report
from tests.integration.test_documented_commands import ROOT, blocks, commands

PAGE = "docs/bring_your_own.md"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files, which are the blocks after `Save this as`; afterwards forgotten."""
    monkeypatch.chdir(tmp_path)
    found = re.findall(r"^Save this as `([\w.]+)`.*?^```\w+\n(.*?)^```", (ROOT / PAGE).read_text(), re.DOTALL | re.M)
    assert [name for name, _ in found] == ["my_env.py", "my_env.yaml"]
    for name, text in found:
        Path(name).write_text(text)
    yield tmp_path
    sys.modules.pop("my_env", None)
    gymnasium.registry.pop("my/Ferry-v0", None)


def test_the_page_is_executed_from_the_environment_to_its_evaluation(
    jepaworld: Command, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = commands(PAGE)
    assert [words[0] for words in wanted] == ["check-env", "collect", "inspect", "train", "evaluate", "evaluate"]
    planning = files / "runs" / "ferry" / "evaluation" / "planning.json"
    protocols = []
    for number, words in enumerate(wanted):
        # Reports take longer than all else; the first evaluation writes one in earnest.
        monkeypatch.setattr("jepaworld.report.write_report", write_report if number == 4 else empty_report)
        outcome = jepaworld(*words)
        assert outcome.code == 0, (words, outcome.err)
        if words[0] == "check-env":
            assert "goals=environment (goal_image()), goals=recorded with starts set by" in outcome.out
            assert "warn  determinism" not in outcome.out
        if words[0] == "evaluate":
            content = json.loads(planning.read_text())
            protocols.append((content["goals"], content["num_episodes"], content["agents"][2]["missing"] is None))
            for shown in ("goals reached", "planner", "random policy", content["protocol"]):
                assert shown in " ".join(outcome.out.split())
    assert protocols == [("environment", 20, False), ("recorded", 20, True)]
    assert (files / "ferry.png").is_file()
    assert "data:image/webp" in (files / "runs" / "ferry" / "report.html").read_text()
    manifest = json.loads((files / "datasets" / "ferry" / "dataset.json").read_text())
    assert manifest["environment_name"] == "my_env:my/Ferry-v0"


def test_a_wrapper_makes_an_environment_of_others_restorable() -> None:
    pytest.importorskip("pygame")
    from jepaworld.envs.conformance import check_env

    try:
        exec(blocks(PAGE, ("python",))[1], {})
        report = check_env("my/CartPole-v0")
    finally:
        gymnasium.registry.pop("my/CartPole-v0", None)
    findings = {finding.name: finding for finding in report.findings}
    assert report.usable
    assert findings["restore"].level == "ok", str(report)
    assert "set by restore_state() or replayed" in findings["planning"].text
