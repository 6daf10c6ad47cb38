"""When a goal counts as reached: by conditions on state variables, or by the environment's own word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jepaworld.config.planning import SuccessCondition
from jepaworld.envs.hooks import OWN_SUCCESS
from jepaworld.errors import ConfigError, PlanningError

if TYPE_CHECKING:
    from jepaworld.evaluation.tasks import Task


class Criterion:
    """Whether a task's goal is reached.

    Args:
        conditions: all of these must hold against the state variables of the goal; `None` for the environment's
            own success.
        variables: name and shape of each state variable that there is, to check the conditions against.

    Raises:
        ConfigError: a condition names a variable or indices that there are not.
    """

    def __init__(self, conditions: Sequence[SuccessCondition] | None, variables: Mapping[str, tuple[int, ...]]) -> None:
        if conditions is not None and not conditions:
            raise ConfigError(
                "evaluation.success is an empty list, by which every state would be the goal. Give it a condition, "
                "or null for the environment's own success."
            )
        for number, condition in enumerate(conditions or ()):
            _check_condition(f"evaluation.success[{number}]", condition, variables)
        self.conditions = None if conditions is None else tuple(conditions)

    def __str__(self) -> str:
        if self.conditions is None:
            return f"the environment's own success (info {' or '.join(OWN_SUCCESS)})"
        return " and ".join(_in_words(condition) for condition in self.conditions)

    def distances(self, states: Mapping[str, NDArray[Any]], task: Task) -> tuple[float, ...]:
        """How far each condition's variable is from its value at the goal, in the variable's unit.

        Args:
            states: state variables now, as `jepaworld.envs.state.extract_state` gives them.
            task: the task with its goal.

        Returns:
            The Euclidean distances, in the order of the conditions; empty without conditions.

        Raises:
            PlanningError: the environment does not give a variable now, or did not give it at the goal.
        """
        return tuple(_distance(condition, states, task.goal_state) for condition in self.conditions or ())

    def reached(self, states: Mapping[str, NDArray[Any]], info: Mapping[str, Any], task: Task) -> bool:
        """Whether the environment is at the goal of the task now.

        Args:
            states: state variables now, as `jepaworld.envs.state.extract_state` gives them.
            info: what `reset` or `step` returned.
            task: the task with its goal.

        Raises:
            PlanningError: as `distances`; or the environment's own success is asked for and it gives none. Whether
                that means the task's goal is `draw_tasks`' to know.
        """
        if self.conditions is not None:
            distances = self.distances(states, task)
            return all(away <= c.distance for away, c in zip(distances, self.conditions, strict=True))
        value = own_success(info)
        if value is None:
            names = ", ".join(states) or "none"
            raise PlanningError(
                f"evaluation.success is null, but the environment's info has neither {' nor '.join(OWN_SUCCESS)}. Set "
                f"evaluation.success to conditions on its state variables; there are: {names}."
            )
        return value


def own_success(info: Mapping[str, Any]) -> bool | None:
    """The environment's own word in `info`, `None` where it says nothing."""
    return next((bool(np.all(info[name])) for name in OWN_SUCCESS if name in info), None)


def _check_condition(where: str, condition: SuccessCondition, variables: Mapping[str, tuple[int, ...]]) -> None:
    if condition.variable not in variables:
        raise ConfigError(
            f"{where}.variable is {condition.variable}, which is no state variable here. There are: "
            f"{', '.join(f'{name} {tuple(shape)}' for name, shape in variables.items()) or 'none'}."
        )
    size = int(np.prod(variables[condition.variable], dtype=np.int64))
    if condition.indices is not None and (not condition.indices or max(condition.indices) >= size):
        raise ConfigError(
            f"{where}.indices is {condition.indices}, but {condition.variable} has the entries 0 to {size - 1}. Name "
            "at least one of these, or null for all."
        )


def _distance(
    condition: SuccessCondition, states: Mapping[str, NDArray[Any]], goal: Mapping[str, NDArray[Any]]
) -> float:
    entries = []
    for when, values in (("now", states), ("at the goal", goal)):
        value = np.asarray(values.get(condition.variable, np.nan), np.float64).ravel()
        value = value if condition.indices is None or condition.variable not in values else value[condition.indices]
        if not np.isfinite(value).all():
            raise PlanningError(
                f"evaluation.success: the state variable {condition.variable} is not known {when}. Choose one that "
                "the environment always gives."
            )
        entries.append(value)
    away = entries[0] - entries[1]
    if condition.period is not None:
        half = condition.period / 2
        away = (away + half) % condition.period - half
    return float(np.sqrt((away * away).sum()))


def _in_words(condition: SuccessCondition) -> str:
    entries = "" if condition.indices is None else str(condition.indices)
    turn = "" if condition.period is None else f" (period {condition.period:g})"
    return f"{condition.variable}{entries} within {condition.distance:g}{turn}"
