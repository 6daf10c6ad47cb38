"""Who acts while episodes are collected: the two random policies, a user's own, or a trained one.

A policy has `reset(rng)`, called before each episode, and `act(observation) -> action`. The built-in ones
also have `sequence(rng, steps)`: the same actions all at once, for environments that are stepped in batches.

Shapes: a Box action has the shape of the space; `N` is the number of its entries.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

from jepaworld.config.schema import CollectionConfig
from jepaworld.data.spec import Collected
from jepaworld.envs.spaces import action_bounds, element
from jepaworld.errors import ConfigError
from jepaworld.utils import outside

BUILT_IN = ("random", "smooth_random")
_MOVED = {"jepaworld.envs.push_t:NearBlockPolicy": "jepaworld.data.push_t_policy:NearBlockPolicy"}

# The math module, entry by entry: numpy has no erf, and its vectorised logarithm may round differently in arrays of
# another length, while act() and sequence() must agree to the last bit.
_erfc, _log = np.vectorize(math.erfc, [np.float64]), np.vectorize(math.log, [np.float64])


class Policy(Protocol):
    """What the collection needs of a policy."""

    def reset(self, rng: np.random.Generator) -> None:
        """An episode begins; everything random about it comes from `rng`."""

    def act(self, observation: Any) -> Any:
        """The action at this observation, a valid element of the action space."""


class RandomPolicy:
    """Random actions, each uniform over the action space, correlated over time by `smoothness`.

    Box: every entry follows a Gaussian AR(1) process `x' = a x + sqrt(1 - a^2) e` with `a = smoothness`, stationary
    from the first step, and is mapped through the normal distribution function to a uniform number that is spread over
    the entry's bounds: actions drift smoothly and cover the whole range evenly. An entry without bounds (bounds beyond
    a million stand for none) is `x` itself; one with a single bound is exponentially distributed from that bound on.
    Discrete: the last action is repeated with probability `smoothness`, else a new one is drawn, perhaps the same.

    Args:
        space: Box or Discrete.
        smoothness: 0 (independent actions) to below 1.

    Example:
        >>> RandomPolicy(Discrete(3), smoothness=0.9).sequence(np.random.default_rng(0), steps=5).shape
        (5,)
    """

    def __init__(self, space: gym.Space[Any], smoothness: float) -> None:
        assert isinstance(space, Box | Discrete), space
        self._space, self.smoothness = space, smoothness
        self._rng: np.random.Generator | None = None
        self._last: Any = None  # the last action (Discrete), or the last x of each entry (Box)

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode whose actions are drawn from `rng`."""
        self._rng, self._last = rng, None

    def act(self, observation: Any) -> Any:  # noqa: ARG002 (random actions do not look)
        """The next action; equal to the next one of `sequence`."""
        return self._next(1)[0]

    def act_among(self, allowed: np.ndarray) -> int:
        """The next action of a Discrete space, uniform among some of its actions: none other is repeated or drawn."""
        assert self._rng is not None and isinstance(self._space, Discrete), "reset comes before act"
        repeat, choice = self._rng.random(2)
        if self._last not in allowed or repeat >= self.smoothness:
            self._last = int(allowed[int(choice * len(allowed))])
        return self._last

    def sequence(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """The first actions of an episode: (steps, *shape) in the dtype of a Box, (steps,) int64 for Discrete."""
        self.reset(rng)
        return self._next(steps)

    def _next(self, steps: int) -> np.ndarray:
        assert self._rng is not None, "reset comes before act"
        space = self._space
        if isinstance(space, Discrete):
            actions = np.empty(steps, np.int64)
            for step, (repeat, choice) in enumerate(self._rng.random((steps, 2))):
                if self._last is None or repeat >= self.smoothness:
                    self._last = int(space.start) + int(choice * int(space.n))
                actions[step] = self._last
            return actions
        noise = self._rng.standard_normal((steps, math.prod(space.shape)))
        process = np.stack([self._correlate(entry, column) for entry, column in enumerate(noise.T.tolist())], axis=1)
        self._last = process[-1].tolist()
        return _spread(process, space).reshape(steps, *space.shape)

    def _correlate(self, entry: int, noise: list[float]) -> list[float]:
        """The AR(1) process of one entry, going on from its last value."""
        # In plain numbers, which are faster than arrays of a few entries.
        smoothness, scale = self.smoothness, math.sqrt(1.0 - self.smoothness**2)
        first = noise[0] if self._last is None else smoothness * self._last[entry] + scale * noise[0]
        return list(accumulate(noise[1:], lambda x, e: smoothness * x + scale * e, initial=first))


def _spread(normal: np.ndarray, space: Box) -> np.ndarray:
    """Bring standard normal numbers (steps, N) into the bounds of the space, in its dtype."""
    low, high, _, _ = action_bounds(space)
    below, above = np.isfinite(low), np.isfinite(high)
    integer = np.issubdtype(space.dtype, np.integer)
    tail = 0.5 * _erfc(normal / math.sqrt(2.0))  # P(X > x), uniform in (0, 1)
    values = normal.copy()
    both = below & above
    width = high[both] - low[both] + (1.0 if integer else 0.0)
    values[:, both] = low[both] + width * (1.0 - tail[:, both])
    for entry in np.flatnonzero(below ^ above):
        distance = -_log(tail[:, entry])
        values[:, entry] = low[entry] + distance if below[entry] else high[entry] - distance
    if integer:
        values = np.floor(values)
    # Rounding to the dtype may step over a bound.
    return np.clip(values, low, high).astype(space.dtype)


class ImportedPolicy:
    """A user's policy, checked. An action outside the space is refused: clipped, it would be stored as if played.

    Args:
        name: the import path, for messages.
        act: observation -> action.
        space: the action space that `act` was given (if any); its generator is seeded before each episode.
        reset: called before each episode, if the policy has such a method without parameters.
    """

    def __init__(
        self, name: str, act: Callable[[Any], Any], space: gym.Space[Any], reset: Callable[[], Any] | None = None
    ) -> None:
        self._name, self._act, self._space, self._reset = name, act, space, reset

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; the random numbers of `action_space.sample()` follow from `rng`."""
        self._space.seed(int(rng.integers(2**31)))
        if self._reset is not None:
            with outside.failures(f"collection.policy {self._name}: reset()"):
                self._reset()

    def act(self, observation: Any) -> Any:
        """The policy's action.

        Raises:
            ConfigError: the policy failed, or its action is not in the action space.
        """
        with outside.failures(f"collection.policy {self._name}: acting"):
            action = self._act(observation)
        return checked_action(action, self._space, self._name)


def checked_action(action: Any, space: gym.Space[Any], name: str) -> Any:
    """An action (a number, a list or an array) as an element of `space`: an array for Box, an int for Discrete.

    Float rounding at the bounds (1e-6 of them) is put right.

    Raises:
        ConfigError: wrong shape, not numeric, not finite or out of bounds; the message names the policy `name`.
    """
    try:
        return element(np.asarray(action), space)
    except ValueError as problem:
        where = f"collection.policy {name}: its action {action!r} is not in the action space {space}"
        raise ConfigError(f"{where}: {problem}.") from None


def make_policy(settings: CollectionConfig | Collected, action_space: gym.Space[Any]) -> Policy:
    """The policy that the section `collection`, or a dataset's provenance, names.

    `module:attribute` may name
    a function, or another callable object: called as `policy(observation)`;
    an object with `predict(observation, deterministic=...)`: used like a Stable-Baselines3 model;
    a class with `load`, if `policy_path` is set: `load(policy_path, **policy_kwargs)` gives such a model;
    any other class: instantiated as `cls(action_space, **policy_kwargs)`, with a copy of the space, then used likewise.
    A method `reset()` of the object, if there is one, is called before each episode. A model that predicts acts as in
    training, by sampling; `deterministic: true` in `policy_kwargs` makes it take its best action.

    Raises:
        ConfigError: the name is unknown, the import or the loading fails, or what it names cannot act.
    """
    name, path, kwargs = settings.policy, settings.policy_path, dict(settings.policy_kwargs)
    if name in BUILT_IN:
        return RandomPolicy(action_space, (settings.smoothness or 0.0) if name == "smooth_random" else 0.0)
    called, (module, _, attribute) = f"collection.policy {name}", current_name(name).partition(":")
    if not module or not attribute:
        raise ConfigError(
            f"collection.policy is {name!r}: neither {' nor '.join(BUILT_IN)} nor an import path module:attribute."
            f"{outside.did_you_mean(name, BUILT_IN)}"
        )
    target: Any = outside.import_attribute(current_name(name), called)
    action_space = copy.deepcopy(action_space)
    # Model libraries take `deterministic` when acting, not when loading.
    deterministic = path is not None and bool(kwargs.pop("deterministic", False))
    if path is not None:
        if not callable(getattr(target, "load", None)):
            raise ConfigError(
                f"collection.policy_path is set but {called} has no load(), as stable_baselines3:PPO has."
            )
        if not policy_file(path).is_file():
            raise ConfigError(f"collection.policy_path: {path} does not exist. Give the .zip file that save() wrote.")
        with outside.failures(f"{called}: loading {path}"):
            target = target.load(str(policy_file(path)), **kwargs)
    elif inspect.isclass(target):
        make: Any = target  # not narrowed to a class without arguments
        with outside.failures(f"{called}: making it with (action_space, **policy_kwargs)"):
            target = make(action_space, **kwargs)
    elif kwargs:
        raise ConfigError(f"collection.policy_kwargs is {kwargs} but {called} is not a class, so nothing takes them.")
    act: Any = target
    if callable(getattr(target, "predict", None)):
        act = lambda observation: target.predict(observation, deterministic=deterministic)[0]  # noqa: E731
    elif not callable(target):
        raise ConfigError(f"{called} is {target!r}, which cannot act: it is no callable and has no predict().")
    reset = getattr(target, "reset", None)
    return ImportedPolicy(name, act, action_space, reset if callable(reset) else None)


def current_name(policy: str) -> str:
    """The name of a policy today, also where a dataset or a configuration has that of an earlier version."""
    return _MOVED.get(policy, policy)


def policy_file(path: str) -> Path:
    """The file that `policy_path` means: Stable-Baselines3 lets one leave out the ending .zip."""
    given = Path(path)
    return given if given.is_file() or given.suffix == ".zip" else given.with_name(f"{given.name}.zip")
