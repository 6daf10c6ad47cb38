"""Training of the state decoder on a frozen JEPA's embeddings.

Shapes: N frames, C H W image, D latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepaworld.data.store import EpisodeDataset, Split
from jepaworld.data.windows import Batch, WindowLoader
from jepaworld.models.jepa import JEPA, to_images
from jepaworld.models.state_decoder import JEPAStateDecoder
from jepaworld.training_loops.epoch_loop import Objective, Updater
from jepaworld.training_loops.phase_loop import Phase, PhaseState, Run, run_phase
from jepaworld.utils.pictures import save_rows
from jepaworld.utils.storage import storage_errors

PLOTTED_FRAMES = 12


class StateDecoderObjective(Objective):
    """Mean squared error between frames and their reconstructions from frozen embeddings.

    Args:
        decoder: The only part that is trained.
        jepa: Gives the embeddings, in eval mode and without gradients; it is no part of this module's state.
        embedding_source: "online" or "target".
    """

    def __init__(self, decoder: JEPAStateDecoder, jepa: JEPA, embedding_source: str) -> None:
        super().__init__()
        self.decoder = decoder
        jepa.eval()
        self._encode = jepa.encode_target if embedding_source == "target" else jepa.encode_online

    @torch.no_grad()
    def embed(self, frames: Tensor) -> Tensor:
        """Embeddings (N, D) of frames uint8 (N, C, H, W)."""
        return self._encode(frames.unsqueeze(1)).squeeze(1)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch whose windows are single frames (N, 1, C, H, W)."""
        frames = batch.frames.squeeze(1)
        loss = (self.decoder(self.embed(frames)).float() - to_images(frames)).square().mean()
        return loss, {"loss_jepa_decoder": loss.detach()}

    def after_step(self) -> None:
        """Nothing: the JEPA is frozen."""


def train_jepa_state_decoder(
    jepa: JEPA, dataset: EpisodeDataset, split: Split, buffer_bytes: int | None, run: Run, resume: bool
) -> PhaseState:
    """Train the state decoder with its own early stopping, checkpoints and validation pictures.

    Args:
        jepa: The trained JEPA, on the run's device; it is not changed.
        dataset: Frames to reconstruct.
        split: Its episodes; those for evaluation are not touched.
        buffer_bytes: Memory for frames, see `WindowLoader`.
        run: Folder, configuration, device, logs.
        resume: Go on from the phase's resume state, if there is one.

    Returns:
        The final state; `best_epoch` tells which epoch's weights the best checkpoint holds.

    Raises:
        KeyboardInterrupt: a stop was requested; the resume state is on disk.
        NonFiniteLossError: the loss is no longer finite.
    """
    config = run.config
    settings = config.jepa_decoder_training
    torch.manual_seed(config.seed + 1)
    decoder = JEPAStateDecoder.from_config(config).to(run.device)
    objective = StateDecoderObjective(decoder, jepa, settings.embedding_source)

    def loader(episodes: np.ndarray) -> WindowLoader:
        return WindowLoader(dataset, episodes, 0, settings.batch_size, run.device, buffer_bytes, config.seed + 1)

    train = loader(split.train)
    steps_per_epoch = min(len(train), settings.steps_per_epoch or len(train))
    validation = loader(split.validation) if len(split.validation) else None
    phase = Phase(
        name="decoder",
        title="state decoder",
        kind="jepa_decoder",
        objective=objective,
        module=decoder,
        updater=Updater(
            decoder.parameters(),
            settings.learning_rate or config.learning_rate,
            config,
            settings.num_epochs * steps_per_epoch,
        ),
        train=train,
        validation=validation,
        num_epochs=settings.num_epochs,
        steps_per_epoch=steps_per_epoch,
        metric=settings.early_stopping.metric,
        shown="loss_jepa_decoder",
        patience=settings.early_stopping.patience,
        delta=settings.early_stopping.delta,
        after_epoch=lambda epoch: _plot_validation(objective, dataset, split, run, epoch),
    )
    return run_phase(phase, run, resume)


@torch.no_grad()
def _plot_validation(
    objective: StateDecoderObjective, dataset: EpisodeDataset, split: Split, run: Run, epoch: int
) -> dict[str, Any]:
    """Frames of the first validation episodes (training ones if there are none) above their reconstructions."""
    episodes = split.validation if len(split.validation) else split.train
    rng = np.random.default_rng(run.config.seed)
    rows = [
        int(dataset.episode_starts[episode] + rng.integers(dataset.episode_lengths[episode] + 1))
        for episode in np.resize(episodes, PLOTTED_FRAMES)
    ]
    frames = dataset.gather("frames", np.asarray(rows))
    objective.eval()
    painted = objective.decoder(objective.embed(torch.from_numpy(frames).to(run.device)))
    painted = painted.clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()
    folder = run.folder / run.config.jepa_decoder_training.validation_plot_dir
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    save_rows(folder / f"epoch_{epoch:03d}.png", [frames, painted])
    return {}
