"""What a report measures it measures on held-out episodes, beside a model that was never trained."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from jepaworld import run_training
from jepaworld.config import Config
from jepaworld.evaluation import probes
from jepaworld.evaluation.measure import UNTRAINED, Pictures, measure
from jepaworld.evaluation.probes import probe_states
from jepaworld.evaluation.results import Results
from jepaworld.report import write_report
from jepaworld.runs.folder import RunFolder
from tests.conftest import fresh_model


@pytest.fixture(scope="module", autouse=True)
def _everything_is_followed() -> Iterator[None]:
    """An epoch teaches the model nothing; its states are followed through imagination all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "READABLE", -1e9)
        yield


@pytest.fixture(scope="module")
def trained(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset and a run on it."""
    home = tmp_path_factory.mktemp("measured")
    run_training(tiny_config(dataset_dir=str(home / "data"), num_epochs=1), home / "run")
    return home


@pytest.fixture(scope="module")
def measured(trained: Path) -> tuple[Results, Pictures]:
    return measure_in(trained)


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    home = shutil.copytree(trained, tmp_path / "home")
    info = json.loads((home / "run" / "run.json").read_text())
    info["dataset"]["path"] = str(home / "data")
    (home / "run" / "run.json").write_text(json.dumps(info))
    return home


def measure_in(home: Path) -> tuple[Results, Pictures]:
    with torch.random.fork_rng():
        return measure(RunFolder.open(home / "run"), "cpu")


def corrupt(home: Path, episodes: Iterable[int]) -> None:
    """Noise in place of the frames of some episodes."""
    dataset = RunFolder.open(home / "run").open_dataset()
    assert dataset is not None
    rng, first = np.random.default_rng(0), 0
    files = sorted((home / "data").glob("shard-*/frames.npy"))
    for file in files:
        frames = np.load(file, mmap_mode="r+")
        for episode in episodes:
            row = int(dataset.episode_starts[episode]) - first
            if 0 <= row < len(frames):
                part = frames[row : row + int(dataset.episode_lengths[episode]) + 1]
                part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
        first += len(frames)
        frames.flush()


def change_weights(home: Path, change: Callable[[Tensor], Tensor]) -> None:
    path = home / "run" / "checkpoints" / "best_jepa.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = {name: change(w) if w.is_floating_point() else w for name, w in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(weights, path, metadata)


def read_from_real_frames(results: Results) -> list[list[float]]:
    assert results.imagination is not None and results.imagination.states
    return [state.encoded for state in results.imagination.states]


def of_evaluation(results: Results, pictures: Pictures) -> dict[str, Any]:
    """What must come from evaluation episodes alone."""
    imagination, reconstruction = results.imagination, results.reconstruction
    assert imagination is not None and reconstruction is not None and results.collapse is not None
    frames, strips = pictures.frames + pictures.worst_frames, pictures.strips + pictures.worst_strips
    return {
        "collapse": results.collapse.std,
        "imagination": [*imagination.error, *imagination.copy_error, imagination.target_variance],
        "reconstruction": [reconstruction.mean_squared_error, reconstruction.mean_image_squared_error],
        "frames": np.stack([[pair.real, pair.decoded] for pair in frames]),
        "strips": np.concatenate([np.stack([s.real, s.decoded_real, s.decoded_imagined]) for s in strips], axis=1),
    }


def test_noise_in_every_other_episode_changes_nothing_and_noise_in_those_held_out_everything(
    home: Path, measured: tuple[Results, Pictures]
) -> None:
    before = of_evaluation(*measured)
    run = RunFolder.open(home / "run")
    dataset = run.open_dataset()
    assert dataset is not None
    split = run.split(dataset)
    corrupt(home, [*split.train, *split.validation])
    found = measure_in(home)
    for name, value in of_evaluation(*found).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert [p.r2 for p in found[0].probes] != [p.r2 for p in measured[0].probes], "fitted on training episodes"
    assert read_from_real_frames(found[0]) != read_from_real_frames(measured[0]), "these too"
    assert {pair.episode for pair in found[1].frames} <= set(split.evaluation.tolist())
    corrupt(home, split.evaluation)
    for name, value in of_evaluation(*measure_in(home)).items():
        assert not np.array_equal(value, before[name]), name


def test_probes_are_judged_on_evaluation_episodes_alone(home: Path, measured: tuple[Results, Pictures]) -> None:
    split = measured[0].dataset
    assert split is not None and measured[0].heldout is not None and measured[0].heldout.split == "evaluation"
    for probe in measured[0].probes:
        assert probe.num_train_episodes == split["train_episodes"]
        assert probe.num_heldout_episodes == split["evaluation_episodes"]
    run = RunFolder.open(home / "run")
    dataset = run.open_dataset()
    assert dataset is not None
    corrupt(home, run.split(dataset).validation)
    found = measure_in(home)[0]
    assert [probe.r2 for probe in found.probes] == [probe.r2 for probe in measured[0].probes]
    assert read_from_real_frames(found) == read_from_real_frames(measured[0])


def test_the_untrained_encoder_knows_nothing_of_the_trained_weights(
    home: Path, measured: tuple[Results, Pictures]
) -> None:
    def floors(results: Results) -> list[float | None]:
        return [probe.baselines_r2[UNTRAINED] for probe in results.probes]

    before = [probe.r2 for probe in measured[0].probes]
    assert floors(measured[0]) != before
    run = RunFolder.open(home / "run")
    dataset = run.open_dataset()
    assert dataset is not None
    split, fresh = run.split(dataset), []
    for seed in (run.config.seed, run.config.seed + 1):
        torch.manual_seed(seed)
        model = fresh_model(run.config, dataset.action_space)
        probes = probe_states(model, dataset, split.train, split.evaluation, seed=run.config.seed, mlp=False)
        fresh.append([probe.r2 for probe in probes])
    assert floors(measured[0]) == fresh[1] != fresh[0], "other weights than those that the run began with"
    change_weights(home, lambda w: w + torch.randn_like(w))
    found = measure_in(home)[0]
    assert floors(found) == floors(measured[0]) and [probe.r2 for probe in found.probes] != before


def test_a_model_that_gives_nan_is_said_so_and_nothing_else_is_shown(home: Path) -> None:
    change_weights(home, lambda w: torch.full_like(w, torch.nan))
    write_report(home / "run", device="cpu")
    results = Results.model_validate_json((home / "run" / "report.json").read_text())
    assert results.collapse is not None and results.collapse.collapsed and not results.collapse.finite
    assert results.imagination is None and results.reconstruction is None and not results.probes
    assert any("NaN" in reason for reason in results.missing)
    assert (
        json.loads((home / "run" / "report.json").read_text(), parse_constant=pytest.fail)["collapse"]["std_mean"]
        is None
    )


def test_what_is_written_is_read_back(measured: tuple[Results, Pictures]) -> None:
    results = measured[0]
    again = Results.model_validate_json(results.to_json())
    assert again.to_json() == results.to_json()
    assert again.imagination is not None and again.imagination.windows is None
    assert json.loads(results.to_json())["heldout"] == {"split": "evaluation", "episodes": 3}
