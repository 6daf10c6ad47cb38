"""A pixel baseline by the same commands as a JEPA: trained, decoded, planned with, reported, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jepaworld.report import write_report
from tests.integration.conftest import SHORT_EVALUATION, Command, empty_report, refused


@pytest.mark.parametrize("kind", ["encoder_decoder", "encoder_predictor_decoder"])
def test_a_pixel_baseline_goes_the_way_of_a_jepa(
    jepaworld: Command, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = tmp_path / "run"
    for arguments in (
        ["train", config_file, f"model_type={kind}", "num_epochs=1", "--run", run],
        ["decode", run, "decoder_dim=8"],
        ["evaluate", run, *SHORT_EVALUATION],
        ["report", run],
    ):
        # Reports take longer than all else; that of the standard one is written in earnest.
        in_earnest = arguments[0] == "report" and kind == "encoder_decoder"
        monkeypatch.setattr("jepaworld.report.write_report", write_report if in_earnest else empty_report)
        outcome = jepaworld(*arguments)
        assert outcome.code == 0, (arguments, outcome.err)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "val_prediction_loss" in next(line for line in lines if line["kind"] == "epoch")
    report = json.loads((run / "report.json").read_text())
    assert report["planning"]["agents"][0]["any"]["all"]["episodes"] == 6
    if kind == "encoder_decoder":
        assert report["description"].startswith("Encoder-decoder · CNN encoder, 8 dimensions")
        assert report["imagination"] is not None and report["reconstruction"] is not None and report["probes"]


@pytest.mark.usefixtures("unreported")
def test_a_half_trained_baseline_keeps_its_decoder(
    jepaworld: Command, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, overrides = tmp_path / "run", ["model_type=encoder_decoder", "jepa_decoder_training.enabled=false"]
    with monkeypatch.context() as patched:
        patched.setattr("jepaworld.training_loops.phase_loop._PhaseRunner._end_epoch", _interrupt)
        assert jepaworld("train", config_file, *overrides, "--run", run).code != 0
    changed = jepaworld("train", config_file, *overrides, "decoder_dim=8", "--run", run, "--resume")
    refused(changed, "decoder_dim")
    assert jepaworld("train", "--run", run, "--resume").code == 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
