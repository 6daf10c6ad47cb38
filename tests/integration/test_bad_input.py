"""What users get wrong: exit code 2, what and where, the remedy, no traceback, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from jepaworld import load_config
from jepaworld.data.spec import checksum
from tests.integration.conftest import Command, largest_file, refused, tree

# Each is refused by every command that takes a CONFIG.
SETTINGS = [
    pytest.param(["batchsize=4"], ["batchsize", "unknown", "Did you mean batch_size"], id="misspelt"),
    pytest.param(["jepa_model.ema=0.5"], ["jepa_model.ema", "jepa_model.ema_decay"], id="misspelt in a section"),
    pytest.param(["batch_size"], ["batch_size", "key.path=value"], id="no value"),
    pytest.param(["=4"], ["'=4'", "key.path=value"], id="no key"),
    pytest.param(["batch_size=four"], ["batch_size", "'four'", "integer"], id="word for a number"),
    pytest.param(["batch_size=4.0"], ["batch_size", "4.0", "integer"], id="fraction for an integer"),
    pytest.param(["batch_size=1"], ["batch_size", "1", "at least 2"], id="out of range"),
    pytest.param(["encoder_type=resnet"], ["encoder_type", "resnet", "vit, cnn, mlp"], id="no such choice"),
    pytest.param(["batch_size.x=1"], ["batch_size"], id="a value as a section"),
    pytest.param(["encoder_params=3"], ["encoder_params", "3"], id="a number for a section"),
    pytest.param(["collection=["], ["collection", "not valid YAML"], id="no YAML"),
    pytest.param(["learning_rate=nan"], ["learning_rate", "nan"], id="not a number"),
    pytest.param(["predictor_output_dim=7"], ["predictor_output_dim", "latent_dim"], id="predictor's output"),
    pytest.param(["image_size=20", "encoder_type=vit"], ["patch_size", "image_size = 20"], id="patches"),
    pytest.param(
        ["jepa_model.target_encoder_mode=none", "jepa_decoder_training.embedding_source=target"],
        ["embedding_source", "target_encoder_mode", "online"],
        id="no target encoder to decode",
    ),
    pytest.param(
        ["jepa_predictor_hidden_dim=8", "jepa_model.predictor_hidden_dim=9"],
        ["jepa_predictor_hidden_dim", "jepa_model.predictor_hidden_dim", "8", "9"],
        id="two names of one setting",
    ),
    pytest.param(
        ["training_options.skip_jepa_training_if_loaded=true"], ["load_model_path", "null"], id="nothing to skip"
    ),
]


@pytest.mark.parametrize("command", ["check", "collect", "train"])
@pytest.mark.parametrize(("overrides", "mentioned"), SETTINGS)
def test_settings(
    command: str,
    overrides: list[str],
    mentioned: list[str],
    jepaworld: Command,
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(config_file.parent)
    before = tree(config_file.parent)
    refused(jepaworld(command, config_file, *overrides), *mentioned)
    assert tree(config_file.parent) == before


def test_decode_takes_no_wrong_settings_either(jepaworld: Command, run_copy: Path) -> None:
    before = tree(run_copy)
    refused(jepaworld("decode", run_copy, "decoder_dept=2"), "decoder_dept", "decoder_depth")
    refused(jepaworld("decode", run_copy, "latent_dim=4"), "latent_dim", "Train a new run")
    assert tree(run_copy) == before


@pytest.mark.parametrize("command", ["check", "collect", "train"])
def test_files_that_are_no_configuration(
    command: str, jepaworld: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "nul").write_bytes(b"seed: 1\0\n")
    (tmp_path / "list.yaml").write_text("- seed\n")
    (tmp_path / "tabs.yaml").write_text("collection:\n\tnum_workers: 1\n")
    (tmp_path / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (tmp_path / "code.yaml").write_text("seed: !!python/object/apply:os.system ['touch pwned']\n")
    before = tree(tmp_path)
    for name in ("missing.yaml", "folder", "binary", "nul", "list.yaml", "tabs.yaml", "twice.yaml", "code.yaml"):
        refused(jepaworld(command, name), "given twice" if name == "twice.yaml" else name)
    assert tree(tmp_path) == before


def test_an_empty_file_means_the_defaults(jepaworld: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    checked = jepaworld("check", tmp_path / "empty.yaml")
    assert checked.code == 0 and "image_size: 64" in checked.out


def test_train_without_what_it_needs(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    refused(jepaworld("train"), "CONFIG", "jepaworld init")
    refused(jepaworld("train", config_file, "--resume"), "--resume needs --run")
    refused(jepaworld("train", "--run", tmp_path / "none"), "none", "no run folder")
    refused(jepaworld("train", "--run", tmp_path / "none", "--resume"), "none")
    # Who leaves CONFIG out finds an override in its place.
    refused(jepaworld("train", "num_epochs=3"), "num_epochs=3", "CONFIG")


# --- environments


class Faulty(gymnasium.Env):
    """Fails in the middle of the third episode, or cannot render at all."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Discrete(2)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.resets = self.steps = 0

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):  # noqa: ARG002
        self.steps += 1
        if self.steps == 5:
            raise RuntimeError("motor is on fire")
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


