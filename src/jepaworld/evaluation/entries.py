"""The numbers of the environment's state that are read from embeddings, angles among them.

Shapes: N frames, V entries, K columns: one for each entry, two (sine and cosine) for an angle.

An angle jumps where it passes its period, which no map of a picture can follow: the same picture stands for both ends.
Its sine and cosine do not jump, so that these are read in its place, and errors are taken the short way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jepaworld.config.planning import SuccessCondition
from jepaworld.data.store import EpisodeDataset
from jepaworld.evaluation.scores import as_matrix

TURN = 2 * np.pi
REWARD = "reward"
Periods = Mapping[tuple[str, int], float]

_EPISODES = 200  # in which angles are looked for
_SLACK = 0.05  # by which a measured angle may miss its range
_FEWEST_VALUES = 10  # a gripper that is 0 or 6 jumps like an angle


class Entry(NamedTuple):
    """One number of a state variable, or the reward."""

    variable: str
    place: int | None = None  # which number of the variable, None if it has one only
    period: float | None = None  # of an angle, None for anything else

    @property
    def name(self) -> str:
        """`position[0]`, `pose[2] (angle)`."""
        return self.variable + ("" if self.place is None else f"[{self.place}]") + (" (angle)" if self.period else "")

    @property
    def width(self) -> int:
        """How many columns it has."""
        return 2 if self.period else 1


def declared_periods(conditions: Sequence[SuccessCondition] | None, dataset: EpisodeDataset) -> Periods:
    """Periods that the conditions of success name, by variable and place in it."""
    return {
        (condition.variable, index): condition.period
        for condition in conditions or []
        if condition.period is not None
        for index in condition.indices or range(int(np.prod(dataset.state_variables.get(condition.variable, (0,)))))
    }


def state_entries(dataset: EpisodeDataset, episodes: np.ndarray, periods: Periods | None = None) -> list[Entry]:
    """All entries of the state variables, in the order of their names, then the reward after each frame.

    Args:
        dataset: The stored episodes.
        episodes: Of these, some are searched for angles of period 2 pi: values in [-pi, pi] or [0, 2 pi] that jump
            from one end to the other between two frames.
        periods: Angles that are known.
    """
    found, looked_at = [], episodes[:_EPISODES]
    for variable in sorted(dataset.state_variables):
        spans = zip(dataset.episode_starts[looked_at], dataset.episode_lengths[looked_at], strict=True)
        values = [as_matrix(dataset.rows(f"state.{variable}", start, start + length + 1)) for start, length in spans]
        size = values[0].shape[1]
        for index in range(size):
            period = (periods or {}).get((variable, index))
            if period is None and _jumps_like_an_angle([value[:, index] for value in values]):
                period = TURN
            found.append(Entry(variable, None if size == 1 else index, period))
    return [*found, Entry(REWARD)]


def _jumps_like_an_angle(episodes: Sequence[np.ndarray]) -> bool:
    values = np.concatenate(episodes)
    low, high = values.min(), values.max()
    if not any(low >= first - _SLACK and high <= first + TURN + _SLACK for first in (-np.pi, 0.0)):
        return False
    steps = np.concatenate([np.abs(np.diff(episode)) for episode in episodes])
    # It jumps by nearly a turn or moves little: a step of half a turn would be something else that moves at random.
    nothing_between = not ((steps > 0.75 * np.pi) & (steps < 1.25 * np.pi)).any()
    return bool(nothing_between and steps.max(initial=0.0) > 1.5 * np.pi and len(np.unique(values)) >= _FEWEST_VALUES)


def read_entries(dataset: EpisodeDataset, entries: Sequence[Entry], rows: np.ndarray) -> np.ndarray:
    """Values of entries at global rows (N,), as they are stored: float64 (N, V)."""
    names = {entry.variable: "rewards" if entry.variable == REWARD else f"state.{entry.variable}" for entry in entries}
    arrays = {variable: as_matrix(dataset.gather(name, rows)) for variable, name in names.items()}
    return np.stack([arrays[entry.variable][:, entry.place or 0] for entry in entries], axis=1)


def column_starts(entries: Sequence[Entry]) -> np.ndarray:
    """(V,) first column of each entry."""
    return np.cumsum([0, *(entry.width for entry in entries[:-1])])


def to_columns(values: np.ndarray, entries: Sequence[Entry]) -> np.ndarray:
    """Values (N, V) as what probes read (N, K): sine and cosine in place of an angle."""
    columns = []
    for value, entry in zip(values.T, entries, strict=True):
        turn = value * (TURN / entry.period) if entry.period else value
        columns += [np.sin(turn), np.cos(turn)] if entry.period else [value]
    return np.stack(columns, axis=1)


def read_columns(dataset: EpisodeDataset, entries: Sequence[Entry], rows: np.ndarray) -> np.ndarray:
    """What probes read at global rows (N,): float64 (N, K)."""
    return to_columns(read_entries(dataset, entries, rows), entries)


def from_columns(columns: np.ndarray, entries: Sequence[Entry]) -> np.ndarray:
    """The values (N, V) of columns (N, K); angles within half a period of 0."""
    values = []
    for start, entry in zip(column_starts(entries), entries, strict=True):
        value = columns[:, start]
        values.append(np.arctan2(value, columns[:, start + 1]) * (entry.period / TURN) if entry.period else value)
    return np.stack(values, axis=1)


def distances(one: np.ndarray, other: np.ndarray, entries: Sequence[Entry]) -> np.ndarray:
    """Euclidean distance of values (..., V), of angles the short way round."""
    periods = np.array([entry.period or np.inf for entry in entries])
    away = np.abs(one - other) % periods
    return np.linalg.norm(np.minimum(away, periods - away), axis=-1)
