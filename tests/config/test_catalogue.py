"""Packaged recipes: every one is listed with a purpose, loads by name, and has figures that a source holds."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

from jepaworld.config import load_config
from jepaworld.config.catalogue import catalogue, overview, recipe_files
from jepaworld.envs.calls import close
from jepaworld.envs.make import make_env
from jepaworld.envs.spaces import Spaces
from jepaworld.evaluation.scores import wilson
from jepaworld.models import build
from jepaworld.models.size import count_trained
from jepaworld.utils.outside import EXTRAS
from jepaworld.utils.text import percent

ROOT = Path(__file__).parents[2]
each_recipe = pytest.mark.parametrize("name", catalogue())


def test_every_file_is_listed_and_every_name_has_its_file() -> None:
    listed = {recipe.file or name for name, recipe in catalogue().items()}
    assert listed == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert set(recipe_files()) == listed | set(catalogue())


@each_recipe
def test_a_recipe_loads_by_name_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, recipe = load_config(name), catalogue()[name]
    assert config == load_config(ROOT / "configs" / f"{recipe.file or name}.yaml")
    assert config.notices() == []
    assert len(recipe.purpose) <= 100 and recipe.purpose.endswith(".") and "\n" not in recipe.purpose


def test_an_old_name_is_the_same_recipe() -> None:
    assert load_config("two_room_random_wall") == load_config("navigation")


@each_recipe
def test_a_recipe_has_the_parameters_that_it_says(name: str) -> None:
    config, recipe = load_config(name), catalogue()[name]
    for extra in recipe.extras:
        pytest.importorskip(EXTRAS[extra])
    if "pretrained" in recipe.extras:
        pytest.skip("the backbone is not on this disk; see tests/models/test_pretrained.py")
    env = make_env(config.environment_name, config.environment_kwargs)
    assert count_trained(build(config, Spaces.of(config, env.action_space))) == recipe.parameters
    close(env)


@each_recipe
def test_a_recipe_names_an_extra_that_there_is(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert all(extra in extras and extra in EXTRAS for extra in catalogue()[name].extras)


@each_recipe
def test_a_figure_is_what_its_source_says(name: str) -> None:
    recipe = catalogue()[name]
    if (found := recipe.measured) is None:
        return
    assert found.low <= found.rate <= found.high
    source = (ROOT / found.source).read_text(encoding="utf-8")
    if found.source != "benchmarks/results/planning_success.jsonl":
        written = f"({percent(found.low)} to {percent(found.high)})"
        assert written in source or not found.source.endswith(".md")
        return
    file = f"configs/{recipe.file or name}.yaml"
    lines = [line for line in map(json.loads, source.splitlines()) if line["recipe"] == file]
    rates = [line["agents"][0]["any"]["all"] for line in lines]
    successes, episodes = (sum(rate[key] for rate in rates) for key in ("successes", "episodes"))
    assert (found.rate, found.low, found.high) == pytest.approx(
        (successes / episodes, *wilson(successes, episodes)), abs=1e-4
    )
    seconds = [line["seconds"]["collect"] + line["seconds"]["train"] for line in lines]
    assert found.minutes == pytest.approx(sum(seconds) / len(seconds) / 60, abs=0.05)


def test_the_overview_says_what_is_missing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gym_pusht" else find_spec(name))
    text = "\n".join(overview(dict.fromkeys(catalogue(), "some/World-v0")))
    assert "pusht" in text.splitlines()[-1] and "not measured" in text
    for name, recipe in catalogue().items():
        assert f"{name}: {recipe.purpose}" in " ".join(text.split()) and f"{recipe.parameters:,}" in text
