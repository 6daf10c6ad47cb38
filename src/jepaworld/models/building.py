"""The only constructors of models: from a configuration, or from a checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jepaworld.config import Config, components
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import ConfigError
from jepaworld.models import checkpoints
from jepaworld.models.action_encoders import make_action_encoder
from jepaworld.models.encoder_decoder import EncoderDecoder, EncoderPredictorDecoder
from jepaworld.models.encoders import frame_shape, make_encoder, make_normalization
from jepaworld.models.jepa import JEPA
from jepaworld.models.predictors import make_predictor
from jepaworld.models.projectors import ProjectedPredictor, make_projectors
from jepaworld.models.state_decoder import JEPAStateDecoder


def build(config: Config, spaces: Spaces) -> Any:
    """A freshly initialised world model from torch's global random state.

    Args:
        config: The configuration. `model_type` chooses; a JEPA or a pixel baseline is put together from the
            components that it names, a class from outside is called with `spaces`, `config` (where it has these
            parameters) and `model_params`.
        spaces: What the model sees and does.

    Raises:
        ConfigError: a component is not what the others need, or a model lacks a part of the protocol.
    """
    if config.model_type not in components.registered("model"):
        (found,) = components.chosen("model", config)
        return found.make(spaces=spaces, config=config)
    jepa = config.jepa_model
    # In this order from the random state, which initial weights of a seed depend on.
    encoder = make_encoder(config)
    latent_shape = _latent_shape(encoder, config)
    action_encoder = make_action_encoder(config, spaces)
    if config.model_type == "encoder_decoder":
        decoder = build_decoder(config, (*latent_shape[:-1], latent_shape[-1] + config.action_emb_dim))
        encoder = _with_stages(encoder, config, make_projectors(config))
        return EncoderDecoder(encoder, action_encoder, decoder, latent_shape=latent_shape)
    predictor, projectors = make_predictor(config, latent_shape), make_projectors(config)
    predictor = predictor if projectors is None else ProjectedPredictor(predictor, projectors[1])
    encoder = _with_stages(encoder, config, projectors)
    if config.model_type == "encoder_predictor_decoder":
        decoder = build_decoder(config, latent_shape)
        return EncoderPredictorDecoder(encoder, action_encoder, predictor, decoder, latent_shape=latent_shape)
    return JEPA(
        encoder,
        action_encoder,
        predictor,
        jepa.target_encoder_mode,
        jepa.ema_decay,
        jepa.target_gradient,
        latent_shape=latent_shape,
    )


def check_encoder(config: Config) -> None:
    """Make the encoder once, to tell of one that cannot be made before anything is collected or written.

    Raises:
        ConfigError: as `build`; a pretrained backbone may be missing.
    """
    if "encoder" in components.model_parts(config):
        with torch.random.fork_rng(devices=[]):
            _latent_shape(make_encoder(config), config)


def _with_stages(encoder: nn.Module, config: Config, projectors: tuple[nn.Module, nn.Module] | None) -> nn.Module:
    """The encoder between normalisation and projector, as far as the configuration has them."""
    stages = {
        "normalization": make_normalization(config),
        "encoder": encoder,
        "projector": projectors and projectors[0],
    }
    stages = OrderedDict((name, stage) for name, stage in stages.items() if stage is not None)
    # An encoder alone is not wrapped: checkpoints name its weights without a stage.
    return nn.Sequential(stages) if len(stages) > 1 else encoder


def load(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """The best model of a run, in eval mode, rebuilt from its checkpoint alone.

    Args:
        path: Run folder, or a checkpoint (.safetensors).
        device: Where the model goes.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    checkpoint = checkpoints.load(path, "jepa")
    model = build(checkpoint.config, Spaces.of(checkpoint.config, checkpoint.action_space))
    checkpoints.restore(model, checkpoint)
    return model.to(device).eval()


def build_decoder(config: Config, latent_shape: tuple[int, ...]) -> JEPAStateDecoder:
    """A freshly initialised state decoder from torch's global random state, for latents of this shape."""
    return JEPAStateDecoder(
        latent_shape,
        config.image_size,
        config.input_channels,
        patch_size=config.decoder_patch_size,
        dim=config.decoder_dim,
        depth=config.decoder_depth,
        heads=config.decoder_heads,
        mlp_dim=config.decoder_mlp_dim,
        memory_tokens=config.decoder_memory_tokens,
        dropout=config.decoder_dropout,
    )


def load_decoder(path: str | Path, device: str | torch.device = "cpu") -> JEPAStateDecoder:
    """The best state decoder of a run, in eval mode.

    Args:
        path: Run folder, or a decoder checkpoint (.safetensors).
        device: Where the decoder goes.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    checkpoint = checkpoints.load(path, "jepa_decoder")
    # The latent that it was trained for is seen in its weights; a model from outside has a size of its own.
    positions, memory = (checkpoint.weights.get(name) for name in ("positions", "memory.weight"))
    tokens = () if positions is None else (positions.shape[1],)
    width = checkpoint.config.latent_dim if memory is None else memory.shape[1]
    decoder = build_decoder(checkpoint.config, (*tokens, width))
    checkpoints.restore(decoder, checkpoint)
    return decoder.to(device).eval()


@torch.no_grad()
def _latent_shape(encoder: torch.nn.Module, config: Config) -> tuple[int, ...]:
    """What the encoder makes of an image, found by asking it; eval mode draws no random numbers."""
    training = encoder.training
    shape = tuple(encoder.eval()(torch.zeros(1, *frame_shape(config))).shape[1:])
    encoder.train(training)
    if len(shape) not in (1, 2) or shape[-1] != config.latent_dim:
        raise ConfigError(
            f"encoder_type {config.encoder_type} gives embeddings {shape}; expected ({config.latent_dim},) or (tokens, "
            f"{config.latent_dim}), as latent_dim says."
        )
    return shape
