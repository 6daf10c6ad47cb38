"""Which probe of a state variable is to follow it through imagination.

Shapes: N frames, K columns, V entries of the state, E episodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from jepaworld.evaluation.encoding import encode_frames, probed, sample_rows
from jepaworld.evaluation.entries import (
    REWARD,
    Entry,
    Periods,
    column_starts,
    from_columns,
    read_entries,
    state_entries,
    to_columns,
)
from jepaworld.evaluation.linear_probe import fit_linear_probe
from jepaworld.evaluation.mlp_probe import fit_mlp_probe, split_by_episode
from jepaworld.evaluation.results import ProbeKind
from jepaworld.evaluation.scores import r2_score

if TYPE_CHECKING:
    from jepaworld.data.store import EpisodeDataset
    from jepaworld.models.protocol import WorldModel

READABLE = 0.5
"""R² from which on a variable is followed through imagination; of one that is read worse the error would be the
probe's own."""

MLP_ADVANTAGE = 0.9
"""The MLP is taken if its squared error is below this share of the linear probe's: it is judged on the episodes that
also decided when to stop, and is the less predictable of the two away from real embeddings."""


class FittedProbe(Protocol):
    """Reads columns off inputs."""

    def predict(self, z: np.ndarray | Tensor) -> np.ndarray:
        """(N, ...) in, float64 (N, K) out."""
        ...


class StateProbe(NamedTuple):
    """The better probe of the readable entries of one state variable; angles are apart, as their unit is another."""

    variable: str
    entries: tuple[Entry, ...]
    size: int
    """How many numbers the variable has."""
    kind: ProbeKind
    r2: float
    """Smallest R² of an entry on the training episodes that it was chosen by."""
    probe: FittedProbe
    columns: np.ndarray
    """Which columns of the probe are those of the entries."""

    @property
    def indices(self) -> list[int]:
        """Places of the entries in the variable."""
        return [entry.place or 0 for entry in self.entries]

    @property
    def name(self) -> str:
        """Variable and, if not all, entries: `state[0, 2]`, `state (20 of 128 entries)`, `pose[2] (angle)`."""
        turn = "" if self.entries[0].period is None else " (angle)"
        if len(self.entries) == self.size:
            return self.variable + turn
        if len(self.entries) > 4:
            return f"{self.variable} ({len(self.entries)} of {self.size} entries)" + turn
        return f"{self.variable}[{', '.join(map(str, self.indices))}]" + turn

    def read(self, z: Tensor) -> np.ndarray:
        """Entries (N, V) in the variable's unit from embeddings (N, *latent)."""
        return from_columns(self.probe.predict(probed(z))[:, self.columns], self.entries)


def choose_state_probes(
    model: WorldModel,
    dataset: EpisodeDataset,
    train_episodes: np.ndarray,
    *,
    max_frames: int = 4000,
    seed: int = 0,
    periods: Periods | None = None,
) -> list[StateProbe]:
    """For every state variable the probe that reads it better, to follow it through imagination.

    Probes are fitted on `encode_target`, because that is what imagined embeddings are to resemble. Which entries of
    a variable can be read, and whether the linear probe or the MLP reads them better, is decided on a fifth of the
    training episodes, so that held-out episodes stay unseen; the linear probe is then fitted on all of them.

    Args:
        model: The trained model.
        dataset: The stored episodes.
        train_episodes: (E,) episodes to fit and choose on.
        max_frames: At most so many frames of them.
        seed: Seed of the drawn frames and of the MLP.
        periods: Periods of known angles; others are found by their jumps.

    Returns:
        Variables of which some entry is read with R² of at least `READABLE`, the best read first.
    """
    rows, owners = sample_rows(dataset, train_episodes, max_frames, seed)
    entries = state_entries(dataset, train_episodes, periods)
    starts = column_starts(entries)
    y = to_columns(read_entries(dataset, entries, rows), entries)
    z = probed(encode_frames(model, dataset, rows, encode=model.encode_target))
    held = split_by_episode(owners, seed)
    if len(rows) - held.sum() < 2:
        return []
    part, network = fit_linear_probe(z[~held], y[~held]), fit_mlp_probe(z, y, owners, seed=seed)
    whole: dict[ProbeKind, FittedProbe] = {"linear": fit_linear_probe(z, y), "mlp": network}
    measurable = [score is not None for score in r2_score(y[~held], np.zeros_like(y[~held]), starts)]
    reads: dict[ProbeKind, np.ndarray] = {"linear": part.predict(z[held]), "mlp": network.predict(z[held])}
    scores = {
        kind: np.where(measurable, np.array(r2_score(y[held], read, starts), dtype=np.float64), np.nan)
        for kind, read in reads.items()
    }
    found = []
    groups = {(entry.variable, entry.period) for entry in entries if entry.variable != REWARD}
    for variable, period in sorted(groups, key=lambda group: (group[0], group[1] or 0.0)):
        members = np.array([v for v, e in enumerate(entries) if (e.variable, e.period) == (variable, period)])
        readable = members[np.fmax(scores["linear"], scores["mlp"])[members] >= READABLE]
        if not len(readable):
            continue
        errors = {kind: (1.0 - scores[kind][readable]).sum() for kind in whole}
        kind: ProbeKind = "mlp" if errors["mlp"] < MLP_ADVANTAGE * errors["linear"] else "linear"
        chosen, r2 = tuple(entries[v] for v in readable), float(scores[kind][readable].min())
        columns = np.concatenate([starts[v] + np.arange(2 if entries[v].period else 1) for v in readable])
        size = sum(entry.variable == variable for entry in entries)
        found.append(StateProbe(variable, chosen, size, kind, r2, whole[kind], columns))
    return sorted(found, key=lambda chosen: -chosen.r2)
