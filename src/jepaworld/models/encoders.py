"""Image encoders: Vision Transformer, CNN and MLP.

Shapes: N images, C H W image, L patches, E token width, D latent. Every encoder takes float images (N, C, H, W) and
returns embeddings (N, D) without a final activation or normalisation, so that the losses alone decide their scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepaworld.config.rules import per_layer
from jepaworld.config.schema import CnnConfig, Config, MlpConfig, VitConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}


class ViTEncoder(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with pre-normalised blocks.

    Args:
        image_size: Side of the square images, a multiple of `params.patch_size`.
        input_channels: C.
        latent_dim: D.
        params: Patch size, widths, depth, pooling and dropouts.
    """

    def __init__(self, image_size: int, input_channels: int, latent_dim: int, params: VitConfig) -> None:
        super().__init__()
        self.pool = params.pool
        num_tokens = (image_size // params.patch_size) ** 2 + (params.pool == "cls")
        self.patch_embedding = nn.Conv2d(
            input_channels, params.dim, kernel_size=params.patch_size, stride=params.patch_size
        )
        self.position_embedding = nn.Parameter(torch.randn(1, num_tokens, params.dim) * 0.02)
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
        self.head = nn.Linear(params.dim, latent_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (N, C, H, W) as (N, D)."""
        tokens = self.patch_embedding(images).flatten(2).transpose(1, 2)  # (N, L, E)
        if self.pool == "cls":
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = self.blocks(self.dropout(tokens + self.position_embedding))
        pooled = tokens[:, 0] if self.pool == "cls" else tokens.mean(dim=1)
        return self.head(pooled)


def initialize_blocks(blocks: nn.Module) -> None:
    """Draw the weights of Transformer blocks anew, because torch stacks copies of one block.

    Matrices are Xavier uniform and biases zero, as in the original Transformer.
    """
    for name, parameter in blocks.named_parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class CNNEncoder(nn.Module):
    """Convolutions, an optional hidden linear layer with LayerNorm, and a linear layer to the embedding.

    Args:
        image_size: Side of the square images.
        input_channels: C.
        latent_dim: D.
        params: Layers, filters, kernels, strides, padding, activation, normalisation, hidden width.
    """

    def __init__(self, image_size: int, input_channels: int, latent_dim: int, params: CnnConfig) -> None:
        super().__init__()
        activation = ACTIVATIONS[params.activation]
        layers: list[nn.Module] = []
        channels, side = input_channels, image_size
        for filters, kernel, stride, padding in zip(
            *(
                per_layer(value, params.num_layers)
                for value in (params.num_filters, params.kernel_size, params.stride, params.padding)
            ),
            strict=True,
        ):
            layers.append(nn.Conv2d(channels, filters, kernel, stride, padding))
            if params.norm == "batch":
                layers.append(nn.BatchNorm2d(filters))
            elif params.norm == "layer":
                layers.append(nn.GroupNorm(1, filters))
            layers.append(activation())
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


class MLPEncoder(nn.Module):
    """Hidden layers of one width on the flattened pixels.

    Args:
        image_size: Side of the square images.
        input_channels: C.
        latent_dim: D.
        params: Layers, width, activation.
    """

    def __init__(self, image_size: int, input_channels: int, latent_dim: int, params: MlpConfig) -> None:
        super().__init__()
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


def make_encoder(config: Config) -> nn.Module:
    """The encoder that `encoder_type` names, from images (N, C, H, W) to embeddings (N, `latent_dim`)."""
    shape = config.image_size, config.input_channels, config.latent_dim
    match config.encoder_type:
        case "vit":
            return ViTEncoder(*shape, config.encoder_params.vit)
        case "cnn":
            return CNNEncoder(*shape, config.encoder_params.cnn)
        case "mlp":
            return MLPEncoder(*shape, config.encoder_params.mlp)
