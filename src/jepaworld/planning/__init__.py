"""Planning with a world model: objectives, planners, the receding-horizon controller and the policy.

Anything with `encode` and `rollout` (`WorldModel`) can be planned with; `check_dynamics` says what a model violates.
"""

from jepaworld.planning.cem import CEM, ICEM
from jepaworld.planning.check_dynamics import DynamicsReport, check_dynamics
from jepaworld.planning.controller import Controller, ImaginedPlan
from jepaworld.planning.costs import WorldModelCost
from jepaworld.planning.discrete import CategoricalCEM, RandomShooting
from jepaworld.planning.gradient import GradientPlanner
from jepaworld.planning.make import make_planner
from jepaworld.planning.mppi import MPPI
from jepaworld.planning.objectives import ActionPenalty, GoalDistance, Objective, WeightedSum, make_objective
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import Cost, Plan, Planner
from jepaworld.planning.policy import WorldModelPolicy
from jepaworld.planning.protocol import WorldModel

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionPenalty",
    "CategoricalCEM",
    "Controller",
    "Cost",
    "DynamicsReport",
    "GoalDistance",
    "GradientPlanner",
    "ImaginedPlan",
    "Objective",
    "Plan",
    "PlanSpace",
    "Planner",
    "RandomShooting",
    "WeightedSum",
    "WorldModel",
    "WorldModelCost",
    "WorldModelPolicy",
    "check_dynamics",
    "make_objective",
    "make_planner",
]
