"""The page about components from outside: its files are written and its commands run as they stand."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jepaworld.config import Config, to_commented_yaml
from jepaworld.config import components as registry
from jepaworld.models import checkpoints
from tests.integration.conftest import Command, refused
from tests.integration.test_documented_commands import ROOT

PAGE = (ROOT / "docs" / "components.md").read_text()
COMMANDS = re.findall(r"^(JEPAWORLD_TRUST=1 )?jepaworld (.*)$", PAGE, re.M)
FILES = re.findall(r"Save this as `([\w.]+)`.*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.M)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: Callable[..., Config]) -> Iterator[Path]:
    """The page's files beside a small configuration; afterwards forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in FILES:
        assert len(text.splitlines()) < 60
        Path(name).write_text(text)
    config = tiny_config(
        num_transitions=2,
        dataset_dir="data",
        num_epochs=1,
        evaluation={"num_episodes": 4, "max_steps": 6, "num_envs": 2},
        planning={"horizon": 2, "num_samples": 6, "num_elites": 2, "num_iterations": 1},
    )
    Path("small.yaml").write_text(to_commented_yaml(config))
    yield tmp_path
    for name, _ in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)
    registry._trusted.clear()


@pytest.mark.parametrize("run", ["parts", "acting", "model"])
def test_a_stranger_is_trained_evaluated_and_reported(
    jepaworld: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    for trusted, line in [entry for entry in COMMANDS if f"runs/{run}" in entry[1]]:
        registry._trusted.clear()  # each command is a process of its own
        monkeypatch.setenv("JEPAWORLD_TRUST", "1" if trusted else "0")
        outcome = jepaworld(*line.split())
        assert outcome.code == 0, (line, outcome.err)
    report: dict[str, Any] = json.loads((folder / "runs" / run / "report.json").read_text())
    assert report["imagination"] is not None and report["reconstruction"] is not None
    assert report["planning"]["agents"][0]["any"]["all"]["episodes"] == 4


def test_a_model_from_outside_is_where_training_starts(jepaworld: Command, folder: Path) -> None:
    model = ["model_type=my_model:LinearWorld", "jepa_decoder_training.enabled=false"]
    assert jepaworld("train", "small.yaml", *model, "model_params.dim=4", "--run", "first").code == 0
    again = ["load_model_path=first", "training_options.skip_jepa_training_if_loaded=true"]
    assert jepaworld("train", "small.yaml", *model, *again, "model_params.dim=4", "--run", "second").code == 0
    weights = [checkpoints.load(folder / name, "jepa").weights for name in ("first", "second")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    refused(jepaworld("train", "small.yaml", *model, *again, "--run", "third"), "load_model_path", "model_params")


@pytest.mark.usefixtures("folder")
def test_nothing_that_a_run_names_is_imported_without_leave(jepaworld: Command) -> None:
    outcome = jepaworld(*COMMANDS[0][1].split())
    assert outcome.code == 0, outcome.err
    for line in ("report runs/parts", "decode runs/parts", "evaluate runs/parts", "train --run runs/parts --resume"):
        registry._trusted.clear()
        sys.modules.pop("my_parts", None)
        refused(jepaworld(*line.split()), "my_parts:PatchEncoder", "JEPAWORLD_TRUST")
        assert "my_parts" not in sys.modules, line


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("overrides", "mentioned"),
    [
        (["model_type=collections:OrderedDict"], "model_type is collections:OrderedDict"),
        (["model_type=torch.nn:Identity"], "lacks latent_shape"),
        (["planning.planner=os:system"], "planning.planner is os:system"),
        (["encoder_type=nowhere:Encoder"], "No module named 'nowhere'"),
        (["encoder_type=torch.nn:Identity"], "gives embeddings (3, 16, 16)"),
        (["encoder_type=my_parts:PatchEncoder", "encoder_params.custom.widht=3"], "encoder_params.custom.widht"),
        (["encoder_type=my_parts:PatchEncoder", "encoder_params.custom.width=0"], "encoder_params.custom.width"),
        (["jepa_model.predictor_type=my_parts:ShiftPredictor", "jepa_model.predictor_custom.x=1"], "argument 'x'"),
        (["jepa_model.predictor_type=torch.nn:Identity"], "lacks advance, context_length"),
    ],
)
def test_what_is_no_component_is_refused_with_a_reason(
    jepaworld: Command, overrides: list[str], mentioned: str
) -> None:
    refused(jepaworld("check", "small.yaml", *overrides), mentioned)
