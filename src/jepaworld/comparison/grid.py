"""The grid of a comparison: settings times training seeds, and where each run and its data lie."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jepaworld.config import Config
from jepaworld.config.changes import AFTER_TRAINING, SURROUNDINGS, differences
from jepaworld.config.loading import dump_yaml, parse_yaml
from jepaworld.errors import ConfigError

COLLECTED = ("environment_name", "environment_kwargs", "image_size", "input_channels", "frame_skipping")
COLLECTED += ("num_episodes_data_collection", "max_steps_per_episode_data_collection", "load_dataset_path")
"""Settings that a dataset follows from, beside `collection`."""
_DATA = (*COLLECTED, "collection.", "evaluation_split", "early_stopping.validation_split")
WITHOUT_EFFECT = tuple(key for key in SURROUNDINGS if not key.startswith("load_"))
"""Settings that change no result, so that a run stays the same one with other values; what is loaded does."""


class Cell(NamedTuple):
    """One run of the grid.

    Attributes:
        setting: The varied settings and their values.
        seed: Training seed.
        config: The resolved configuration.
        name: Of its files. It follows from the configuration alone, so that a run is found again in any other grid.
        run: Its run folder. Cells that differ in planning or evaluation only share one.
    """

    setting: dict[str, Any]
    seed: int
    config: Config
    name: str
    run: Path


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The grid that the option --vary describes.

    Args:
        texts: "KEY=V1,V2" each, the values in YAML.

    Raises:
        ConfigError: one has another form, or a key comes twice.

    Example:
        >>> parse_vary(["latent_dim=32,64", "encoder_params.cnn.stride=[4,2,2],[2,2,2]"])
        {'latent_dim': [32, 64], 'encoder_params.cnn.stride': [[4, 2, 2], [2, 2, 2]]}
    """
    vary: dict[str, list[Any]] = {}
    for text in texts:
        key, separator, values = text.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigError(f"--vary {text!r}: expected KEY=V1,V2, for example auxiliary_loss.type=vicreg,sigreg.")
        if key in vary:
            raise ConfigError(f"--vary {key}: comes twice. Name all its values at once: {key}=V1,V2.")
        vary[key] = parse_yaml(f"[{values}]", f"--vary {key}: the values {values!r}")
    return vary


def make_grid(
    config: Config, vary: Mapping[str, Sequence[Any]], seeds: int, folder: Path, vary_data: bool = False
) -> list[Cell]:
    """All cells, the seeds of a setting one after another.

    The seed of the data is fixed, so that of two seeds only initialisation, order and dropout differ.

    Args:
        config: What is not varied.
        vary: Values by setting.
        seeds: Training seeds are 0 to seeds - 1.
        folder: Of the comparison.
        vary_data: Whether the data may differ between settings.

    Raises:
        ConfigError: the grid is empty, a key or value is not possible, the data differ without leave, or two cells are
            the same run.
    """
    if empty := [key for key, values in vary.items() if not values]:
        raise ConfigError(f"--vary {empty[0]}: the grid is empty, no value is named. Expected {empty[0]}=V1,V2.")
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: the grid is empty. Expected 1 or more.")
    if "seed" in vary:
        raise ConfigError("--vary seed: the training seeds are 0 to N - 1 of --seeds N.")
    settings = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    cells = [_cell(config, setting, seed, folder) for setting in settings for seed in range(seeds)]
    for cell in cells:
        differing = differences(cells[0].config, cell.config, WITHOUT_EFFECT)
        keys = [key for key in differing if key.startswith(_DATA) and key != "collection.num_workers"]
        if keys and not vary_data:
            raise ConfigError(
                f"{', '.join(keys)}: changes the data, so that models would not be compared on equal ones. Vary "
                "something else, or allow it by --vary-data."
            )
    known: dict[str, Cell] = {}
    for cell in cells:
        if (other := known.setdefault(cell.name, cell)) is not cell:
            raise ConfigError(
                f"--vary: {in_words(other.setting)} and {in_words(cell.setting)} are the same run. Leave one out."
            )
    return cells


def in_words(setting: Mapping[str, Any]) -> str:
    """`latent_dim=32 batch_size=64`; of an empty setting, that nothing is varied."""
    return " ".join(f"{key}={value_text(value)}" for key, value in setting.items()) or "as configured"


def value_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return dump_yaml(value, flow=True).strip()


def _cell(config: Config, setting: dict[str, Any], seed: int, folder: Path) -> Cell:
    overrides = [f"collection.seed={config.dataset_seed}", *(f"{k}={value_text(v)}" for k, v in setting.items())]
    found = config.with_overrides([*overrides, f"seed={seed}"])
    collection = found.collection.model_dump(mode="json", exclude={"num_workers"})
    world = re.sub(r"[^a-z0-9]+", "-", found.environment_name.rpartition("/")[2].lower()).strip("-")
    data = f"{world}-{_digest([collection, *(getattr(found, key) for key in COLLECTED)])}"
    found = found.with_overrides([f"dataset_dir={value_text(str((folder / 'datasets' / data).resolve()))}"])
    content = {key: value for key, value in found.to_dict().items() if key not in WITHOUT_EFFECT}
    content["collection"] = collection
    training = {key: value for key, value in content.items() if key not in AFTER_TRAINING}
    run = folder / "runs" / f"{_digest(training)}-seed{seed}"
    return Cell(setting, seed, found, f"{_digest(content)}-seed{seed}", run)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
