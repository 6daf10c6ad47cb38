"""The dataset folder: round trip, and every damage that can happen to it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from jepaworld.data import spec as description
from jepaworld.data.shards import Episode, ShardWriter, array_file
from jepaworld.data.spec import Collected, DatasetSpec, read_description, write_description
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.spaces import space_to_dict
from jepaworld.errors import DatasetError, StorageError
from tests.data.conftest import folder_bytes

LENGTHS = [[3, 1], [2, 5], [4]]
SPACE = Box(-1.0, 1.0, (3,), np.float32)


COLLECTED = Collected(
    environment_name="any",
    environment_kwargs={"x": [1, None]},
    frame_source="auto",
    policy="random",
    policy_kwargs={},
    policy_path=None,
    policy_checksum=None,
    smoothness=None,
    seed=3,
    max_steps_per_episode=10,
    versions={"jepaworld": "0"},
)


def make_spec(**changes) -> DatasetSpec:
    values = DatasetSpec(
        action_space=space_to_dict(SPACE),
        action_size=6,
        frame_skipping=2,
        image_size=8,
        input_channels=1,
        num_episodes=5,
        episodes_per_shard=2,
        state_variables={"ball/x": [2], "frames": []},
    )
    return replace(values, **changes)


def make_episode(rng: np.random.Generator, length: int, spec: DatasetSpec) -> Episode:
    discrete = spec.action_space["type"] == "Discrete"
    size = (length, spec.action_size)
    return Episode(
        frames=rng.integers(0, 256, (length + 1, 1, 8, 8), np.uint8),
        actions=rng.integers(0, 9, size) if discrete else rng.random(size, np.float32),
        rewards=rng.random(length, np.float32),
        terminated=rng.random(length) < 0.5,
        truncated=rng.random(length) < 0.5,
        states={
            "ball/x": rng.random((length + 1, 2), np.float32),
            "frames": rng.random(length + 1, np.float32),
        },
    )


def write(path: Path, spec: DatasetSpec, complete: bool = True, collected: Collected = COLLECTED) -> list[Episode]:
    """Write a dataset of `LENGTHS` as the collection does, and return what went in."""
    path.mkdir()
    rng = np.random.default_rng(0)
    write_description(path, spec, collected)
    episodes = []
    for index, lengths in enumerate(LENGTHS):
        with ShardWriter(path, index, spec) as writer:
            for length in lengths:
                episodes.append(make_episode(rng, length, spec))
                writer.add(episodes[-1])
            writer.commit()
    if complete:
        shards = [shard.checksum for shard in EpisodeDataset.open(path).shards]
        write_description(path, replace(spec, complete=True, shards=shards), collected)
    return episodes


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    write(tmp_path / "data", make_spec())
    return tmp_path / "data"


def equal(a: Episode, b: Episode) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a[:5], b[:5], strict=True)) and all(
        np.array_equal(a.states[name], b.states[name]) for name in a.states | b.states
    )


@pytest.mark.parametrize("discrete", [False, True])
def test_round_trip(tmp_path: Path, discrete: bool):
    space = Discrete(9, start=-2) if discrete else SPACE
    written = write(tmp_path / "data", make_spec(action_space=space_to_dict(space)))
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert dataset.action_space == space
    assert dataset.spec.complete and dataset.provenance.environment_kwargs == {"x": [1, None]}
    assert dataset.episode_lengths.tolist() == [3, 1, 2, 5, 4]
    assert dataset.episode_starts.tolist() == [0, 4, 6, 9, 15]
    assert dataset.num_frames == 20
    assert dataset.state_variables == {"ball/x": (2,), "frames": ()}
    assert [shard.start for shard in dataset.shards] == [0, 6, 15]
    for index, episode in enumerate(written):
        assert equal(dataset.episode(index), episode)


def test_rows_may_span_shards_and_are_copies(dataset_folder: Path):
    dataset = EpisodeDataset.open(dataset_folder)
    whole = np.concatenate([shard.arrays["frames"] for shard in dataset.shards])
    for start, stop in [(0, 20), (5, 16), (6, 15), (19, 20), (7, 7)]:
        assert np.array_equal(dataset.rows("frames", start, stop), whole[start:stop])
    rows = dataset.rows("frames", 0, 20)
    rows[...] = 0
    assert np.array_equal(dataset.rows("frames", 0, 20), whole)
    # A state variable that is named as an array is not lost behind it.
    assert dataset.rows("state.frames", 0, 20).shape == (20,)
    assert dataset.rows("ball/x", 3, 9).shape == (6, 2)


def test_padding_rows_are_zero_and_arrays_are_read_only(dataset_folder: Path):
    dataset = EpisodeDataset.open(dataset_folder)
    last = dataset.episode_starts + dataset.episode_lengths
    for name in ("actions", "rewards", "terminated", "truncated"):
        assert not dataset.rows(name, 0, 20)[last].any()
    shard = dataset.shards[0]
    assert isinstance(shard.arrays["frames"], np.memmap)
    for array in (shard.arrays["frames"], shard.arrays["actions"], shard.arrays["state.ball/x"]):
        with pytest.raises(ValueError):
            array[0] = 0


def test_state_names_become_file_names():
    assert array_file("state.ball/x:y") == "state.ball%2Fx%3Ay.npy"


def test_fingerprint_is_stable_and_depends_on_content(tmp_path: Path, dataset_folder: Path):
    fingerprint = EpisodeDataset.open(dataset_folder).fingerprint
    shutil.copytree(dataset_folder, tmp_path / "copy")
    assert EpisodeDataset.open(tmp_path / "copy").fingerprint == fingerprint
    write(tmp_path / "other", make_spec(), collected=replace(COLLECTED, seed=4))
    assert EpisodeDataset.open(tmp_path / "other").fingerprint != fingerprint


def test_incomplete_dataset_opens_with_the_shards_that_are_there(tmp_path: Path):
    written = write(tmp_path / "data", make_spec(), complete=False)
    shutil.rmtree(tmp_path / "data" / "shard-00001")
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert not dataset.spec.complete
    assert dataset.episode_lengths.tolist() == [3, 1, 4]
    assert [shard.first_episode for shard in dataset.shards] == [0, 4]
    assert equal(dataset.episode(2), written[4])


def test_incomplete_dataset_without_any_shard(tmp_path: Path):
    (tmp_path / "data").mkdir()
    write_description(tmp_path / "data", make_spec(), COLLECTED)
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert dataset.num_frames == 0 and len(dataset.episode_lengths) == 0


# --- damage


def edit_json(path: Path, change: Callable[[dict], object], reseal: bool = False) -> None:
    content = json.loads(path.read_text())
    change(content)
    if reseal:
        content.pop("checksum")
        path.write_bytes(description.seal(content))
    else:
        path.write_text(json.dumps(content))


def flip_byte(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_missing_folder_and_folder_of_something_else(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"nowhere: no such dataset folder\. Collect one"):
        EpisodeDataset.open(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"not a dataset: it has no dataset\.json"):
        EpisodeDataset.open(tmp_path)


def test_other_schema_version(dataset_folder: Path):
    edit_json(dataset_folder / "dataset.json", lambda content: content.update(schema_version=99))
    with pytest.raises(DatasetError, match=r"schema_version is 99, this version of jepaworld reads 1\. Use the"):
        EpisodeDataset.open(dataset_folder)


def test_altered_description(dataset_folder: Path):
    edit_json(dataset_folder / "dataset.json", lambda content: content.update(frame_skipping=1))
    with pytest.raises(DatasetError, match=r"dataset\.json: altered after it was written"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)


def test_description_with_other_entries(dataset_folder: Path):
    edit_json(dataset_folder / "dataset.json", lambda content: content.pop("seed"), reseal=True)
    with pytest.raises(DatasetError, match=r"entries are not those of a dataset \(differing: \['seed'\]\)"):
        EpisodeDataset.open(dataset_folder)


@pytest.mark.parametrize("name", ["dataset.json", "shard-00001/shard.json"])
@pytest.mark.parametrize("garbage", [b"", b"{", b"\xff\x00", b"[1]", b"{}", b"null"])
def test_garbage_instead_of_json(dataset_folder: Path, name: str, garbage: bytes):
    (dataset_folder / name).write_bytes(garbage)
    with pytest.raises(DatasetError, match=f"{name}: .*Collect the dataset again"):
        EpisodeDataset.open(dataset_folder)


def test_altered_shard_json(dataset_folder: Path):
    path = dataset_folder / "shard-00001" / "shard.json"
    edit_json(path, lambda content: content.update(episode_lengths=[3, 4]))
    with pytest.raises(DatasetError, match=r"shard-00001/shard\.json: altered"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)


def test_shard_of_another_dataset(tmp_path: Path, dataset_folder: Path):
    write(tmp_path / "other", make_spec())
    edit_json(
        tmp_path / "other" / "shard-00001" / "shard.json",
        lambda content: content["files"]["frames.npy"].update(sha256="0" * 64),
        reseal=True,
    )
    shutil.rmtree(dataset_folder / "shard-00001")
    shutil.copytree(tmp_path / "other" / "shard-00001", dataset_folder / "shard-00001")
    with pytest.raises(DatasetError, match=r"shard\.json: not the one that belongs to this dataset"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)


def test_missing_shard(dataset_folder: Path):
    shutil.rmtree(dataset_folder / "shard-00001")
    with pytest.raises(DatasetError, match=r"shard-00001: missing\. Restore it from a copy, or delete"):
        EpisodeDataset.open(dataset_folder)


def test_surplus_and_renamed_shards(dataset_folder: Path):
    shutil.copytree(dataset_folder / "shard-00001", dataset_folder / "shard-00009")
    with pytest.raises(DatasetError, match=r"shard-00009: does not belong to this dataset of 3 shards"):
        EpisodeDataset.open(dataset_folder)
    shutil.rmtree(dataset_folder / "shard-00002")
    (dataset_folder / "shard-00009").rename(dataset_folder / "shard-00002")
    with pytest.raises(DatasetError, match=r"shard-00002: holds shard 1, a renamed folder"):
        EpisodeDataset.open(dataset_folder)


ARRAYS = ["frames", "actions", "rewards", "terminated", "truncated", "state.ball%2Fx", "state.frames"]


@pytest.mark.parametrize("name", ARRAYS)
def test_missing_truncated_and_altered_arrays(dataset_folder: Path, name: str):
    path = dataset_folder / "shard-00001" / f"{name}.npy"
    content = path.read_bytes()

    flip_byte(path)
    EpisodeDataset.open(dataset_folder, verify_checksums=False)
    with pytest.raises(DatasetError, match=f"{name}.npy: altered after it was written .sha256"):
        EpisodeDataset.open(dataset_folder)

    path.write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=f"{name}.npy: truncated: {len(content) - 1} bytes, {len(content)} were"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)

    path.write_bytes(content + b"x")
    with pytest.raises(DatasetError, match=f"{name}.npy: altered: {len(content) + 1} bytes"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)

    path.unlink()
    with pytest.raises(DatasetError, match=f"{name}.npy: missing"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)


def test_array_with_a_damaged_header(dataset_folder: Path):
    path = dataset_folder / "shard-00000" / "rewards.npy"
    content = path.read_bytes()
    flip_byte(path, 0)
    with pytest.raises(DatasetError, match=r"rewards\.npy: cannot be read"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)
    path.write_bytes(content.replace(b"<f4", b"<i4"))
    with pytest.raises(DatasetError, match=r"rewards\.npy: holds int32 \(6,\), expected float32 \(6,\)"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)


def test_nothing_in_a_dataset_is_unpickled(dataset_folder: Path):
    path = dataset_folder / "shard-00000" / "rewards.npy"
    size = path.stat().st_size
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    with pytest.raises(DatasetError, match=r"rewards\.npy: cannot be read"):
        EpisodeDataset.open(dataset_folder, verify_checksums=False)


# --- writing


def test_leaving_a_writer_early_leaves_nothing(tmp_path: Path):
    spec = make_spec()
    with pytest.raises(KeyError), ShardWriter(tmp_path, 0, spec) as writer:
        writer.add(make_episode(np.random.default_rng(0), 3, spec))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["fsync", "rename", "write"])
def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch, when: str):
    spec = make_spec()

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif when == "rename":
        monkeypatch.setattr(Path, "rename", full)
    else:
        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with (
        pytest.raises(StorageError, match=r"shard-00000.*No space left on device\). Free space"),
        ShardWriter(tmp_path, 0, spec) as writer,
    ):
        writer.add(make_episode(np.random.default_rng(0), 3, spec))
        writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_shard_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch):
    """Everything is synced, then renamed, then the rename itself is synced."""
    spec = make_spec()
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recording_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(Path, "rename", lambda a, b: (events.append("rename"), rename(a, b))[1])
    with ShardWriter(tmp_path, 0, spec) as writer:
        writer.add(make_episode(np.random.default_rng(0), 3, spec))
        writer.commit()
    position = events.index("rename")
    before = events[:position]
    assert {f"{name}.npy" for name in ARRAYS} <= set(before)
    assert any(name.startswith(".shard.json") for name in before)  # under its temporary name
    assert before[-1].startswith(".writing-shard-00000")
    assert events[position + 1 :] == [tmp_path.name]


def test_equal_content_gives_equal_bytes(tmp_path: Path):
    write(tmp_path / "a", make_spec())
    write(tmp_path / "b", make_spec())
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_description_round_trip(tmp_path: Path):
    write_description(tmp_path, make_spec(), COLLECTED)
    assert read_description(tmp_path) == (make_spec(), COLLECTED)


# --- splits


def of_length(dataset: EpisodeDataset, count: int, seed: int = 3) -> EpisodeDataset:
    """The same dataset with so many episodes."""
    other = EpisodeDataset(dataset.path, dataset.spec, replace(COLLECTED, seed=seed), dataset.shards)
    other.episode_lengths = np.ones(count, np.int64)
    return other


def test_a_split_is_by_episode_and_by_the_seed_of_the_dataset(dataset_folder: Path):
    dataset = EpisodeDataset.open(dataset_folder)
    split = of_length(dataset, 40).split(0.1, 0.25)
    assert [len(part) for part in split] == [26, 4, 10]
    assert sorted(np.concatenate(split)) == list(range(40))
    assert all((np.diff(part) > 0).all() for part in split)
    own, same, other = (
        of_length(dataset, 40, seed).split(0.1, 0.25, asked) for seed, asked in ((3, None), (9, 3), (9, None))
    )
    assert np.array_equal(own.evaluation, split.evaluation) and np.array_equal(same.evaluation, split.evaluation)
    assert not np.array_equal(other.evaluation, split.evaluation)


def test_a_split_is_that_of_the_first_release(dataset_folder: Path):
    split = of_length(EpisodeDataset.open(dataset_folder), 12, seed=0).split(0.2, 0.2)
    order = np.random.default_rng(0).permutation(12)
    assert split.validation.tolist() == sorted(order[:2]) and split.evaluation.tolist() == sorted(order[2:4])


def test_a_split_above_zero_gets_an_episode_and_leaves_one_to_train_on(dataset_folder: Path):
    dataset = EpisodeDataset.open(dataset_folder)
    assert [len(part) for part in of_length(dataset, 3).split(0.01, 0.01)] == [1, 1, 1]
    assert [len(part) for part in of_length(dataset, 3).split(0.0, 0.0)] == [3, 0, 0]
    with pytest.raises(DatasetError, match=r"1 episode\(s\), but early_stopping.validation_split = 0.1"):
        of_length(dataset, 1).split(0.1, 0.0)


# --- rows anywhere


def test_rows_are_gathered_from_anywhere_in_any_order(dataset_folder: Path):
    dataset = EpisodeDataset.open(dataset_folder)
    rows = np.array([[19, 0, 5], [6, 6, 14], [3, 4, 5]])
    for name in ("frames", "actions", "state.frames", "ball/x"):
        whole = dataset.rows(name, 0, 20)
        for keep in (True, False):
            assert np.array_equal(dataset.gather(name, rows, keep_cached=keep), whole[rows])
    assert dataset.gather("frames", np.zeros((0, 2), int)).shape == (0, 2, 1, 8, 8)
    for row in (-1, 20):
        with pytest.raises(AssertionError):
            dataset.gather("frames", np.array([row]))


def test_blocks_that_an_end_cut_are_marked_and_not_whole(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    spec, rng = make_spec(num_episodes=3, episodes_per_shard=3), np.random.default_rng(0)
    write_description(tmp_path / "data", spec, COLLECTED)
    episodes = [make_episode(rng, length, spec) for length in (3, 1, 2)]
    with ShardWriter(tmp_path / "data", 0, spec) as writer:
        for episode, steps in zip(episodes, (1, 1, None), strict=True):
            writer.add(episode._replace(last_steps=steps))
        writer.commit()
    dataset = EpisodeDataset.open(tmp_path / "data")
    assert dataset.episode_lengths.tolist() == [3, 1, 2]
    assert dataset.whole_lengths.tolist() == [2, 0, 2]
    mean, std = dataset.action_statistics(np.arange(3))
    played = np.concatenate([episodes[0].actions[:2], episodes[2].actions])
    np.testing.assert_allclose(mean, played.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(std, played.std(axis=0), atol=1e-6)


def test_cut_blocks_of_an_unmarked_dataset_are_those_that_repeat_their_last_action(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    spec, rng = make_spec(num_episodes=2, episodes_per_shard=2), np.random.default_rng(0)
    write_description(tmp_path / "data", spec, COLLECTED)
    filled, whole = make_episode(rng, 3, spec), make_episode(rng, 3, spec)
    filled.actions[-1, 3:] = filled.actions[-1, :3]
    with ShardWriter(tmp_path / "data", 0, spec) as writer:
        writer.add(filled)
        writer.add(whole)
        writer.commit()

    def unmark(content) -> None:
        del content["last_block_steps"]

    edit_json(tmp_path / "data" / "shard-00000" / "shard.json", unmark, reseal=True)
    assert EpisodeDataset.open(tmp_path / "data").whole_lengths.tolist() == [2, 3]
