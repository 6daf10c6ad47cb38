"""Collection: what is stored for what happened, equal bytes however it came about, and ways to fail."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from toy_envs import DISCRETE_START, shade

import jepaworld
from jepaworld import training_costs
from jepaworld.config import Config
from jepaworld.data import collect as collect_module
from jepaworld.data import rollout
from jepaworld.data.collect import collect
from jepaworld.data.shards import Episode
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.seeding import episode_seeds
from jepaworld.errors import ConfigError, DatasetError, EnvironmentFailedError, EnvironmentNotUsableError, StorageError
from jepaworld.utils.progress import Progress
from tests.conftest import heed_interrupts
from tests.data.conftest import ECHO, folder_bytes

Settings = Callable[..., Config]
FIRST_SEED = episode_seeds(0, 0).environment


def seen(episode: Episode) -> np.ndarray:
    """What the frames of an Echo episode show, (T + 1, 3): number of the step, shades of the last action."""
    assert (episode.frames == episode.frames[:, :, :1, :1]).all()
    return episode.frames[:, :, 0, 0]


# --- what is stored


def test_action_t_leads_to_frame_t_plus_1(settings: Settings):
    episode = collect(settings(num_episodes_data_collection=1)).episode(0)
    assert episode.frames.shape == (7, 3, 16, 16) and episode.frames.dtype == np.uint8
    assert episode.actions.shape == (6, 2) and episode.actions.dtype == np.float32
    assert seen(episode)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.array_equal(seen(episode)[1:, 1:], shade(episode.actions))
    assert len(np.unique(episode.actions)) == 12  # a shifted copy would be noticed
    assert episode.rewards.tolist() == [1, 2, 3, 4, 5, 6]
    assert episode.terminated.tolist() == [False] * 5 + [True]
    assert not episode.truncated.any()


def test_state_variables_belong_to_their_frames(settings: Settings):
    dataset = collect(settings())
    # Neither text, nor what is not there at every frame.
    assert dataset.state_variables == {"count": (), "extra": (), "last": (2,)}
    episode = dataset.episode(3)
    assert episode.states["count"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.array_equal(episode.states["last"][1:], episode.actions)


def test_frame_skipping_stores_blocks(settings: Settings):
    config = settings(frame_skipping=3, environment_kwargs={"length": 9})
    episode = collect(config).episode(1)
    assert seen(episode)[:, 0].tolist() == [0, 3, 6, 9]
    blocks = episode.actions.reshape(3, 3, 2)
    assert np.array_equal(seen(episode)[1:, 1:], shade(blocks[:, -1]))
    assert episode.rewards.tolist() == [1 + 2 + 3, 4 + 5 + 6, 7 + 8 + 9]
    # The policy acts at every step, as it does without skipping.
    every = collect(settings(environment_kwargs={"length": 9}, dataset_dir=config.dataset_dir + "2")).episode(1)
    assert np.array_equal(blocks.reshape(9, 2), every.actions)


@pytest.mark.parametrize("length", [7, 8])
def test_an_episode_that_ends_inside_a_block(settings: Settings, length: int):
    config = settings(frame_skipping=3, environment_kwargs={"length": length})
    dataset = collect(config)
    episode = dataset.episode(0)
    assert seen(episode)[:, 0].tolist() == [0, 3, 6, length]
    blocks = episode.actions.reshape(3, 3, 2)
    played = length - 6
    assert (blocks[2, played:] == blocks[2, played - 1]).all()
    assert np.array_equal(seen(episode)[3, 1:], shade(blocks[2, played - 1]))
    assert episode.rewards.tolist() == [6, 15, sum(range(7, length + 1))]
    assert episode.terminated.tolist() == [False, False, True]
    assert dataset.whole_lengths.tolist() == [2] * 7


def test_the_longest_length_is_in_whole_blocks_and_truncates(settings: Settings):
    config = settings(frame_skipping=3, max_steps_per_episode_data_collection=8, environment_kwargs={"length": 50})
    dataset = collect(config)
    episode = dataset.episode(0)
    assert seen(episode)[:, 0].tolist() == [0, 3, 6]
    assert episode.truncated.tolist() == [False, True] and not episode.terminated.any()
    assert dataset.provenance.max_steps_per_episode == 6


@pytest.mark.parametrize("policy", ["random", "smooth_random"])
def test_discrete_actions(settings: Settings, policy: str):
    config = settings(
        {"policy": policy},
        frame_skipping=2,
        environment_kwargs={"space": "discrete"},
        num_episodes_data_collection=40,
    )
    dataset = collect(config)
    actions = dataset.rows("actions", 0, dataset.num_frames)
    assert actions.dtype == np.int64 and actions.shape[1] == 2
    transitions = np.concatenate([dataset.episode(index).actions for index in range(40)])
    assert set(transitions.ravel().tolist()) == {DISCRETE_START + choice for choice in range(4)}
    episode = dataset.episode(2)
    assert np.array_equal(seen(episode)[1:, 1], shade((episode.actions[:, -1] - DISCRETE_START) / 4))


def test_greyscale_and_resizing(settings: Settings):
    dataset = collect(settings(image_size=8, input_channels=1, decoder_patch_size=8, encoder_type="mlp"))
    assert dataset.episode(0).frames.shape == (7, 1, 8, 8)


def test_not_a_number_is_stored_as_it_is(settings: Settings):
    assert np.isnan(collect(settings(environment_kwargs={"oddity": "nan reward"})).episode(0).rewards).all()


def test_the_stored_action_is_the_one_that_was_played(settings: Settings):
    episode = collect(settings(environment_kwargs={"oddity": "writes into the action"})).episode(0)
    assert np.array_equal(seen(episode)[1:, 1:], shade(episode.actions))


def test_a_state_variable_that_is_missing_later_is_nan(settings: Settings):
    dataset = collect(settings(environment_kwargs={"oddity": "missing state", "first_seed": FIRST_SEED}))
    assert (dataset.episode(0).states["extra"] == 2.0).all()
    assert np.isnan(dataset.episode(1).states["extra"]).all()


def test_a_state_variable_that_changes_its_shape_is_refused(settings: Settings):
    config = settings(environment_kwargs={"oddity": "reshaped state", "first_seed": FIRST_SEED})
    with pytest.raises(DatasetError, match=r"state variable extra .* shape \(2,\) in episode 1, but \(\) in episode 0"):
        collect(config)


# --- equal bytes


def assert_equal_folders(a: str | Path, b: str | Path) -> None:
    first, second = folder_bytes(Path(a)), folder_bytes(Path(b))
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []
    assert len(first) > 9


@pytest.mark.parametrize("oddity", ["", "global generators"])
def test_equal_for_any_number_of_workers(settings: Settings, tmp_path: Path, oddity: str):
    def run(name: str, workers: int) -> Path:
        config = settings(
            {"num_workers": workers},
            num_episodes_data_collection=40,
            environment_kwargs={"random_length": True, "oddity": oddity},
            dataset_dir=str(tmp_path / name),
        )
        random.seed(workers)
        np.random.seed(workers)  # noqa: NPY002
        collect(config)
        return tmp_path / name

    assert len(np.unique(EpisodeDataset.open(run("one", 1)).episode_lengths)) > 2
    assert_equal_folders(tmp_path / "one", run("again", 1))
    assert_equal_folders(tmp_path / "one", run("three", 3))


def test_the_callers_generators_are_left_alone(settings: Settings):
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    collect(settings(environment_kwargs={"oddity": "global generators"}))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == expected  # noqa: NPY002


def test_episodes_differ_and_follow_from_the_seed(settings: Settings, tmp_path: Path):
    dataset = collect(settings())
    actions = [dataset.episode(index).actions.tobytes() for index in range(7)]
    assert len(set(actions)) == 7
    other = collect(settings(seed=1, dataset_dir=str(tmp_path / "other")))
    assert other.episode(0).actions.tobytes() not in actions
    # Episode 6 is the same one, whatever shard it lies in.
    more = collect(settings(num_episodes_data_collection=40, dataset_dir=str(tmp_path / "more")))
    assert more.spec.episodes_per_shard != dataset.spec.episodes_per_shard
    assert more.episode(6).actions.tobytes() == actions[6]


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        ("smooth_random", {}),
        ("random", {"frame_skipping": 4, "max_steps_per_episode_data_collection": 10}),
        # Time runs out inside a block of 3 steps.
        (
            "smooth_random",
            {"frame_skipping": 3, "environment_kwargs": {"max_episode_steps": 8, "random_wall": True}},
        ),
        ("random", {"image_size": 32, "input_channels": 1}),
    ],
)
def test_side_by_side_equals_one_by_one(settings: Settings, tmp_path: Path, monkeypatch, policy: str, changes: dict):
    def run(name: str) -> Path:
        values = {
            "environment_name": "jepaworld/TwoRoom-v0",
            "image_size": 64,
            "num_episodes_data_collection": 35,
        }
        collect(settings({"policy": policy}, **(values | changes), dataset_dir=str(tmp_path / name)))
        return tmp_path / name

    made: list[int] = []
    original = rollout.make_vector_env

    def recording(name: str, kwargs: dict, lanes: int):
        made.append(lanes)
        return original(name, kwargs, lanes)

    monkeypatch.setattr(rollout, "make_vector_env", recording)
    run("lanes")
    assert max(made) == 3  # several episodes side by side
    monkeypatch.setattr(rollout, "make_vector_env", lambda *_arguments: None)
    assert_equal_folders(tmp_path / "lanes", run("single"))


# --- interruption

SCRIPT = """
    import sys
    from jepaworld.config import Config
    from jepaworld.data.collect import collect
    if __name__ == "__main__":
        collect(Config.model_validate_json(sys.argv[1]))
