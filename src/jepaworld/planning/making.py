"""From settings to a planner."""

from __future__ import annotations

from jepaworld.config import components
from jepaworld.config.planning import PlanningConfig
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import Planner


def make_planner(settings: PlanningConfig, space: PlanSpace, seed: int = 0) -> Planner:
    """The planner that `planning.planner` names. It is given the settings that its parameters are named after.

    Args:
        settings: The section `planning`.
        space: The plan space; "auto" takes cem for `Box`, categorical_cem for `Discrete`.
        seed: Of the planner's random numbers.

    Raises:
        ConfigError: the planner does not take this kind of actions, or there are more elites than candidates.
    """
    (found,) = components.choose("planner", settings.planner, settings, space.discrete)
    return found.make(space=space, seed=seed)
