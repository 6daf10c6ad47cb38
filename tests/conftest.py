"""Fixtures that all tests share, and the option `--run-slow`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import pytest
import torch

from jepaworld.config import Config
from jepaworld.envs.spaces import Spaces
from jepaworld.models import JEPA, JEPAStateDecoder, build, build_decoder


def heed_interrupts() -> None:
    """For `preexec_fn`: a test suite in the background of a shell ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


TINY: dict[str, Any] = {
    "image_size": 16,
    "num_episodes_data_collection": 12,
    "max_steps_per_episode_data_collection": 12,
    "collection": {"num_workers": 1},
    "evaluation_split": 0.25,
    "early_stopping": {"validation_split": 0.25},
    "latent_dim": 8,
    "action_emb_dim": 4,
    "encoder_params": {
        "vit": {"patch_size": 8, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 24},
        "cnn": {
            "num_layers": 2,
            "num_filters": [4, 6],
            "kernel_size": [4, 3],
            "stride": [4, 2],
            "padding": [0, 1],
            "hidden_dim": 16,
        },
        "mlp": {"num_layers": 2, "hidden_dim": 16},
    },
    "jepa_model": {"predictor_hidden_dim": 16},
    "batch_size": 8,
    "num_epochs": 2,
    "warmup_steps": 2,
    "device": "cpu",
    "mixed_precision": "off",
    "decoder_dim": 16,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "decoder_mlp_dim": 24,
    "decoder_memory_tokens": 2,
    "decoder_patch_size": 8,
    "jepa_decoder_training": {"num_epochs": 1, "batch_size": 8},
    "logging": {"log_every_steps": 1, "tensorboard": False},
}


def fresh_model(config: Config, space: gymnasium.Space) -> JEPA:
    """A new model for an environment with this action space."""
    return build(config, Spaces.of(config, space))


def fresh_decoder(config: Config) -> JEPAStateDecoder:
    """A new state decoder for latents of one vector."""
    return build_decoder(config, (config.latent_dim,))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --run-slow"))


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    """Every test starts from the same state of torch's global generator, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors of tests are so small that threads cost more than they gain."""
    torch.set_num_threads(1)


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Config]:
    """`tiny_config(**changes)`: a configuration so small that a step takes milliseconds.

    Sections are changed entry by entry: `tiny_config(jepa_model={"ema_decay": 0.5}, latent_dim=4)`.
    """

    def make(**changes: Any) -> Config:
        return Config.model_validate(_merged(TINY, changes))

    return make