"""


def script_environment() -> dict[str, str]:
    """The environment of a script that imports the same package as this process, and the toy environments."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(tmp_path: Path, config: Config) -> subprocess.Popen[bytes]:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    return subprocess.Popen(
        [sys.executable, str(script), config.model_dump_json()],
        env=script_environment(),
        start_new_session=True,
        preexec_fn=heed_interrupts,
        stderr=subprocess.PIPE,
    )


def wait_for_shards(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while len(list(path.glob("shard-*"))) < count:
        assert process.poll() is None, "ended before it was interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def processes_of_group(group: int) -> list[int]:
    """Living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def wait_for_the_end(process: subprocess.Popen[bytes]) -> None:
    """Wait until nothing that a dead process started is alive: workers, and a helper of multiprocessing."""
    deadline = time.monotonic() + 20
    while left := processes_of_group(process.pid):
        assert time.monotonic() < deadline, f"{left} outlive the process that started them"
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_and_continued_equals_uninterrupted(settings: Settings, tmp_path: Path):
    def slow(name: str) -> Config:
        return settings(
            {"num_workers": 2},
            num_episodes_data_collection=48,
            environment_kwargs={"random_length": True, "delay": 0.003},
            dataset_dir=str(tmp_path / name),
        )

    rng = np.random.default_rng(0)
    killed = tmp_path / "killed"
    for finished in (1, 9):
        process = start(tmp_path, slow("killed"))
        wait_for_shards(killed, finished, process)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()  # kill -9; workers notice that they are alone
        process.communicate()
        dataset = EpisodeDataset.open(killed)
        assert not dataset.spec.complete and len(dataset.shards) >= finished
        wait_for_the_end(process)
    assert collect(slow("killed")).spec.complete
    collect(slow("whole"))
    assert_equal_folders(killed, tmp_path / "whole")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_by_the_keyboard(settings: Settings, tmp_path: Path, workers: int):
    config = settings({"num_workers": workers}, num_episodes_data_collection=48, environment_kwargs={"delay": 0.005})
    path = Path(config.dataset_dir)
    process = start(tmp_path, config)
    wait_for_shards(path, 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, errors = process.communicate(timeout=20)
    assert errors.decode().rstrip().endswith("KeyboardInterrupt")
    assert b"jepaworld.data.workers" not in errors, "a worker has nothing to say about it"
    wait_for_the_end(process)
    assert not EpisodeDataset.open(path).spec.complete
    assert [entry.name for entry in path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_leave_the_keyboard_to_their_parent(settings: Settings, tmp_path: Path):
    config = settings({"num_workers": 2}, num_episodes_data_collection=48, environment_kwargs={"delay": 0.005})
    process = start(tmp_path, config)
    wait_for_shards(Path(config.dataset_dir), 2, process)
    for worker in set(processes_of_group(process.pid)) - {process.pid}:
        os.kill(worker, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()


def test_leftovers_of_a_killed_collection_are_removed(settings: Settings):
    config = settings()
    path = Path(config.dataset_dir)
    (path / ".writing-shard-00003-0badcafe").mkdir(parents=True)
    (path / ".writing-shard-00003-0badcafe" / "frames.npy").write_bytes(b"half")
    (path / ".dataset.json.0badcafe.tmp").write_bytes(b"half")
    collect(config)
    assert [entry.name for entry in path.iterdir() if entry.name.startswith(".")] == []


# --- a folder that is there already


class Recorder(Progress):
    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def start(self, description: str, total: int, completed: int = 0) -> None:
        self.calls.append(("start", description, total, completed))

    def advance(self, n: int = 1, note: str = "") -> None:
        self.calls.append(("advance", n, note))

    def finish(self) -> None:
        self.calls.append(("finish",))

    def warn(self, text: str) -> None:
        self.calls.append(("warn", text))


def test_a_finished_dataset_is_reused(settings: Settings):
    dataset = collect(settings())
    before = {file: file.stat().st_mtime_ns for file in dataset.path.rglob("*")}
    recorder = Recorder()
    # The number of workers does not change the data.
    again = collect(settings({"num_workers": 3}), progress=recorder)
    assert again.fingerprint == dataset.fingerprint
    assert {file: file.stat().st_mtime_ns for file in dataset.path.rglob("*")} == before
    assert recorder.calls == []


def test_progress_counts_episodes(settings: Settings):
    recorder = Recorder()
    config = settings(num_episodes_data_collection=40)
    collect(config, progress=recorder)
    assert recorder.calls[0] == ("start", "Collecting episodes", 40, 0)
    assert sum(call[1] for call in recorder.calls if call[0] == "advance") == 40
    assert recorder.calls[-1] == ("finish",)


def remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def test_a_missing_shard_is_collected_again(settings: Settings):
    config = settings()
    path = collect(config).path
    before = folder_bytes(path)
    remove(path / "shard-00002")
    recorder = Recorder()
    collect(config, progress=recorder)
    assert recorder.calls[0] == ("start", "Collecting episodes", 7, 6)
    assert folder_bytes(path) == before


def test_damage_is_found_before_it_is_reused(settings: Settings):
    config = settings()
    path = collect(config).path
    file = path / "shard-00001" / "frames.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DatasetError, match=r"shard-00001/frames\.npy: altered.*delete the folder shard-00001 and run"):
        collect(config)
    assert collect(config.model_copy(update={"verify_checksums": False})).spec.complete
    remove(path / "shard-00001")  # what the message says
    assert collect(config).spec.complete


def test_another_version_that_continues_is_told(settings: Settings, monkeypatch):
    config = settings()
    original = collect_module.collect_shards
    monkeypatch.setattr(collect_module, "collect_shards", lambda *_arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collect(config)
    monkeypatch.setattr(collect_module, "collect_shards", original)
    monkeypatch.setattr(collect_module, "version", lambda _name: "99")
    recorder = Recorder()
    collect(config, progress=recorder)
    kind, text = recorder.calls[0]
    assert kind == "warn" and "gymnasium 99" in text and config.dataset_dir in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed is 0 there and 1 now"),
        ({"num_episodes_data_collection": 9}, "num_episodes_data_collection is 7 there and 9 now"),
        ({"image_size": 32}, "image_size is 16 there and 32 now"),
        ({"input_channels": 1}, "input_channels is 3 there and 1 now"),
        ({"frame_skipping": 2}, "frame_skipping is 1 there and 2 now"),
        (
            {"max_steps_per_episode_data_collection": 21},
            r"max_steps_per_episode_data_collection \(in whole blocks",
        ),
        ({"environment_kwargs": {"length": 5}}, "environment_kwargs is {} there and {'length': 5} now"),
        ({"environment_kwargs": {"space": "discrete"}}, "the environment's action space is"),
        ({"collection": {"policy": "random"}}, "collection.policy is 'smooth_random' there and 'random' now"),
        ({"collection": {"smoothness": 0.5}}, "collection.smoothness is 0.9 there and 0.5 now"),
        (
            {"collection": {"frame_source": "render"}},
            "collection.frame_source is 'auto' there and 'render' now",
        ),
    ],
)
def test_a_dataset_of_other_settings_is_refused(settings: Settings, changes: dict, words: str):
    collect(settings())
    with pytest.raises(DatasetError, match=f"holds a dataset of other settings: .*{words}.*Set dataset_dir"):
        collect(settings(**changes))


def test_settings_without_effect_on_the_data_are_not_compared(settings: Settings):
    collect(settings({"policy": "random"}, frame_skipping=2))
    collect(settings({"policy": "random", "smoothness": 0.1}, frame_skipping=2, latent_dim=8, num_epochs=3))
    # One step more is no block more.
    collect(settings({"policy": "random"}, frame_skipping=2, max_steps_per_episode_data_collection=21))


def test_a_folder_of_something_else_is_refused(settings: Settings):
    config = settings()
    path = Path(config.dataset_dir)
    path.mkdir()
    collect(config.model_copy(update={"num_episodes_data_collection": 1}))  # an empty folder is fine
    other = path.with_name("other")
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match=r"not a dataset .* not empty: it holds thesis\.tex\. Set dataset_dir"):
        collect(config.model_copy(update={"dataset_dir": str(other)}))
    assert [entry.name for entry in other.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder(settings: Settings, tmp_path: Path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(StorageError, match=r"cannot be written .* (choose|choose another) (another )?folder"):
            collect(settings(dataset_dir=str(tmp_path / name)))


@pytest.fixture
def locked(settings: Settings) -> Iterator[Path]:
    """The folder of a finished dataset, in which another process is at work."""
    pytest.importorskip("fcntl")
    path = collect(settings()).path
    code = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "sys.stdout.write('locked\\n')\n"
        "sys.stdout.flush()\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-S", "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        yield path
        other.communicate()  # ends it


def test_a_finished_dataset_is_opened_by_several_at_once(settings: Settings, locked: Path):
    before = folder_bytes(locked)
    dataset = collect(settings())
    assert dataset.spec.complete and len(dataset.episode_lengths) == 7
    assert folder_bytes(locked) == before
    with pytest.raises(DatasetError, match="seed is 0 there and 1 now"):
        collect(settings(seed=1))


def test_a_dataset_that_lacks_a_shard_is_not_opened_beside_another_collection(settings: Settings, locked: Path):
    remove(locked / "shard-00002")
    with pytest.raises(DatasetError, match="another process is collecting into this folder"):
        collect(settings())


def test_damage_is_found_in_a_dataset_that_is_opened_by_several(settings: Settings, locked: Path):
    file = locked / "shard-00001" / "frames.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(DatasetError, match=r"shard-00001/frames\.npy: altered"):
        collect(settings())


def test_two_collections_into_one_folder(settings: Settings):
    fcntl = pytest.importorskip("fcntl")
    config = settings()
    path = Path(config.dataset_dir)
    path.mkdir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="another process is collecting into this folder"):
            collect(config)
    finally:
        os.close(descriptor)
    assert collect(config).spec.complete


# --- failures while collecting


@pytest.mark.parametrize("workers", [1, 2])
def test_an_environment_that_fails(settings: Settings, workers: int):
    config = settings({"num_workers": workers}, environment_kwargs={"fail_at": 3, "first_seed": FIRST_SEED})
    with pytest.raises(
        EnvironmentFailedError, match=r"toy/Echo-v0: step\(\) in episode \d failed: ValueError: the joint is"
    ) as caught:
        collect(config)
    assert any("toy_envs.py" in note for note in caught.value.__notes__)  # the traceback, from a worker too
    path = Path(config.dataset_dir)
    assert [entry.name for entry in path.iterdir() if entry.name.startswith(".")] == []
    assert not EpisodeDataset.open(path).spec.complete


def test_a_worker_that_dies(settings: Settings):
    config = settings(
        {"num_workers": 2},
        environment_name="toy_envs:toy/Crasher-v0",
        environment_kwargs={"first_seed": FIRST_SEED},
    )
    with pytest.raises(DatasetError, match=r"collecting process ended unexpectedly \(EXIT\(7\).*run again to"):
        collect(config)


def test_an_error_that_is_nobodys_fault_reaches_the_caller(settings: Settings, monkeypatch):
    monkeypatch.setattr(rollout, "episode_seeds", lambda *_arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collect(settings())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a limit on file sizes")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(settings: Settings, tmp_path: Path, workers: int):
    """With a limit on file sizes, which fails as a full disk does: in the middle of writing."""
    config = settings({"num_workers": workers}, num_episodes_data_collection=40)
    code = textwrap.dedent("""
        import resource, signal, sys
        from jepaworld.config import Config
        from jepaworld.data.collect import collect
        from jepaworld.errors import StorageError
        if __name__ == "__main__":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
            try:
                collect(Config.model_validate_json(sys.argv[1]))
            except StorageError as error:
                sys.stdout.write(str(error))
    """)
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-B", str(tmp_path / "script.py"), config.model_dump_json()],
        env=script_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be written (File too large)" in done.stdout and "ulimit" in done.stdout
    assert [entry.name for entry in Path(config.dataset_dir).iterdir()] == ["dataset.json"]
    assert collect(config).spec.complete


def test_no_space_for_the_last_step(settings: Settings, monkeypatch):
    """The shards are there but dataset.json cannot be completed: nothing is lost."""
    config = settings()
    original = collect_module.write_description

    def full(path: Path, spec, collected) -> None:
        if spec.complete:
            raise StorageError(f"{path}: cannot be written") from OSError(errno.ENOSPC, "full")
        original(path, spec, collected)

    monkeypatch.setattr(collect_module, "write_description", full)
    with pytest.raises(StorageError):
        collect(config)
    monkeypatch.setattr(collect_module, "write_description", original)
    recorder = Recorder()
    assert collect(config, progress=recorder).spec.complete
    assert recorder.calls == []


def test_environments_and_policies_that_cannot_be_used_leave_no_folder(settings: Settings):
    for wrong, kind, words in [
        (settings(environment_name="toy_envs:toy/Ecko-v0"), EnvironmentNotUsableError, "Ecko"),
        (settings(environment_name="toy_envs:toy/Hidden-v0"), EnvironmentNotUsableError, "no frames"),
        (settings(environment_kwargs={"space": "binary"}), EnvironmentNotUsableError, "MultiBinary"),
        (settings({"policy": "smoth_random"}), ConfigError, "smooth_random"),
    ]:
        with pytest.raises(kind, match=words):
            collect(wrong)
        assert not Path(wrong.dataset_dir).exists()


def test_workers_import_neither_torch_nor_matplotlib(settings: Settings):
    config = settings({"num_workers": 2}, environment_name="toy_envs:toy/Importer-v0")
    dataset = collect(config)
    for index in range(7):
        assert (dataset.episode(index).states["worker"] == 1.0).all()
        assert (dataset.episode(index).states["heavy"] == 0.0).all()


def test_shards_follow_from_the_settings(settings: Settings):
    def per_shard(**changes) -> int:
        return collect_module._episodes_per_shard(settings(**changes))

    assert per_shard(num_episodes_data_collection=1) == 1
    assert per_shard(num_episodes_data_collection=17) == 2
    # 64 MiB at most ...
    large = per_shard(num_episodes_data_collection=5000, image_size=64, max_steps_per_episode_data_collection=99)
    assert large == 2**26 // (100 * 3 * 64 * 64)
    # ... but a single episode is not split, and no more shards than a process may have files open.
    huge = {"image_size": 1024, "max_steps_per_episode_data_collection": 99}
    assert per_shard(num_episodes_data_collection=100, **huge) == 1
    assert per_shard(num_episodes_data_collection=10_000, **huge) == 20


def test_the_manifest_says_what_was_collected(settings: Settings):
    manifest = json.loads((collect(settings({"smoothness": 0.5}, seed=4)).path / "dataset.json").read_text())
    assert manifest["environment_name"] == ECHO
    assert (manifest["policy"], manifest["smoothness"], manifest["seed"]) == ("smooth_random", 0.5, 4)
    assert manifest["action_space"]["type"] == "Box" and manifest["complete"] is True
    assert set(manifest["versions"]) == {"jepaworld", "gymnasium", "numpy"}


def test_a_package_that_is_on_the_path_but_not_installed_collects(settings: Settings, monkeypatch):
    def nothing(name: str):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    assert collect(settings()).provenance.versions == {
        "jepaworld": jepaworld.__version__,
        "gymnasium": "unknown",
        "numpy": "unknown",
    }


def test_workers_find_what_the_program_has_and_keep_to_the_error_stream(tmp_path: Path):
    """Ids that it registered, modules of its path but not a random.py of the folder, and environments that print."""
    (tmp_path / "random.py").write_text("1 / 0")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "talker.py").write_text(
        "from toy_envs import Echo\n\n\nclass Talker(Echo):\n    def step(self, action):\n"
        "        print('a word')\n        return super().step(action)\n"
    )
    code = textwrap.dedent("""
        import sys
        import gymnasium
        from jepaworld.config import Config
        from jepaworld.data.collect import collect
        from toy_envs import Echo

        class Here(Echo):
            def step(self, action):
                print("here")
                return super().step(action)

        gymnasium.register("own/Talker-v0", "talker:Talker", disable_env_checker=True)
        gymnasium.register("own/Here-v0", Here, disable_env_checker=True)
        for name in ("Talker", "Here"):
            collect(Config(environment_name=f"own/{name}-v0", image_size=16, num_episodes_data_collection=4,
                           dataset_dir=name, collection={"num_workers": 2}))
    """)
    environment = script_environment()
    environment["PYTHONPATH"] += os.pathsep + str(modules)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # This process plays the first episode once itself, to see which state variables there are.
    assert (done.stdout.count("a word"), done.stderr.count("a word")) == (6, 24)
    assert (done.stdout.count("here"), done.stderr.count("here")) == (30, 0), "collected in this process"


def test_a_policy_may_draw_from_the_global_generators_when_it_begins(settings: Settings, tmp_path: Path):
    for workers in (1, 2):
        changes = {"policy": "toy_envs:Moody", "num_workers": workers}
        collect(settings(changes, dataset_dir=str(tmp_path / str(workers))))
    assert_equal_folders(tmp_path / "1", tmp_path / "2")


def test_large_arrays_of_info_are_not_stored_and_named(settings: Settings, caplog: pytest.LogCaptureFixture):
    with caplog.at_level("WARNING", "jepaworld"):
        dataset = collect(settings(environment_kwargs={"oddity": "depth map"}, num_episodes_data_collection=2))
    assert dataset.state_variables == {"count": (), "extra": (), "last": (2,)}
    assert any("not stored: depth (50, 40)" in message for message in caplog.messages)


def test_the_size_of_a_dataset_is_estimated_from_what_is_seen(settings: Settings):
    config = settings(environment_kwargs={"oddity": "long state", "length": 20}, num_episodes_data_collection=3)
    dataset = collect(config)
    costs = training_costs._costs(config)
    stored = sum(array.nbytes for shard in dataset.shards for array in shard.arrays.values())
    assert dataset.state_variables["joints"] == (300,)
    assert costs.frames * (costs.frame_bytes + costs.row_bytes) == pytest.approx(stored, rel=0.01)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("oddity", "message"), [("frozen", "never change"), ("dim", "above 1 of 255"), ("", None)])
def test_frames_that_show_nothing_are_told_once_at_the_first_shard(
    settings: Settings, oddity: str, message: str | None, workers: int
):
    recorder = Recorder()
    collect(settings({"num_workers": workers}, environment_kwargs={"oddity": oddity}), progress=recorder)
    said = [call[1] for call in recorder.calls if call[0] == "warn"]
    assert len(said) == (message is not None)
    assert message is None or message in said[0]
    kinds = [call[0] for call in recorder.calls]
    assert message is None or kinds.index("warn") < len(kinds) - 1, "before the end"


@pytest.mark.parametrize("policy", ["random", "smooth_random"])
def test_random_actions_keep_to_the_mask_and_are_uniform_among_the_allowed(settings: Settings, policy: str):
    kwargs = {"space": "discrete", "oddity": "mask", "length": 60}
    config = settings(
        {"policy": policy, "smoothness": 0.3},
        environment_kwargs=kwargs,
        max_steps_per_episode_data_collection=60,
        num_episodes_data_collection=20,
    )
    dataset = collect(config)
    actions = np.concatenate([dataset.episode(i).actions[:, 0] for i in range(20)]) - DISCRETE_START
    masked = np.tile(np.arange(60) % 4, 20)  # step n forbids action n % 4
    assert (actions != masked).all()
    counts = np.unique((actions - masked) % 4, return_counts=True)[1]
    assert len(counts) == 3 and counts.min() > 330 if policy == "random" else len(counts) == 3


def test_a_mask_that_is_none_is_refused(settings: Settings):
    kwargs = {"space": "discrete", "oddity": "empty mask"}
    with pytest.raises(EnvironmentFailedError, match=r"info\['action_mask'\] is .*expected 4 entries"):
        collect(settings({"policy": "random"}, environment_kwargs=kwargs))
