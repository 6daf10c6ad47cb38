"""The policy: an environment's observations in, its actions out."""

import logging

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from toy_models import PointModel, TwoRoomOracle

import jepaworld.envs  # noqa: F401 (registers the environments)
from jepaworld.config import to_commented_yaml
from jepaworld.config.planning import PlanningConfig
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import CheckpointError, ConfigError, PlanningError
from jepaworld.models import build, checkpoints
from jepaworld.planning import WorldModelPolicy

BOX = Box(-1, 1, (2,), np.float32)


def _point_policy(frame_skipping: int = 1, space=BOX, **settings) -> WorldModelPolicy:
    planning = PlanningConfig(horizon=4, num_samples=50, **settings)
    return WorldModelPolicy(
        PointModel(), space, planning, image_size=16, input_channels=1, frame_skipping=frame_skipping
    )


def _image(x: int, y: int) -> np.ndarray:
    image = np.zeros((16, 16), np.uint8)
    image[0, :2] = x, y
    return image


@pytest.mark.parametrize(("frame_skipping", "planner"), [(1, "auto"), (3, "auto"), (2, "gradient")])
def test_an_oracle_reaches_every_goal_in_the_room(frame_skipping, planner) -> None:
    env = gymnasium.make("jepaworld/TwoRoom-v0", goal_room="same")
    policy = WorldModelPolicy(
        TwoRoomOracle(),
        env.action_space,
        PlanningConfig(horizon=6, num_samples=64, planner=planner, num_iterations=6),
        image_size=64,
        frame_skipping=frame_skipping,
    )
    for seed in range(4):
        observation, info = env.reset(seed=seed)
        assert not info["success"]
        policy.set_goal(env.unwrapped.goal_image())
        for _ in range(60):
            action = policy(observation)
            assert env.action_space.contains(action)
            observation, *_, info = env.step(action)
            if info["success"]:
                break
        assert info["success"], (seed, info)
        assert np.linalg.norm(info["state"] - info["goal"]) <= 4.5


def test_the_actions_of_a_block_are_played_one_by_one_in_order() -> None:
    policy = _point_policy(frame_skipping=3)
    policy.set_goal(_image(200, 50))
    actions = [policy(_image(100, 100)) for _ in range(3)]
    plan = policy.controller.last_plan
    assert plan is not None
    np.testing.assert_array_equal(np.stack(actions), plan.actions[0, 0].reshape(3, 2))
    assert len(policy.controller.seconds_per_plan) == 1
    policy(_image(110, 90))
    assert len(policy.controller.seconds_per_plan) == 2


def test_a_new_episode_or_goal_drops_what_is_left_of_a_block() -> None:
    policy = _point_policy(frame_skipping=3, replan_every=2)
    policy.set_goal(_image(200, 50))
    for begin in (policy.reset, lambda: policy.set_goal(_image(10, 10))):
        policy(_image(100, 100))
        plans = len(policy.controller.seconds_per_plan)
        begin()
        action = policy(_image(100, 100))
        assert len(policy.controller.seconds_per_plan) == plans + 1
    assert (action < 0).all()  # towards the new goal


def test_discrete_actions_are_integers_of_the_space() -> None:
    class Line(PointModel):
        def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
            return z + (actions.sum(dim=-1) - 2 * 6).float().cumsum(dim=1)[..., None, None]

    policy = WorldModelPolicy(
        Line(), Discrete(3, start=5), PlanningConfig(), image_size=16, input_channels=1, frame_skipping=2
    )
    policy.set_goal(_image(200, 200))
    action = policy(_image(100, 100))
    assert type(action) is int and action == 7
    policy.set_goal(_image(1, 1))
    assert policy(_image(100, 100)) == 5


