"""Runs: what they leave behind, early stopping, loading, resume, and what stops them."""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jepaworld import JEPA, load_config, run_training
from jepaworld.config import Config
from jepaworld.config.loading import parse_yaml
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import CheckpointError, ConfigError, DatasetError, NonFiniteLossError, StorageError
from jepaworld.losses import VICRegLoss, make_objective
from jepaworld.models import build, checkpoints, load_decoder
from jepaworld.runs.state import load_state
from jepaworld.training_engine import train_decoder_of_run
from jepaworld.training_loops import phase_loop
from jepaworld.utils.progress import Progress
from tests.training.conftest import weights

MakeConfig = Callable[..., Config]


def records(run: Path, kind: str = "epoch", phase: str = "jepa") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if (line["kind"], line["phase"]) == (kind, phase)]


class Recorder(Progress):
    """Keeps warnings and messages, and calls a function after each step."""

    def __init__(self, at_step: Callable[[int], object] = abs) -> None:
        self.warnings: list[str] = []
        self.messages: list[str] = []
        self.at_step = at_step
        self.steps = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        assert isinstance(note, str)
        self.steps += n
        self.at_step(self.steps)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Killed(BaseException):
    """Stands for the power going off: nothing of the library may handle it."""


def kill_at(step: int) -> Recorder:
    def at_step(done: int) -> None:
        if done == step:
            raise Killed

    return Recorder(at_step)


