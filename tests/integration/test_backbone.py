"""A frozen backbone by the commands: trained, resumed and planned with; refused before anything is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jepaworld.models import checkpoints
from tests.integration.conftest import SHORT_EVALUATION, Command, refused, tree
from tests.models.test_pretrained import write_backbone

pytest.importorskip("transformers")


@pytest.mark.usefixtures("unreported")
def test_a_run_with_a_backbone(
    jepaworld: Command, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = write_backbone(tmp_path / "backbone"), tmp_path / "run"
    overrides = ["encoder_type=pretrained", "jepa_decoder_training.enabled=false", "checkpoint_every_steps=1"]
    overrides += [f"encoder_params.pretrained={{name: {folder}, pool: patches}}"]
    with monkeypatch.context() as patched:
        patched.setattr("jepaworld.training_loops.phase_loop._PhaseRunner._end_epoch", _interrupt)
        assert jepaworld("train", config_file, *overrides, "--run", run).code != 0
    for arguments in ["train", "--run", run, "--resume"], ["evaluate", run, *SHORT_EVALUATION]:
        outcome = jepaworld(*arguments)
        assert outcome.code == 0, outcome.err
        assert "Loading weights" not in outcome.err
    assert not any("backbone" in name for name in checkpoints.load(run, "jepa").weights)


@pytest.mark.parametrize("missing", ["backbone", "extra", "width"])
def test_what_cannot_be_is_refused_before_anything_is_written(
    jepaworld: Command, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    folder = write_backbone(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    params = {
        "backbone": ("{name: ./nowhere}", ["encoder_params.pretrained.name", "./nowhere", "name its folder"]),
        "extra": (f"{{name: {folder}}}", ["encoder_type is pretrained", "jepaworld[pretrained]"]),
        "width": (f"{{name: {folder}, head: false}}", ["latent_dim is 8", "16", "encoder_params.pretrained.head"]),
    }[missing]
    if missing == "extra":
        monkeypatch.setitem(sys.modules, "transformers", None)
    before = tree(tmp_path)
    overrides = ["encoder_type=pretrained", f"encoder_params.pretrained={params[0]}", "dataset_dir=elsewhere"]
    for command in (["train", config_file, "--run", "run"], ["check", config_file]):
        refused(jepaworld(*command, *overrides), *params[1])
        assert tree(tmp_path) == before


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
