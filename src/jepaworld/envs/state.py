"""Numeric state of an environment beside its frames: what probes are trained to read from embeddings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_OBSERVATION_SIZE = 512
States = Mapping[str, NDArray[np.float32]]  # state variables by name


def extract_state(observation: Any, info: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Numeric variables of `info`, and the observation where it is a short vector, as float32.

    From `info` come numbers, bools, and numeric or bool arrays, lists and tuples of any shape; nested mappings are
    flattened with dots ("ball.x"). The observation is added as "observation" where it is a number or a vector of at
    most 512 numbers. Left out without a word, because `info` may hold anything: text, None, complex numbers, ragged
    lists, other objects, arrays without entries, and the masks ("_name" beside "name") of vector environments.

    Returns:
        Arrays by name, in the order of `info`. Names are fit for file names: characters other than letters,
        digits, ".", "_" and "-" are replaced by "_"; names that become equal get "-2", "-3" and so on.
    """
    found = list(_numeric_entries(info, prefix=""))
    if (vector := _numeric(observation)) is not None and vector.ndim <= 1 and vector.size <= MAX_OBSERVATION_SIZE:
        found.append(("observation", vector))
    states: dict[str, NDArray[np.float32]] = {}
    for name, value in found:
        clean = stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"
        count = 1
        while clean in states:
            count += 1
            clean = f"{stem}-{count}"
        states[clean] = value
    return states


def _numeric_entries(info: Mapping[str, Any], prefix: str) -> list[tuple[str, NDArray[np.float32]]]:
    entries = []
    for key, value in info.items():
        name = str(key)
        if name.startswith("_") and name[1:] in info:
            continue
        if isinstance(value, Mapping):
            entries += _numeric_entries(value, f"{prefix}{name}.")
        elif (array := _numeric(value)) is not None:
            entries.append((prefix + name, array))
    return entries


def _numeric(value: Any) -> NDArray[np.float32] | None:
    """`value` as a float32 array of its own, or None where it is not numeric."""
    if not isinstance(value, Number | np.generic | np.ndarray | list | tuple):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return None
    if array.dtype.kind not in "biuf" or array.size == 0:
        return None
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf
        return array.astype(np.float32)
