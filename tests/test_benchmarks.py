"""Benchmarks: what they import is there, and the one of the engine's overhead runs."""

from __future__ import annotations

import ast
import importlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jepaworld.config import Config

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jepaworld"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_more_steps_than_an_epoch_has(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def leaves(node: Any, path: str = "") -> list[str]:
        if isinstance(node, dict) and node:
            return [text for key in node for text in leaves(node[key], f"{path}.{key}" if path else key)]
        return [f"{path}={json.dumps(node)}"]

    ours = ("dataset_dir", "num_epochs", "steps_per_epoch", "data_location", "jepa_decoder_training", "early_stopping")
    overrides = [text for text in leaves(tiny_config().to_dict()) if not text.startswith(ours)]
    arguments = [argument for override in overrides for argument in ("--override", override)]
    script = str(FOLDER / "overhead.py")
    monkeypatch.setattr(
        sys, "argv", [script, "--steps", "30", "--repeats", "1", "--dataset", str(tmp_path / "data"), *arguments]
    )
    runpy.run_path(script, run_name="__main__")
    assert "ratio" in capsys.readouterr().out
