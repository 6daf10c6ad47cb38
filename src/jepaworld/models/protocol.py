"""What every world model has, and all that engine, planners, evaluation and report know of one.

Shapes: B windows or environments, T frames or transitions, K context frames, P plan steps, A numbers of one action
block, C H W image. A latent is `latent_shape`: one vector (D,) or N tokens (N, D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

from jepaworld.errors import PlanningError


@runtime_checkable
class WorldModel(Protocol):
    """A world model: encodes frames and predicts latents from latents and actions.

    One that is trained here is a `torch.nn.Module` too. A `JEPA` is trained by the configured losses, another model by
    its own `training_loss(batch) -> (loss, terms)`. Optional, beside that:

    * `update_targets()` follows each training step.
    * `max_rollout_steps: int | None` is how many steps it can imagine; no limit if missing or None.
    * `encode_online(frames)` is what `jepa_decoder_training.embedding_source: online` decodes; `encode` if missing.

    Attributes:
        latent_shape: (D,) or (N, D).
    """

    latent_shape: tuple[int, ...]

    @property
    def context_length(self) -> int:
        """Frames of the past, the present included, that a prediction looks at."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """What the predictor takes: uint8 frames (B, T, C, H, W) to float latents (B, T, *latent)."""
        ...

    def encode_target(self, frames: Tensor) -> Tensor:
        """What predictions are compared with, goals among it: as `encode`, detached."""
        ...

    def predict(self, z: Tensor, actions: Tensor) -> Tensor:
        """All next latents of a sequence, each from its own past: (B, T, *latent), (B, T, A) to (B, T, *latent)."""
        ...

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
        """Imagine.

        Args:
            z: Latents of the K latest frames as from `encode` (B, K, *latent); the last is the present.
            actions: Action blocks from the present on (B, P, A), as the environment takes them: float32 for `Box`,
                int64 for `Discrete` (its `start` included).
            context_actions: The blocks between the K frames (B, K - 1, A), or None with K = 1.

        Returns:
            (B, P, *latent): entry p is the prediction for the frame after `actions[:, p]`.
        """
        ...


def check_protocol(model: Any) -> None:
    """Make sure that a model can be planned with.

    Raises:
        PlanningError: it lacks a method.
    """
    for name in ("encode", "rollout"):
        if not callable(getattr(model, name, None)):
            raise PlanningError(f"{type(model).__name__} has no method {name}(); see jepaworld.models.WorldModel.")


def context_length(model: Any) -> int:
    """How many frames of the past the model's `rollout` uses; 1 for a model that does not say."""
    return int(getattr(model, "context_length", 1))


def max_rollout_steps(model: Any) -> int | None:
    """How many steps the model can imagine, None for any number."""
    return getattr(model, "max_rollout_steps", None)


def encode_goal(model: Any, frames: Tensor) -> Tensor:
    """Latents of goal frames (B, K, C, H, W) by what predictions are compared with."""
    return getattr(model, "encode_target", model.encode)(frames)


Source = Literal["online", "target"]
"""Which encoder's embeddings, as the setting `jepa_decoder_training.embedding_source` names them."""


def encoder_of(model: Any, source: Source) -> Callable[[Tensor], Tensor]:
    """The encoding that `jepa_decoder_training.embedding_source` names.

    In the JEPA's mode `default` the predictor takes the target encoder's latents, so that `online` is not `encode`.
    """
    return model.encode_target if source == "target" else getattr(model, "encode_online", model.encode)


def pool(z: Tensor, latent_shape: tuple[int, ...]) -> Tensor:
    """One vector for each latent: (..., D) as it is, the mean over tokens of (..., N, D)."""
    return z if len(latent_shape) == 1 else z.mean(dim=-2)
