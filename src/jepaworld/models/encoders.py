"""Image encoders: Vision Transformer, CNN and MLP.

Shapes: N images, C H W image, L patches, E token width, D latent. Every encoder takes float images (N, C, H, W) and
returns embeddings (N, D) without a final activation or normalisation, so that the losses alone decide their scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from jepaworld.config import components
from jepaworld.config.components import component
from jepaworld.config.fields import PositiveInt, Section, setting
from jepaworld.config.rules import does_not_divide

if TYPE_CHECKING:
    from jepaworld.config import Config

Activation = Literal["relu", "gelu", "silu", "elu", "leaky_relu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}


class ViTSettings(Section):
    """Vision Transformer encoder."""

    patch_size: int = setting(8, "Side of a square patch; must divide image_size.", unit="pixels", ge=1)
    dim: int = setting(128, "Width of the tokens; must be a multiple of heads.", ge=1)
    depth: int = setting(4, "Number of Transformer blocks.", ge=1)
    heads: int = setting(4, "Attention heads.", ge=1)
    mlp_dim: int = setting(256, "Hidden width of the blocks' MLPs.", ge=1)
    pool: Literal["cls", "mean", "patches"] = setting(
        "mean", "What becomes the embedding: a class token, the mean of all patches, or each patch as a token."
    )
    positions: Literal["random", "sine"] = setting(
        "random",
        "What the learned position embeddings begin as: small random numbers, or sines and cosines of both "
        "coordinates, as large as what a patch shows.",
    )
    head: bool = setting(True, "A linear layer from dim to latent_dim; without it they must be equal.")
    dropout: float = setting(0.0, "Dropout inside the blocks.", ge=0.0, lt=1.0)
    emb_dropout: float = setting(0.0, "Dropout after the position embedding.", ge=0.0, lt=1.0)

    def contradictions(self, config: Config, prefix: str) -> Iterator[str]:
        """What cannot stand together."""
        if config.image_size % self.patch_size:
            yield does_not_divide(f"{prefix}patch_size", self.patch_size, config.image_size)
        if self.dim % self.heads:
            yield f"{prefix}dim is {self.dim}: it must be a multiple of {prefix}heads = {self.heads}."
        if self.positions == "sine" and self.dim % 4:
            yield f"{prefix}dim is {self.dim}: {prefix}positions sine needs a multiple of 4."
        if not self.head and self.dim != config.latent_dim:
            yield f"{prefix}dim is {self.dim}: without {prefix}head it must be latent_dim = {config.latent_dim}."


@component("encoder", "vit", label="ViT")
class ViTEncoder(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with pre-normalised blocks.

    Args:
        frame_shape: C, H and W of the square images.
        latent_dim: D.
        settings: As in `ViTSettings`.
    """

    Settings = ViTSettings

    def __init__(self, frame_shape: tuple[int, int, int], latent_dim: int, **settings: Any) -> None:
        super().__init__()
        params, (input_channels, image_size, _) = ViTSettings(**settings), frame_shape
        self.pool = params.pool
        side = image_size // params.patch_size
        num_tokens = side**2 + (params.pool == "cls")
        self.patch_embedding = nn.Conv2d(
            input_channels, params.dim, kernel_size=params.patch_size, stride=params.patch_size
        )
        positions = torch.randn(1, num_tokens, params.dim) * 0.02
        if params.positions == "sine":
            positions[:, num_tokens - side**2 :] = _sine_positions(side, params.dim)
        self.position_embedding = nn.Parameter(positions)
        if params.pool == "cls":
            self.class_token = nn.Parameter(torch.zeros(1, 1, params.dim))
        self.dropout = nn.Dropout(params.emb_dropout)
        block = nn.TransformerEncoderLayer(
            params.dim,
            params.heads,
            params.mlp_dim,
            params.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, params.depth, nn.LayerNorm(params.dim), enable_nested_tensor=False)
        initialize_blocks(self.blocks)
        self.head = nn.Linear(params.dim, latent_dim) if params.head else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (N, C, H, W) as (N, D), or as tokens (N, L, D) where the patches are not pooled."""
        tokens = self.patch_embedding(images).flatten(2).transpose(1, 2)  # (N, L, E)
        if self.pool == "cls":
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.blocks(self.dropout(tokens + self.position_embedding))
        if self.pool == "cls":
            tokens = tokens[:, 0]
        elif self.pool == "mean":
            tokens = tokens.mean(dim=1)
        return self.head(tokens)


def _sine_positions(side: int, dim: int) -> Tensor:
    """Sines and cosines of row and column of `side` x `side` patches, a fourth of the numbers each: (side * side, dim).

    Source: MAE (arXiv 2111.06377). Wavelengths from 6 to 60,000 patches.
    """
    frequencies = 10_000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side).unsqueeze(1) * frequencies  # (side, dim / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)
    return torch.cat([rows, columns], dim=1)


def initialize_blocks(blocks: nn.Module) -> None:
    """Draw the weights of Transformer blocks anew, because torch stacks copies of one block.

    Matrices are Xavier uniform and biases zero, as in the original Transformer.
    """
    for name, parameter in blocks.named_parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class CNNSettings(Section):
    """Convolutional encoder. A list has one entry per layer; a single number holds for all layers."""

    num_layers: int = setting(3, "Number of convolutions.", ge=1)
    num_filters: PositiveInt | list[PositiveInt] = setting([32, 64, 64], "Output channels of each convolution.")
    kernel_size: PositiveInt | list[PositiveInt] = setting([4, 3, 3], "Kernel sizes.", unit="pixels")
    stride: PositiveInt | list[PositiveInt] = setting([4, 2, 2], "Strides.", unit="pixels")
    padding: Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]] = setting(
        [0, 1, 1], "Zero padding on each side.", unit="pixels"
    )
    activation: Activation = setting("relu", "Activation after each layer but the last.")
    norm: Literal["none", "batch", "layer", "group"] = setting(
        "none",
        "Normalisation of each convolution's output: batch (BatchNorm), group (GroupNorm) or layer (GroupNorm with one "
        "group).",
    )
    norm_groups: int = setting(8, "Groups of norm group; each entry of num_filters must be a multiple.", ge=1)
    residual_blocks: int = setting(
        0, "Residual blocks of two 3 x 3 convolutions after each convolution (IMPALA has 2).", ge=0
    )
    hidden_dim: PositiveInt | None = setting(
        256, "Width of a hidden linear layer with LayerNorm before the embedding; null for none."
    )

    def layers(self) -> list[tuple[int, int, int, int]]:
        """Filters, kernel size, stride and padding of each layer."""
        values = (self.num_filters, self.kernel_size, self.stride, self.padding)
        lists = (value if isinstance(value, list) else [value] * self.num_layers for value in values)
        return list(zip(*lists, strict=True))

    def contradictions(self, config: Config, prefix: str) -> Iterator[str]:
        """What cannot stand together."""
        for key in ("num_filters", "kernel_size", "stride", "padding"):
            value = getattr(self, key)
            if isinstance(value, list) and len(value) != self.num_layers:
                yield (
                    f"{prefix}{key} is {value}: give one entry for each of {prefix}num_layers = {self.num_layers}, or "
                    "a single number."
                )
                return
        if self.norm == "group" and any(filters % self.norm_groups for filters, *_ in self.layers()):
            yield f"{prefix}num_filters is {self.num_filters}: multiples of norm_groups = {self.norm_groups} only."
        side = config.image_size
        for number, (_, kernel, stride, padding) in enumerate(self.layers(), start=1):
            if side + 2 * padding < kernel:
                yield (
                    f"{prefix}kernel_size of layer {number} is {kernel}, but only {side} pixels of image_size = "
                    f"{config.image_size} reach it: use fewer layers, smaller strides or more padding."
                )
                return
            side = (side + 2 * padding - kernel) // stride + 1


@component("encoder", "cnn", label="CNN")
class CNNEncoder(nn.Module):
    """Convolutions, an optional hidden linear layer with LayerNorm, and a linear layer to the embedding.

    Args:
        frame_shape: C, H and W of the square images.
        latent_dim: D.
        settings: As in `CNNSettings`.
    """

    Settings = CNNSettings

    def __init__(self, frame_shape: tuple[int, int, int], latent_dim: int, **settings: Any) -> None:
        super().__init__()
        params, (input_channels, image_size, _) = CNNSettings(**settings), frame_shape
        activation = ACTIVATIONS[params.activation]
        layers: list[nn.Module] = []
        channels, side = input_channels, image_size
        for filters, kernel, stride, padding in params.layers():
            layers += [nn.Conv2d(channels, filters, kernel, stride, padding), *_norm(params, filters), activation()]
            layers += [_ResidualBlock(params, filters) for _ in range(params.residual_blocks)]
            channels, side = filters, (side + 2 * padding - kernel) // stride + 1
        layers.append(nn.Flatten())
        features = channels * side * side
        if params.hidden_dim is not None:
            layers += [nn.Linear(features, params.hidden_dim), nn.LayerNorm(params.hidden_dim), activation()]
            features = params.hidden_dim
        layers.append(nn.Linear(features, latent_dim))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (N, C, H, W) as (N, D)."""
        return self.layers(images)