def test_a_plan_comes_with_its_imagination_and_leaves_no_trace() -> None:
    policy = _point_policy(frame_skipping=2, replan_every=2)
    policy.set_goal(_image(130, 70))
    plan = policy.plan(_image(100, 100))
    assert plan.actions.shape == (1, 4, 4) and plan.imagined.shape == (1, 4, 2, 1)
    expected = torch.tensor([100.0, 100.0]) + 10.0 * plan.actions[0].unflatten(-1, (2, 2)).sum(dim=1).cumsum(dim=0)
    torch.testing.assert_close(plan.imagined[0, ..., 0], expected)
    policy(_image(100, 100))
    assert len(policy.controller.seconds_per_plan) == 2


def test_pictures_of_another_size_are_resized_with_a_note(caplog) -> None:
    policy = _point_policy()
    with caplog.at_level(logging.WARNING):
        policy.set_goal(np.full((32, 48, 3), 90, np.uint8))
        policy.set_goal(np.full((32, 48, 3), 90, np.uint8))
    assert [record.getMessage() for record in caplog.records] == [
        "the goal image is 48 x 32 pixels; resized to the model's 16 x 16."
    ]
    policy.plan(_image(90, 90))
    plan = policy.plan(_image(90, 90))
    torch.testing.assert_close(plan.goal, torch.full((1, 2, 1), 90.0))


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((16, 16, 3), np.float32),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((3, 16, 16), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 16), np.uint8),
        {"image": np.zeros((16, 16), np.uint8)},
        None,
    ],
    ids=["float", "four channels", "channels first", "vector", "empty", "dict", "none"],
)
def test_what_is_no_picture_is_refused(bad) -> None:
    policy = _point_policy()
    with pytest.raises(PlanningError, match=r"the goal image is .*expected a picture, uint8"):
        policy.set_goal(bad)
    policy.set_goal(_image(1, 1))
    with pytest.raises(PlanningError, match=r"the observation is .*env\.render\(\)"):
        policy(bad)


def test_without_a_goal_there_is_no_plan() -> None:
    policy = _point_policy()
    for use in (policy, policy.plan):
        with pytest.raises(PlanningError, match=r"no goal yet.*set_goal"):
            use(_image(1, 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config):
    """A run folder with an untrained model."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = tiny_config(frame_skipping=2, planning={"horizon": 3, "num_samples": 20})
    torch.manual_seed(3)
    model = build(config, Spaces.of(config, BOX))
    path = checkpoints.checkpoint_path(folder, config, "jepa")
    path.parent.mkdir(parents=True)
    checkpoints.save(path, model, "jepa", config, BOX)
    (folder / checkpoints.CONFIG_FILE).write_text(to_commented_yaml(config))
    return folder


def test_a_trained_run_becomes_a_policy(run) -> None:
    image, goal = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    plans = []
    for seed in (0, 0, 1):
        policy = WorldModelPolicy.from_pretrained(run, device="cpu", seed=seed)
        assert policy.controller.settings.horizon == 3 and policy.controller.space.frame_skipping == 2
        assert not policy.controller.bf16
        policy.set_goal(goal)
        assert BOX.contains(policy(image))
        assert policy.controller.last_plan is not None
        plans.append(policy.controller.last_plan.actions)
    assert torch.equal(plans[0], plans[1]) and not torch.equal(plans[0], plans[2])


def test_overrides_change_planning_and_nothing_of_the_training(run) -> None:
    overrides = ["planning.horizon=5", "planning.cost.path=last", "mixed_precision=bf16"]
    policy = WorldModelPolicy.from_pretrained(run, overrides, device="cpu")
    settings = policy.controller.settings
    assert (settings.horizon, settings.num_samples, settings.cost.path) == (5, 20, "last")
    assert policy.controller.bf16
    with pytest.raises(ConfigError, match=r"latent_dim: cannot"):
        WorldModelPolicy.from_pretrained(run, ["latent_dim=4"], device="cpu")
    with pytest.raises(ConfigError, match=r"planning\.horizont: unknown setting.*planning\.horizon"):
        WorldModelPolicy.from_pretrained(run, ["planning.horizont=4"], device="cpu")


def test_a_run_without_a_checkpoint(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        WorldModelPolicy.from_pretrained(tmp_path, device="cpu")
