"""Training of the state decoder on a frozen JEPA's embeddings.

Shapes: N frames, C H W image, D latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jepaworld.data.windows import Batch
from jepaworld.losses.objective import Objective
from jepaworld.models import JEPAStateDecoder, build_decoder
from jepaworld.models.jepa import to_images
from jepaworld.models.protocol import Source, encoder_of
from jepaworld.runs.state import PhaseState
from jepaworld.training_loops.phase_loop import Phase, Run, run_phase
from jepaworld.utils.pictures import save_rows
from jepaworld.utils.storage import storage_errors

PLOTTED_FRAMES = 12


class StateDecoderObjective(Objective):
    """Mean squared error between frames and their reconstructions from frozen embeddings.

    Args:
        decoder: The only part that is trained.
        model: Gives the embeddings, in eval mode and without gradients; it is no part of this module's state.
        embedding_source: "online" or "target".
    """

    loss_name = "loss_jepa_decoder"

    def __init__(self, decoder: JEPAStateDecoder, model: nn.Module, embedding_source: Source) -> None:
        super().__init__()
        self.decoder = decoder
        model.eval()
        self._encode = encoder_of(model, embedding_source)

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """Embeddings (N, D) of frames uint8 (N, C, H, W)."""
        return self._encode(frames.unsqueeze(1)).squeeze(1)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch whose windows are single frames (N, 1, C, H, W)."""
        frames = batch.frames.squeeze(1)
        loss = (self.decoder(self.embed(frames)).float() - to_images(frames)).square().mean()
        return loss, {}


def train_jepa_state_decoder(jepa: Any, run: Run, resume: bool) -> PhaseState:
    """Train the state decoder with its own early stopping, checkpoints and validation pictures.

    Args:
        jepa: The trained world model, on the run's device; it is not changed.
        run: Folder, data, device, logs.
        resume: Go on from the phase's resume state, if there is one.

    Returns:
        The final state; `best_epoch` tells which epoch's weights the best checkpoint holds.

    Raises:
        KeyboardInterrupt: a stop was requested; the resume state is on disk.
        NonFiniteLossError: the loss is no longer finite.
    """
    config, settings = run.config, run.config.jepa_decoder_training
    torch.manual_seed(config.seed + 1)
    decoder = build_decoder(config, jepa.latent_shape).to(run.device)
    objective = StateDecoderObjective(decoder, jepa, settings.embedding_source)
    phase = Phase(
        name="decoder",
        title="state decoder",
        objective=objective,
        module=decoder,
        learning_rate=settings.learning_rate or config.learning_rate,
        num_transitions=0,
        batch_size=settings.batch_size,
        num_epochs=settings.num_epochs,
        steps_per_epoch=settings.steps_per_epoch,
        metric=settings.early_stopping.metric,
        patience=settings.early_stopping.patience,
        delta=settings.early_stopping.delta,
        seed=config.seed + 1,
        after_epoch=lambda epoch: _plot_validation(objective, run, epoch),
    )
    return run_phase(phase, run, resume)


@torch.no_grad()
def _plot_validation(objective: StateDecoderObjective, run: Run, epoch: int) -> dict[str, Any]:
    """Frames of the first validation episodes (training ones if there are none) above their reconstructions."""
    dataset, folder = run.dataset, run.folder.plots_folder
    rng = np.random.default_rng(run.config.seed)
    rows = [
        int(dataset.episode_starts[episode] + rng.integers(dataset.episode_lengths[episode] + 1))
        for episode in np.resize(run.watched, PLOTTED_FRAMES)
    ]
    frames = dataset.gather("frames", np.asarray(rows))
    objective.eval()
    painted = objective.decoder(objective.embed(torch.from_numpy(frames).to(run.device)))
    painted = painted.clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    save_rows(folder / f"epoch_{epoch:03d}.png", [frames, painted])
    return {}
