"""What stands between a JEPA's encoder and predictor and the latents that losses and planners see.

Shapes: B windows, T transitions, D latent, one vector (D,) or tokens (N, D).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from jepaworld.models.predictors import Past, Predictor

if TYPE_CHECKING:
    from jepaworld.config import Config


class ProjectionMLP(nn.Module):
    """An MLP with batch norm on latents: every latent of a batch, of all windows, time steps and tokens, is a sample.

    Source: projector and prediction projector of LeWM (arXiv 2603.19312). After an encoder that ends in a layer norm,
    whose outputs lie on a sphere, it lets the embeddings take any distribution that the losses ask for.

    Args:
        dim: D.
        hidden_dim: Width of the hidden layer.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Latents (..., D) to the same shape."""
        return self.layers(z.flatten(0, -2)).view(z.shape)


class ProjectedPredictor(Predictor):
    """A predictor with a projection of what it predicts, which is what the next step of a rollout begins from.

    Args:
        predictor: Any predictor.
        projection: Latents (..., D) to the same shape.
    """

    def __init__(self, predictor: Predictor, projection: nn.Module) -> None:
        super().__init__()
        self.predictor, self.projection, self.context_length = predictor, projection, predictor.context_length

    def forward(self, z: Tensor, action_embedding: Tensor) -> Tensor:
        """Next latents (B, T, *latent) from latents (B, T, *latent) and action embeddings (B, T, E)."""
        return self.projection(self.predictor(z, action_embedding))

    def advance(self, z: Tensor, action_embeddings: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """As `Predictor.advance`."""
        predicted, past = self.predictor.advance(z, action_embeddings, past)
        return self.projection(predicted), past


def make_projectors(config: Config) -> tuple[nn.Module, nn.Module] | None:
    """What follows the encoder and what follows the predictor, as `jepa_model.projector` says; None for nothing."""
    dim, hidden_dim = config.latent_dim, config.jepa_model.projector_hidden_dim
    match config.jepa_model.projector:
        case "mlp":
            return ProjectionMLP(dim, hidden_dim), ProjectionMLP(dim, hidden_dim)
        case "layer_norm":
            # One for both, as in PLDM: predictions are then on the sphere that embeddings are on.
            norm = nn.LayerNorm(dim)
            return norm, norm
        case _:
            return None
