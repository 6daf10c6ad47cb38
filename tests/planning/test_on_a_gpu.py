"""Planning on a GPU: the same code, and nothing in the search that waits for the device."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from toy_models import GlidingModel, PointModel, pictures

from jepaworld.config.planning import PlanningConfig
from jepaworld.planning import Controller, GoalDistance, PlanSpace, WorldModelCost, check_dynamics, make_planner
from jepaworld.planning.planner import Scorer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
BOX = Box(-1, 1, (2,))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("planner", ["cem", "icem", "mppi", "gradient", "random_shooting", "categorical_cem"])
def test_the_search_does_not_wait_for_the_device(planner, monkeypatch) -> None:
    space = PlanSpace.of(Discrete(4) if planner == "categorical_cem" else BOX, 2, "cuda")
    settings = PlanningConfig(planner=planner, num_samples=30, num_elites=5)
    search = make_planner(settings, space)
    z, goal = torch.zeros(3, 1, 2, 1, device="cuda"), torch.ones(3, 2, 1, device="cuda")
    cost = WorldModelCost(PointModel().cuda(), z, None, goal, GoalDistance(), space, max_candidates=40)
    warm_start = search.shift(search.plan(cost, 3, 5), 1)
    monkeypatch.setattr(Scorer, "check", lambda _: None)  # the one place that may
    try:
        torch.cuda.set_sync_debug_mode("error")
        plan = search.plan(cost, 3, 5, warm_start)
        search.shift(plan, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert plan.actions.is_cuda and plan.actions.shape == (3, 5, space.width)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_controller_plays_where_the_model_is(bf16) -> None:
    goals = torch.tensor([[130, 20], [35, 180]])
    position = torch.tensor([[100.0, 50.0], [30.0, 200.0]])
    settings = PlanningConfig(horizon=4, num_iterations=8, min_std=0.02, context=2)
    controller = Controller(GlidingModel(gain=5.0).cuda(), BOX, settings, bf16=bf16)
    controller.reset(pictures(goals).numpy())
    for _ in range(16):
        blocks = controller.act(pictures(position.round()))
        assert blocks.is_cuda
        position = position + 5.0 * torch.from_numpy(controller.space.split(blocks)[:, 0])
    assert bool(((position - goals).norm(dim=1) < 3.0).all()), position
    plan = controller.last_plan
    assert plan is not None and plan.imagined.is_cuda and plan.imagined.dtype == torch.float32


def test_a_model_on_a_gpu_is_checked_there() -> None:
    report = check_dynamics(GlidingModel().cuda(), BOX, (1, 16, 16))
    assert report.ok, str(report)
