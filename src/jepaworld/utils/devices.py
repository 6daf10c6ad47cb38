"""One setting for the device, mixed precision and the memory that data may take."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from jepaworld.errors import ConfigError


def resolve_device(name: str, execution: str = "auto") -> torch.device:
    """The device of the setting `device`: "auto" (the first of cuda, mps, cpu that is there), "cpu", "cuda:N", ...

    Args:
        name: The setting.
        execution: The setting `execution`, where the device is to be trained on.

    Raises:
        ConfigError: the device is not there, or cannot execute steps like this.
    """
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    device = torch.device(next(kind for kind, count in there.items() if count) if name == "auto" else name)
    if (device.index or 0) >= (count := there[device.type]):
        raise ConfigError(
            f"device: {name!r} is not there: this torch ({torch.__version__}) sees {count} {device.type} device(s). "
            "Use device=auto or device=cpu."
        )
    if execution == "graph" and device.type != "cuda":
        raise ConfigError(f"execution is graph: needs a CUDA device, not {device.type}. Use auto or eager.")
    return device


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager:
    """The autocast context of a forward pass, as `use_bf16` decided it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread on the CPU, for operations so short that several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_bf16(mixed_precision: str, device: torch.device, model: nn.Module) -> bool:
    """Whether a model on a device is run in bf16 autocast by the setting `mixed_precision`: "auto", "bf16" or "off".

    "auto" takes bf16 where it gains speed: on GPUs that have it, and for models without attention on processors that
    have it (a step of the default JEPA takes 0.7 times as long there, one of the small Transformers 1.1 to 1.8 times).
    """
    if mixed_precision != "auto":
        return mixed_precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # By the name, as attention is torch's in the encoders and our own in the predictor.
    attention = any("Attention" in type(module).__name__ for module in model.modules())
    if device.type == "cpu" and not attention:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device; on the host, within the limits set to this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_host_memory())


def _host_memory() -> Iterator[int]:
    """Bytes that the machine, control groups and resource limits leave to this process, as far as there are any."""
    page = os.sysconf("SC_PAGE_SIZE")
    yield os.sysconf("SC_PHYS_PAGES") * page
    if not Path("/proc/self/statm").exists():  # not Linux
        return
    yield from (int(n) * 1024 for n in re.findall(r"^MemAvailable: +(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE))
    virtual, resident, _, _, _, data, _ = (int(pages) * page for pages in _read("/proc/self/statm").split())
    yield from (limit - resident for limit in _group_limits())
    import resource  # not on every system that Python runs on

    for kind, used in ((resource.RLIMIT_AS, virtual), (resource.RLIMIT_DATA, data)):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft - used


def _group_limits() -> Iterator[int]:
    """Memory limits of this process's control group and those above it."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):  # version 1
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        folder = root / group.lstrip("/")
        for level in (folder, *folder.parents):
            if (
                level.is_relative_to(root)
                and (level / name).exists()
                and (text := _read(level / name).strip()).isdigit()
            ):
                yield int(text)


def _read(path: str | Path) -> str:
    return Path(path).read_text()
