"""The state decoder: patches land where they belong, and one batch can be painted from its embeddings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.models import build_decoder
from jepaworld.models.state_decoder import JEPAStateDecoder
from tests.conftest import fresh_decoder


def painting(config: Config) -> JEPAStateDecoder:
    """A decoder past its beginning, at which the head paints nothing."""
    decoder = build_decoder(config, (config.latent_dim,))
    nn.init.normal_(decoder.head.weight)
    return decoder


def test_it_begins_by_painting_the_background(tiny_config: Callable[..., Config]) -> None:
    decoder = fresh_decoder(tiny_config())
    with torch.no_grad():
        decoder.background.normal_()
    assert torch.equal(decoder(torch.randn(2, 8)), decoder.background.expand(2, -1, -1, -1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch_size", [4, 8, 16])
def test_shapes(tiny_config: Callable[..., Config], channels: int, patch_size: int) -> None:
    decoder = fresh_decoder(tiny_config(input_channels=channels, decoder_patch_size=patch_size))
    assert decoder(torch.randn(5, 8)).shape == (5, channels, 16, 16)


def test_it_sees_the_order_of_tokens(tiny_config: Callable[..., Config]) -> None:
    decoder = build_decoder(tiny_config(), (3, 8)).eval()
    nn.init.normal_(decoder.head.weight)
    z = torch.randn(2, 3, 8)
    assert decoder(z).shape == (2, 3, 16, 16)
    assert (decoder(z) - decoder(z.flip(1))).abs().max() > 1e-3


class Queries(nn.Module):
    """In the place of the Transformer: returns the queries as they are."""

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        assert len(queries) == len(memory)
        return queries


def test_each_query_paints_its_own_patch_row_by_row() -> None:
    """Query q paints the constant q + 1, channel c times 10^c, so every pixel says who painted it."""
    side, p, channels = 3, 4, 3
    decoder = JEPAStateDecoder((5,), side * p, channels, p, dim=side**2, depth=1, heads=1, mlp_dim=4)
    decoder.blocks = Queries()
    with torch.no_grad():
        decoder.queries.copy_(torch.eye(side**2))
        decoder.head.bias.zero_()
        for q in range(side**2):
            decoder.head.weight[:, q] = (q + 1.0) * 10.0 ** torch.arange(channels).repeat_interleave(p * p)
        images = decoder(torch.randn(2, 5))
    for row in range(side):
        for column in range(side):
            patch = images[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
            for channel in range(channels):
                assert (patch[:, channel] == (row * side + column + 1) * 10.0**channel).all(), (
                    row,
                    column,
                    channel,
                )


def test_outputs_of_the_head_are_pixels_of_a_patch_row_by_row() -> None:
    side, p = 2, 3
    decoder = JEPAStateDecoder((5,), side * p, 1, p, dim=4, depth=1, heads=1, mlp_dim=4)
    decoder.blocks = Queries()
    with torch.no_grad():
        decoder.head.weight.zero_()
        decoder.head.bias.copy_(torch.arange(p * p))
        image = decoder(torch.randn(1, 5))[0, 0]
    expected = torch.arange(p * p).float().view(p, p).repeat(side, side)
    assert torch.equal(image, expected)


def test_what_is_painted_depends_on_the_embedding(tiny_config: Callable[..., Config]) -> None:
    decoder = painting(tiny_config()).eval()
    z = torch.randn(2, 8, requires_grad=True)
    images = decoder(z)
    assert not torch.allclose(images[0], images[1])
    (gradient,) = torch.autograd.grad(images[0].square().sum(), z)
    assert (gradient[0] != 0).all()
    assert not gradient[1].any()


def test_every_parameter_gets_a_gradient_but_those_of_attention_to_a_single_token(
    tiny_config: Callable[..., Config],
) -> None:
    """One token in memory has weight 1 whatever the query says; with two tokens all parameters learn."""
    decoder = painting(tiny_config())
    decoder(torch.randn(4, 2, 8)).pow(3).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("decoder_dim", 20),
        ("decoder_depth", 3),
        ("decoder_heads", 4),
        ("decoder_mlp_dim", 30),
        ("decoder_memory_tokens", 3),
        ("decoder_dropout", 0.5),
        ("decoder_patch_size", 4),
    ],
)
def test_every_setting_has_an_effect(tiny_config: Callable[..., Config], key: str, value: float) -> None:
    outputs, shapes = [], []
    for settings in ({}, {key: value}):
        torch.manual_seed(0)
        decoder = painting(tiny_config(**settings)).train()
        shapes.append([tuple(parameter.shape) for parameter in decoder.parameters()])
        torch.manual_seed(1)
        outputs.append(decoder(torch.ones(4, 8)))
    assert shapes[0] != shapes[1] or not torch.allclose(outputs[0], outputs[1])


def test_one_batch_can_be_painted(tiny_config: Callable[..., Config]) -> None:
    decoder = fresh_decoder(tiny_config(decoder_dim=32, decoder_mlp_dim=64))
    z, images = torch.randn(6, 8), torch.rand(6, 3, 4, 4).repeat_interleave(4, -1).repeat_interleave(4, -2)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    losses = []
    for _ in range(300):
        loss = (decoder(z) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * images.var(dim=0).mean().item()  # far better than the mean image


def test_blocks_begin_with_weights_of_their_own(tiny_config: Callable[..., Config]) -> None:
    decoder = fresh_decoder(tiny_config())
    weights = [parameter for name, parameter in decoder.named_parameters() if "linear1.weight" in name]
    assert len(weights) == 2
    assert not torch.equal(weights[0], weights[1])
