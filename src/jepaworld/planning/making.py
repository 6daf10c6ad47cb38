"""From settings to a planner."""

from __future__ import annotations

import inspect

from jepaworld.config.planning import PlanningConfig
from jepaworld.planning.cem import CEM, ICEM
from jepaworld.planning.discrete import CategoricalCEM, RandomShooting
from jepaworld.planning.gradient import GradientPlanner
from jepaworld.planning.mppi import MPPI
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import Planner

PLANNERS: dict[str, type[Planner]] = {
    kind.name: kind for kind in (CEM, ICEM, MPPI, GradientPlanner, CategoricalCEM, RandomShooting)
}


def make_planner(settings: PlanningConfig, space: PlanSpace, seed: int = 0) -> Planner:
    """The planner that `planning.planner` names. It is given the settings that its parameters are named after.

    Args:
        settings: The section `planning`.
        space: The plan space; "auto" takes cem for `Box`, categorical_cem for `Discrete`.
        seed: Of the planner's random numbers.

    Raises:
        ConfigError: the planner does not take this kind of actions, or there are more elites than candidates.
    """
    name = settings.planner
    if name == "auto":
        name = "categorical_cem" if space.discrete else "cem"
    parameters = inspect.signature(PLANNERS[name]).parameters
    given = {key: getattr(settings, key) for key in parameters if key in type(settings).model_fields}
    return PLANNERS[name](space, **given, seed=seed)
