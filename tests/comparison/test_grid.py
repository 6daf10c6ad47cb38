"""Which runs a grid has, what they share, and which grids are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jepaworld.comparison.grid import in_words, make_grid, parse_vary
from jepaworld.config import Config
from jepaworld.config.changes import differences
from jepaworld.errors import ConfigError
from tests.comparison.conftest import Grid


def test_values_are_yaml() -> None:
    vary = parse_vary(["auxiliary_loss.type=vicreg,none", "a.b=1, 0.5", "c=[4, 2],[2]", "d={x: 1}", "e=null"])
    assert vary == {
        "auxiliary_loss.type": ["vicreg", "none"],
        "a.b": [1, 0.5],
        "c": [[4, 2], [2]],
        "d": [{"x": 1}],
        "e": [None],
    }


@pytest.mark.parametrize(
    ("texts", "mentioned"),
    [
        (["latent_dim"], "latent_dim.*KEY=V1,V2"),
        (["=4"], "'=4'.*KEY=V1,V2"),
        (["latent_dim=4", "latent_dim=8"], "latent_dim.*twice"),
        (["latent_dim=[4"], "latent_dim.*not valid YAML"),
    ],
)
def test_a_grid_that_cannot_be_read_is_refused(texts: list[str], mentioned: str) -> None:
    with pytest.raises(ConfigError, match=mentioned):
        parse_vary(texts)


def test_every_combination_has_every_seed(grid: Grid) -> None:
    cells = grid({"latent_dim": [4, 8], "auxiliary_loss.type": ["vicreg", "none"]}, seeds=3)
    found = [(cell.config.latent_dim, cell.config.auxiliary_loss.type, cell.config.seed) for cell in cells]
    assert len(set(found)) == 12 and found[:3] == [(4, "vicreg", seed) for seed in range(3)]
    assert len({cell.name for cell in cells}) == len({cell.run for cell in cells}) == 12


def test_seeds_differ_in_the_training_seed_alone(grid: Grid) -> None:
    one, other = grid({}, seeds=2, seed=7)
    assert differences(one.config, other.config) == ["seed"]
    assert one.config.dataset_seed == other.config.dataset_seed == 7


def test_a_comparison_has_data_of_its_own_and_shares_them(grid: Grid, tmp_path: Path) -> None:
    (data,) = {cell.config.dataset_dir for cell in grid({"latent_dim": [4, 8]}, seeds=2)}
    assert Path(data).is_relative_to(tmp_path / "out" / "datasets")
    with pytest.raises(ConfigError, match=r"num_episodes_data_collection.*--vary-data"):
        grid({"num_episodes_data_collection": [8, 12]})
    varied = grid({"num_episodes_data_collection": [8, 12]}, vary_data=True)
    assert len({cell.config.dataset_dir for cell in varied}) == 2


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("environment_kwargs", [{}, {"random_wall": True}]),
        ("collection.policy", ["random", "smooth_random"]),
        ("collection.seed", [1, 2]),
        ("evaluation_split", [0.1, 0.3]),
        ("early_stopping.validation_split", [0.1, 0.3]),
        ("early_stopping", [{"validation_split": 0.1}, {"validation_split": 0.3}]),
        ("load_dataset_path", ["one", "other"]),
        ("image_size", [16, 32]),
    ],
)
def test_settings_of_the_data_need_leave(grid: Grid, key: str, values: list) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}.*--vary-data"):
        grid({key: values})
    assert len(grid({key: values}, vary_data=True)) == 2


@pytest.mark.parametrize(
    ("vary", "mentioned"),
    [
        ({"latent_dims": [4]}, "latent_dims.*latent_dim"),
        ({"batch_size": [1]}, "batch_size.*at least 2"),
        ({"seed": [1, 2]}, "seed.*--seeds"),
        (parse_vary(["latent_dim="]), "latent_dim.*empty"),
        ({"latent_dim": [4, 4]}, "latent_dim=4 and latent_dim=4 are the same run"),
        ({"learning_rate": [1.0, 1]}, "the same run"),
        ({"device": ["cpu", "auto"]}, "device=cpu and device=auto are the same run"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(grid: Grid, vary: dict, mentioned: str) -> None:
    with pytest.raises(ConfigError, match=mentioned):
        grid(vary)
    with pytest.raises(ConfigError, match="--seeds 0"):
        grid({}, seeds=0)


def test_a_run_is_the_same_one_as_long_as_nothing_that_counts_differs(
    grid: Grid, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    (cell,) = grid({"latent_dim": [4]})
    larger = grid({"batch_size": [8, 4], "latent_dim": [8, 4]}, seeds=2)
    assert cell.name in {one.name for one in larger}, "a larger grid keeps it"
    quiet = {"num_workers": 2}, {"log_every_steps": 7}
    assert cell.name == grid({"latent_dim": [4]}, collection=quiet[0], logging=quiet[1])[0].name
    moved = make_grid(tiny_config(), {"latent_dim": [4]}, 1, tmp_path / "elsewhere")
    assert cell.name == moved[0].name
    for changes in ({"num_epochs": 3}, {"num_episodes_data_collection": 13}, {"evaluation": {"num_episodes": 9}}):
        assert cell.name != grid({"latent_dim": [4]}, **changes)[0].name


def test_settings_of_planning_share_a_training(grid: Grid) -> None:
    cells = grid({"planning.planner": ["cem", "mppi"], "latent_dim": [4, 8]})
    assert len({cell.name for cell in cells}) == 4 and len({cell.run for cell in cells}) == 2


def test_a_setting_in_words_can_be_typed_again(grid: Grid) -> None:
    (cell,) = grid({"environment_kwargs": [{"random_wall": True}], "encoder_params.cnn.stride": [[4, 2]]})
    assert in_words(cell.setting) == "environment_kwargs={random_wall: true} encoder_params.cnn.stride=[4, 2]"
    assert in_words({}) == "as configured"
