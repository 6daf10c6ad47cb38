"""A frozen backbone: what of it is embedded, and that it is nowhere trained, copied or stored. All offline."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from gymnasium.spaces import Box
from torch import nn
from torch.nn import functional as F

from jepaworld.config import Config, load_config
from jepaworld.config.catalogue import catalogue
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import CheckpointError, ConfigError
from jepaworld.losses.objective import make_objective
from jepaworld.models import build, checkpoints, load
from jepaworld.models.building import check_encoder
from jepaworld.models.pretrained import PretrainedEncoder, PretrainedSettings
from jepaworld.models.size import count_parameters, count_trained
from jepaworld.training_loops.epoch_loop import TrainingStep, use_graph
from tests.conftest import fresh_model

transformers = pytest.importorskip("transformers")
BOX = Box(-1.0, 1.0, (2,))
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "patch_size": 8}


def write_backbone(folder: Path, kind: str = "Dinov2", seed: int = 1, **changes: Any) -> Path:
    """A tiny backbone as a folder that save_pretrained wrote, whose image processor gives it 16 pixels."""
    bars = transformers.utils.logging
    bars.disable_progress_bar()
    sizes = {"crop_size": 16} if kind == "VJEPA2" else {"image_size": 24 if kind == "Dinov2" else 16}
    if kind == "VJEPA2":
        sizes |= {"pred_hidden_size": 16, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
    elif kind != "Dinov2":
        sizes |= {"intermediate_size": 32}
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SMALL | sizes | changes)
    model = getattr(transformers, f"{kind}Model")(config)
    model.save_pretrained(folder)
    bars.enable_progress_bar()
    name = "video_preprocessor_config.json" if kind == "VJEPA2" else "preprocessor_config.json"
    size = {"height": 16, "width": 16}
    prepared = {"size": {"shortest_edge": 20}, "crop_size": size} if kind == "Dinov2" else {"size": size}
    (folder / name).write_text(json.dumps({"image_mean": MEAN, "image_std": STD, **prepared}))
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone") / "dinov2")


@pytest.fixture
def frozen(tiny_config: Callable[..., Config], backbone: Path) -> Callable[..., Config]:
    """`frozen(pool="patches", latent_dim=16)`: the tiny configuration with the backbone."""

    def make(pool: str = "mean", head: bool = True, name: str = str(backbone), **changes: Any) -> Config:
        params = {"pretrained": {"name": name, "pool": pool, "head": head}}
        return tiny_config(encoder_type="pretrained", encoder_params=params, **changes)

    return make


def tokens_of(folder: Path, images: torch.Tensor) -> torch.Tensor:
    """What transformers itself makes of images that are prepared by hand."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    prepared = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        return model(prepared).last_hidden_state


# --- what is embedded -----------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["cls", "mean", "patches"])
def test_an_embedding_is_the_backbones_output_for_normalised_images(backbone: Path, pool: Any) -> None:
    encoder = PretrainedEncoder(16, PretrainedSettings(name=str(backbone), pool=pool, head=False))
    images = torch.rand(3, 3, 16, 16)
    tokens = tokens_of(backbone, images)  # the class token, then 2 x 2 patches
    expected = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(dim=1), "patches": tokens[:, 1:]}[pool]
    torch.testing.assert_close(encoder(images), expected)


