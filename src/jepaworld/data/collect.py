"""Collecting a dataset: from an environment and a policy to a folder of shards.

The work is split into shards of whole episodes by the settings alone, and every episode has random numbers of its own:
files are equal byte for byte for any number of workers, after a kill, and in every run with the same versions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jepaworld.config import Config
from jepaworld.config.schema import CollectionConfig
from jepaworld.data.policies import BUILT_IN, current_name, make_policy, policy_file
from jepaworld.data.rollout import Rollout
from jepaworld.data.shards import Shard, finished_shards, remove_unfinished, shard_folder
from jepaworld.data.spec import DATASET_FILE, Collected, DatasetSpec, as_content, read_description, write_description
from jepaworld.data.store import EpisodeDataset
from jepaworld.data.workers import collect_shards
from jepaworld.envs.player import Player
from jepaworld.envs.seeding import kept_random_state
from jepaworld.envs.spaces import block_size, space_to_dict
from jepaworld.errors import DatasetError
from jepaworld.utils.outside import version
from jepaworld.utils.progress import Progress
from jepaworld.utils.storage import alone_in, file_checksum, storage_errors

_SHARD_BYTES = 64 * 2**20
_FEWEST_SHARDS = 16  # keep 8 processes busy to the end; the built-in worlds are faster with more episodes in a shard
_MOST_SHARDS = 512  # a reader keeps a file of each shard open, and systems commonly allow 1024 open files

# Entries of `dataset.json` that follow from others or from time, and what the others are called in messages if not by
# their setting of the same name.
_NOT_COMPARED = {"action_size", "episodes_per_shard", "state_variables", "complete", "shards", "versions"}
_NAMES = {
    "action_space": "the environment's action space",
    "policy_checksum": "the content of the file collection.policy_path",
    "num_episodes": "num_episodes_data_collection",
    "max_steps_per_episode": "max_steps_per_episode_data_collection (in whole blocks of frame_skipping)",
} | {name: f"collection.{name}" for name in CollectionConfig.model_fields}


def collect(config: Config, *, progress: Progress | None = None) -> EpisodeDataset:
    """Collect `config.num_episodes_data_collection` episodes into the folder `config.dataset_dir`.

    A finished dataset of the same settings is opened as it is, an unfinished one is continued.
    `max_steps_per_episode_data_collection` counts environment steps and is rounded down to whole blocks of
    `frame_skipping`; see `rollout` for how episodes end.

    After Ctrl+C, a kill or an error the folder holds the finished shards, opens as a dataset with
    `spec.complete` False, and the next call continues it.

    Args:
        config: all settings; `collection.num_workers` processes collect, one means this process.
        progress: is told the episodes done.

    Raises:
        EnvironmentNotUsableError: the environment cannot be made, has no Box or Discrete action space, or fails.
        ConfigError: the policy cannot be made, fails, or leaves the action space.
        DatasetError: the folder holds something else, a dataset of other settings, or a damaged one; another
            process is collecting into it; a worker died.
        StorageError: the folder cannot be written, or the disk is full.
    """
    progress, path = progress or Progress(), Path(config.dataset_dir)
    with kept_random_state():
        spec, collected = _describe(config)
        if _is_whole(path):
            # Nothing will be written, so that several trainings may begin with it at once.
            _require_same_settings(path, spec, collected)
            return EpisodeDataset.open(path, verify_checksums=config.verify_checksums)
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        busy = DatasetError(f"{path}: another process is collecting into this folder. Set another dataset_dir.")
        with alone_in(path, busy):
            remove_unfinished(path)
            spec, collected = _begin(path, spec, collected, progress)
            if present := finished_shards(path):
                # Before more work goes into it: what is there must be whole.
                EpisodeDataset.open(path, verify_checksums=config.verify_checksums, allow_missing=True)
            if pending := sorted(set(range(spec.num_shards)) - set(present)):
                missing = sum(len(spec.episodes_of(index)) for index in pending)
                progress.start("Collecting episodes", spec.num_episodes, spec.num_episodes - missing)
                looked_at = bool(present)

                def done(episodes: int) -> None:
                    nonlocal looked_at
                    progress.advance(episodes)
                    if not looked_at:  # at the first shard, before hours of pictures that show nothing
                        looked_at = True
                        _look_at_frames(path, spec, progress)

                try:
                    collect_shards(path, spec, collected, pending, config.collection.num_workers, done)
                finally:
                    progress.finish()
                    remove_unfinished(path)  # workers that were stopped could not do so themselves
            if not spec.complete:
                checksums = [shard.checksum for shard in EpisodeDataset.open(path, verify_checksums=False).shards]
                write_description(path, dataclasses.replace(spec, complete=True, shards=checksums), collected)
    return EpisodeDataset.open(path, verify_checksums=False)


def _look_at_frames(path: Path, spec: DatasetSpec, progress: Progress) -> None:
    """Say that the frames of a shard never change, or are as good as black."""
    index = finished_shards(path)[0]
    shard = Shard(shard_folder(path, index), index, 0, spec)
    frames, ends = shard.arrays["frames"], np.cumsum(shard.episode_lengths + 1)
    remedy = "Ctrl-C stops; `jepaworld check-env` looks at the environment."
    if all((frames[start:end] == frames[start]).all() for start, end in zip([0, *ends[:-1]], ends, strict=True)):
        progress.warn(
            f"{path}: the frames of the first {len(ends)} episodes never change: nothing can be learnt from them. A "
            f"missing graphics driver draws empty pictures. {remedy}"
        )
    elif frames.max() <= 1:
        progress.warn(f"{path}: no value of the first frames is above 1 of 255, as if they were 0 to 1. {remedy}")


def _describe(config: Config) -> tuple[DatasetSpec, Collected]:
    """The dataset that the settings ask for; the state variables are not known yet."""
    settings, skip = config.collection, config.frame_skipping
    # What is wrong with environment, frames or policy is found here, in one process and before a folder exists.
    with Player.of(config) as player:
        space = player.action_space
        action_size = block_size(space, skip)
        make_policy(settings, space)
    spec = DatasetSpec(
        action_space=space_to_dict(space),
        action_size=action_size,
        frame_skipping=skip,
        image_size=config.image_size,
        input_channels=config.input_channels,
        num_episodes=config.num_episodes_data_collection,
        episodes_per_shard=_episodes_per_shard(config),
        state_variables={},
    )
    return spec, Collected(
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


def _episodes_per_shard(config: Config) -> int:
    """How many episodes go into a shard; follows from settings that decide the data, not from num_workers."""
    episodes = config.num_episodes_data_collection
    longest = config.max_steps_per_episode_data_collection // config.frame_skipping + 1
    fit = _SHARD_BYTES // (longest * config.input_channels * config.image_size**2)
    parallel, openable = -(-episodes // _FEWEST_SHARDS), -(-episodes // _MOST_SHARDS)
    return max(min(fit, parallel), openable, 1)


def _is_whole(path: Path) -> bool:
    if not (path / DATASET_FILE).exists():
        return False
    spec, _ = read_description(path)
    return spec.complete and len(finished_shards(path)) == spec.num_shards


def _begin(path: Path, spec: DatasetSpec, collected: Collected, progress: Progress) -> tuple[DatasetSpec, Collected]:
    """The description of the dataset in `path`: the one that is there if the settings agree, or a new one."""
    if (path / DATASET_FILE).exists():
        found, begun_by = _require_same_settings(path, spec, collected)
        if not found.complete and begun_by.versions != collected.versions:
            then, now = (
                ", ".join(f"{package} {number}" for package, number in sorted(one.versions.items()))
                for one in (begun_by, collected)
            )
            progress.warn(
                f"{path}: begun with {then}, continued with {now}: its episodes may differ from those of one version. "
                "Delete the folder to collect all of them anew."
            )
        return found, begun_by
    if others := sorted(entry.name for entry in path.iterdir()):
        raise DatasetError(
            f"{path}: not a dataset (it has no {DATASET_FILE}) and not empty: it holds {', '.join(others[:5])}. Set "
            "dataset_dir to an empty folder."
        )
    variables, large = Rollout(spec, collected).state_variables()
    if large:
        listed = ", ".join(f"{name} {shape}" for name, shape in large.items())
        progress.warn(f"{path}: too large for state variables and not stored: {listed}.")
    spec = dataclasses.replace(spec, state_variables=variables)
    write_description(path, spec, collected)
    return spec, collected


def _require_same_settings(path: Path, spec: DatasetSpec, collected: Collected) -> tuple[DatasetSpec, Collected]:
    """The description of the dataset in `path`, which must be one of these settings."""
    there = read_description(path)
    found, expected = as_content(*there), as_content(spec, collected)
    if current_name(found["policy"]) == current_name(expected["policy"]):
        found["policy"] = expected["policy"]
    differing = [
        f"{_NAMES.get(name, name)} is {found[name]!r} there and {expected[name]!r} now"
        for name in found
        if name not in _NOT_COMPARED and found[name] != expected[name]
    ]
    if differing:
        raise DatasetError(
            f"{path}: holds a dataset of other settings: {'; '.join(differing)}. Set dataset_dir to another folder, go "
            "back to these settings, or delete the folder to collect anew."
        )
    return there
