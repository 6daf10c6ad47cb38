"""Which probe of a state variable is to follow it through imagination.

Shapes: N frames, K variables, E episodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from jepaworld.evaluation.encoding import encode_frames, sample_rows
from jepaworld.evaluation.linear_probe import LinearProbe, fit_linear_probe
from jepaworld.evaluation.mlp_probe import MLPProbe, fit_mlp_probe, split_by_episode
from jepaworld.evaluation.probes import ProbeKind, state_matrix
from jepaworld.evaluation.scores import constant_columns

if TYPE_CHECKING:
    from jepaworld.data.store import EpisodeDataset
    from jepaworld.models.jepa import JEPA

READABLE = 0.5
"""R² from which on a variable is followed through imagination; of one that is read worse the error would be the
probe's own."""

MLP_ADVANTAGE = 0.9
"""The MLP is taken if its squared error is below this share of the linear probe's: it is judged on the episodes that
also decided when to stop, and is the less predictable of the two away from real embeddings."""


class Probe(Protocol):
    """Reads variables off embeddings."""

    def predict(self, z: np.ndarray | torch.Tensor) -> np.ndarray:
        """(N, ...) in, float64 (N, K) out."""
        ...


class StateProbe(NamedTuple):
    """The better probe of the readable entries of one state variable."""

    variable: str
    entries: tuple[int, ...]
    """Which entries it reads, in the order of its columns."""
    size: int
    """How many entries the variable has."""
    kind: ProbeKind
    r2: float
    """Smallest R² of an entry on the training episodes that it was chosen by."""
    probe: Probe

    @property
    def name(self) -> str:
        """Variable and, if not all, entries: `observation[0, 2]`, `observation (20 of 128 entries)`."""
        if len(self.entries) == self.size:
            return self.variable
        if len(self.entries) > 4:
            return f"{self.variable} ({len(self.entries)} of {self.size} entries)"
        return f"{self.variable}[{', '.join(map(str, self.entries))}]"


class _Columns(NamedTuple):
    """Some columns of a probe that reads more."""

    probe: LinearProbe | MLPProbe
    columns: np.ndarray

    def predict(self, z: np.ndarray | torch.Tensor) -> np.ndarray:
        return self.probe.predict(z)[:, self.columns]


def choose_state_probes(
    model: JEPA, dataset: EpisodeDataset, train_episodes: np.ndarray, *, max_frames: int = 4000, seed: int = 0
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

    Returns:
        Variables of which some entry is read with R² of at least `READABLE`, the best read first.
    """
    rows, owners = sample_rows(dataset, train_episodes, max_frames, seed)
    names, y = state_matrix(dataset, rows)
    z = encode_frames(model, dataset, rows, encoder="encode_target")
    held = split_by_episode(owners, seed)
    if len(rows) - held.sum() < 2:
        return []
    part, network = fit_linear_probe(z[~held], y[~held]), fit_mlp_probe(z, y, owners, seed=seed)
    candidates: dict[ProbeKind, np.ndarray] = {"linear": part.predict(z[held]), "mlp": network.predict(z[held])}
    variance = np.where(constant_columns(y[held]) | constant_columns(y[~held]), np.nan, y[held].var(axis=0))
    errors = {kind: ((read - y[held]) ** 2).mean(axis=0) / variance for kind, read in candidates.items()}
    whole: dict[ProbeKind, LinearProbe | MLPProbe] = {"linear": fit_linear_probe(z, y), "mlp": network}
    found = []
    for variable in sorted(dataset.state_variables):
        columns = np.array([k for k, (name, _) in enumerate(names) if name == variable])
        readable = columns[np.fmin(errors["linear"], errors["mlp"])[columns] <= 1.0 - READABLE]
        if not len(readable):
            continue
        sums = {kind: errors[kind][readable].sum() for kind in whole}
        kind: ProbeKind = "mlp" if sums["mlp"] < MLP_ADVANTAGE * sums["linear"] else "linear"
        entries, r2 = tuple((readable - columns[0]).tolist()), float(1.0 - errors[kind][readable].max())
        found.append(StateProbe(variable, entries, len(columns), kind, r2, _Columns(whole[kind], readable)))
    return sorted(found, key=lambda chosen: -chosen.r2)
