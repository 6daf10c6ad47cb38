"""The Joint Embedding Predictive Architecture.

Shapes: B windows, T transitions, K context frames, P plan steps, C H W image, A action block, E action embedding. D
stands for the latent, one vector (D,) or tokens (N, D). `actions[:, t]` is taken at `frames[:, t]` and leads to
`frames[:, t + 1]`. Frames are uint8 until `encode_with`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from jepaworld.config.components import component
from jepaworld.errors import CheckpointError
from jepaworld.models.predictors import Predictor


class JEPAOutput(NamedTuple):
    """What `JEPA.forward` returns, each (B, T, D).

    Attributes:
        predicted: Predicted embeddings of the next frames.
        target: What they are compared with; detached, unless the model was told to keep the target's gradient.
        online_s_t: The online encoder's embeddings of the frames that actions are taken at.
        online_s_t_plus_1: The online encoder's embeddings of the next frames, or `None` where the mode's auxiliary
            loss uses `online_s_t` alone (vjepa2).
        predictor_input: The embeddings that the predictor took, of the frames that actions are taken at.
    """

    predicted: Tensor
    target: Tensor
    online_s_t: Tensor
    online_s_t_plus_1: Tensor | None
    predictor_input: Tensor

    @property
    def online(self) -> Tensor:
        """The online encoder's embeddings of successive frames, (B, T + 1, D), or (B, T, D) in mode vjepa2."""
        if self.online_s_t_plus_1 is None:
            return self.online_s_t
        return torch.cat([self.online_s_t, self.online_s_t_plus_1[:, -1:]], dim=1)


