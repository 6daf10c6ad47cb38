"""Small datasets and models whose right answers are known."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from jepaworld.data.shards import Episode, ShardWriter
from jepaworld.data.spec import Collected, DatasetSpec, write_description
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.spaces import space_to_dict

SIDE = 8


def moving_dot(length: int, rng: np.random.Generator) -> Episode:
    """A pixel that the action (dx, dy) moves on a torus of 8 x 8; the state is its position."""
    actions = rng.integers(-1, 2, size=(length, 2))
    position = (rng.integers(0, SIDE, size=2) + np.concatenate([np.zeros((1, 2), int), actions.cumsum(0)])) % SIDE
    frames = np.zeros((length + 1, 1, SIDE, SIDE), np.uint8)
    frames[np.arange(length + 1), 0, position[:, 1], position[:, 0]] = 255
    flags = np.zeros(length, bool)
    states = {"constant": np.full(length + 1, 5.0, np.float32), "position": position.astype(np.float32)}
    rewards = position[:-1, 0].astype(np.float32)
    return Episode(frames, actions.astype(np.float32), rewards, flags, flags, states)


def write_dataset(
    path: Path,
    lengths: list[int],
    per_shard: int = 3,
    make: Callable[[int, np.random.Generator], Episode] = moving_dot,
    states: Mapping[str, list[int]] = MappingProxyType({"constant": [], "position": [2]}),
) -> EpisodeDataset:
    """A dataset of moving dots, or of what `make` gives, with an episode of each length."""
    path.mkdir()
    spec = DatasetSpec(
        action_space=space_to_dict(Box(-1.0, 1.0, (2,), np.float32)), action_size=2, frame_skipping=1,
        image_size=SIDE, input_channels=1, num_episodes=len(lengths), episodes_per_shard=per_shard,
        state_variables=dict(states),
    )  # fmt: skip
    collected = Collected(
        environment_name="test/Dot-v0", environment_kwargs={}, frame_source="render", policy="random",
        policy_kwargs={}, policy_path=None, policy_checksum=None, smoothness=None, seed=0,
        max_steps_per_episode=max(lengths), versions={},
    )  # fmt: skip
    write_description(path, spec, collected)
    rng = np.random.default_rng(0)
    for index in range(spec.num_shards):
        with ShardWriter(path, index, spec) as writer:
            for length in lengths[index * per_shard : (index + 1) * per_shard]:
                writer.add(make(length, rng))
            writer.commit()
    return EpisodeDataset.open(path)


class DotModel(nn.Module):
    """Embeds a frame as the dot's position, exactly; imagination errs by `drift` a step, in x."""

    def __init__(self, drift: float = 0.0) -> None:
        super().__init__()
        self.drift = drift
        self.dropout = nn.Dropout(0.5)  # in training mode every embedding would be wrong

    def encode(self, frames: Tensor) -> Tensor:
        dot = frames.flatten(2).argmax(dim=2)
        return self.dropout(torch.stack([dot % SIDE, dot // SIDE], dim=2).float())

    encode_target = encode_online = encode

    def rollout(self, z: Tensor, actions: Tensor) -> Tensor:
        drift = torch.tensor([self.drift, 0.0]) * torch.arange(1, actions.shape[1] + 1)[None, :, None]
        return (z[:, -1:] + actions.cumsum(dim=1)) % SIDE + drift
