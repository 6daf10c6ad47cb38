"""One setting for the device, mixed precision and the memory that data may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from jepaworld.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device of the setting `device`.

    Args:
        name: "auto", "cpu", "cuda", "cuda:N" or "mps". "auto" takes the first of cuda, mps, cpu that is there.

    Raises:
        ConfigError: the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= there:
        raise ConfigError(
            f"device: {name!r} is not there: this torch ({torch.__version__}) sees {there} {device.type} device(s). "
            "Use device=auto or device=cpu."
        )
    return device


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager:
    """The autocast context of a forward pass, as `use_bf16` decided it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def use_bf16(mixed_precision: str, device: torch.device, model: nn.Module) -> bool:
    """Whether a model is run in bf16 autocast.

    Args:
        mixed_precision: The setting: "auto", "bf16" or "off". "auto" takes bf16 where it gains speed: on GPUs that
            have it, and for models without attention on processors that have it (a step of the default JEPA takes
            0.7 times as long there, one of the small Transformers here 1.1 to 1.8 times).
        device: Where the model is.
        model: The model.
    """
    if mixed_precision != "auto":
        return mixed_precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and not any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device; on the host, within the limits set to this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([_host_memory(), *_process_limits()])


def _host_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _process_limits() -> Iterator[int]:
    """Bytes that the control groups and resource limits leave to this process, as far as there are any."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return
    page = os.sysconf("SC_PAGE_SIZE")
    virtual, resident, _, _, _, data, _ = (int(pages) * page for pages in statm.read_text().split())
    for limit in _group_limits():
        yield limit - resident
    import resource  # not on every system that Python runs on

    for kind, used in ((resource.RLIMIT_AS, virtual), (resource.RLIMIT_DATA, data)):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft - used


def _group_limits() -> Iterator[int]:
    """Memory limits of this process's control group and those above it (version 2, then version 1)."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        folder = root / group.lstrip("/")
        for level in (folder, *folder.parents):
            file = level / name
            if file.exists() and (text := file.read_text().strip()).isdigit():
                yield int(text)
            if level == root:
                break