class Failing(Faulty):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012


class Blind(Faulty):
    metadata = {"render_modes": []}  # noqa: RUF012


def _without_its_package(render_mode=None):  # noqa: ARG001
    raise gymnasium.error.DependencyNotInstalled("MuJoCo is not installed")


class Buttons(Failing):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = gymnasium.spaces.MultiDiscrete([2, 2])


for _name, _made in {
    "Failing": Failing,
    "Blind": Blind,
    "mujoco": _without_its_package,
    "Buttons": Buttons,
}.items():
    if f"trouble/{_name}-v0" not in gymnasium.registry:
        gymnasium.register(f"trouble/{_name}-v0", entry_point=_made, disable_env_checker=True)


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(
    ("name", "mentioned"),
    [
        ("jepaworld/TwoRom-v0", ["jepaworld/TwoRom-v0", "not known", "jepaworld/TwoRoom-v0"]),
        ("no_such_module:Thing-v0", ["no_such_module:Thing-v0", "Install"]),
        ("trouble/Blind-v0", ["trouble/Blind-v0", "gives no frames", "rgb_array"]),
        ("trouble/mujoco-v0", ["trouble/mujoco-v0", "MuJoCo is not installed", 'pip install "jepaworld[mujoco]"']),
        ("trouble/Buttons-v0", ["MultiDiscrete", "Discrete"]),
    ],
)
def test_environments_that_cannot_be_used(
    name: str,
    mentioned: list[str],
    jepaworld: Command,
    config_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = f"environment_name={name}", "dataset_dir=data"
    before = tree(tmp_path)
    for command in ("check", "collect"):
        refused(jepaworld(command, config_file, *wrong), *mentioned)
    assert tree(tmp_path) == before
    refused(jepaworld("train", config_file, *wrong, "--run", "run"), *mentioned)
    assert not Path("data").exists()
    right = "num_epochs=1", "jepa_decoder_training.enabled=false"
    assert jepaworld("train", config_file, *right, "--run", "run").code == 0, "the second try is not blocked"
    examined = jepaworld("check-env", name)
    assert examined.code == 2 and all(text in examined.out for text in mentioned)


@pytest.mark.parametrize("command", ["check", "collect", "train"])
def test_a_recipe_without_its_extra_leaves_nothing_behind(
    command: str, jepaworld: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gym_pusht.envs", None)
    refused(jepaworld(command, "push_t"), "environment_name", "jepaworld/PushT-v0", 'pip install "jepaworld[pusht]"')
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_an_environment_refuses(jepaworld: Command, config_file: Path) -> None:
    outcome = jepaworld("collect", config_file, "environment_kwargs={colour: red}")
    refused(outcome, "environment_kwargs", "colour")


def test_an_environment_that_fails_in_the_middle(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    arguments = (config_file, "environment_name=trouble/Failing-v0", f"dataset_dir={tmp_path / 'data'}")
    refused(jepaworld("collect", *arguments), "trouble/Failing-v0", "episode", "motor is on fire")


def test_a_module_with_a_mistake_in_it(
    jepaworld: Command, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mistaken_module.py").write_text("import gymnasium\ngymnasium.registr('x')\n")
    monkeypatch.chdir(tmp_path)
    outcome = jepaworld("collect", config_file, "environment_name=mistaken_module:Thing-v0", "dataset_dir=data")
    refused(outcome, "mistaken_module", "registr")


# --- folders and disks


def test_files_in_the_place_of_folders(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    refused(jepaworld("collect", config_file, f"dataset_dir={file}"), file)
    refused(jepaworld("collect", config_file, f"dataset_dir={file}/data"), file)
    refused(jepaworld("train", config_file, "--run", file), file)
    refused(jepaworld("train", config_file, "--run", file / "run"), file)
    refused(jepaworld("inspect", file), file)
    refused(jepaworld("report", file), file)
    refused(jepaworld("decode", file), file)
    assert file.read_text() == "precious"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_folders_that_cannot_be_written(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused(jepaworld("init", locked), locked, "permission")
    refused(jepaworld("collect", config_file, f"dataset_dir={locked}/data"), locked, "permission")
    refused(jepaworld("train", config_file, "--run", locked / "run"), locked, "permission")


def test_folders_that_hold_something_else(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.tex").touch()
    before = tree(other)
    refused(jepaworld("collect", config_file, f"dataset_dir={other}"), other, "not a dataset", "thesis.tex")
    refused(jepaworld("train", config_file, "--run", other), other, "--run")
    refused(jepaworld("inspect", other), other, "dataset.json")
    refused(jepaworld("report", other), other, "no run folder")
    refused(jepaworld("decode", other), other, "no run folder")
    assert tree(other) == before
    for command in ("report", "decode", "inspect"):
        refused(jepaworld(command, tmp_path / "nowhere"), tmp_path / "nowhere")


def test_a_disk_that_is_full_during_collection(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with largest_file(6000):
        refused(jepaworld("collect", config_file, f"dataset_dir={data}"), data, "cannot be written")
    assert not [name for name in tree(data) if "writing" in name or "tmp" in name]
    assert jepaworld("collect", config_file, f"dataset_dir={data}").code == 0
    assert jepaworld("inspect", data, "--sheet", tmp_path / "sheet.png").code == 0


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("tensorboard", ["false", "true"])
def test_a_disk_that_is_full_during_training(
    tensorboard: str, jepaworld: Command, config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("train", config_file, f"logging.tensorboard={tensorboard}", "--run", run)
    # More than the run's configuration, less than what the first epoch leaves.
    with largest_file(config_file.stat().st_size + 2000):
        refused(jepaworld(*arguments), run, "cannot be written")
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert not [name for name in tree(run) if "tmp" in name]
    assert jepaworld(*arguments, "--resume").code == 0
    assert json.loads((run / "run.json").read_text())["status"] == "complete"


def test_a_disk_that_is_full_during_the_report(jepaworld: Command, run_copy: Path) -> None:
    before = tree(run_copy)
    with largest_file(2000):
        refused(jepaworld("report", run_copy), run_copy / "report.json", "cannot be written")
    assert tree(run_copy) == before, "the old report is kept"


# --- datasets


def truncate(data: Path) -> str:
    file = data / "shard-00002" / "frames.npy"
    file.write_bytes(file.read_bytes()[:-100])
    return str(file)


def flip_a_bit(data: Path) -> str:
    file = data / "shard-00002" / "frames.npy"
    content = bytearray(file.read_bytes())
    content[200] ^= 4
    file.write_bytes(content)
    return str(file)


def lose_a_file(data: Path) -> str:
    file = data / "shard-00002" / "actions.npy"
    file.unlink()
    return str(file)


def lose_a_shard(data: Path) -> str:
    shutil.rmtree(data / "shard-00002")
    return str(data / "shard-00002")


def edit_the_manifest(data: Path) -> str:
    file = data / "dataset.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    return str(file)


def another_schema_version(data: Path) -> str:
    file = data / "dataset.json"
    content = json.loads(file.read_text())
    content["schema_version"] = 99
    del content["checksum"]
    file.write_text(json.dumps(content | {"checksum": checksum(content)}))
    return "schema_version is 99"


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(
    "spoil", [truncate, flip_a_bit, lose_a_file, lose_a_shard, edit_the_manifest, another_schema_version]
)
def test_damaged_datasets(
    spoil: Callable[[Path], str], jepaworld: Command, config_file: Path, data_copy: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(data_copy, whole)
    named = spoil(data_copy)
    run = tmp_path / "first"
    arguments = ("train", config_file, "num_epochs=1", "jepa_decoder_training.enabled=false", "--run", run)
    refused(jepaworld(*arguments, f"load_dataset_path={data_copy}"), named)
    refused(jepaworld("inspect", data_copy, "--sheet", tmp_path / "sheet.png"), named)
    mended = jepaworld(*arguments, f"load_dataset_path={whole}")
    assert mended.code == 0, f"the second try with the same --run is not blocked: {mended.err}"


@pytest.mark.usefixtures("unreported")
def test_a_dataset_that_is_not_there(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "first"
    wrong = f"load_dataset_path={tmp_path / 'nowhere'}"
    refused(jepaworld("train", config_file, wrong, "--run", run), tmp_path / "nowhere", "load_dataset_path")
    right = f"load_dataset_path={load_config(config_file).dataset_dir}"
    assert jepaworld("train", config_file, right, "num_epochs=1", "--run", run).code == 0


@pytest.mark.parametrize(
    ("override", "mentioned"),
    [
        ("environment_name=Pendulum-v1", ["environment_name", "TwoRoom", "Pendulum"]),
        ("frame_skipping=3", ["frame_skipping", "1", "3"]),
        ("input_channels=1", ["input_channels", "3", "1"]),
    ],
)
def test_a_dataset_of_something_else(
    override: str, mentioned: list[str], jepaworld: Command, config_file: Path, tmp_path: Path
) -> None:
    data = load_config(config_file).dataset_dir
    refused(jepaworld("collect", config_file, override), data, *mentioned, "dataset_dir")
    loading = ("train", config_file, override, f"load_dataset_path={data}", "--run", tmp_path / "run")
    refused(jepaworld(*loading), data, *mentioned)


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(
    ("override", "mentioned"),
    [
        ("batch_size=5000", ["batch_size = 5000", "Lower batch_size"]),
        ("jepa_decoder_training.batch_size=5000", ["jepa_decoder_training.batch_size = 5000", "Lower"]),
        ("num_transitions=13", ["num_transitions = 13", "12"]),
    ],
)
def test_fewer_samples_than_a_batch(
    override: str, mentioned: list[str], jepaworld: Command, config_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    refused(jepaworld("train", config_file, override, "--run", run), *mentioned)
    metrics = run / "metrics.jsonl"
    assert not metrics.exists() or not metrics.read_text(), "it is said before anything is trained"
    assert jepaworld("train", config_file, "num_epochs=1", "--run", run).code == 0


def test_one_episode_with_a_validation_split(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    one = ("num_episodes_data_collection=1", f"dataset_dir={tmp_path / 'one'}")
    outcome = jepaworld("train", config_file, *one, "--run", tmp_path / "run")
    refused(outcome, "1 episode", "early_stopping.validation_split", "num_episodes_data_collection")


# --- models and runs


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize(
    ("override", "mentioned"),
    [
        ("latent_dim=4", ["latent_dim"]),
        ("encoder_type=mlp", ["encoder_type"]),
        ("encoder_params.cnn.num_filters=[4, 5]", ["encoder_params.cnn.num_filters"]),
        ("jepa_model.target_encoder_mode=none", ["jepa_model.target_encoder_mode"]),
    ],
)
def test_a_checkpoint_of_another_architecture(
    override: str, mentioned: list[str], jepaworld: Command, config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "second"
    loading = ("train", config_file, f"load_model_path={finished_run}", "--run", run)
    outcome = jepaworld(*loading, override)
    refused(outcome, finished_run / "checkpoints" / "best_jepa.safetensors", *mentioned, "load_model_path")
    assert jepaworld(*loading, "num_epochs=1").code == 0, "the second try is not blocked"


def test_a_checkpoint_of_another_environment(
    jepaworld: Command, config_file: Path, finished_run: Path, tmp_path: Path
) -> None:
    other = ("frame_skipping=2", f"dataset_dir={tmp_path / 'data'}", f"load_model_path={finished_run}")
    outcome = jepaworld("train", config_file, *other, "--run", tmp_path / "run")
    refused(outcome, "frame_skipping", "1", "2", "load_model_path")


def test_checkpoints_that_are_none(jepaworld: Command, config_file: Path, run_copy: Path, tmp_path: Path) -> None:
    run = tmp_path / "second"
    broken = run_copy / "checkpoints" / "best_jepa.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    for path in (tmp_path / "nowhere", config_file, broken, run_copy, tmp_path):
        refused(jepaworld("train", config_file, f"load_model_path={path}", "--run", run), path)
    refused(jepaworld("report", run_copy), broken)
    refused(jepaworld("decode", run_copy), broken)


@pytest.mark.usefixtures("unreported")
def test_a_loss_that_is_no_longer_finite(jepaworld: Command, config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    wild = ("learning_rate=1e30", "gradient_clip_norm=null", "warmup_steps=0", "logging.log_every_steps=1")
    outcome = jepaworld("train", config_file, *wild, "--run", run)
    refused(outcome, "JEPA stopped: step 2: ", " is ", "checkpoint", "Lower the learning rate")
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    refused(jepaworld("train", "--run", run, "--resume"), "step 2: ")
    tame = jepaworld("train", config_file, "num_epochs=1", "--run", run)
    assert tame.code == 0, f"nothing was kept of the failed try, so it does not block the next: {tame.err}"


def test_a_finished_run_is_not_overwritten(jepaworld: Command, config_file: Path, run_copy: Path) -> None:
    before = tree(run_copy)
    refused(jepaworld("train", config_file, "--run", run_copy), run_copy, "already holds a run", "--resume")
    refused(jepaworld("train", "--run", run_copy), run_copy, "already holds a run", "--resume")
    different = jepaworld("train", config_file, "batch_size=4", "--run", run_copy, "--resume")
    refused(different, run_copy, "batch_size", "new run")
    refused(jepaworld("train", "--run", run_copy, "--resume", "latent_dim=4"), "latent_dim")
    assert tree(run_copy) == before


def test_a_run_whose_dataset_is_gone(jepaworld: Command, run_copy: Path, tmp_path: Path) -> None:
    info = json.loads((run_copy / "run.json").read_text())
    info["dataset"]["path"] = str(tmp_path / "gone")
    (run_copy / "run.json").write_text(json.dumps(info))
    reported = jepaworld("report", run_copy)
    assert reported.code == 0, "the curves are still worth a report"
    assert str(tmp_path / "gone") in (run_copy / "report.html").read_text()
    before = tree(run_copy)
    refused(jepaworld("decode", run_copy), tmp_path / "gone")
    assert tree(run_copy) == before, "the decoder that is there, its pictures and its metrics are kept"


def test_a_run_without_its_record(jepaworld: Command, run_copy: Path) -> None:
    (run_copy / "run.json").write_text('{"status": ')
    for command in (["report", run_copy], ["decode", run_copy], ["train", "--run", run_copy, "--resume"]):
        refused(jepaworld(*command), run_copy / "run.json", "damaged")
    (run_copy / "run.json").unlink()
    outcome = jepaworld("decode", run_copy)
    assert outcome.code in (0, 2) and "Traceback" not in outcome.err
