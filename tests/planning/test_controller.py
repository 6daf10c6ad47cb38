"""Receding horizon: what is planned when, from what, and which settings are refused."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from toy_models import GlidingModel, PointModel, numpy_frames, pictures

from jepaworld.config.planning import PlanningConfig, PlanningCostConfig
from jepaworld.errors import ConfigError, PlanningError
from jepaworld.planning import Controller, GoalDistance, Planner, PlanSpace
from jepaworld.planning.planner import Plan

BOX = Box(-1, 1, (2,), np.float32)
STARTS, GOALS = torch.tensor([[100, 50], [30, 200], [9, 9]]), torch.tensor([[130, 20], [35, 180], [9, 9]])


class Counting(Planner):
    """Plans 0, 1, 2, ... (plus 100 for each search), and notes what it is asked."""

    name = "counting"

    def __init__(self, space: PlanSpace) -> None:
        super().__init__(space)
        self.warm_starts: list[Plan | None] = []
        self.shifts: list[int] = []

    def shift(self, plan, steps):
        self.shifts.append(steps)
        return super().shift(plan, steps)

    def _search(self, score, num_envs, horizon, warm_start):
        steps = 100 * len(self.warm_starts) + torch.arange(horizon)
        self.warm_starts.append(warm_start)
        actions = steps.float()[None, :, None].expand(num_envs, horizon, self.space.width)
        score(actions.unsqueeze(1) * 0.0)
        return Plan(actions, torch.zeros(num_envs), actions)


def _counting(model, context=1, replan_every=1, **kwargs) -> tuple[Controller, Counting]:
    settings = PlanningConfig(horizon=5, context=context, replan_every=replan_every, **kwargs)
    planner = Counting(PlanSpace.of(BOX))
    return Controller(model, BOX, settings, planner=planner), planner


def test_points_reach_their_goals_all_at_once() -> None:
    settings = PlanningConfig(horizon=4, num_iterations=8, min_std=0.02)
    controller = Controller(PointModel(gain=5.0), BOX, settings, frame_skipping=2)
    controller.reset(pictures(GOALS).numpy())
    position = STARTS.float()
    for _ in range(8):
        blocks = controller.act(pictures(position.round()))
        assert blocks.shape == (3, 4) and blocks.dtype == torch.float32
        position = position + 5.0 * torch.from_numpy(controller.space.split(blocks).sum(axis=1))
    assert bool(((position - GOALS).norm(dim=1) < 2.0).all()), position
    assert len(controller.seconds_per_plan) == 8 and min(controller.seconds_per_plan) > 0


@pytest.mark.parametrize("replan_every", [1, 2, 5])
def test_a_plan_is_played_for_replan_every_blocks_and_shifted_by_as_many(replan_every) -> None:
    controller, planner = _counting(PointModel(), replan_every=replan_every)
    controller.reset(pictures(GOALS))
    played = [int(controller.act(pictures(STARTS))[0, 0]) for _ in range(7)]
    assert played == [100 * (call // replan_every) + call % replan_every for call in range(7)]
    plans = -(-7 // replan_every)
    assert len(planner.warm_starts) == plans == len(controller.seconds_per_plan)
    assert planner.shifts == [replan_every] * (plans - 1)
    assert planner.warm_starts[0] is None
    if replan_every == 2:
        second = planner.warm_starts[1]
        assert second is not None and second.center[0, :, 0].tolist() == [2, 3, 4, 0, 0]


def test_a_new_episode_forgets_the_old_one() -> None:
    controller, planner = _counting(GlidingModel(), context=2, replan_every=2)
    model = controller.model
    assert isinstance(model, GlidingModel)
    controller.reset(pictures(GOALS))
    for _ in range(4):
        controller.act(pictures(STARTS))
    for begin in (controller.restart, lambda: controller.reset(pictures(GOALS[:1]))):
        begin()
        assert controller.last_plan is None
        model.seen.clear()
        frames = pictures(STARTS[: len(controller._goal)])
        assert int(controller.act(frames)[0, 0]) % 100 == 0
        assert planner.warm_starts[-1] is None and model.seen == [(1, None)]


def test_without_warm_start_each_search_begins_anew() -> None:
    controller, planner = _counting(PointModel(), warm_start=False)
    controller.reset(pictures(GOALS))
    for _ in range(3):
        controller.act(pictures(STARTS))
    assert planner.warm_starts == [None] * 3 and planner.shifts == []


@pytest.mark.parametrize("replan_every", [1, 3])
def test_context_holds_the_latest_frames_and_the_actions_between_them(replan_every) -> None:
    class Remembering(GlidingModel):
        context_length = 3

        def rollout(self, z, actions, context_actions=None):
            past = None if context_actions is None else context_actions[0, :, 0].tolist()
            self.seen.append((z[0, :, 0, 0].tolist(), past))
            return PointModel.rollout(self, z, actions, context_actions)

    model = Remembering()
    controller, _ = _counting(model, context=3, replan_every=replan_every)
    controller.reset(pictures(GOALS[:1]))
    played = [int(controller.act(pictures(torch.tensor([[10 + n, 0]])))[0, 0]) for n in range(5)]
    expected = []
    for call in range(0, 5, replan_every):
        first = max(0, call - 2)
        frames = [10.0 + n for n in range(first, call + 1)]
        expected.append((frames, [float(a) for a in played[first:call]] or None))
    assert [seen for seen in model.seen if isinstance(seen[0], list)] == expected


def test_a_model_with_velocity_needs_its_context() -> None:
    """With two frames the controller sees that the point glides, and stops it; with one it does not."""
    settings = PlanningConfig(horizon=3, num_samples=400, num_iterations=20, min_std=0.01, noise_smoothness=0.0)
    found = {}
    for context in (1, 2):
        model = GlidingModel()
        controller = Controller(model, BOX, settings.model_copy(update={"context": context}))
        controller.reset(numpy_frames((100, 100)))
        controller.act(numpy_frames((95, 100)))
        # The first block is about to bring it to 100; it is at 103 instead, gliding on by 3.
        found[context] = controller.act(numpy_frames((103, 100)))[0, 0].item()
    assert found[1] == pytest.approx(-0.3, abs=0.05)
    assert found[2] == pytest.approx(-0.6, abs=0.05)


def test_a_history_is_what_was_played_before() -> None:
    """The first plan after a history is the one of a controller that has seen and played the same."""
    settings = PlanningConfig(horizon=3, num_samples=100)
    played = Controller(GlidingModel(), BOX, settings, seed=3)
    played.reset(numpy_frames((100, 100)), [7])
    block = played.act(numpy_frames((95, 100))).numpy()
    played.planner.number_environments([7])
    played._plan = None  # what is compared begins anew
    told = Controller(GlidingModel(), BOX, settings, seed=3)
    older = numpy_frames((1, 1), (95, 100)), np.concatenate([np.ones((1, 2), np.float32), block])
    told.reset(numpy_frames((100, 100)), [7], [older])
    assert torch.equal(told.act(numpy_frames((103, 100))), played.act(numpy_frames((103, 100))))
    told.restart()
    told.planner.number_environments([7])
    assert not torch.equal(told.act(numpy_frames((103, 100))), played.act(numpy_frames((103, 100))))


def test_each_environment_is_planned_for_with_the_history_that_it_has() -> None:
    class Summing(GlidingModel):
        """Moves by all that it is told of the past, and by how much that is."""

        context_length = 3

        def rollout(self, z, actions, context_actions=None):
            assert z.shape[1] == (1 if context_actions is None else context_actions.shape[1] + 1)
            past = 0.0 if context_actions is None else context_actions.sum(dim=1).view(-1, 1, 2, 1)
            return PointModel.rollout(self, z, actions) + z.sum(dim=1, keepdim=True) + past + 7.0 * z.shape[1]

    rng = np.random.default_rng(0)
    histories = [
        None if n is None else (numpy_frames((5, 9), (6, 9), (7, 9))[:n], rng.random((n, 2), np.float32))
        for n in (0, 2, 3, None, 1)
    ]
    goals, starts = (pictures(places.repeat(2, 1)[:5]) for places in (GOALS, STARTS))

    def play(rows) -> tuple[torch.Tensor, torch.Tensor]:
        controller = Controller(Summing(), BOX, PlanningConfig(horizon=3, num_samples=30, max_candidates=70), seed=1)
        controller.reset(goals[rows], rows, [histories[row] for row in rows])
        played = [(controller.act(starts[rows]), controller.imagine().imagined) for _ in range(3)]
        blocks, imagined = zip(*played, strict=True)
        return torch.stack(blocks), torch.stack(imagined)

    together = play([0, 1, 2, 3, 4])
    for row in range(5):
        for alone, beside in zip(play([row]), together, strict=True):
            torch.testing.assert_close(alone, beside[:, [row]])


def test_the_last_plan_tells_what_the_model_expects() -> None:
    controller = Controller(PointModel(), BOX, PlanningConfig(horizon=3, replan_every=2, max_candidates=2))
    controller.reset(pictures(GOALS))
    assert controller.last_plan is None
    controller.act(pictures(STARTS))
    plan = controller.last_plan
    assert plan is not None and plan is controller.last_plan
    expected = STARTS[:, None].float() + 10.0 * plan.actions.cumsum(dim=1)
    torch.testing.assert_close(plan.imagined[..., 0], expected)
    torch.testing.assert_close(plan.start[..., 0], STARTS.float())
    torch.testing.assert_close(plan.goal[..., 0], GOALS.float())
    cost = GoalDistance()(plan.imagined, plan.goal, plan.actions)
    torch.testing.assert_close(plan.cost, cost)
    controller.act(pictures(STARTS))
    assert controller.last_plan is plan  # of which the second block is played now
    controller.act(pictures(STARTS + 1))
    assert controller.last_plan is not plan


def test_the_goal_is_encoded_as_predictions_are_compared() -> None:
    class WithTarget(PointModel):
        def encode_target(self, frames):
            return self.encode(frames) + 1.0

    controller = Controller(WithTarget(), BOX, PlanningConfig())
    controller.reset(pictures(GOALS))
    controller.act(pictures(STARTS))
    plan = controller.last_plan
    assert plan is not None
    torch.testing.assert_close(plan.goal[..., 0], GOALS + 1.0)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_plans_in_eval_mode_and_is_left_as_it_was(training) -> None:
    class Moody(PointModel):
        def encode(self, frames):
            assert not self.training and not torch.is_grad_enabled()
            return super().encode(frames)

        def rollout(self, z, actions, context_actions=None):
            assert not self.training and torch.is_grad_enabled() == actions.requires_grad
            return super().rollout(z, actions, context_actions)

    model = Moody().train(training)
    for planner in ("cem", "gradient"):
        controller = Controller(model, BOX, PlanningConfig(planner=planner, num_iterations=1))
        controller.reset(pictures(GOALS))
        assert not controller.act(pictures(STARTS)).requires_grad
        assert model.training == training and model.gain.grad is None


def test_any_object_with_the_two_methods_will_do() -> None:
    class Bare:
        def encode(self, frames):
            return frames[:, :, 0, 0, :1].float()

        def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
            return z[:, -1:] + (2.0 * (actions == 3) - 1.0).cumsum(dim=1)

    controller = Controller(Bare(), Discrete(2, start=2), PlanningConfig(horizon=6))
    controller.reset(numpy_frames((20, 0), (5, 0)))
    blocks = controller.act(numpy_frames((10, 0), (10, 0)))
    assert blocks.tolist() == [[3], [2]]


def test_settings_that_the_model_does_not_allow() -> None:
    class Short(PointModel):
        max_rollout_steps = 6

    cases = [
        (Short(), {"horizon": 7}, r"planning\.horizon is 7: at most 6"),
        (GlidingModel(), {"context": 3}, r"planning\.context is 3: at most 2"),
        (PointModel(), {"context": 2}, r"planning\.context is 2: at most 1"),
        (PointModel(), {"replan_every": 4, "horizon": 3}, r"planning\.replan_every is 4"),
    ]
    for model, changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            Controller(model, BOX, PlanningConfig(**changes))
    Controller(Short(), BOX, PlanningConfig(horizon=6))
    penalty = PlanningConfig(cost=PlanningCostConfig(action_penalty=0.5))
    with pytest.raises(ConfigError, match=r"action_penalty is 0\.5"):
        Controller(PointModel(), Discrete(2), penalty)


def test_a_model_without_the_methods_is_refused() -> None:
    class Blind:
        def encode(self, frames):
            return frames

    with pytest.raises(PlanningError, match=r"Blind has no method rollout\(\)"):
        Controller(Blind(), BOX, PlanningConfig())


def test_frames_of_another_kind_are_refused() -> None:
    controller = Controller(PointModel(), BOX, PlanningConfig())
    with pytest.raises(PlanningError, match=r"no goal yet.*reset"):
        controller.act(pictures(STARTS))
    for bad in (pictures(GOALS).float(), pictures(GOALS)[0], pictures(GOALS).numpy().astype(np.int32)):
        with pytest.raises(PlanningError, match=r"goal_frames are .*expected uint8"):
            controller.reset(bad)
    controller.reset(pictures(GOALS))
    for other in (pictures(STARTS[:2]), pictures(STARTS)[..., :8]):
        with pytest.raises(PlanningError, match=r"frames have shape"):
            controller.act(other)


def test_read_only_and_strided_frames_are_taken() -> None:
    frames = pictures(STARTS).numpy()[::-1]
    frames.flags.writeable = False
    controller = Controller(PointModel(), BOX, PlanningConfig())
    controller.reset(frames)
    controller.act(frames)
    plan = controller.last_plan
    assert plan is not None
    torch.testing.assert_close(plan.start[..., 0], STARTS.flip(0).float())


def test_a_model_whose_weights_are_not_finite() -> None:
    controller = Controller(PointModel(gain=float("nan")), BOX, PlanningConfig(num_samples=50))
    controller.reset(pictures(GOALS))
    with pytest.raises(PlanningError, match=r"603 of 603 .*NaN"):
        controller.act(pictures(STARTS))


def test_tasks_are_planned_for_as_if_they_were_alone() -> None:
    """What is planned for a task follows from the seed and its number, whatever is played beside it or before."""

    def play(numbers, earlier=()):
        controller = Controller(PointModel(), BOX, PlanningConfig(horizon=3, num_samples=30), seed=4)
        if earlier:
            controller.reset(pictures(GOALS[list(earlier)]), earlier)
            controller.act(pictures(STARTS[list(earlier)]))
        controller.reset(pictures(GOALS[numbers]), numbers)
        return torch.stack([controller.act(pictures(STARTS[numbers])) for _ in range(3)])

    together = play([0, 1, 2])
    torch.testing.assert_close(play([1]), together[:, [1]])
    torch.testing.assert_close(play([2, 0], earlier=(1, 2)), together[:, [2, 0]])


def test_some_environments_alone_can_be_imagined() -> None:
    controller = Controller(GlidingModel(), BOX, PlanningConfig(horizon=3, max_candidates=2))
    controller.reset(pictures(GOALS))
    controller.act(pictures(STARTS))
    controller.act(pictures(STARTS))
    whole, some = controller.last_plan, controller.imagine([2, 0])
    assert whole is not None
    for name in ("actions", "cost", "imagined", "start", "goal"):
        torch.testing.assert_close(getattr(some, name), getattr(whole, name)[[2, 0]])


def test_latents_of_tokens_are_planned_with() -> None:
    """(N, D): four corners of a point, of which the model knows how each moves."""

    class Corners(PointModel):
        latent_shape = (4, 2)

        def encode(self, frames):
            corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
            return frames[:, :, 0, 0, :2].float().unsqueeze(2) + corners

        def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
            return z[:, -1:] + self.gain * actions.cumsum(dim=1).unsqueeze(2)

    settings = PlanningConfig(horizon=4, num_iterations=8, min_std=0.02, max_candidates=70)
    controller = Controller(Corners(gain=5.0), BOX, settings)
    controller.reset(pictures(GOALS))
    position = STARTS.float()
    for _ in range(10):
        position = position + 5.0 * controller.act(pictures(position.round()))
    assert bool(((position - GOALS).norm(dim=1) < 2.0).all()), position
    plan = controller.imagine([1])
    assert plan.imagined.shape == (1, 4, 4, 2) and plan.goal.shape == (1, 4, 2)
