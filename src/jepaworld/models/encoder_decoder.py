"""Pixel baselines: world models with a JEPA's parts that learn by painting the next frame.

Shapes: B windows, T transitions, K context frames, P plan steps, C H W image, A action block, E action embedding. D
stands for the latent, one vector (D,) or tokens (N, D).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from jepaworld.config.components import component
from jepaworld.data.windows import Batch
from jepaworld.models.jepa import JEPA, encode_with, to_images
from jepaworld.models.predictors import Predictor
from jepaworld.models.state_decoder import JEPAStateDecoder

NUMBERS_AT_ONCE = 2**24
"""Numbers of the pictures that imagination holds at a time: its caller counts latents and knows of no pictures."""


def _pixel_error(painted: Tensor, frames: Tensor) -> Tensor:
    """Mean squared error between painted images and frames uint8 of the same shape, a scalar."""
    # In float32: a bf16 difference of two nearly equal pictures would be rounding.
    return (painted.float() - to_images(frames)).square().mean()


@component("model", "encoder_decoder", label="Encoder-decoder")
class EncoderDecoder(nn.Module):
    """The standard one: a decoder paints the next frame from latent and action; what follows starts from the painting.

    One step is z' = encode(decode(z, a)), so that imagination goes through pixels, which planning pays for in time.

    Args:
        encoder: Maps images (N, C, H, W) in [0, 1] to latents (N, D), as of a `JEPA`.
        action_embedding: Maps action blocks (B, T, A) to (B, T, E).
        decoder: Maps latents with the action embedding beside each vector, (N, D + E), to images (N, C, H, W).
        latent_shape: What the encoder makes of an image.

    Example:
        ```
        config = load_config("encoder_decoder")
        model = models.build(config, Spaces.of(config, env.action_space))
        loss, terms = model.training_loss(Batch(frames, actions))  # uint8 (B, T + 1, C, H, W), (B, T, A)
        ```
    """

    built_from: ClassVar = ("encoder", "action_encoder", "decoder")
    context_length = 1

    def __init__(
        self,
        encoder: nn.Module,
        action_embedding: nn.Module,
        decoder: JEPAStateDecoder,
        *,
        latent_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.encoder, self.action_embedding, self.decoder = encoder, action_embedding, decoder
        self.latent_shape = latent_shape

    def encode(self, frames: Tensor) -> Tensor:
        """Latents of frames: uint8 (B, T, C, H, W) to (B, T, D)."""
        return encode_with(self.encoder, frames)

    def encode_target(self, frames: Tensor) -> Tensor:
        """As `encode`, detached: a prediction is itself the encoding of a picture."""
        return self.encode(frames).detach()

    def paint(self, z: Tensor, actions: Tensor) -> Tensor:
        """The next frames (B, T, C, H, W), trained towards [0, 1], after latents (B, T, D) and actions (B, T, A)."""
        action = self.action_embedding(actions)
        if z.ndim > action.ndim:  # each token is given the action
            action = action.unsqueeze(-2).expand(*z.shape[:-1], -1)
        both = torch.cat([z, action], dim=-1)
        return self.decoder(both.flatten(0, 1)).unflatten(0, z.shape[:2])

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        """Encodings (B, T, D) of what is painted after latents (B, T, D) and actions (B, T, A)."""
        windows = max(1, NUMBERS_AT_ONCE // (self.decoder.background.numel() * z.shape[1]))
        parts = zip(z.split(windows), actions.split(windows), strict=True)
        return torch.cat([self._encode_painted(self.paint(*part)) for part in parts])

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Imagine: each step paints a frame and encodes it; see `WorldModel.rollout`."""
        latest, imagined = z[:, -1:], []
        for step in range(actions.shape[1]):
            latest = self.predict(latest, actions[:, step : step + 1])
            imagined.append(latest)
        return torch.cat(imagined, dim=1)

    def training_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixel error of the painted next frames of a batch, a scalar, and its name for the log."""
        painted = self.paint(self.encode(batch.frames[:, :-1]), batch.actions)
        loss = _pixel_error(painted, batch.frames[:, 1:])
        return loss, {"prediction_loss": loss}

    def _encode_painted(self, painted: Tensor) -> Tensor:
        # The encoder has seen nothing outside [0, 1]; the decoder may leave it by a little.
        return self.encoder(painted.clamp(0.0, 1.0).flatten(0, 1)).unflatten(0, painted.shape[:2])


@component("model", "encoder_predictor_decoder", label="Encoder-predictor-decoder")
class EncoderPredictorDecoder(JEPA):
    """The fair variant: a JEPA in mode none whose latents are judged by what is painted from them.

    z' = predict(z, a) and frame' = decode(z'), and frame = decode(z). It imagines and plans in latents as a JEPA
    does; the loss alone differs.

    Args:
        encoder: As of a `JEPA`.
        action_embedding: As of a `JEPA`.
        predictor: As of a `JEPA`.
        decoder: Maps latents (N, D) to images (N, C, H, W).
        latent_shape: What the encoder makes of an image.

    Example:
        ```
        config = load_config("encoder_decoder", ["model_type=encoder_predictor_decoder"])
        imagined = models.build(config, spaces).rollout(z, actions)  # (B, K, D), (B, P, A) to (B, P, D)
        ```
    """

    built_from: ClassVar = ("encoder", "action_encoder", "predictor", "decoder")

    def __init__(
        self,
        encoder: nn.Module,
        action_embedding: nn.Module,
        predictor: Predictor,
        decoder: JEPAStateDecoder,
        *,
        latent_shape: tuple[int, ...],
    ) -> None:
        super().__init__(encoder, action_embedding, predictor, "none", 1.0, latent_shape=latent_shape)
        self.decoder = decoder

    def paint(self, z: Tensor, actions: Tensor) -> Tensor:
        """The next frames (B, T, C, H, W), trained towards [0, 1], after latents (B, T, D) and actions (B, T, A)."""
        return self._decode(self.predict(z, actions))

    def training_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixel errors of next frames and of the frames themselves, a scalar, and both by name for the log."""
        frames, following = batch.frames[:, :-1], batch.frames[:, 1:]
        z = self.encode(frames)
        prediction = _pixel_error(self.paint(z, batch.actions), following)
        # One decoder for both: else predictions need not resemble encodings, which the next step and goals start from.
        reconstruction = _pixel_error(self._decode(z), frames)
        return prediction + reconstruction, {"prediction_loss": prediction, "reconstruction_loss": reconstruction}

    def _decode(self, z: Tensor) -> Tensor:
        """Images (B, T, C, H, W) of latents (B, T, D)."""
        return self.decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2])
