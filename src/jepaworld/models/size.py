"""What a configuration will cost: parameters and memory, found by building the model and running a small batch."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from torch import Tensor, nn

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.envs.calls import close
from jepaworld.envs.make import make_env
from jepaworld.envs.spaces import block_size
from jepaworld.models.jepa import JEPA
from jepaworld.models.state_decoder import JEPAStateDecoder
from jepaworld.training_loops.epoch_loop import JEPAObjective
from jepaworld.training_loops.jepa_decoder_loop import StateDecoderObjective
from jepaworld.utils.devices import resolve_device

MEASURED_BATCH = 4
FLOAT_BYTES = 4
# Of each trained parameter: the value, its gradient and the two moments of Adam.
TRAINED_COPIES = 4


def describe_config(config: Config) -> str:
    """Parameter counts, memory estimate and notices of a configuration.

    Raises:
        ConfigError: the device is not there.
        EnvironmentNotUsableError: the environment cannot be made or has an unsupported action space.
    """
    device = resolve_device(config.device)
    env = make_env(config.environment_name, config.environment_kwargs)
    action_space = env.action_space
    close(env)
    model = JEPA.from_config(config, action_space)
    decoder = JEPAStateDecoder.from_config(config)
    lines = [f"device               {device}", f"action space         {action_space}", "", "parameters"]
    parts: dict[str, nn.Module | None] = {
        "online encoder": model.online_encoder,
        "target encoder": model.target_encoder,
        "action embedding": model.action_embedding,
        "predictor": model.predictor,
    }
    if config.jepa_decoder_training.enabled:
        parts["state decoder"] = decoder
    for name, part in parts.items():
        count = "none in this mode" if part is None else f"{_count(part):,}"
        lines.append(f"  {name:<18} {count}" + (" (not trained)" if part is model.target_encoder and part else ""))
    lines += ["", "memory, estimated (mixed precision takes less)"]
    steps = config.max_steps_per_episode_data_collection // config.frame_skipping
    frames = config.num_episodes_data_collection * (steps + 1)
    lines.append(
        f"  dataset            {_size(frames * config.input_channels * config.image_size**2)} "
        f"({frames:,} frames at most, from {config.num_episodes_data_collection:,} episodes)"
    )
    jepa = JEPAObjective.from_config(config, model, action_space)
    lines.append(f"  JEPA step          {_size(_step_bytes(jepa, jepa, config, action_space))}")
    if config.jepa_decoder_training.enabled:
        objective = StateDecoderObjective(decoder, model, config.jepa_decoder_training.embedding_source)
        lines.append(f"  decoder step       {_size(_step_bytes(objective, decoder, config, action_space))}")
    lines += [f"notice: {notice}" for notice in config.notices()]
    return "\n".join(lines)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _step_bytes(objective: nn.Module, module: nn.Module, config: Config, action_space: gymnasium.Space) -> int:
    """Bytes of weights, gradients, optimizer state, frames, and what the forward pass keeps for the backward pass."""
    if isinstance(objective, JEPAObjective):
        transitions, batch_size = config.num_transitions, config.batch_size
    else:
        transitions, batch_size = 0, config.jepa_decoder_training.batch_size
    frame_shape = (config.input_channels, config.image_size, config.image_size)
    frames = torch.zeros(MEASURED_BATCH, transitions + 1, *frame_shape, dtype=torch.uint8)
    start = int(action_space.start) if isinstance(action_space, gymnasium.spaces.Discrete) else 0
    actions = torch.full((MEASURED_BATCH, transitions, block_size(action_space, config.frame_skipping)), start)
    own = {parameter.data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def give_back(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, give_back):
        loss, _ = objective(Batch(frames, actions))
    del loss
    weights = sum(p.numel() * FLOAT_BYTES * (TRAINED_COPIES if p.requires_grad else 1) for p in module.parameters())
    images = frames.numel() * FLOAT_BYTES
    return weights + (sum(kept.values()) + images) * batch_size // MEASURED_BATCH


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:,.1f} GiB"
