"""Resume states: read back as they were, whatever is in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepaworld.errors import CheckpointError
from jepaworld.models.checkpoints import write_tensors
from jepaworld.runs.state import load_state, random_state, save_state, set_random_state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, list) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def test_a_state_is_read_back_as_it_was(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    state = {
        "numbers": [1, 2.5, -3, 0.1 + 0.2, math.inf, 2**60],
        "words": {"a": "text", "b": None, "c": True, "ü": "ß"},
        "tensors": {
            "float": base,
            "double": torch.randn(2).double(),
            "half": torch.randn(3).bfloat16(),
            "int": torch.tensor([1, -2]),
            "bytes": torch.get_rng_state(),
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(3.0),
            "empty": torch.empty(0, 3),
            "row of another": base[1],
            "transposed": base.T,
            "the same again": base,
            "parameter": torch.nn.Parameter(torch.ones(2)),
        },
        "mixed": [{"deep": [torch.ones(2), {"x": 1}]}, (1, torch.zeros(1))],
        "empty": [{}, []],
    }
    path = tmp_path / "state.safetensors"
    save_state(path, state)
    state["tensors"]["parameter"] = state["tensors"]["parameter"].detach()
    assert same(state, load_state(path))


def test_a_saved_state_does_not_change_with_its_tensors(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    save_state(tmp_path / "state", {"t": tensor})
    tensor.zero_()
    assert load_state(tmp_path / "state")["t"].tolist() == [1, 1]


def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1)

    def step(module: torch.nn.Linear, optimizer: torch.optim.Optimizer, seed: int) -> None:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()

    module, optimizer = build()
    step(module, optimizer, 1)
    entries = {str(index): entry for index, entry in optimizer.state_dict()["state"].items()}
    save_state(tmp_path / "state", {"module": module.state_dict(), "optimizer": entries})
    other, other_optimizer = build()
    state = load_state(tmp_path / "state")
    other.load_state_dict(state["module"])
    other_optimizer.load_state_dict(
        other_optimizer.state_dict() | {"state": {int(index): entry for index, entry in state["optimizer"].items()}}
    )
    for seed in (2, 3):
        step(module, optimizer, seed)
        step(other, other_optimizer, seed)
    assert torch.equal(module.weight, other.weight)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    torch.rand(3)
    save_state(tmp_path / "state", random_state())
    expected = torch.rand(5)
    torch.manual_seed(99)
    set_random_state(load_state(tmp_path / "state"))
    assert torch.equal(torch.rand(5), expected)


def test_damaged_states(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_state(path)
    save_state(path, {"t": torch.randn(50)})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)
    weights = tmp_path / "weights"
    write_tensors(weights, "jepa", {"t": torch.ones(2)}, {})
    with pytest.raises(CheckpointError, match="expected 'state'"):
        load_state(weights)
