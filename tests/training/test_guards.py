"""What training and planning must have in common, and what only watching must not do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor

from jepaworld import run_training
from jepaworld.config import Config
from jepaworld.data.store import EpisodeDataset
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.losses import make_objective
from jepaworld.models import build, load
from jepaworld.runs.folder import RunFolder

MakeConfig = Callable[..., Config]
SPACE = Box(-1.0, 1.0, (2,), np.float32)


def noise(transitions: int) -> Batch:
    frames = torch.randint(256, (3, transitions + 1, 3, 16, 16), dtype=torch.uint8)
    return Batch(frames, torch.rand(3, transitions, 2) * 2 - 1)


def perturb(*tensors: Tensor) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(torch.randn_like(tensor), alpha=0.3)


@pytest.mark.parametrize(("mode", "reads_online"), [("default", False), ("vjepa2", True), ("none", True)])
def test_imagined_steps_begin_with_what_the_predictor_takes(
    mode: str, reads_online: bool, tiny_config: MakeConfig
) -> None:
    """In mode default that is the target encoder's embedding, also for the rollout loss, and for planning."""
    losses = {"rollout_weight": 1.0, "rollout_steps": 2}
    config = tiny_config(num_transitions=3, jepa_model={"target_encoder_mode": mode}, dynamics_losses=losses)
    model = build(config, Spaces.of(config, SPACE))
    objective = make_objective(config, model, Spaces.of(config, SPACE))
    batch = noise(3)
    z = model.encode(batch.frames)
    rollouts = [model.rollout(z[:, t : t + 1], batch.actions[:, t : t + 2]) for t in range(2)]
    targets = model.encode_target(batch.frames)
    expected = torch.stack([(r - targets[:, t + 1 : t + 3]).square().mean() for t, r in enumerate(rollouts)]).mean()
    terms = objective(batch)[1]
    assert terms["rollout_loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    before = terms["rollout_loss"].item(), model.encode(batch.frames)
    perturb(*model.online_encoder.parameters())
    after = objective(batch)[1]["rollout_loss"].item(), model.encode(batch.frames)
    assert (after[0] != before[0]) is reads_online
    assert torch.equal(after[1], before[1]) is not reads_online


def test_before_a_sequence_stands_its_first_embedding_with_an_action_embedding_of_zero(tiny_config: MakeConfig) -> None:
    config = tiny_config(jepa_model={"predictor_context_length": 3})
    model = build(config, Spaces.of(config, SPACE)).eval()
    batch = noise(4)
    z = model.encode(batch.frames)[:, :-1]
    embedded = model.action_embedding(batch.actions)
    padded_z = torch.cat([z[:, :1], z[:, :1], z], dim=1)
    padded_actions = torch.cat([torch.zeros_like(embedded[:, :2]), embedded], dim=1)
    expected = model.predictor(padded_z, padded_actions)[:, 2:]
    # In training, whose windows begin anywhere, and in planning, at the beginning of an episode.
    torch.testing.assert_close(model.predict(z, batch.actions), expected)
    for known in (1, 2, 3):
        past = batch.actions[:, : known - 1] if known > 1 else None
        imagined = model.rollout(z[:, :known], batch.actions[:, known - 1 : known], past)
        torch.testing.assert_close(imagined[:, 0], expected[:, known - 1])


def test_the_collapse_watch_looks_without_dropout_and_in_float32(tiny_config: MakeConfig, tmp_path: Path) -> None:
    """With a learning rate of next to nothing every epoch shows the same embedding."""
    config = tiny_config(
        dataset_dir=str(tmp_path / "data"),
        encoder_type="vit",
        encoder_params={"vit": {"dropout": 0.5, "emb_dropout": 0.5}},
        learning_rate=1e-12,
        weight_decay=0.0,
        jepa_decoder_training={"enabled": False},
    )
    seen = []
    for precision in ("off", "bf16"):
        changed = config.model_copy(update={"mixed_precision": precision})
        run = run_training(changed, tmp_path / precision).run_dir
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        seen += [record["collapse/std_mean"] for record in records if record["kind"] == "epoch"]
    assert seen == pytest.approx([seen[0]] * 4, rel=1e-5)


def test_statistics_of_actions_are_those_of_the_training_episodes(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(action_scaling="statistics", dataset_dir=str(tmp_path / "data"), num_epochs=1)
    result = run_training(config, tmp_path / "run")
    dataset = EpisodeDataset.open(tmp_path / "data")
    train = RunFolder.open(result.run_dir).split(dataset).train
    actions = np.concatenate([dataset.episode(int(index)).actions for index in train])
    scaling = load(result.run_dir).action_embedding
    np.testing.assert_allclose(scaling.center, actions.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(scaling.half_range, actions.std(axis=0), rtol=1e-4)
