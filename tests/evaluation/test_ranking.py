"""Where recorded actions rank among random ones."""

import numpy as np
import pytest
from gymnasium.spaces import Box

from jepaworld.config.planning import PlanningConfig
from jepaworld.data.policies import RandomPolicy
from jepaworld.envs.restore import RecordedStart
from jepaworld.evaluation.ranking import rank_recorded
from jepaworld.evaluation.tasks import Task
from jepaworld.planning import Controller
from tests.planning.toy_models import PointModel, numpy_frames

BOX = Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize("path", ["mean", "last"])
def test_a_detour_that_arrives_ranks_first(path: str) -> None:
    settings = PlanningConfig.model_validate({"horizon": 2, "cost": {"path": path}})
    controller = Controller(PointModel(), BOX, settings)
    start, goal = numpy_frames((100, 100), (100, 110))
    actions = np.array([[-1, 0], [-1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    there = RecordedStart("state", 0, 3, actions[:0], start, {})
    rank = rank_recorded(controller, [Task("all", goal, {}, actions, there)], RandomPolicy(BOX, 0.0), 0, 1)
    assert rank is not None and (rank.better_than, rank.interval_95) == (1.0, None)
