"""Planning with a world model: costs, planners, the receding-horizon controller and the policy.

Anything with `encode` and `rollout` (`WorldModel`) can be planned with; `check_dynamics` says what a model violates.
"""

from jepaworld.models.protocol import WorldModel
from jepaworld.planning.cem import CEM, ICEM
from jepaworld.planning.conformance import DynamicsReport, check_dynamics
from jepaworld.planning.controller import Controller, History, ImaginedPlan
from jepaworld.planning.costs import ActionPenalty, GoalCost, GoalDistance, WeightedSum, WorldModelCost, make_cost
from jepaworld.planning.discrete import CategoricalCEM, RandomShooting
from jepaworld.planning.gradient import GradientPlanner
from jepaworld.planning.mppi import MPPI
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.planning.planner import Cost, Plan, Planner, make_planner
from jepaworld.planning.policy import WorldModelPolicy

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionPenalty",
    "CategoricalCEM",
    "Controller",
    "Cost",
    "DynamicsReport",
    "GoalCost",
    "GoalDistance",
    "GradientPlanner",
    "History",
    "ImaginedPlan",
    "Plan",
    "PlanSpace",
    "Planner",
    "RandomShooting",
    "WeightedSum",
    "WorldModel",
    "WorldModelCost",
    "WorldModelPolicy",
    "check_dynamics",
    "make_cost",
    "make_planner",
]
