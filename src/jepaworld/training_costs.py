"""What a configuration costs before anything is trained: parameters and memory.

For `check`, and for how many runs of a comparison fit side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import gymnasium
import numpy as np
import torch
from torch import nn

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.envs.player import Player
from jepaworld.envs.seeding import kept_random_state
from jepaworld.envs.spaces import Spaces
from jepaworld.losses.objective import make_objective
from jepaworld.models import build, build_decoder
from jepaworld.models.size import count_parameters, in_words, step_bytes
from jepaworld.runs.folder import require_names
from jepaworld.training_loops.jepa_decoder_loop import StateDecoderObjective
from jepaworld.utils.devices import resolve_device

MEASURED_BATCH = 4


def describe_config(config: Config) -> str:
    """Parameter counts, memory estimate and notices of a configuration.

    Raises:
        ConfigError: the device is not there or no device to execute on, or two things in the run folder have one name.
        EnvironmentNotUsableError: the environment cannot be made or has an unsupported action space.
    """
    require_names(config)
    device = resolve_device(config.device, config.execution)
    costs = _costs(config)
    lines = [
        f"device               {device}",
        f"action space         {costs.action_space}",
        "",
        "parameters",
        *(f"  {name.replace('_', ' '):<18} {count_parameters(part):,}" for name, part in costs.parts.items()),
        "",
        "memory, estimated (mixed precision takes less)",
        f"  dataset            {in_words(costs.frames * (costs.frame_bytes + costs.row_bytes))} "
        f"({costs.frames:,} frames at most, from {config.num_episodes_data_collection:,} episodes)",
        *(f"  {title:<18} {in_words(size)}" for title, size in costs.steps.items()),
    ]
    return "\n".join([*lines, *(f"notice: {notice}" for notice in config.notices())])


def memory_of(config: Config) -> int:
    """Estimated bytes that a training takes on its device: its largest step, and all frames unless they stay on disk.

    Raises:
        EnvironmentNotUsableError: as `describe_config`.
    """
    costs = _costs(config)
    frames = 0 if config.data_location == "disk" else costs.frames
    return max(costs.steps.values()) + frames * costs.frame_bytes


class _Costs(NamedTuple):
    action_space: gymnasium.Space
    parts: dict[str, nn.Module]
    frames: int  # of the whole dataset, at most
    frame_bytes: int
    row_bytes: int  # of what is stored beside a frame
    steps: dict[str, int]  # bytes of a step of each phase


def _costs(config: Config) -> _Costs:
    with Player.of(config) as player, kept_random_state():
        action_space, lane = player.action_space, player.lanes[0]
        spaces, training = Spaces.of(config, action_space), config.jepa_decoder_training
        # State variables are known only once they are seen.
        lane.reset(0)
        state_bytes = sum(value.nbytes for value in lane.states().values())
    row_bytes = state_bytes + spaces.action_size * (8 if isinstance(action_space, gymnasium.spaces.Discrete) else 4) + 6
    model = build(config, spaces)
    parts = dict(model.named_children())
    start = int(action_space.start) if isinstance(action_space, gymnasium.spaces.Discrete) else 0

    def memory(objective: nn.Module, module: nn.Module, transitions: int, batch_size: int) -> int:
        images = torch.zeros(MEASURED_BATCH, transitions + 1, *spaces.frame_shape, dtype=torch.uint8)
        size = (MEASURED_BATCH, transitions, spaces.action_size)
        return step_bytes(objective, module, Batch(images, torch.full(size, start)), batch_size)

    jepa = make_objective(config, model, spaces)
    steps = {"JEPA step": memory(jepa, jepa, config.num_transitions, config.batch_size)}
    if training.enabled:
        parts["state_decoder"] = decoder = build_decoder(config, model.latent_shape)
        objective = StateDecoderObjective(decoder, model, training.embedding_source)
        steps["decoder step"] = memory(objective, decoder, 0, training.batch_size)
    longest = config.max_steps_per_episode_data_collection // config.frame_skipping
    frames = config.num_episodes_data_collection * (longest + 1)
    return _Costs(action_space, parts, frames, int(np.prod(spaces.frame_shape)), row_bytes, steps)
