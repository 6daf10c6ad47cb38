"""What a model must have to be planned with.

Shapes: B environments, K context frames, P plan steps, A numbers of one action block, D latent (one axis or more).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from jepaworld.errors import PlanningError


@runtime_checkable
class WorldModel(Protocol):
    """Anything with these two methods can be planned with, a `torch.nn.Module` or not.

    Optional: `encode_target(frames)`, like `encode`, gives what predictions are compared with, and hence the goal's
    embedding (else `encode` does); the attribute `context_length: int` says how many frames of the past `rollout` uses
    (1 if missing), `max_rollout_steps: int | None` how many steps it can imagine (no limit if missing or None).
    """

    def encode(self, frames: Tensor) -> Tensor:
        """Embed frames: uint8 (B, K, C, H, W) to float (B, K, *D)."""
        ...

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
        """Imagine.

        Args:
            z: Embeddings of the K latest frames (B, K, *D); the last is the present.
            actions: Action blocks from the present on (B, P, A), as the environment takes them: float32 for `Box`,
                int64 for `Discrete` (its `start` included).
            context_actions: The blocks between the K frames (B, K - 1, A), or None with K = 1.

        Returns:
            (B, P, *D): entry p is the prediction for the frame after `actions[:, p]`.
        """
        ...


def check_protocol(model: Any) -> None:
    """Make sure that the model has the methods.

    Raises:
        PlanningError: it lacks one.
    """
    for name in ("encode", "rollout"):
        if not callable(getattr(model, name, None)):
            raise PlanningError(
                f"{type(model).__name__} has no method {name}(), so it cannot be planned with. Give it encode(frames) "
                "and rollout(z, actions, context_actions); see jepaworld.planning.WorldModel."
            )


def context_length(model: Any) -> int:
    """How many frames of the past the model's `rollout` uses."""
    return int(getattr(model, "context_length", 1))


def max_rollout_steps(model: Any) -> int | None:
    """How many steps the model can imagine, None for any number."""
    return getattr(model, "max_rollout_steps", None)


def encode_goal(model: Any, frames: Tensor) -> Tensor:
    """Embeddings of goal frames, uint8 (B, K, C, H, W) to (B, K, *D), by what predictions are compared with."""
    return getattr(model, "encode_target", model.encode)(frames)