@component("model", "jepa", label="JEPA")
class JEPA(nn.Module):
    """Online encoder, target encoder, action embedding and predictor in one of three target encoder modes.

    | mode    | predictor input   | target            | target encoder | auxiliary loss on                       |
    |---------|-------------------|-------------------|----------------|-----------------------------------------|
    | default | target(s_t)       | target(s_t+1)     | EMA            | online(s_t), online(s_t+1)              |
    | vjepa2  | online(s_t)       | target(s_t+1)     | EMA            | online(s_t)                             |
    | none    | online(s_t)       | online(s_t+1)     | does not exist | online(s_t), online(s_t+1)              |

    Targets are detached, unless `target_gradient` says otherwise. A frame is encoded once by each network that the
    mode needs.

    Args:
        online_encoder: Maps images (N, C, H, W) in [0, 1] to embeddings (N, D).
        action_embedding: Maps action blocks (B, T, A) to (B, T, E).
        predictor: Maps embeddings (B, T, D) and action embeddings (B, T, E) to next embeddings (B, T, D), each from
            its own past of at most `predictor.context_length` steps.
        target_encoder_mode: "default", "vjepa2" or "none".
        ema_decay: Decay of the target encoder, 0 to 1.
        target_gradient: Whether the target keeps its gradient; only in mode none.
        latent_shape: What the encoder makes of an image.

    Example:
        ```
        model = models.build(config, Spaces.of(config, env.action_space))
        imagined = model.rollout(model.encode(frames), actions)  # (B, 1, C, H, W), (B, P, A) to (B, P, D)
        ```
    """

    # The kinds of components that a configuration puts it together from.
    built_from: ClassVar[tuple[str, ...]] = ("encoder", "action_encoder", "predictor", "auxiliary_loss")

    def __init__(
        self,
        online_encoder: nn.Module,
        action_embedding: nn.Module,
        predictor: Predictor,
        target_encoder_mode: str,
        ema_decay: float,
        target_gradient: bool = False,
        *,
        latent_shape: tuple[int, ...],
    ) -> None:
        assert not target_gradient or target_encoder_mode == "none", "a frozen target encoder has no gradient"
        super().__init__()
        self.latent_shape = latent_shape
        self.online_encoder = online_encoder
        self.action_embedding = action_embedding
        self.predictor: Predictor = predictor
        self.target_encoder_mode = target_encoder_mode
        self.ema_decay = ema_decay
        self.target_gradient = target_gradient
        self.target_encoder: nn.Module | None = None
        if target_encoder_mode != "none":
            self.target_encoder = copy.deepcopy(online_encoder).requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu") -> Self:
        """The best model of a run; see `jepaworld.models.load`.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it holds another kind of model.
        """
        from jepaworld.models.building import load  # which knows every kind of model, this one too

        model = load(path, device)
        if not isinstance(model, cls):
            raise CheckpointError(f"{path}: holds a {type(model).__name__}. Load it by jepaworld.models.load.")
        return model

    @property
    def context_length(self) -> int:
        """Frames of the past, the present included, that a prediction looks at."""
        return self.predictor.context_length

    def train(self, mode: bool = True) -> Self:
        """Like `nn.Module.train`, but the target encoder always stays in eval mode."""
        super().train(mode)
        if self.target_encoder is not None:
            self.target_encoder.eval()
        return self

    def forward(self, frames: Tensor, actions: Tensor) -> JEPAOutput:
        """Predict every next embedding of a window from the embedding before it.

        Args:
            frames: uint8 (B, T + 1, C, H, W).
            actions: (B, T, A); float for `Box`, integers for `Discrete` action spaces.

        Returns:
            Predictions, targets and the embeddings for the auxiliary loss.
        """
        assert frames.shape[1] == actions.shape[1] + 1, (
            f"expected one frame more than actions, got {tuple(frames.shape)} and {tuple(actions.shape)}"
        )
        match self.target_encoder_mode:
            case "default":
                online = self.encode_online(frames)
                target = self._encode_with_target_encoder(frames)
                predictor_input, target = target[:, :-1], target[:, 1:]
                online_s_t, online_s_t_plus_1 = online[:, :-1], online[:, 1:]
            case "vjepa2":
                predictor_input = online_s_t = self.encode_online(frames[:, :-1])
                target = self._encode_with_target_encoder(frames[:, 1:])
                online_s_t_plus_1 = None
            case "none":
                online = self.encode_online(frames)
                predictor_input = online_s_t = online[:, :-1]
                online_s_t_plus_1 = online[:, 1:]
                target = online_s_t_plus_1
            case unknown:
                raise AssertionError(f"unknown target_encoder_mode {unknown}")
        target = target if self.target_gradient else target.detach()
        predicted = self.predict(predictor_input, actions)
        return JEPAOutput(predicted, target, online_s_t, online_s_t_plus_1, predictor_input)

    def encode(self, frames: Tensor) -> Tensor:
        """The representation that the predictor takes in this mode: uint8 (B, T, C, H, W) to (B, T, D)."""
        if self.target_encoder_mode == "default":
            return self._encode_with_target_encoder(frames)
        return self.encode_online(frames)

    def encode_target(self, frames: Tensor) -> Tensor:
        """The representation that predictions are compared with: uint8 (B, T, C, H, W) to (B, T, D), detached."""
        if self.target_encoder is None:
            return self.encode_online(frames).detach()
        return self._encode_with_target_encoder(frames)

    def encode_online(self, frames: Tensor) -> Tensor:
        """The online encoder's embeddings in every mode: uint8 (B, T, C, H, W) to (B, T, D)."""
        return encode_with(self.online_encoder, frames)

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        """All next embeddings of a sequence, each from its own past only.

        Args:
            z: Embeddings as from `encode` (B, T, D).
            actions: Action blocks (B, T, A).

        Returns:
            (B, T, D): entry t is the prediction for the frame after z[:, t] under actions[:, t].
        """
        return self.predictor(z, self.action_embedding(actions))

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
        """Imagine as many steps as there are actions; each prediction becomes the input of the next step.

        Args:
            z: Embeddings of K >= 1 past frames as from `encode` (B, K, D); the last is the present.
            actions: Action blocks from the present on (B, P, A).
            context_actions: The actions between the past frames (B, K - 1, A). Only a predictor that looks further
                back than one step needs them.

        Returns:
            The imagined embeddings (B, P, D). Gradients flow to `z` and `actions` unless torch's grad mode is off.
        """
        length = min(self.predictor.context_length, z.shape[1])
        if length > 1:
            assert context_actions is not None, "a context of several frames needs the actions between them"
            actions = torch.cat([context_actions[:, context_actions.shape[1] - (length - 1) :], actions], dim=1)
        action_embeddings = self.action_embedding(actions)
        # The first step takes the whole context, each later one what the step before it imagined.
        latest, seen, imagined = z[:, -length:], None, []
        for end in range(length, action_embeddings.shape[1] + 1):
            taken_here = action_embeddings[:, end - latest.shape[1] : end]
            following, seen = self.predictor.advance(latest, taken_here, seen)
            imagined.append(following)
            latest = following.unsqueeze(1)
        return torch.stack(imagined, dim=1)

    @torch.no_grad()
    def _update_target_encoder_ema(self) -> None:
        """Set target = ema_decay * target + (1 - ema_decay) * online, after the optimizer step; buffers are copied."""
        if self.target_encoder is None:
            return
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.target_encoder.parameters()), list(self.online_encoder.parameters()), 1.0 - self.ema_decay
        )
        for target, online in zip(self.target_encoder.buffers(), self.online_encoder.buffers(), strict=True):
            target.copy_(online)

    def _encode_with_target_encoder(self, frames: Tensor) -> Tensor:
        assert self.target_encoder is not None
        with torch.no_grad():
            return encode_with(self.target_encoder, frames)


def to_images(frames: Tensor) -> Tensor:
    """uint8 frames as float images in [0, 1] of the same shape."""
    assert frames.dtype == torch.uint8, f"frames are uint8 (0 to 255), got {frames.dtype}"
    return frames.float().div_(255.0)


def encode_with(encoder: nn.Module, frames: Tensor) -> Tensor:
    """Latents (B, T, D) of frames uint8 (B, T, C, H, W) by an encoder of images in [0, 1]."""
    return encoder(to_images(frames.flatten(0, 1))).unflatten(0, frames.shape[:2])