class _ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions whose result is added to their input (N, C, H, W)."""

    def __init__(self, params: CNNSettings, filters: int) -> None:
        super().__init__()
        activation = ACTIVATIONS[params.activation]
        first, second = (nn.Conv2d(filters, filters, 3, padding=1) for _ in range(2))
        self.change = nn.Sequential(first, *_norm(params, filters), activation(), second, *_norm(params, filters))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.change(x))


def _norm(params: CNNSettings, filters: int) -> list[nn.Module]:
    match params.norm:
        case "batch":
            return [nn.BatchNorm2d(filters)]
        case "none":
            return []
        case kind:
            return [nn.GroupNorm(1 if kind == "layer" else params.norm_groups, filters)]


class MLPSettings(Section):
    """Multi-layer perceptron on the flattened pixels."""

    num_layers: int = setting(2, "Number of hidden layers.", ge=1)
    hidden_dim: int = setting(512, "Width of each hidden layer.", ge=1)
    activation: Activation = setting("relu", "Activation after each hidden layer.")


@component("encoder", "mlp", label="MLP")
class MLPEncoder(nn.Module):
    """Hidden layers of one width on the flattened pixels.

    Args:
        frame_shape: C, H and W of the square images.
        latent_dim: D.
        settings: As in `MLPSettings`.
    """

    Settings = MLPSettings

    def __init__(self, frame_shape: tuple[int, int, int], latent_dim: int, **settings: Any) -> None:
        super().__init__()
        params, (input_channels, image_size, _) = MLPSettings(**settings), frame_shape
        layers: list[nn.Module] = [nn.Flatten()]
        features = input_channels * image_size**2
        for _ in range(params.num_layers):
            layers += [nn.Linear(features, params.hidden_dim), ACTIVATIONS[params.activation]()]
            features = params.hidden_dim
        layers.append(nn.Linear(features, latent_dim))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (N, C, H, W) as (N, D)."""
        return self.layers(images)


class Normalization(nn.Module):
    """Images in [0, 1] (N, C, H, W) less a mean of each channel, by a standard deviation of each."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        for name, values in ("mean", mean), ("std", std):
            # Not in checkpoints: their configuration says which it is.
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images of the same shape."""
        return (images - self.mean) / self.std


NORMALIZATIONS = {
    "centered": ([0.5], [0.5]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),  # torchvision's documented values
}


def make_normalization(config: Config) -> Normalization | None:
    """What `image_normalization` does to images in [0, 1]; None where it leaves them."""
    kind = config.image_normalization
    return None if kind == "unit" else Normalization(*NORMALIZATIONS[kind])


def make_encoder(config: Config) -> nn.Module:
    """The encoder that `encoder_type` names, from images (N, C, H, W) to embeddings (N, `latent_dim`) or tokens."""
    return components.make("encoder", config, frame_shape=frame_shape(config), latent_dim=config.latent_dim)


def frame_shape(config: Config) -> tuple[int, int, int]:
    """C, H and W of the images that an encoder takes."""
    return config.input_channels, config.image_size, config.image_size