def test_frames_are_resized_to_what_the_backbone_takes(backbone: Path) -> None:
    images = torch.rand(2, 3, 40, 40)
    for size, side in (None, 16), (32, 32):
        settings = PretrainedSettings(name=str(backbone), pool="patches", image_size=size, head=False)
        resized = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        found = PretrainedEncoder(16, settings)(images)
        assert found.shape == (2, (side // 8) ** 2, 16)
        torch.testing.assert_close(found, tokens_of(backbone, resized)[:, 1:])


@pytest.mark.parametrize(
    ("kind", "changes"), [("Dinov2WithRegisters", {"num_register_tokens": 3}), ("DINOv3ViT", {}), ("ViT", {})]
)
def test_other_vision_transformers_leave_their_extra_tokens_out(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    folder, images = write_backbone(tmp_path / kind, kind, **changes), torch.rand(2, 3, 16, 16)
    encoder = PretrainedEncoder(16, PretrainedSettings(name=str(folder), pool="patches", head=False))
    torch.testing.assert_close(encoder(images), tokens_of(folder, images)[:, -4:])


def test_v_jepa_2_takes_a_frame_as_a_video(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "vjepa2", "VJEPA2", frames_per_clip=4, hidden_size=24)
    encoder = PretrainedEncoder(24, PretrainedSettings(name=str(folder), pool="patches", head=False))
    images = torch.rand(2, 3, 16, 16)
    prepared = encoder.normalization(images).unsqueeze(1)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(prepared.expand(-1, 2, -1, -1, -1), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(encoder(images), expected)
    with pytest.raises(ConfigError, match="no class token"):
        PretrainedEncoder(24, PretrainedSettings(name=str(folder), pool="cls"))


# --- frozen, shared, not stored -------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["default", "vjepa2", "none"])
def test_training_moves_the_head_and_never_the_backbone(frozen: Callable[..., Config], mode: str) -> None:
    config = frozen("patches", jepa_model={"target_encoder_mode": mode, "ema_decay": 0.5})
    model = fresh_model(config, BOX)
    online: Any = model.online_encoder
    before = {name: tensor.clone() for name, tensor in online.backbone.state_dict().items()}
    head = copy.deepcopy(online.head)
    objective = make_objective(config, model, Spaces.of(config, BOX))
    step = TrainingStep(objective, config, 0.1, 3, torch.device("cpu"), False)
    for _ in range(3):
        objective.train()
        assert not any(module.training for module in online.backbone.modules())
        step(Batch(torch.randint(0, 256, (4, 2, 3, 16, 16), dtype=torch.uint8), torch.rand(4, 1, 2)))
    assert all(torch.equal(before[name], tensor) for name, tensor in online.backbone.state_dict().items())
    assert not torch.equal(head.weight, online.head.weight)
    ours = {id(parameter) for parameter in online.backbone.parameters()}
    assert not ours & {id(parameter) for parameter in step.parameters}
    if mode != "none":
        target: Any = model.target_encoder
        assert target.backbone is online.backbone and target.head is not online.head
        assert not torch.equal(target.head.weight, head.weight)
    assert count_trained(model) == sum(map(count_parameters, (online.head, model.action_embedding, model.predictor)))


def test_without_a_head_nothing_of_the_encoder_is_trained(frozen: Callable[..., Config]) -> None:
    config = frozen("patches", head=False, latent_dim=16, jepa_model={"target_encoder_mode": "none"})
    model = fresh_model(config, BOX)
    assert model.latent_shape == (4, 16) and count_trained(model.online_encoder) == 0
    frames = torch.randint(0, 256, (4, 2, 3, 16, 16), dtype=torch.uint8)
    assert not model.encode(frames).requires_grad, "the backbone's activations would be kept for nothing"


@pytest.mark.parametrize("mode", ["vjepa2", "none"])
def test_a_checkpoint_holds_no_weight_of_the_backbone_and_gives_the_model_back(
    frozen: Callable[..., Config], tmp_path: Path, mode: str
) -> None:
    config = frozen("mean", jepa_model={"target_encoder_mode": mode, "projector": "mlp"})
    model, path = fresh_model(config, BOX).eval(), tmp_path / "jepa.safetensors"
    checkpoints.save(path, model, "jepa", config, BOX)
    stored = safetensors.torch.load_file(path)
    assert not any("backbone" in name for name in stored)
    assert any(name.endswith("head.weight") for name in stored)
    loaded, frames = load(path), torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(loaded.encode(frames), model.encode(frames))
    assert torch.equal(loaded.encode_target(frames), model.encode_target(frames))
    assert not any(name.startswith("backbone") for name in copy.deepcopy(model).state_dict())
    copied = copy.deepcopy(loaded)
    copied.load_state_dict(model.state_dict())  # its own hooks, not those of what it was copied from
    assert torch.equal(copied.encode(frames), model.encode(frames))


def test_a_checkpoint_knows_its_backbone(frozen: Callable[..., Config], tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "moved")
    config, path = frozen(name=str(folder)), tmp_path / "jepa.safetensors"
    checkpoints.save(path, fresh_model(config, BOX), "jepa", config, BOX)
    load(path)
    write_backbone(folder, seed=2)
    with pytest.raises(CheckpointError, match="other weights"):
        load(path)


def test_loading_draws_no_number_of_the_training(frozen: Callable[..., Config]) -> None:
    config = frozen()
    torch.manual_seed(5)
    expected = nn.Linear(16, 8).weight
    torch.manual_seed(5)
    encoder: Any = fresh_model(config, BOX).online_encoder
    assert torch.equal(encoder.head.weight, expected)
    torch.manual_seed(5)
    check_encoder(config)
    assert torch.equal(nn.Linear(16, 8).weight, expected)


def test_steps_are_captured_only_where_asked(frozen: Callable[..., Config]) -> None:
    model = fresh_model(frozen(), BOX)
    assert not use_graph("auto", torch.device("cuda"), model)


# --- what cannot be -------------------------------------------------------------------------------


def test_a_width_that_does_not_fit_is_said_with_the_remedy(frozen: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"latent_dim is 8: .*head.* must be 16"):
        check_encoder(frozen(head=False))


@pytest.mark.parametrize(
    ("overrides", "mentioned"),
    [(["input_channels=1"], "input_channels is 1"), (["image_normalization=imagenet"], "must be unit")],
)
def test_settings_that_contradict_a_backbone(overrides: list[str], mentioned: str) -> None:
    with pytest.raises(ConfigError, match=mentioned):
        load_config(None, ["encoder_type=pretrained", *overrides])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty cache, and a hub that nobody reaches."""
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no route to the hub\nsome advice")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    yield
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["facebook/dinov2-small", "./nowhere"])
def test_a_backbone_that_is_nowhere_is_said_with_the_remedy(frozen: Callable[..., Config], name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_encoder(frozen(name=name))
    message = str(caught.value)
    assert message.startswith(f"encoder_params.pretrained.name is {name}") and "folder" in message
    assert "no route to the hub" in message and "advice" not in message


def test_a_folder_that_holds_no_vision_transformer_is_refused(tmp_path: Path, frozen: Callable[..., Config]) -> None:
    folder = write_backbone(tmp_path / "spoilt")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    removed = weights.pop(sorted(weights)[0])
    assert removed.numel()
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights"):
        check_encoder(frozen(name=str(folder)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="neither on this disk"):
        check_encoder(frozen(name=str(folder)))


def test_weights_that_no_embedding_needs_may_be_missing(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "no_pooler", "ViT")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    first, second = (PretrainedEncoder(8, PretrainedSettings(name=str(folder))) for _ in range(2))
    assert int(first.checksum) == int(second.checksum), "a checkpoint would not find its backbone again"


def test_without_the_extra_its_name_is_said(frozen: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install \"jepaworld\[pretrained\]\""):
        check_encoder(frozen())


# --- the recipe -----------------------------------------------------------------------------------


def test_dino_wm_trains_as_many_parameters_as_the_catalogue_says(tmp_path: Path) -> None:
    """With a backbone of the same width and patches, of one block."""
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 1, "patch_size": 14, "image_size": 196}
    folder = write_backbone(tmp_path / "one_block", **sizes)
    config = load_config("dino_wm", [f"encoder_params.pretrained.name={folder}"])
    model = build(config, Spaces.of(config, BOX))
    assert model.latent_shape == (196, 384)
    assert count_trained(model) == catalogue()["dino_wm"].parameters
