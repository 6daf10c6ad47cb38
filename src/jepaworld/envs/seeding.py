"""Random numbers of episodes: the same for whoever plays an episode, and whenever."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np


class EpisodeSeeds(NamedTuple):
    """The random numbers of one episode, the same whoever plays it and when."""

    environment: int  # below 2**31, which the C generators of some environments need
    policy: np.random.Generator
    everything_else: int  # for environments and policies that use the generators of Python, numpy or torch


def episode_seeds(seed: int, episode: int) -> EpisodeSeeds:
    """The seeds of episode `episode` of a collection with the setting `seed`."""
    environment, policy, rest = np.random.SeedSequence(seed, spawn_key=(episode,)).spawn(3)
    return EpisodeSeeds(
        environment=int(environment.generate_state(1)[0]) >> 1,
        policy=np.random.default_rng(policy),
        everything_else=int(rest.generate_state(1)[0]),
    )


def seed_everything_else(seed: int) -> None:
    """Seed the generators of Python, numpy and, where it is loaded, torch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (exactly the generator that others may use)
    # Not imported here: who does not use torch should not wait for it, and a policy that samples with it has it.
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(seed)


def step_seed(seed: int, step: int) -> int:
    """The seed for everything else at a step of an episode; at step 0 that of the episode."""
    return (seed + 0x9E3779B9 * step) % 2**32  # an odd number, so that no two steps have the same


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the generators that playing an episode seeds back to where the caller had them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    torch = sys.modules.get("torch")
    torch_state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch is not None:
            torch.set_rng_state(torch_state)
