"""From settings to a planner."""

from __future__ import annotations

from jepaworld.config.planning import PlanningConfig
from jepaworld.planning.cem import CEM, ICEM
from jepaworld.planning.discrete import CategoricalCEM, RandomShooting
from jepaworld.planning.gradient import GradientPlanner
from jepaworld.planning.mppi import MPPI
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import Planner


def make_planner(settings: PlanningConfig, space: PlanSpace, seed: int = 0) -> Planner:
    """The planner that `planning.planner` names, with the settings that concern it.

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
    samples, iterations, elites = settings.num_samples, settings.num_iterations, settings.num_elites
    std, floor, smoothness = settings.initial_std, settings.min_std, settings.noise_smoothness
    match name:
        case "cem":
            return CEM(
                space,
                num_samples=samples,
                num_iterations=iterations,
                num_elites=elites,
                initial_std=std,
                min_std=floor,
                noise_smoothness=smoothness,
                seed=seed,
            )
        case "icem":
            return ICEM(
                space,
                num_samples=samples,
                num_iterations=iterations,
                num_elites=elites,
                initial_std=std,
                min_std=floor,
                noise_exponent=settings.noise_exponent,
                kept_elites=settings.kept_elites,
                seed=seed,
            )
        case "mppi":
            return MPPI(
                space,
                num_samples=samples,
                num_iterations=iterations,
                initial_std=std,
                min_std=floor,
                noise_smoothness=smoothness,
                temperature=settings.temperature,
                seed=seed,
            )
        case "gradient":
            return GradientPlanner(
                space,
                num_samples=samples,
                num_iterations=iterations,
                initial_std=std,
                noise_smoothness=smoothness,
                learning_rate=settings.learning_rate,
                seed=seed,
            )
        case "categorical_cem":
            return CategoricalCEM(space, num_samples=samples, num_iterations=iterations, num_elites=elites, seed=seed)
        case "random_shooting":
            return RandomShooting(space, num_samples=samples, initial_std=std, noise_smoothness=smoothness, seed=seed)
