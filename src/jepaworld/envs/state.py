"""Numeric state of an environment beside its frames: what probes are trained to read from embeddings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_VECTOR, MAX_TABLE = 512, 64
"""Most numbers of a state variable with one dimension, and with more (rotation matrices, points of bodies)."""
States = Mapping[str, NDArray[np.float32]]  # state variables by name


def extract_state(observation: Any, info: Mapping[str, Any], lanes: bool = False) -> dict[str, NDArray[np.float32]]:
    """Numeric variables of `info` and of the observation, as float32.

    Taken are numbers, bools, and numeric or bool arrays, lists and tuples: vectors of at most 512 numbers, and arrays
    of more dimensions of at most 64. Nested mappings are flattened with dots ("ball.x"). The entries of a mapping that
    is observed, and those of a tuple that is no vector, come under their own names; any other observation is called
    "observation". Larger arrays are named by `left_out`. Left out without a word, because `info` may hold anything:
    text, None, complex numbers, ragged lists, other objects, arrays without entries, and the masks ("_name" beside
    "name") of vector environments.

    Args:
        observation: what `reset` or `step` gave, or None.
        info: what it gave beside it.
        lanes: whether the first axis of every array counts the lanes of a vector environment.

    Returns:
        Arrays by name, those of `info` first. Names are fit for file names: characters other than letters, digits,
        ".", "_" and "-" are replaced by "_"; names that become equal get "-2", "-3" and so on.
    """
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf
        return {name: array.astype(np.float32) for name, array in _named(observation, info) if _is_short(array, lanes)}


def left_out(observation: Any, info: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of each numeric array that is too large for a state variable; see `extract_state`."""
    return {name: array.shape for name, array in _named(observation, info) if not _is_short(array)}


def _is_short(array: NDArray[Any], lanes: bool = False) -> bool:
    shape = array.shape[1:] if lanes else array.shape
    return int(np.prod(shape, dtype=np.int64)) <= (MAX_VECTOR if len(shape) <= 1 else MAX_TABLE)


def _named(observation: Any, info: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Every numeric array with a name of its own that is fit for a file."""
    used: set[str] = set()
    for name, value in [*_entries(info), *_observed(observation)]:
        clean = stem = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "_"
        count = 1
        while clean in used:
            count += 1
            clean = f"{stem}-{count}"
        used.add(clean)
        yield clean, value


def _observed(observation: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(observation, Mapping):
        yield from _entries(observation)
    elif (array := _numeric(observation)) is not None:
        yield "observation", array
    elif isinstance(observation, tuple):
        yield from _entries({f"observation.{number}": part for number, part in enumerate(observation)})


def _entries(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    for key, value in values.items():
        name = str(key)
        if name.startswith("_") and name[1:] in values:
            continue
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{name}.")
        elif (array := _numeric(value)) is not None:
            yield prefix + name, array


def _numeric(value: Any) -> NDArray[Any] | None:
    """`value` as an array, or None where it is not numeric."""
    if not isinstance(value, Number | np.generic | np.ndarray | list | tuple):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return None
    return array if array.dtype.kind in "biuf" and array.size else None
