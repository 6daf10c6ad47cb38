"""Collecting a dataset: from an environment and a policy to a folder of shards.

The work is split into shards of whole episodes by the settings alone, and every episode has random numbers of
its own, so that the files are equal byte for byte for any number of workers, after a kill and a continuation,
and in every run on the same machine with the same versions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jepaworld.config import Config
from jepaworld.data.policies import BUILT_IN, current_name, make_policy, policy_file
from jepaworld.data.rollout import discover_state_variables
from jepaworld.data.shards import file_checksum, finished_shards, remove_unfinished
from jepaworld.data.spec import (
    DATASET_FILE,
    Collected,
    DatasetSpec,
    as_content,
    read_description,
    write_description,
)
from jepaworld.data.store import EpisodeDataset
from jepaworld.data.workers import collect_shards
from jepaworld.envs.player import Player
from jepaworld.envs.seeding import kept_random_state
from jepaworld.envs.spaces import block_size, space_to_dict
from jepaworld.errors import DatasetError
from jepaworld.utils.progress import Progress
from jepaworld.utils.storage import alone_in, storage_errors
from jepaworld.utils.versions import version

_SHARD_BYTES = 64 * 2**20
_FEWEST_SHARDS = 16
"""Where there are so many episodes: enough to keep 8 processes busy to the end. More would be smaller ones,
and the built-in environment is faster the more episodes it plays side by side."""
_MOST_SHARDS = 512
"""A reader keeps a file of each shard open, and systems commonly allow 1024 open files."""

# The setting behind each entry of `dataset.json` that decides what the data are.
_SETTINGS = {
    "environment_name": "environment_name",
    "environment_kwargs": "environment_kwargs",
    "action_space": "the environment's action space",
    "frame_skipping": "frame_skipping",
    "image_size": "image_size",
    "input_channels": "input_channels",
    "frame_source": "collection.frame_source",
    "policy": "collection.policy",
    "policy_kwargs": "collection.policy_kwargs",
    "policy_path": "collection.policy_path",
    "policy_checksum": "the content of the file collection.policy_path",
    "smoothness": "collection.smoothness",
    "seed": "collection.seed",
    "num_episodes": "num_episodes_data_collection",
    "max_steps_per_episode": "max_steps_per_episode_data_collection (in whole blocks of frame_skipping)",
}


def collect(config: Config, *, progress: Progress | None = None) -> EpisodeDataset:
    """Collect `config.num_episodes_data_collection` episodes into the folder `config.dataset_dir`.

    A finished dataset of the same settings is opened as it is, an unfinished one is continued.
    `frame_skipping` k stores a frame every k environment steps; `max_steps_per_episode_data_collection`
    counts environment steps and is rounded down to whole blocks; see `rollout` for how episodes end.

    After Ctrl+C, a kill or an error the folder holds the finished shards, opens as a dataset with
    `spec.complete` False, and the next call continues it.

    Args:
        config: all settings; `collection.num_workers` processes collect, one means this process.
        progress: is told the episodes done.

    Returns:
        The complete dataset. Checksums of shards that were there before are verified if
        `config.verify_checksums`.

    Raises:
        EnvironmentNotUsableError: the environment cannot be made, has another action space than Box or
            Discrete, or fails.
        ConfigError: the policy cannot be made, fails, or leaves the action space.
        DatasetError: the folder holds something else, a dataset of other settings, or a damaged one; another
            process is collecting into it; a worker died.
        StorageError: the folder cannot be written, or the disk is full.
    """
    progress = Progress() if progress is None else progress
    path = Path(config.dataset_dir)
    with kept_random_state():
        spec, collected = _describe(config)
        if _is_whole(path):
            # Nothing will be written, so that several trainings may begin with it at once.
            _require_same_settings(path, spec, collected)
            return EpisodeDataset.open(path, verify_checksums=config.verify_checksums)
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        busy = DatasetError(
            f"{path}: another process is collecting into this folder. Wait for it, or set dataset_dir to another one."
        )
        with alone_in(path, busy):
            spec, collected = _begin(path, spec, collected, progress)
            present = set(finished_shards(path))
            if present:
                # Before more work goes into it: what is there must be whole.
                EpisodeDataset.open(path, verify_checksums=config.verify_checksums, allow_missing=True)
            pending = [index for index in range(spec.num_shards) if index not in present]
            if pending:
                _collect_pending(path, spec, collected, pending, config.collection.num_workers, progress)
            if not spec.complete:
                checksums = [shard.checksum for shard in EpisodeDataset.open(path, verify_checksums=False).shards]
                write_description(path, dataclasses.replace(spec, complete=True, shards=checksums), collected)
    return EpisodeDataset.open(path, verify_checksums=False)


def _is_whole(path: Path) -> bool:
    if not (path / DATASET_FILE).exists():
        return False
    spec, _ = read_description(path)
    return spec.complete and len(list(finished_shards(path))) == spec.num_shards


def _collect_pending(
    path: Path, spec: DatasetSpec, collected: Collected, pending: list[int], num_workers: int, progress: Progress
) -> None:
    sizes = [min(spec.episodes_per_shard, spec.num_episodes - index * spec.episodes_per_shard) for index in pending]
    progress.start("Collecting episodes", spec.num_episodes, spec.num_episodes - sum(sizes))
    try:
        collect_shards(path, spec, collected, pending, num_workers, progress.advance)
    finally:
        progress.finish()
        # Workers that were stopped could not do so themselves.
        remove_unfinished(path)


def _begin(path: Path, spec: DatasetSpec, collected: Collected, progress: Progress) -> tuple[DatasetSpec, Collected]:
    """The description of the dataset in `path`: the one that is there if the settings agree, or a new one."""
    remove_unfinished(path)
    if (path / DATASET_FILE).exists():
        found, begun_by = _require_same_settings(path, spec, collected)
        if not found.complete and begun_by.versions != collected.versions:
            progress.warn(
                f"{path}: begun with {_in_words(begun_by.versions)}, continued with {_in_words(collected.versions)}: "
                "its episodes may differ from those of one version. Delete the folder to collect all of them anew."
            )
        return found, begun_by
    others = sorted(entry.name for entry in path.iterdir())
    if others:
        raise DatasetError(
            f"{path}: not a dataset (it has no {DATASET_FILE}) and not empty: it holds {', '.join(others[:5])}"
            f"{' and more' if len(others) > 5 else ''}. Set dataset_dir to a new or empty folder."
        )
    spec = dataclasses.replace(spec, state_variables=discover_state_variables(spec, collected))
    write_description(path, spec, collected)
    return spec, collected


def _describe(config: Config) -> tuple[DatasetSpec, Collected]:
    """The dataset that the settings ask for; the state variables are not known yet."""
    settings, skip = config.collection, config.frame_skipping
    # What is wrong with environment, frames or policy is found here, in one process and before a folder exists.
    with Player.of(config) as player:
        action_size = block_size(player.action_space, skip)
        action_space = space_to_dict(player.action_space)
        make_policy(settings, player.action_space)
    spec = DatasetSpec(
        action_space=action_space,
        action_size=action_size,
        frame_skipping=skip,
        image_size=config.image_size,
        input_channels=config.input_channels,
        num_episodes=config.num_episodes_data_collection,
        episodes_per_shard=_episodes_per_shard(config),
        state_variables={},
    )
    collected = Collected(
        environment_name=config.environment_name,
        environment_kwargs=config.environment_kwargs,
        frame_source=settings.frame_source,
        policy=settings.policy,
        policy_kwargs={} if settings.policy in BUILT_IN else settings.policy_kwargs,
        policy_path=settings.policy_path,
        policy_checksum=None if settings.policy_path is None else file_checksum(policy_file(settings.policy_path)),
        smoothness=settings.smoothness if settings.policy == "smooth_random" else None,
        seed=config.dataset_seed,
        max_steps_per_episode=config.max_steps_per_episode_data_collection // skip * skip,
        versions={name: version(name) for name in ("jepaworld", "gymnasium", "numpy")},
    )
    return spec, collected


def _episodes_per_shard(config: Config) -> int:
    """How many episodes go into a shard; follows from settings that decide the data, not from num_workers."""
    episodes = config.num_episodes_data_collection
    longest = config.max_steps_per_episode_data_collection // config.frame_skipping + 1
    fit = _SHARD_BYTES // (longest * config.input_channels * config.image_size**2)
    parallel = -(-episodes // _FEWEST_SHARDS)
    openable = -(-episodes // _MOST_SHARDS)
    return max(min(fit, parallel), openable, 1)


def _require_same_settings(path: Path, spec: DatasetSpec, collected: Collected) -> tuple[DatasetSpec, Collected]:
    """The description of the dataset in `path`, which must be one of these settings."""
    there = read_description(path)
    found, expected = as_content(*there), as_content(spec, collected)
    differing = [
        f"{setting} is {found[name]!r} there and {expected[name]!r} now"
        for name, setting in _SETTINGS.items()
        if found[name] != expected[name]
        and not (name == "policy" and current_name(found[name]) == current_name(expected[name]))
    ]
    if differing:
        raise DatasetError(
            f"{path}: holds a dataset of other settings: {'; '.join(differing)}. Set dataset_dir to another "
            "folder, go back to these settings, or delete the folder to collect anew."
        )
    return there


def _in_words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
