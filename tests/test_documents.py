"""The documents name tests, files and settings that exist."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]

KEYS = ("rate", "low", "high")


def _names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_is_named_exists(document: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", document.read_text(encoding="utf-8")):
        assert name in _names(ROOT / file), f"{document.name}: {file}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), f"{document.name}: {target}"


def test_specification_names_code_that_is_in_the_file_named() -> None:
    text = (ROOT / "docs" / "specification.md").read_text(encoding="utf-8")
    found = re.findall(r"\]\(\.\./(src/[^)]+\.py)\)((?:[, ]*`[^`]+`)+)", text)
    assert len(found) > 100
    for file, names in found:
        code = set(re.findall(r"\w+", (ROOT / file).read_text(encoding="utf-8")))
        assert set(re.findall(r"[A-Za-z_]\w+", names)) <= code, f"{file}: {names}"


def test_specification_names_tests_at_all() -> None:
    assert len(re.findall(r"tests/[\w/]+\.py::\w+", (ROOT / "docs" / "specification.md").read_text())) > 100


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_benchmark_that_is_named_exists(document: Path) -> None:
    for file in re.findall(r"python (benchmarks/\w+\.py)", document.read_text(encoding="utf-8")):
        assert (ROOT / file).exists(), f"{document.name}: {file}"


def test_every_recipe_is_a_valid_configuration() -> None:
    from jepaworld import load_config

    recipes = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(recipes) >= 4
    for recipe in recipes:
        assert load_config(recipe).notices() == [], recipe.name


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "recipes").glob("*.md")), ids=lambda path: path.stem)
def test_a_page_of_a_recipe_is_linked_and_says_its_size_and_result(page: Path) -> None:
    from jepaworld.config.catalogue import catalogue

    text, recipe = page.read_text(encoding="utf-8"), catalogue()[page.stem]
    for index in ("README.md", "docs/06_usage_guide.md"):
        assert f"recipes/{page.name})" in (ROOT / index).read_text(encoding="utf-8"), index
    assert f"configs/{recipe.file or page.stem}.yaml" in text and f"{recipe.parameters:,}" in text
    assert "## Result" in text


def test_the_figures_of_push_t_are_those_of_the_file() -> None:
    text = (ROOT / "docs" / "recipes" / "push_t.md").read_text(encoding="utf-8")
    lines = (ROOT / "benchmarks" / "results" / "push_t_tuning.jsonl").read_text().splitlines()
    found = [line for line in map(json.loads, lines) if "any" in line]
    assert len(found) >= 3
    for line in found:
        rate, low, high, end = (f"{100 * value:.0f}" for value in (*map(line["any"].get, KEYS), line["end"]["rate"]))
        assert f"| {rate} % ({low} to {high}) | {end} % |" in text, line["what"]
