"""When a goal counts as reached: by conditions on state variables, or by the environment's own word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepaworld.config.planning import RestCondition, SuccessCondition
from jepaworld.envs.hooks import OWN_SUCCESS
from jepaworld.envs.state import States
from jepaworld.errors import ConfigError, PlanningError


class Criterion:
    """Whether a goal is reached.

    Args:
        conditions: All must hold against the state variables of the goal; None for the environment's own success.
        variables: Name and shape of each state variable that there is, to check the conditions against.

    Raises:
        ConfigError: A condition names a variable or indices that there are not, or there is none.

    Example:
        >>> near = Criterion([SuccessCondition(variable="position", distance=0.1)], {"position": (2,)})
        >>> near.judge({"position": np.zeros(2)}, {}, {"position": np.array([0.3, 0.4])})
        (False, (0.5,))
    """

    def __init__(self, conditions: Sequence[SuccessCondition] | None, variables: Mapping[str, tuple[int, ...]]) -> None:
        if conditions is not None and not conditions:
            raise ConfigError("evaluation.success is an empty list: give it a condition, or null.")
        for number, condition in enumerate(conditions or ()):
            _check_condition(f"evaluation.success[{number}]", condition, variables)
        self.conditions = None if conditions is None else tuple(conditions)

    @property
    def is_own(self) -> bool:
        """Whether the environment tells success itself."""
        return self.conditions is None

    def __str__(self) -> str:
        if self.conditions is None:
            return f"the environment's own success (info {' or '.join(OWN_SUCCESS)})"
        return " and ".join(_in_words(condition) for condition in self.conditions)

    def judge(self, states: States, info: Mapping[str, Any], goal: States) -> tuple[bool, tuple[float, ...]]:
        """Whether the environment is at a goal now, and how far it is.

        Args:
            states: State variables now, as `jepaworld.envs.state.extract_state` gives them.
            info: What `reset` or `step` returned; its own success must be about this goal, see `draw_tasks`.
            goal: State variables at the goal.

        Returns:
            Whether the goal is reached, and the Euclidean distance of each condition's variable in its unit.

        Raises:
            PlanningError: The environment does not give a variable or its own success, now or at the goal.
        """
        if self.conditions is not None:
            distances = tuple(_distance(condition, states, goal) for condition in self.conditions)
            return all(away <= c.distance for away, c in zip(distances, self.conditions, strict=True)), distances
        value = own_success(info)
        if value is None:
            raise PlanningError(
                f"evaluation.success is null, but info has neither {' nor '.join(OWN_SUCCESS)}: set it to conditions "
                f"on state variables ({', '.join(states) or 'there are none'})."
            )
        return value, ()


class Rest:
    """Whether nothing moves: every velocity that `evaluation.rest` names is within its limit.

    Args:
        conditions: All must hold.
        variables: Name and shape of each state variable that there is.

    Raises:
        ConfigError: A condition names a variable or indices that there are not, or there is none.

    Example:
        >>> Rest([RestCondition(variable="velocity", limit=0.1)], {"velocity": (2,)}).speeds({"velocity": np.ones(2)})
        (1.4142135623730951,)
    """

    def __init__(self, conditions: Sequence[RestCondition], variables: Mapping[str, tuple[int, ...]]) -> None:
        if not conditions:
            raise ConfigError("evaluation.rest is an empty list: give it a condition, or null.")
        for number, condition in enumerate(conditions):
            _check_condition(f"evaluation.rest[{number}]", condition, variables)
        self.conditions = tuple(conditions)

    def __str__(self) -> str:
        return " and ".join(f"{_entries(one)} at most {one.limit:g}" for one in self.conditions)

    def speeds(self, states: States) -> tuple[float, ...]:
        """The Euclidean norm of each condition's variable now, in its unit.

        Raises:
            PlanningError: The environment does not give a variable now.
        """
        values = (_values("evaluation.rest", one, states, "now") for one in self.conditions)
        return tuple(float(np.linalg.norm(value)) for value in values)

    def holds(self, speeds: Sequence[float]) -> bool:
        """Whether all of these are within their limits."""
        return all(speed <= one.limit for speed, one in zip(speeds, self.conditions, strict=True))


def own_success(info: Mapping[str, Any]) -> bool | None:
    """The environment's own word in `info`, `None` where it says nothing."""
    return next((bool(np.all(info[name])) for name in OWN_SUCCESS if name in info), None)


def _check_condition(
    where: str, condition: SuccessCondition | RestCondition, variables: Mapping[str, tuple[int, ...]]
) -> None:
    if condition.variable not in variables:
        there = ", ".join(f"{name} {tuple(shape)}" for name, shape in variables.items()) or "none"
        raise ConfigError(
            f"{where}.variable is {condition.variable}, which is no state variable here. There are: {there}."
        )
    size = int(np.prod(variables[condition.variable], dtype=np.int64))
    if condition.indices is not None and (not condition.indices or max(condition.indices) >= size):
        raise ConfigError(
            f"{where}.indices is {condition.indices}: at least one of 0 to {size - 1} of {condition.variable}, or null "
            "for all."
        )


def _distance(condition: SuccessCondition, states: States, goal: States) -> float:
    now, there = (
        _values("evaluation.success", condition, values, when)
        for when, values in (("now", states), ("at the goal", goal))
    )
    away = now - there
    if condition.period is not None:  # the short way round
        half = condition.period / 2
        away = (away + half) % condition.period - half
    return float(np.sqrt((away * away).sum()))


def _values(
    setting: str, condition: SuccessCondition | RestCondition, states: States, when: str
) -> NDArray[np.float64]:
    """The entries (V,) that a condition names."""
    name = condition.variable
    value = np.asarray(states.get(name, np.nan), np.float64).ravel()
    value = value if condition.indices is None or name not in states else value[condition.indices]
    if not np.isfinite(value).all():
        raise PlanningError(f"{setting}: {name} is not known {when}; choose a state variable that is always given.")
    return value


def _entries(condition: SuccessCondition | RestCondition) -> str:
    return condition.variable + ("" if condition.indices is None else str(condition.indices))


def _in_words(condition: SuccessCondition) -> str:
    turn = "" if condition.period is None else f" (period {condition.period:g})"
    return f"{_entries(condition)} within {condition.distance:g}{turn}"
