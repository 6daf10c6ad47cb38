"""Encoders: shapes, every setting has an effect, every parameter learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from jepaworld.config import Config
from jepaworld.models.encoders import ACTIVATIONS, make_encoder

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("vit", {"pool": "mean"}),
    ("vit", {"pool": "cls"}),
    ("vit", {"patch_size": 4}),
    ("vit", {"patch_size": 16, "depth": 1}),
    ("cnn", {}),
    ("cnn", {"norm": "batch"}),
    ("cnn", {"norm": "layer"}),
    ("cnn", {"norm": "group", "norm_groups": 2, "residual_blocks": 2}),
    ("cnn", {"hidden_dim": None}),
    ("cnn", {"num_layers": 3, "num_filters": 5, "kernel_size": 3, "stride": 2, "padding": 1}),
    ("cnn", {"num_layers": 1, "num_filters": [7], "kernel_size": 5, "stride": [3], "padding": 0}),
    ("mlp", {}),
    ("mlp", {"num_layers": 1}),
]


def encoder_of(tiny_config: Callable[..., Config], kind: str, params: dict[str, Any], **others: Any) -> nn.Module:
    return make_encoder(tiny_config(encoder_type=kind, encoder_params={kind: params}, **others))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kind", "params"), VARIANTS)
def test_shapes(tiny_config: Callable[..., Config], kind: str, params: dict[str, Any], channels: int) -> None:
    encoder = encoder_of(tiny_config, kind, params, input_channels=channels, latent_dim=6)
    assert encoder(torch.rand(5, channels, 16, 16)).shape == (5, 6)


@pytest.mark.parametrize(("kind", "params"), VARIANTS)
def test_every_parameter_gets_a_gradient(tiny_config: Callable[..., Config], kind: str, params: dict[str, Any]) -> None:
    smooth = {} if kind == "vit" else {"activation": "gelu"}  # no dead units
    encoder = encoder_of(tiny_config, kind, params | smooth)
    encoder(torch.rand(8, 3, 16, 16)).pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(("kind", "params"), VARIANTS)
def test_embeddings_can_have_any_sign_and_scale(
    tiny_config: Callable[..., Config], kind: str, params: dict[str, Any]
) -> None:
    """No activation and no normalisation after the last linear map: its weights alone decide the scale."""
    encoder = encoder_of(tiny_config, kind, params).eval()
    images = torch.rand(16, 3, 16, 16)
    before = encoder(images)
    assert (before > 0).any()
    assert (before < 0).any()
    last = [module for module in encoder.modules() if isinstance(module, nn.Linear) and module.out_features == 8][-1]
    with torch.no_grad():
        last.weight.mul_(10)
        last.bias.mul_(10)
    torch.testing.assert_close(encoder(images), 10 * before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "params"), [v for v in VARIANTS if v[1].get("kernel_size") != 5])
def test_every_pixel_counts(tiny_config: Callable[..., Config], kind: str, params: dict[str, Any]) -> None:
    """But for the variant whose kernels of 5 at a stride of 3 do not cover 16 pixels."""
    encoder = encoder_of(tiny_config, kind, params if kind == "vit" else params | {"activation": "gelu"}).eval()
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    encoder(images).pow(3).sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).float().mean() > 0.99


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("vit", "patch_size", 4),
        ("vit", "dim", 20),
        ("vit", "depth", 3),
        ("vit", "heads", 4),
        ("vit", "mlp_dim", 30),
        ("vit", "pool", "cls"),
        ("vit", "dropout", 0.3),
        ("vit", "emb_dropout", 0.3),
        ("cnn", "num_filters", [5, 6]),
        ("cnn", "kernel_size", [4, 5]),
        ("cnn", "stride", [4, 1]),
        ("cnn", "padding", [1, 1]),
        ("cnn", "activation", "tanh"),
        ("cnn", "norm", "batch"),
        ("cnn", "norm", "layer"),
        ("cnn", "hidden_dim", None),
        ("cnn", "hidden_dim", 20),
        ("mlp", "num_layers", 3),
        ("mlp", "hidden_dim", 20),
        ("mlp", "activation", "elu"),
    ],
)
def test_every_setting_has_an_effect(tiny_config: Callable[..., Config], kind: str, key: str, value: Any) -> None:
    """On the parameters, or on the output with the same parameters."""
    images = torch.rand(4, 3, 16, 16)
    outputs, shapes = [], []
    for params in ({}, {key: value}):
        torch.manual_seed(0)
        encoder = encoder_of(tiny_config, kind, params).train()
        shapes.append([tuple(parameter.shape) for parameter in encoder.parameters()])
        torch.manual_seed(1)
        outputs.append(encoder(images))
    assert shapes[0] != shapes[1] or not torch.allclose(outputs[0], outputs[1])


def test_depth_of_each_encoder_adds_parameters(tiny_config: Callable[..., Config]) -> None:
    def count(kind: str, params: dict[str, Any]) -> int:
        return sum(parameter.numel() for parameter in encoder_of(tiny_config, kind, params).parameters())

    blocks = [count("vit", {"depth": depth}) for depth in (1, 2, 3)]
    # Of one block: norms, attention in and out, MLP in and out.
    block = 2 * 2 * 16 + (3 * 16 * 16 + 3 * 16) + (16 * 16 + 16) + (16 * 24 + 24) + (24 * 16 + 16)
    assert blocks[2] - blocks[1] == blocks[1] - blocks[0] == block
    layers = [count("mlp", {"num_layers": depth}) for depth in (1, 2, 3)]
    assert layers[2] - layers[1] == layers[1] - layers[0] == 16 * 16 + 16


@pytest.mark.parametrize("key", ["dropout", "emb_dropout"])
def test_dropout_acts_in_training_only(tiny_config: Callable[..., Config], key: str) -> None:
    encoder = encoder_of(tiny_config, "vit", {key: 0.5})
    images = torch.rand(4, 3, 16, 16)
    encoder.train()
    assert not torch.allclose(encoder(images), encoder(images))
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))


def test_vit_without_dropout_is_the_same_in_training_and_evaluation(
    tiny_config: Callable[..., Config],
) -> None:
    """Torch takes another path through the blocks in eval mode without gradients."""
    encoder = encoder_of(tiny_config, "vit", {"pool": "cls"})
    images = torch.rand(4, 3, 16, 16)
    expected = encoder.train()(images)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval()(images), expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_vit_pools_the_class_token_or_the_mean(tiny_config: Callable[..., Config], pool: str) -> None:
    """With blocks that add nothing, the class token knows nothing of the image, and the mean token does."""
    encoder = encoder_of(tiny_config, "vit", {"pool": pool, "depth": 1}).eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "out_proj" in name or "linear2" in name:
                parameter.zero_()
        embeddings = encoder(torch.rand(3, 3, 16, 16))
    assert torch.allclose(embeddings[0], embeddings[1]) == (pool == "cls")


def test_vit_knows_where_a_patch_is(tiny_config: Callable[..., Config]) -> None:
    encoder = encoder_of(tiny_config, "vit", {}).eval()
    images = torch.rand(1, 3, 16, 16)
    assert not torch.allclose(encoder(images), encoder(images.roll(8, dims=-1)), atol=1e-6)


def test_images_of_a_batch_do_not_mix(tiny_config: Callable[..., Config]) -> None:
    images = torch.rand(4, 3, 16, 16)
    for kind in ("vit", "cnn", "mlp"):
        encoder = encoder_of(tiny_config, kind, {}).eval()
        torch.testing.assert_close(encoder(images)[2:3], encoder(images[2:3]))


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "elu", "leaky_relu", "tanh"])
def test_activations_are_the_ones_named(name: str) -> None:
    x = torch.linspace(-3, 3, 31)
    torch.testing.assert_close(ACTIVATIONS[name]()(x), getattr(torch.nn.functional, name)(x))


def test_vit_blocks_begin_with_weights_of_their_own(tiny_config: Callable[..., Config]) -> None:
    encoder = encoder_of(tiny_config, "vit", {"depth": 2})
    weights = [parameter for name, parameter in encoder.named_parameters() if "linear1.weight" in name]
    assert len(weights) == 2
    assert not torch.equal(weights[0], weights[1])


def test_sine_positions_tell_rows_and_columns_apart(tiny_config: Callable[..., Config]) -> None:
    encoder = encoder_of(tiny_config, "vit", {"positions": "sine", "patch_size": 4, "pool": "cls"})
    positions = encoder.get_parameter("position_embedding").detach()[0, 1:].view(4, 4, -1)
    half = positions.shape[-1] // 2
    rows, columns = positions[..., :half], positions[..., half:]
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    torch.testing.assert_close(columns, columns[:1].expand_as(columns))
    torch.testing.assert_close(rows[:, 0], columns[0])
    # Neighbours are more alike than patches that are further apart.
    distances = torch.cdist(rows[:, 0], rows[:1, 0])[:, 0]
    assert bool((distances.diff() > 0).all())


def test_a_residual_block_that_changes_nothing_passes_its_input_on(tiny_config: Callable[..., Config]) -> None:
    encoder = encoder_of(tiny_config, "cnn", {"residual_blocks": 1})
    plain = encoder_of(tiny_config, "cnn", {})
    blocks = [module for module in encoder.modules() if hasattr(module, "change")]
    assert len(blocks) == tiny_config().encoder_params.cnn.num_layers
    with torch.no_grad():
        for block in blocks:
            for parameter in block.parameters():
                parameter.zero_()
    others = [p for n, p in encoder.named_parameters() if "change" not in n]
    for parameter, other in zip(plain.parameters(), others, strict=True):
        parameter.data.copy_(other.data)
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(encoder(images), plain(images))
