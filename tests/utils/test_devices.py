"""The device setting, mixed precision, and how much memory is left."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from jepaworld.errors import ConfigError
from jepaworld.models.transformer import TransformerPredictor
from jepaworld.utils.devices import autocast, available_memory, resolve_device, use_bf16

CPU = torch.device("cpu")


def test_auto_takes_what_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="'cuda:63' is not there"):
        resolve_device("cuda:63")


def test_a_graph_needs_cuda() -> None:
    with pytest.raises(ConfigError, match="execution is graph"):
        resolve_device("cpu", "graph")
    assert resolve_device("cpu", "eager") == CPU


@pytest.mark.parametrize(("setting", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_mixed_precision(setting: str, dtype: torch.dtype) -> None:
    with autocast(CPU, use_bf16(setting, CPU, nn.Linear(1, 1))):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize("native", [False, True])
def test_auto_takes_bf16_where_it_gains_speed(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert use_bf16("auto", CPU, nn.Conv2d(1, 1, 1)) is native
    assert use_bf16("auto", CPU, nn.TransformerEncoderLayer(4, 1)) is False
    predictor = TransformerPredictor((4,), 4, TransformerPredictor.Settings(depth=1, heads=1, mlp_dim=4))
    assert use_bf16("auto", CPU, predictor) is False


def test_available_memory_is_below_what_the_machine_has() -> None:
    assert 0 < available_memory(CPU) < 2**50


@pytest.mark.skipif(sys.platform != "linux", reason="resource limits of Linux")
def test_available_memory_respects_resource_limits() -> None:
    program = (
        "import json, resource, torch; from jepaworld.utils.devices import available_memory;"
        "limit = 3 * 2**30; resource.setrlimit(resource.RLIMIT_DATA, (limit, limit));"
        "print(json.dumps(available_memory(torch.device('cpu'))))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert 0 < json.loads(output) < 3 * 2**30
