"""Checkpoints: equal bytes, equal models, and clear words for whatever is wrong with a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from gymnasium.spaces import Box, Discrete, Space

from jepaworld.config import Config, to_commented_yaml
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import CheckpointError, StorageError
from jepaworld.models import build, build_decoder, checkpoints, load_decoder
from jepaworld.models.jepa import JEPA
from jepaworld.runs.state import save_state
from tests.conftest import fresh_model

SPACES: dict[str, Space] = {
    "box": Box(np.float32([-1.0, -np.inf]), np.float32([3.0, np.inf]), dtype=np.float32),
    "discrete": Discrete(3, start=-1),
}


def trained(config: Config, space: Space) -> JEPA:
    """A model in which every tensor, buffers and target encoder too, differs from a fresh one."""
    model = build(config, Spaces.of(config, space))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
            else:
                tensor.add_(3)
    return model.eval()


def saved(tmp_path: Path, tiny_config: Callable[..., Config], name: str = "jepa.safetensors", **changes: Any) -> Path:
    path = tmp_path / name
    config = tiny_config(**changes)
    checkpoints.save(path, trained(config, SPACES["box"]), "jepa", config, SPACES["box"])
    return path


# --- models ---------------------------------------------------------------------------------------


def test_a_layer_that_stands_in_two_places_is_saved_and_stays_one(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(jepa_model={"projector": "layer_norm"})
    model = trained(config, SPACES["box"])
    checkpoints.save(tmp_path / "jepa.safetensors", model, "jepa", config, SPACES["box"])
    loaded: Any = JEPA.from_pretrained(tmp_path / "jepa.safetensors")
    assert loaded.online_encoder.projector is loaded.predictor.projection
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("mode", ["default", "vjepa2", "none"])
@pytest.mark.parametrize("encoder", ["vit", "cnn", "mlp"])
def test_a_loaded_model_equals_the_saved_one(
    tmp_path: Path, tiny_config: Callable[..., Config], encoder: str, mode: str, space: str
) -> None:
    config = tiny_config(
        encoder_type=encoder, encoder_params={"cnn": {"norm": "batch"}, "vit": {"pool": "cls"}},
        jepa_model={"target_encoder_mode": mode}, frame_skipping=2,
    )  # fmt: skip
    model = trained(config, SPACES[space])
    path = tmp_path / "jepa.safetensors"
    checkpoints.save(path, model, "jepa", config, SPACES[space])
    loaded = JEPA.from_pretrained(path)
    frames = torch.randint(0, 256, (2, 4, 3, 16, 16)).to(torch.uint8)
    actions = torch.randn(2, 3, 4) if space == "box" else torch.randint(-1, 2, (2, 3, 2))
    assert not any(module.training for module in loaded.modules())
    for expected, value in zip(model(frames, actions), loaded(frames, actions), strict=True):
        assert (expected is None and value is None) or torch.equal(expected, value)
    assert torch.equal(model.encode_target(frames), loaded.encode_target(frames))
    z = model.encode(frames)[:, :1]
    assert torch.equal(model.rollout(z, actions), loaded.rollout(z, actions))
    if loaded.target_encoder is not None:
        assert not any(parameter.requires_grad for parameter in loaded.target_encoder.parameters())
    assert all(parameter.requires_grad for parameter in loaded.online_encoder.parameters())
    assert checkpoints.load(path, "jepa").config == config
    assert checkpoints.load(path, "jepa").action_space == SPACES[space]


def test_a_loaded_decoder_equals_the_saved_one(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(input_channels=1)
    decoder = build_decoder(config, (config.latent_dim,)).eval()
    path = tmp_path / "decoder.safetensors"
    checkpoints.save(path, decoder, "jepa_decoder", config, SPACES["box"])
    loaded = load_decoder(path)
    z = torch.randn(3, 8)
    assert torch.equal(decoder(z), loaded(z))
    assert not loaded.training


def test_a_run_folder_gives_its_best_checkpoint(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(early_stopping={"checkpoint_path_jepa": "winner.safetensors"})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(to_commented_yaml(config))
    best, last = trained(config, SPACES["box"]), trained(config, SPACES["box"])
    checkpoints.save(checkpoints.checkpoint_path(tmp_path, config, "jepa"), best, "jepa", config, SPACES["box"])
    last_path = checkpoints.checkpoint_path(tmp_path, config, "jepa", "last")
    checkpoints.save(last_path, last, "jepa", config, SPACES["box"])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "last_jepa.safetensors",
        "winner.safetensors",
    ]
    loaded = JEPA.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in best.state_dict().items())
    with pytest.raises(CheckpointError, match="state decoder has not finished"):
        load_decoder(tmp_path)


def test_equal_modules_give_equal_bytes(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    contents = []
    for name in ("first", "second"):
        torch.manual_seed(5)
        contents.append(saved(tmp_path, tiny_config, name).read_bytes())
    assert contents[0] == contents[1]
    torch.manual_seed(6)
    assert saved(tmp_path, tiny_config, "third").read_bytes() != contents[0]


def test_saving_changes_neither_the_module_nor_leaves_anything_behind(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    path = saved(tmp_path, tiny_config)
    first = path.read_bytes()
    saved(tmp_path, tiny_config)  # replaces it
    assert path.read_bytes() != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["jepa.safetensors"]


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        saved(tmp_path / "file", tiny_config)


# --- what can be wrong with a file ----------------------------------------------------------------


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        JEPA.from_pretrained(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="no run folder"):
        JEPA.from_pretrained(tmp_path)


def test_a_run_that_has_not_finished_an_epoch(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_commented_yaml())
    with pytest.raises(CheckpointError, match=r"best_jepa\.safetensors.*has not finished an epoch"):
        JEPA.from_pretrained(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file(tmp_path: Path, tiny_config: Callable[..., Config], keep: int) -> None:
    path = saved(tmp_path, tiny_config)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"jepa\.safetensors: damaged"):
        JEPA.from_pretrained(path)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "jepa.safetensors"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(CheckpointError, match="damaged"):
        JEPA.from_pretrained(path)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        JEPA.from_pretrained(path)
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="not written by jepaworld"):
        JEPA.from_pretrained(path)
    safetensors.torch.save_file({"a": torch.ones(2)}, path, {"jepaworld": "{no json"})
    with pytest.raises(CheckpointError, match="damaged"):
        JEPA.from_pretrained(path)


def test_a_checkpoint_of_another_kind(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    path = saved(tmp_path, tiny_config)
    with pytest.raises(CheckpointError, match="holds a 'jepa', expected 'jepa_decoder'"):
        load_decoder(path)
    save_state(path, {"a": 1})
    with pytest.raises(CheckpointError, match="holds a 'state', expected 'jepa'"):
        JEPA.from_pretrained(path)


def with_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["jepaworld"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    change(header)
    safetensors.torch.save_file(tensors, path, {"jepaworld": json.dumps(header)})


def test_a_checkpoint_of_another_format_version(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    path = saved(tmp_path, tiny_config)
    with_header(path, lambda header: header.update(format_version=99))
    with pytest.raises(CheckpointError, match="format version 99"):
        JEPA.from_pretrained(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["config"].update(setting_of_tomorrow=1),
        lambda header: header["config"].update(latent_dim="many"),
        lambda header: header["config"].update(predictor_output_dim=3),
        lambda header: header.pop("config"),
        lambda header: header.pop("action_space"),
        lambda header: header.update(action_space={"type": "Tuple"}),
    ],
    ids=["unknown key", "wrong type", "contradiction", "no config", "no space", "unknown space"],
)
def test_a_header_that_cannot_be_understood(
    tmp_path: Path, tiny_config: Callable[..., Config], change: Callable[[dict[str, Any]], None]
) -> None:
    path = saved(tmp_path, tiny_config)
    with_header(path, change)
    with pytest.raises(CheckpointError, match=r"jepa\.safetensors"):
        JEPA.from_pretrained(path)


def test_weights_of_another_architecture_are_named(tmp_path: Path, tiny_config: Callable[..., Config]) -> None:
    checkpoint = checkpoints.load(saved(tmp_path, tiny_config), "jepa")
    other = fresh_model(tiny_config(latent_dim=6, jepa_model={"target_encoder_mode": "none"}), SPACES["box"])
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="another architecture") as caught:
        checkpoints.restore(other, checkpoint)
    differing = {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]}
    assert {name.split(".")[0] for name in differing} == {"online_encoder", "target_encoder", "predictor"}
    found, expected = checkpoint.weights, other.state_dict()
    assert differing == {
        name
        for name in found.keys() | expected.keys()
        if name not in found or name not in expected or found[name].shape != expected[name].shape
    }
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
