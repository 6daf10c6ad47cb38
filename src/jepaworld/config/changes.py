"""Which settings may change after training began, named once for all commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jepaworld.config.components import model_parts
from jepaworld.config.loading import Config
from jepaworld.errors import ConfigError

AFTER_TRAINING = ("planning", "evaluation")
"""Training does not look at these."""
PLANNING = ("planning", "mixed_precision")
"""What a policy may change of the run that it is made from."""
EVALUATION = (*AFTER_TRAINING, "device", "mixed_precision")
"""What evaluation and planning may change for themselves."""
DECODER = ("jepa_decoder_training", *(key for key in Config.model_fields if key.startswith("decoder_")))
"""The JEPA phase does not look at these."""
DECODE = (*DECODER, "device", "execution", "logging", "mixed_precision")
"""What training the decoder anew may change."""
SURROUNDINGS = ("device", "execution", "logging", "checkpoint_every_steps", "verify_checksums", "load_model_path")
SURROUNDINGS += ("dataset_dir", "load_dataset_path")
"""Where a phase is trained and what is written beside it; the run's record says which dataset it is."""
UNSEEN = (*AFTER_TRAINING, *SURROUNDINGS)
"""What may differ from the settings that any phase began with."""


def unseen(phase: str, config: Config) -> tuple[str, ...]:
    """What may differ from the settings that a phase ("jepa" or "decoder") began with."""
    own_decoder = "decoder" in model_parts(config)
    return UNSEEN if phase == "decoder" or own_decoder else (*UNSEEN, *DECODER)


def differences(one: Config, other: Config, allowed: tuple[str, ...] = ()) -> list[str]:
    """Dotted paths of the settings in which two configurations differ, without the top-level keys in `allowed`."""

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict) and node and prefix.count(".") < 4:
            for key, value in node.items():
                yield from leaves(value, f"{prefix}.{key}" if prefix else key)
        else:
            yield prefix, node

    first, second = dict(leaves(one.to_dict(), "")), dict(leaves(other.to_dict(), ""))
    differing = sorted(key for key in first.keys() | second.keys() if first.get(key) != second.get(key))
    return [key for key in differing if key.split(".")[0] not in allowed]


def require_equal(trained: Config, config: Config, allowed: tuple[str, ...], remedy: str) -> None:
    """Refuse a configuration that differs from the one that something was trained with.

    Raises:
        ConfigError: with the settings that differ, and the remedy.
    """
    if differing := differences(trained, config, allowed):
        raise ConfigError(f"{', '.join(differing)}: cannot change, the run was trained with another value. {remedy}")