def test_a_run_leaves_everything_behind(training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(logging={"tensorboard": True})
    result = run_training(config, tmp_path / "run")
    assert result.run_dir == tmp_path / "run"
    assert result.summary["status"] == "complete"
    assert set(weights(result.run_dir)) == {
        "best_jepa.safetensors",
        "last_jepa.safetensors",
        "best_jepa_decoder.safetensors",
        "last_jepa_decoder.safetensors",
    }
    assert load_config(result.run_dir / "config.yaml") == config
    assert json.loads((result.run_dir / "run.json").read_text()) == result.summary
    epochs = records(result.run_dir)
    assert [record["epoch"] for record in epochs] == [1, 2]
    for name in ("train_loss_jepa", "val_loss_jepa", "val_auxiliary/std", "collapse/effective_rank"):
        assert all(math.isfinite(record[name]) for record in epochs)
    assert records(result.run_dir, "step")[-1]["step"] == epochs[-1]["step"]
    assert records(result.run_dir, "epoch", "decoder")[0]["val_loss_jepa_decoder"] > 0
    assert (result.run_dir / "validation_plots" / "epoch_001.png").stat().st_size > 0
    assert list((result.run_dir / "tensorboard" / "jepa").glob("events*"))


def test_total_is_the_weighted_sum(training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(auxiliary_loss={"weight": 0.37}, jepa_decoder_training={"enabled": False})
    run = run_training(config, tmp_path / "run").run_dir
    for record in records(run):
        for part in ("train", "val"):
            expected = record[f"{part}_prediction_loss"] + 0.37 * record[f"{part}_auxiliary_loss"]
            assert record[f"{part}_loss_jepa"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", ["default", "vjepa2", "none"])
@pytest.mark.parametrize("loss", ["vicreg", "barlow_twins", "dino", "none"])
def test_every_mode_trains_with_every_loss(mode: str, loss: str, training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(
        num_epochs=1, jepa_model={"target_encoder_mode": mode}, auxiliary_loss={"type": loss}, num_transitions=2
    )
    run = run_training(config, tmp_path / "run").run_dir
    assert math.isfinite(records(run)[0]["val_loss_jepa"])
    assert JEPA.from_pretrained(run).target_encoder_mode == mode


def test_early_stopping_counts_patience_from_the_best_epoch(
    training_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.0, 3.0, 2.95, 4.0, 1.0])
    original = phase_loop.train_validate_model_epoch

    def scripted(*args: Any, **kwargs: Any) -> dict[str, float]:
        means = original(*args, **kwargs)
        is_validation = len(args) < 6
        return means | {"loss_jepa": next(losses)} if is_validation else means

    monkeypatch.setattr(phase_loop, "train_validate_model_epoch", scripted)
    config = training_config(
        num_epochs=5, early_stopping={"patience": 2, "delta": 0.1}, jepa_decoder_training={"enabled": False}
    )
    result = run_training(config, tmp_path / "run")
    # 2.95 is no improvement of 3.0 by more than delta, so that epochs 3 and 4 exhaust the patience.
    assert [record["best"] for record in records(result.run_dir)] == [True, True, False, False]
    assert result.summary["phases"]["jepa"] | {"seconds": 0} == {
        "seconds": 0,
        "epochs": 4,
        "best_epoch": 2,
        "best": 3.0,
    }


def test_a_run_trains_the_inverse_dynamics_head(training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(
        num_epochs=1,
        num_transitions=2,
        dynamics_losses={"inverse_dynamics_weight": 1.0},
        jepa_decoder_training={"enabled": False},
    )
    run = run_training(config, tmp_path / "run").run_dir
    trained = load_state(run / "resume" / "jepa.safetensors")["objective"]
    space = checkpoints.load(run, "jepa").action_space
    torch.manual_seed(config.seed)
    fresh = make_objective(config, build(config, Spaces.of(config, space)), Spaces.of(config, space)).state_dict()
    head = [name for name in fresh if name.startswith("dynamics_losses.head.layers")]
    assert head and all(not torch.equal(trained[name], fresh[name]) for name in head)


def test_loading_a_model_that_was_trained_on_another_split_is_told(training_config: MakeConfig, tmp_path: Path) -> None:
    first = run_training(
        training_config(num_epochs=1, jepa_decoder_training={"enabled": False}), tmp_path / "a"
    ).run_dir
    for changes, told in (({}, False), ({"evaluation_split": 0.4}, True)):
        config = training_config(
            load_model_path=str(first), num_epochs=1, jepa_decoder_training={"enabled": False}, **changes
        )
        progress = Recorder()
        run_training(config, tmp_path / f"b{told}", progress=progress)
        assert any("has seen episodes" in text and "evaluation_split" in text for text in progress.warnings) is told


def test_latest_takes_the_last_epoch_whatever_the_losses_say(
    training_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0, 3.0])
    original = phase_loop.train_validate_model_epoch

    def scripted(*args: Any, **kwargs: Any) -> dict[str, float]:
        means = original(*args, **kwargs)
        return means | {"loss_jepa": next(losses)} if len(args) < 6 else means

    monkeypatch.setattr(phase_loop, "train_validate_model_epoch", scripted)
    config = training_config(
        num_epochs=3, early_stopping={"metric_jepa": "latest", "patience": 1}, jepa_decoder_training={"enabled": False}
    )
    result = run_training(config, tmp_path / "run")
    assert [record["val_loss_jepa"] for record in records(result.run_dir)] == [1.0, 2.0, 3.0]
    assert result.summary["phases"]["jepa"] | {"seconds": 0} == {
        "seconds": 0,
        "epochs": 3,
        "best_epoch": 3,
        "best": None,
    }
    files = weights(result.run_dir)
    assert files["best_jepa.safetensors"] == files["last_jepa.safetensors"]


def test_best_checkpoint_and_decoder_are_of_the_best_epoch(training_config: MakeConfig, tmp_path: Path) -> None:
    """With a large delta that is the first epoch, whatever follows."""
    changes: dict[str, Any] = {"learning_rate_schedule": "constant", "early_stopping": {"delta": 10.0, "patience": 2}}
    run = run_training(training_config(num_epochs=5, **changes), tmp_path / "run").run_dir
    first = run_training(training_config(num_epochs=1, **changes), tmp_path / "first").run_dir
    assert [record["best"] for record in records(run)] == [True, False, False]
    for kind in ("jepa", "jepa_decoder"):
        best, expected = (checkpoints.load(folder, kind).weights for folder in (run, first))
        assert all(torch.equal(value, expected[name]) for name, value in best.items())
    last = checkpoints.load(run / "checkpoints" / "last_jepa.safetensors", "jepa").weights
    best = checkpoints.load(run, "jepa").weights
    assert not all(torch.equal(value, best[name]) for name, value in last.items())


@pytest.mark.parametrize("location", ["device", "disk"])
@pytest.mark.parametrize("step", [1, 5, 9, 10, 14, 18, 21, 24])
def test_a_killed_run_goes_on_bit_for_bit(
    step: int, location: str, training_config: MakeConfig, tmp_path: Path
) -> None:
    config = training_config(
        num_epochs=2,
        checkpoint_every_steps=3,
        data_location=location,
        data_buffer_megabytes=1,
        jepa_model={"predictor_dropout_rate": 0.2},
        auxiliary_loss={"type": "dino"},
        logging={"log_every_steps": 4},
    )
    straight = Recorder()
    whole = run_training(config, tmp_path / "whole", progress=straight).run_dir
    assert step < straight.steps
    with pytest.raises(Killed):
        run_training(config, tmp_path / "killed", progress=kill_at(step))
    resumed = run_training(config, tmp_path / "killed", resume=True).run_dir
    assert weights(resumed) == weights(whole)

    def without_times(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [
            {k: v for k, v in line.items() if k not in ("seconds", "samples_per_second") and line["kind"] == "epoch"}
            for line in lines
        ]

    assert without_times(resumed) == without_times(whole)
    steps = [(line["phase"], line["step"]) for phase in ("jepa", "decoder") for line in records(resumed, "step", phase)]
    assert len(steps) == len(set(steps)), "a step is in the metrics once"


def test_resuming_a_finished_run_changes_nothing(training_config: MakeConfig, tmp_path: Path) -> None:
    run = run_training(training_config(), tmp_path / "run").run_dir
    before = weights(run), (run / "metrics.jsonl").read_bytes()
    run_training(training_config(), run, resume=True)
    assert (weights(run), (run / "metrics.jsonl").read_bytes()) == before


def test_resume_starts_a_run_that_has_not_begun(training_config: MakeConfig, tmp_path: Path) -> None:
    assert run_training(training_config(num_epochs=1), tmp_path / "run", resume=True).summary["status"] == "complete"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_step_and_is_resumable(
    number: signal.Signals, training_config: MakeConfig, tmp_path: Path
) -> None:
    config = training_config()
    whole = run_training(config, tmp_path / "whole").run_dir
    interrupt = Recorder(lambda step: signal.raise_signal(number) if step == 4 else None)
    with pytest.raises(KeyboardInterrupt):
        run_training(config, tmp_path / "run", progress=interrupt)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert interrupt.steps == 5, "the signal came at the end of step 4, so that step 5 was the last"
    assert weights(run_training(config, tmp_path / "run", resume=True).run_dir) == weights(whole)


def test_training_works_outside_the_main_thread(training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(num_epochs=1, jepa_decoder_training={"enabled": False})
    thread = threading.Thread(target=run_training, args=(config, tmp_path / "run"))
    thread.start()
    thread.join()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "complete"


def test_nan_stops_with_step_and_term_and_keeps_the_last_good_checkpoint(
    training_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = VICRegLoss.calculate_reg_terms
    calls = 0

    def poisoned(self: VICRegLoss, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        loss, terms = original(self, z)
        if self.training:
            calls += 1
        return (loss * math.nan if calls == 13 else loss), terms

    config = training_config(num_epochs=3, logging={"log_every_steps": 5}, jepa_decoder_training={"enabled": False})
    run_training(config.model_copy(update={"num_epochs": 1}), tmp_path / "good")
    monkeypatch.setattr(VICRegLoss, "calculate_reg_terms", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"step 13: auxiliary_loss is nan.*best_jepa.*epoch 1"):
        run_training(config, tmp_path / "run")
    weights_now = checkpoints.load(tmp_path / "run", "jepa").weights
    assert all(tensor.isfinite().all() for tensor in weights_now.values())
    state = load_state(tmp_path / "run" / "resume" / "jepa.safetensors")
    assert all(tensor.isfinite().all() for tensor in state["objective"].values())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(("loss", "collapses"), [("none", True), ("vicreg", False)])
def test_collapse_is_said_and_recorded(loss: str, collapses: bool, training_config: MakeConfig, tmp_path: Path) -> None:
    progress = Recorder()
    config = training_config(
        num_epochs=30,
        early_stopping={"patience": 30},
        learning_rate=1e-2,
        jepa_model={"target_encoder_mode": "none"},
        auxiliary_loss={"type": loss, "weight": 1.0},
        jepa_decoder_training={"enabled": False},
    )
    run = run_training(config, tmp_path / "run", progress=progress).run_dir
    warnings = sum("has collapsed" in warning for warning in progress.warnings)
    recoveries = sum("no longer collapsed" in message for message in progress.messages)
    assert records(run)[-1]["collapse/collapsed"] is collapses
    # A fresh encoder may be nearly constant at first; what counts is how the run ends.
    assert warnings - recoveries == collapses


def test_a_loaded_model_is_where_training_starts(training_config: MakeConfig, tmp_path: Path) -> None:
    first = run_training(training_config(), tmp_path / "first").run_dir
    config = training_config(load_model_path=str(first), training_options={"skip_jepa_training_if_loaded": True})
    second = run_training(config, tmp_path / "second").run_dir
    loaded, original = JEPA.from_pretrained(second).state_dict(), JEPA.from_pretrained(first).state_dict()
    assert all(torch.equal(loaded[name], original[name]) for name in original)
    assert not records(second), "the JEPA phase was skipped"
    assert records(second, "epoch", "decoder")
    # With a vanishing learning rate the weights after training are those that it started from.
    config = training_config(
        load_model_path=str(first / "checkpoints" / "best_jepa.safetensors"),
        learning_rate=1e-12,
        jepa_decoder_training={"enabled": False},
    )
    third = JEPA.from_pretrained(run_training(config, tmp_path / "third").run_dir).state_dict()
    trained = [name for name in original if not name.startswith("target_encoder")]  # which follows the online encoder
    assert all(torch.allclose(third[name], original[name], atol=1e-5) for name in trained)


def test_a_checkpoint_is_loaded_from_wherever_it_was_copied_to(
    training_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_training(training_config(), tmp_path / "first").run_dir
    monkeypatch.chdir(tmp_path)
    shutil.copy(first / "checkpoints" / "best_jepa.safetensors", "copied.safetensors")
    options = {"skip_jepa_training_if_loaded": True}
    progress = Recorder()
    config = training_config(load_model_path="copied.safetensors", training_options=options)
    second = run_training(config, tmp_path / "second", progress=progress).run_dir
    loaded, original = checkpoints.load(second, "jepa").weights, checkpoints.load(first, "jepa").weights
    assert all(torch.equal(loaded[name], original[name]) for name in original)
    assert not any("load_model_path" in warning for warning in progress.warnings)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latent_dim": 4}, "latent_dim"),
        ({"encoder_type": "mlp"}, "encoder_type"),
        ({"jepa_model": {"target_encoder_mode": "none"}}, "jepa_model.target_encoder_mode"),
        ({"jepa_model": {"predictor_hidden_dim": 4}}, "jepa_model.predictor_hidden_dim"),
    ],
)
def test_a_checkpoint_of_another_architecture(
    changes: dict[str, Any], named: str, training_config: MakeConfig, tmp_path: Path
) -> None:
    first = run_training(training_config(jepa_decoder_training={"enabled": False}), tmp_path / "first").run_dir
    with pytest.raises(CheckpointError, match=named):
        run_training(training_config(load_model_path=str(first), **changes), tmp_path / "second")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"environment_name": "Pendulum-v1"}, "environment_name"),
        ({"environment_kwargs": {"random_wall": True}}, "environment_kwargs"),
        ({"input_channels": 1}, "input_channels"),
        ({"frame_skipping": 2}, "frame_skipping"),
    ],
)
def test_a_dataset_of_another_environment(
    changes: dict[str, Any], named: str, training_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=f"{named} = .* but the configuration says"):
        run_training(training_config(**changes), tmp_path / "run")


def test_batches_that_cannot_be_filled(training_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="fewer than batch_size = 1000"):
        run_training(training_config(batch_size=1000), tmp_path / "one")
    with pytest.raises(DatasetError, match=r"fewer than jepa_decoder_training.batch_size = 1000"):
        run_training(training_config(jepa_decoder_training={"batch_size": 1000}), tmp_path / "two")


def test_run_folders_are_never_mixed_up(training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(num_epochs=1, jepa_decoder_training={"enabled": False})
    run = run_training(config, tmp_path / "run").run_dir
    with pytest.raises(ConfigError, match="already holds a run"):
        run_training(config, run)
    with pytest.raises(ConfigError, match=r"auxiliary_loss\.weight, batch_size: cannot change"):
        run_training(
            training_config(
                num_epochs=1, jepa_decoder_training={"enabled": False}, batch_size=4, auxiliary_loss={"weight": 2.0}
            ),
            run,
            resume=True,
        )
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        run_training(config, other)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        run_training(config, tmp_path / "file" / "run")


def test_resume_refuses_another_dataset(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(dataset_dir=str(tmp_path / "data"), num_epochs=1, jepa_decoder_training={"enabled": False})
    run_training(config, tmp_path / "run")
    manifest = tmp_path / "run" / "run.json"
    content = json.loads(manifest.read_text())
    content["dataset"]["fingerprint"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="is not the dataset"):
        run_training(config, tmp_path / "run", resume=True)


def test_a_missing_device_is_said(training_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="execution is graph"):  # before anything is collected
        run_training(training_config(device="cpu", execution="graph"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"device: 'cuda:99' is not there"):
        run_training(training_config(device="cuda:99"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_decoder_is_trained_on_frozen_embeddings(training_config: MakeConfig, tmp_path: Path) -> None:
    run = run_training(training_config(jepa_decoder_training={"num_epochs": 2}), tmp_path / "run").run_dir
    before = weights(run)
    saved = parse_yaml((run / "config.yaml").read_text(), "test")
    saved["jepa_decoder_training"] |= {"num_epochs": 3, "embedding_source": "target"}
    train_decoder_of_run(run, Config.model_validate(saved))
    after = weights(run)
    assert after["best_jepa.safetensors"] == before["best_jepa.safetensors"]
    assert after["best_jepa_decoder.safetensors"] != before["best_jepa_decoder.safetensors"]
    assert len(records(run, "epoch", "decoder")) == 3, "the records of the decoder that was replaced are gone"
    assert len(records(run)) == 2
    images = load_decoder(run)(torch.zeros(2, 8))
    assert images.shape == (2, 3, 16, 16)


def test_decode_refuses_to_change_the_jepa(training_config: MakeConfig, tmp_path: Path) -> None:
    run = run_training(
        training_config(num_epochs=1, jepa_decoder_training={"enabled": False}), tmp_path / "run"
    ).run_dir
    with pytest.raises(ConfigError, match="latent_dim: cannot change"):
        train_decoder_of_run(run, training_config(num_epochs=1, latent_dim=4, jepa_decoder_training={"enabled": False}))
    with pytest.raises(CheckpointError, match="is no run folder"):
        train_decoder_of_run(tmp_path)


def test_a_run_without_decoder(training_config: MakeConfig, tmp_path: Path) -> None:
    run = run_training(
        training_config(num_epochs=1, jepa_decoder_training={"enabled": False}), tmp_path / "run"
    ).run_dir
    assert not records(run, "epoch", "decoder")
    assert set(weights(run)) == {"best_jepa.safetensors", "last_jepa.safetensors"}
    # `decode` is asked for a decoder, whatever the run was told.
    train_decoder_of_run(run)
    assert load_config(run / "config.yaml").jepa_decoder_training.enabled
    assert load_decoder(run)(torch.zeros(1, 8)).shape == (1, 3, 16, 16)


def test_decode_refuses_decoder_settings_that_contradict_each_other(
    training_config: MakeConfig, tmp_path: Path
) -> None:
    config = training_config(num_epochs=1, decoder_patch_size=5, jepa_decoder_training={"enabled": False})
    run = run_training(config, tmp_path / "run").run_dir
    with pytest.raises(ConfigError, match="decoder_patch_size is 5"):
        train_decoder_of_run(run)


@pytest.mark.parametrize("source", ["online", "target"])
def test_the_decoder_reads_the_encoder_that_was_chosen(
    source: str, training_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[str] = set()
    for name in ("encode_online", "encode_target"):
        original = getattr(JEPA, name)

        def spy(self: JEPA, frames: Tensor, name: str = name, original: Any = original) -> Tensor:
            used.add(name)
            return original(self, frames)

        monkeypatch.setattr(JEPA, name, spy)
    run = run_training(
        training_config(num_epochs=1, jepa_decoder_training={"enabled": False}), tmp_path / "run"
    ).run_dir
    used.clear()
    settings = load_config(run / "config.yaml").to_dict()
    settings["jepa_decoder_training"]["embedding_source"] = source
    train_decoder_of_run(run, Config.model_validate(settings))
    assert used == {f"encode_{source}"}


def test_each_phase_has_the_learning_rate_that_it_sets(training_config: MakeConfig, tmp_path: Path) -> None:
    def rates(name: str, **changes: Any) -> tuple[float, float]:
        decoder = {"learning_rate": changes.pop("decoder", None), "num_epochs": 1}
        config = training_config(
            num_epochs=1,
            warmup_steps=0,
            learning_rate_schedule="constant",
            learning_rate=0.01,
            jepa_decoder_training=decoder,
            **changes,
        )
        run = run_training(config, tmp_path / name).run_dir
        jepa, decoder_rate = (records(run, "step", phase)[0]["learning_rate"] for phase in ("jepa", "decoder"))
        return jepa, decoder_rate

    assert rates("shared") == (0.01, 0.01)
    assert rates("own", learning_rate_jepa=0.02, decoder=0.03) == (0.02, 0.03)


def test_the_decoder_stops_early_by_its_own_settings(
    training_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_training(
        training_config(num_epochs=1, jepa_decoder_training={"enabled": False}), tmp_path / "run"
    ).run_dir
    losses = iter([5.0, 4.95, 4.9, 1.0])
    original = phase_loop.train_validate_model_epoch

    def scripted(*args: Any, **kwargs: Any) -> dict[str, float]:
        means = original(*args, **kwargs)
        is_training = len(args) >= 6
        return means | {"loss_jepa_decoder": next(losses)} if is_training else means

    monkeypatch.setattr(phase_loop, "train_validate_model_epoch", scripted)
    settings = load_config(run / "config.yaml").to_dict()
    settings["jepa_decoder_training"] |= {
        "num_epochs": 4,
        "checkpoint_path": "painter.safetensors",
        "validation_plot_dir": "paintings",
        "early_stopping": {"metric": "train_loss_jepa_decoder", "patience": 2, "delta": 0.2},
    }
    result = train_decoder_of_run(run, Config.model_validate(settings))
    assert [record["best"] for record in records(run, "epoch", "decoder")] == [True, False, False]
    assert result.summary["phases"]["decoder"]["best_epoch"] == 1
    assert (run / "checkpoints" / "painter.safetensors").exists()
    assert sorted(path.name for path in (run / "paintings").iterdir()) == [
        "epoch_001.png",
        "epoch_002.png",
        "epoch_003.png",
    ]


def test_a_start_that_failed_does_not_stand_in_the_way(training_config: MakeConfig, tmp_path: Path) -> None:
    for resume in (False, True):
        run = tmp_path / f"run_{resume}"
        with pytest.raises(DatasetError, match="fewer than batch_size"):
            run_training(training_config(batch_size=1000), run)
        assert run_training(training_config(num_epochs=1), run, resume=resume).summary["status"] == "complete"


def test_steps_per_epoch_limits_an_epoch(training_config: MakeConfig, tmp_path: Path) -> None:
    config = training_config(steps_per_epoch=3, jepa_decoder_training={"steps_per_epoch": 2})
    run = run_training(config, tmp_path / "run").run_dir
    assert [record["step"] for record in records(run)] == [3, 6]
    assert [record["step"] for record in records(run, "epoch", "decoder")] == [2]


def test_notices_reach_the_user(training_config: MakeConfig, tmp_path: Path) -> None:
    progress = Recorder()
    config = training_config(
        num_epochs=1,
        auxiliary_loss={"params": {"vicreg": {"sim_coeff": 1.0}}},
        jepa_decoder_training={"enabled": False},
    )
    run_training(config, tmp_path / "run", progress=progress)
    assert any("sim_coeff has no effect" in warning for warning in progress.warnings)


def test_default_run_folder_is_named_after_the_environment(
    training_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_training(training_config(num_epochs=1, jepa_decoder_training={"enabled": False})).run_dir
    assert run.parent == Path("runs") and run.name.startswith(f"tworoom-v0-{time.strftime('%Y')}")


def test_training_is_reproducible_and_depends_on_the_seed(training_config: MakeConfig, tmp_path: Path) -> None:
    runs = [
        weights(run_training(training_config(seed=seed), tmp_path / name).run_dir)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert runs[0] == runs[1]
    # Byte-equal files would hide behind equal configurations: compare the weights of another seed themselves.
    first, third = (JEPA.from_pretrained(tmp_path / name).state_dict() for name in ("a", "c"))
    assert not np.allclose(first["online_encoder.layers.0.weight"], third["online_encoder.layers.0.weight"])
