"""Planning success: rates and intervals, what is played and counted, and what is kept for videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import ConfigError, EnvironmentNotUsableError, PlanningError
from jepaworld.evaluation.planning import evaluate_planning
from jepaworld.evaluation.results import PlanningResults, PlayedTask
from jepaworld.evaluation.scores import Z_95, Rate, Spread, wilson
from jepaworld.planning import Controller
from tests.planning.toy_models import TwoRoomOracle

ROOMS = [{"goal_room": "same"}, {"goal_room": "other"}]
NOBODY = np.empty(0, np.int64)


class Blind(TwoRoomOracle):
    """Expects to be nowhere else, whatever it does."""

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return z[:, -1:].expand(-1, actions.shape[1], -1)


def rooms(tiny_config: Callable[..., Config], **evaluation: Any) -> Config:
    return tiny_config(
        image_size=64,
        frame_skipping=3,
        encoder_type="mlp",
        planning={"horizon": 6, "num_samples": 40, "num_iterations": 3, "num_elites": 8},
        evaluation={"num_episodes": 6, "max_steps": 60, "num_envs": 4, "reset_options": ROOMS, **evaluation},
    )


def results(result: PlanningResults, name: str) -> list[PlayedTask]:
    return [task for task in result.episodes if task.agent == name]


def counts(rate: Rate) -> tuple[int, int]:
    return rate.successes, rate.episodes


# --- rates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "episodes"), [(0, 10), (10, 10), (1, 1), (190, 200), (3, 7)])
def test_the_interval_is_where_the_score_test_accepts(successes: int, episodes: int) -> None:
    """Wilson's interval solves (rate - p)^2 = z^2 p (1 - p) / n for p."""
    rate = Rate.of([n < successes for n in range(episodes)])
    for end in (rate.low, rate.high):
        expected = Z_95**2 * end * (1 - end) / episodes
        assert (rate.rate - end) ** 2 == pytest.approx(expected, abs=1e-9)
    assert rate.low <= rate.rate <= rate.high and rate.low < rate.high
    assert rate.interval == "wilson"


def test_a_published_interval() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_tasks_of_one_recording_are_alike() -> None:
    """Twenty recordings of ten tasks each, all reached or none, tell no more than twenty tasks."""
    outcomes = [recording < 8 for recording in range(20) for _ in range(10)]
    owners = [recording for recording in range(20) for _ in range(10)]
    rate, alone, apart = Rate.of(outcomes, owners), Rate.of(outcomes), Rate.of(outcomes, range(200))
    assert counts(rate) == counts(alone) == (80, 200)
    assert (rate.interval, alone.interval, apart.interval) == ("bootstrap", "wilson", "wilson")
    assert (apart.low, apart.high) == (alone.low, alone.high)
    low, high = wilson(8, 20)
    assert rate.low == pytest.approx(low, abs=0.04) and rate.high == pytest.approx(high, abs=0.04)
    assert rate.high - rate.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize("reached", [True, False])
def test_an_interval_is_not_empty_where_all_recordings_agree(reached: bool) -> None:
    rate = Rate.of([reached] * 30, [n // 3 for n in range(30)])
    assert (rate.low, rate.high) == wilson(30 * reached, 30)


# --- playing -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_oracle(tiny_config: Callable[..., Config]) -> PlanningResults:
    return evaluate_planning(TwoRoomOracle(), rooms(tiny_config), None, NOBODY)


def test_an_oracle_without_walls_reaches_the_goals_in_its_room(with_oracle: PlanningResults) -> None:
    planner, random, recorded = with_oracle.agents
    rates = planner.any
    assert set(rates) == {"all", "goal_room=same", "goal_room=other"}
    assert counts(rates["goal_room=same"]) == (3, 3)
    assert rates["all"].episodes == 6
    assert rates["all"].successes == rates["goal_room=same"].successes + rates["goal_room=other"].successes
    assert random.any["goal_room=same"].successes < 3
    assert recorded.missing and not results(with_oracle, "recorded") and recorded.end == {}
    assert (
        planner.seconds_per_plan is not None
        and planner.seconds_per_episode
        and 0 < planner.seconds_per_plan < planner.seconds_per_episode
    )


def test_outcomes_say_when_the_goal_was_reached_first(with_oracle: PlanningResults) -> None:
    for outcome in results(with_oracle, "planner"):
        assert outcome.played == 60
        assert (outcome.steps is None) == (not outcome.any)
        assert outcome.steps is None or 1 <= outcome.steps <= 60
        assert outcome.any or not outcome.end


def test_a_model_that_expects_nothing_to_change_is_no_better_than_chance(tiny_config: Callable[..., Config]) -> None:
    result = evaluate_planning(Blind(), rooms(tiny_config, num_episodes=12), None, NOBODY)
    planner, random = (agent.any for agent in result.agents[:2])
    assert planner["goal_room=other"].successes <= random["goal_room=other"].successes + 1
    assert planner["all"].rate < 0.5


def test_the_same_seed_gives_the_same_episodes_and_another_one_others(
    tiny_config: Callable[..., Config], with_oracle: PlanningResults
) -> None:
    again = evaluate_planning(TwoRoomOracle(), rooms(tiny_config), None, NOBODY)
    other = evaluate_planning(TwoRoomOracle(), rooms(tiny_config, seed=1), None, NOBODY)
    for name in ("planner", "random"):
        assert results(again, name) == results(with_oracle, name)
        assert results(other, name) != results(with_oracle, name)


def test_episodes_end_after_max_steps_even_inside_a_block(tiny_config: Callable[..., Config]) -> None:
    result = evaluate_planning(TwoRoomOracle(), rooms(tiny_config, max_steps=7), None, NOBODY)
    assert {task.played for task in result.episodes} == {7}


def test_an_episode_ends_where_the_environment_ends_it(tiny_config: Callable[..., Config]) -> None:
    config = rooms(tiny_config, reset_options=[{"goal_room": "same"}])
    config = Config.model_validate(config.to_dict() | {"environment_kwargs": {"terminate_on_success": True}})
    for outcome in results(evaluate_planning(TwoRoomOracle(), config, None, NOBODY), "planner"):
        assert outcome.end and outcome.played == outcome.steps


def test_passing_the_goal_is_success_at_any_time_but_not_at_the_end(tiny_config: Callable[..., Config]) -> None:
    result = evaluate_planning(
        TwoRoomOracle(), rooms(tiny_config, num_episodes=12, max_steps=120, reset_options=ROOMS[:1]), None, NOBODY
    )
    random = result.agents[1]
    assert random.any["all"].successes > random.end["all"].successes


def test_at_rest_is_at_the_end_and_slow(tiny_config: Callable[..., Config]) -> None:
    """Discs with inertia in a maze that is one goal: all are there at the end, and some move."""
    here = {
        "success": [{"variable": "state", "distance": 2.0}],
        "max_steps": 12,
        "reset_options": [],
        "goals": "recorded",
    }
    config = rooms(tiny_config, num_episodes=2, **here, goal_steps=6)
    base = config.to_dict() | {"environment_name": "jepaworld/PointMaze-v0", "environment_kwargs": {}}
    base |= {"dataset_dir": str(Path(config.dataset_dir).parent / "maze")}
    dataset = collect(Config.model_validate(base))
    evaluation = Config.model_validate(base).evaluation.model_dump()
    found = {}
    for limit in (None, 0.0, 1e-3, 100.0):
        rest = None if limit is None else [{"variable": "velocity", "limit": limit}]
        settings = Config.model_validate(base | {"evaluation": evaluation | {"rest": rest}})
        found[limit] = evaluate_planning(TwoRoomOracle(), settings, dataset, np.arange(4))
    plain, fast = found[None], found[100.0]
    assert all(task.rest is None for task in plain.episodes) and plain.agents[0].rest == {}
    assert [(task.any, task.end) for task in plain.episodes] == [(task.any, task.end) for task in fast.episodes]
    assert all(task.rest == task.end for task in fast.episodes) and any(task.rest for task in fast.episodes)
    assert not any(task.rest for task in found[0.0].episodes)
    assert all(task.speeds[0] > 0 for task in results(fast, "recorded"))
    assert fast.agents[2].rest["all"].successes == sum(task.end for task in results(fast, "recorded"))
    assert "at rest is velocity at most 100" in fast.protocol and "rest is" not in plain.protocol


# --- recorded goals ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(
    tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, EpisodeDataset]:
    folder = tmp_path_factory.mktemp("recorded")
    config = tiny_config(
        image_size=64,
        frame_skipping=3,
        encoder_type="mlp",
        dataset_dir=str(folder / "dataset"),
        max_steps_per_episode_data_collection=60,
        collection={"smoothness": 0.95},
        planning={"horizon": 6, "num_samples": 40, "num_iterations": 3, "num_elites": 8},
        evaluation={"num_episodes": 5, "max_steps": 60, "goals": "recorded", "goal_steps": 21, "num_envs": 3},
    )
    return config, collect(config)


@pytest.mark.parametrize("restore", ["state", "replay"])
def test_recorded_actions_reach_recorded_goals(recorded: tuple[Config, EpisodeDataset], restore: str) -> None:
    config, dataset = recorded
    config = Config.model_validate(
        config.to_dict() | {"evaluation": config.evaluation.model_dump() | {"restore": restore}}
    )
    result = evaluate_planning(TwoRoomOracle(), config, dataset, np.array([1, 4, 6]))
    outcomes = results(result, "recorded")
    assert [outcome.played for outcome in outcomes] == [21] * 5
    assert all(outcome.end for outcome in outcomes)
    assert not result.groups
    assert ("setting the state" if restore == "state" else "replaying") in result.protocol


def test_conditions_judge_and_their_distances_are_kept(recorded: tuple[Config, EpisodeDataset]) -> None:
    config, dataset = recorded
    evaluation = config.evaluation.model_dump() | {"success": [{"variable": "state", "distance": 2.0}]}
    config = Config.model_validate(config.to_dict() | {"evaluation": evaluation})
    result = evaluate_planning(TwoRoomOracle(), config, dataset, np.array([1, 4, 6]))
    for task in result.episodes:
        (distance,) = task.distances
        assert task.end == (distance <= 2.0)
    assert all(outcome.distances[0] < 1e-3 for outcome in results(result, "recorded"))


def test_a_recorded_task_begins_with_what_was_recorded_before_it(recorded: tuple[Config, EpisodeDataset]) -> None:
    class Looking(TwoRoomOracle):
        context_length = 3

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
            self.seen.append(z.shape[1])
            return super().rollout(z, actions, context_actions)

    config, dataset = recorded
    found = {}
    for history in (True, False):
        changed = {"num_episodes": 2, "num_envs": 1, "max_steps": 9, "history": history}
        settings = config.to_dict() | {"evaluation": config.evaluation.model_dump() | changed}
        settings["jepa_model"] |= {"predictor_context_length": 3}
        model = Looking()
        result = evaluate_planning(model, Config.model_validate(settings), dataset, np.array([1, 4, 6]))
        found[history] = result, model.seen
    (told, seen), (untold, alone) = found[True], found[False]
    assert set(seen) == {3} and set(alone) == {1, 2, 3}
    assert "2 recorded frames before the start" in told.protocol and "before the start" not in untold.protocol
    assert results(told, "random") == results(untold, "random")
    assert results(told, "recorded") == results(untold, "recorded")


def test_recorded_actions_rank_by_what_the_model_expects_of_them(recorded: tuple[Config, EpisodeDataset]) -> None:
    class Reversed(TwoRoomOracle):
        def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
            return super().rollout(z, -actions, context_actions)

    config, dataset = recorded
    settings = config.evaluation.model_dump() | {"max_steps": 3, "num_episodes": 8, "goal_steps": 6}
    planning = config.planning.model_dump() | {"horizon": 1}
    config = Config.model_validate(config.to_dict() | {"evaluation": settings, "planning": planning})
    ranks = {}
    for model in (TwoRoomOracle(), Reversed(), Blind()):
        rank = evaluate_planning(model, config, dataset, np.arange(8), num_recordings=0).recorded_rank
        assert rank is not None and (rank.tasks, rank.random) == (8, 100) and rank.interval_95 is not None
        assert rank.interval_95[0] <= rank.better_than <= rank.interval_95[1]
        ranks[type(model)] = rank.better_than
    assert ranks[TwoRoomOracle] > 0.9 and ranks[Reversed] < 0.5 and ranks[Blind] == 0.5


def test_nothing_ranks_where_nothing_was_recorded(with_oracle: PlanningResults) -> None:
    assert with_oracle.recorded_rank is None


def test_recorded_goals_need_recorded_episodes(recorded: tuple[Config, EpisodeDataset]) -> None:
    config, dataset = recorded
    with pytest.raises(PlanningError, match="held-out"):
        evaluate_planning(TwoRoomOracle(), config, dataset, NOBODY)


# --- videos and bad input ------------------------------------------------------------------------------------------


def test_recordings_are_the_first_of_each_group_and_failures(tiny_config: Callable[..., Config]) -> None:
    config = rooms(tiny_config, num_episodes=10, max_steps=30)
    result = evaluate_planning(Blind(), config, None, NOBODY, num_recordings=2)
    tasks = [recording.played.task for recording in result.recordings]
    assert sorted(tasks[:4]) == [0, 1, 2, 3]
    assert len(tasks) == len(set(tasks)) == 6
    assert not any(recording.played.any for recording in result.recordings[4:])
    for recording in result.recordings:
        assert len(recording.plans) == 10 and len(recording.frames) == 11
        assert recording.frames[0].shape == recording.goal.shape == (3, 64, 64)
        assert recording.plans[0].shape == (6, 2)
        assert recording.played == results(result, "planner")[recording.played.task]


def test_failures_are_recorded_wherever_they_are_among_successes(tiny_config: Callable[..., Config]) -> None:
    """The oracle reaches goals in its room, and fails at most of those behind the wall."""
    config = rooms(tiny_config, num_episodes=8)
    result = evaluate_planning(TwoRoomOracle(), config, None, NOBODY, num_recordings=1)
    failed = [task for task in results(result, "planner")[2:] if not task.any]
    assert failed and failed[0].task > 2
    assert [recording.played.task for recording in result.recordings] == [0, 1, failed[0].task]


def test_a_model_that_gives_nan_is_told_so(tiny_config: Callable[..., Config]) -> None:
    class Broken(TwoRoomOracle):
        def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
            return super().rollout(z, actions, context_actions) * torch.nan

    with pytest.raises(PlanningError, match="NaN"):
        evaluate_planning(Broken(), rooms(tiny_config), None, NOBODY)


def test_a_context_that_the_model_does_not_use_is_refused(tiny_config: Callable[..., Config]) -> None:
    config = rooms(tiny_config)
    changed = {
        "planning": config.planning.model_dump() | {"context": 2},
        "jepa_model": config.jepa_model.model_dump() | {"predictor_context_length": 2},  # but not the oracle's
    }
    config = Config.model_validate(config.to_dict() | changed)
    with pytest.raises(ConfigError, match=r"planning\.context is 2"):
        evaluate_planning(TwoRoomOracle(), config, None, NOBODY)


def test_tasks_come_from_different_episodes_as_far_as_there_are(recorded: tuple[Config, EpisodeDataset]) -> None:
    config, dataset = recorded
    result = evaluate_planning(TwoRoomOracle(), config, dataset, np.array([1, 4, 6]))
    episodes = [task.episode for task in results(result, "planner")]
    assert sorted(filter(None, episodes[:3])) == [1, 4, 6]
    assert len(set(episodes[3:])) == 2
    assert {rate.interval for agent in result.agents for rate in agent.any.values()} == {"bootstrap"}


def test_the_label_names_the_planner_that_played_and_what_it_searched(tiny_config: Callable[..., Config]) -> None:
    config = rooms(tiny_config, num_episodes=2, max_steps=3)
    assert evaluate_planning(TwoRoomOracle(), config, None, NOBODY).agents[0].label == (
        "cem, 6 steps of 3 actions, 3 x 40 candidates"
    )
    config = Config.model_validate(
        config.to_dict() | {"planning": config.planning.model_dump() | {"planner": "random_shooting"}}
    )
    label = evaluate_planning(TwoRoomOracle(), config, None, NOBODY).agents[0].label
    assert label == "random shooting, 6 steps of 3 actions, 1 x 40 candidates"


def test_a_plan_that_is_played_over_several_blocks_is_shown_from_where_it_is(
    tiny_config: Callable[..., Config],
) -> None:
    config = rooms(tiny_config, num_episodes=2, max_steps=18)
    planning = config.planning.model_dump() | {"replan_every": 3}
    config = Config.model_validate(config.to_dict() | {"planning": planning})
    for recording in evaluate_planning(TwoRoomOracle(), config, None, NOBODY).recordings:
        made, once, twice, new = recording.plans[:4]
        assert len(made.unique(dim=0)) == 6, "the steps of a plan can be told apart"
        assert torch.equal(once[:-1], made[1:]) and torch.equal(once[-1], made[-1])
        assert torch.equal(twice[:-2], made[2:])
        assert not torch.equal(new[:-3], made[3:])


def test_the_time_of_a_plan_is_that_of_a_search_over_its_environments(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr(Controller, "_clock", lambda _: float(next(ticks)))  # each search takes a second
    config = rooms(tiny_config, num_episodes=4, max_steps=18)
    planning = config.planning.model_dump() | {"replan_every": 3}
    config = Config.model_validate(config.to_dict() | {"planning": planning})
    assert evaluate_planning(Blind(), config, None, NOBODY).agents[0].seconds_per_plan == 1 / 4


def test_without_the_dataset_the_protocol_claims_less(tiny_config: Callable[..., Config]) -> None:
    result = evaluate_planning(TwoRoomOracle(), rooms(tiny_config, num_episodes=2, max_steps=3), None, NOBODY)
    assert "no collected episode had" not in result.protocol
    assert "2 side by side" in result.protocol


# --- side by side --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3, 10])
def test_outcomes_do_not_depend_on_how_many_are_played_side_by_side(
    tiny_config: Callable[..., Config], num_envs: int
) -> None:
    """A task's random numbers follow from the seed and its number; recording it changes nothing."""

    def play(num_envs: int, num_recordings: int) -> PlanningResults:
        config = rooms(tiny_config, num_episodes=10, max_steps=30, num_envs=num_envs)
        return evaluate_planning(Careless(), config, None, NOBODY, num_recordings=num_recordings)

    expected = play(4, 0)
    assert 0 < expected.agents[0].any["all"].successes < 10
    found = play(num_envs, 2)
    assert found.episodes == expected.episodes
    failed = [task for task in results(expected, "planner") if not task.any]
    assert sum(not recording.played.any for recording in found.recordings) >= min(2, len(failed))
    assert all(recording.played in results(expected, "planner") for recording in found.recordings)


class Careless(TwoRoomOracle):
    """Expects to be slower than it is, in odd directions, so that what it does depends on what was drawn."""

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:  # noqa: ARG002
        moves = actions.unflatten(-1, (-1, 2)).sum(dim=-2)
        return z[:, -1:] + (1.5 * moves + 2.0 * (3.0 * moves).sin()).cumsum(dim=1)


def test_only_what_is_recorded_is_imagined_and_kept(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    imagine = Controller.imagine
    monkeypatch.setattr(Controller, "imagine", lambda self, envs: (asked.append(len(envs)), imagine(self, envs))[1])
    config = rooms(tiny_config, num_episodes=10, num_envs=10, max_steps=30)
    result = evaluate_planning(Blind(), config, None, NOBODY, num_recordings=1)
    assert len(result.recordings) == 3 and set(asked) == {2, 1}  # one of each room, and one that failed, once more
    frames = [frame for recording in result.recordings for frame in recording.frames]
    assert all(frame.base is None or frame.base.nbytes <= 4 * frame.nbytes for frame in frames), "no view of all lanes"
    plans = [plan for recording in result.recordings for plan in recording.plans]
    assert all(plan.untyped_storage().nbytes() <= 2 * plan.nbytes for plan in plans)


def test_several_streams_of_random_numbers_tell_their_spread(tiny_config: Callable[..., Config]) -> None:
    one, three = (
        evaluate_planning(Careless(), rooms(tiny_config, max_steps=30, planner_seeds=seeds), None, NOBODY)
        for seeds in (1, 3)
    )
    planner, spread = three.agents[0], three.agents[0].spread
    streams = [[task for task in results(three, "planner") if task.planner_seed == n] for n in range(3)]
    assert streams[0] == results(one, "planner") and one.agents[0].spread == {}
    assert (planner.any, planner.end) == (one.agents[0].any, one.agents[0].end)
    assert results(three, "random") == results(one, "random")
    outcomes = [[task.distances or task.steps for task in tasks] for tasks in streams]
    assert outcomes[0] != outcomes[1] != outcomes[2] != outcomes[0]
    frames = [np.stack(recording.frames) for recording in three.recordings]
    for recording, expected in zip(one.recordings, frames, strict=True):  # those of failures were played once more
        np.testing.assert_array_equal(np.stack(recording.frames), expected)
    assert spread["any"].rates == [sum(task.any for task in tasks) / 6 for tasks in streams]
    assert spread["any"].mean == pytest.approx(np.mean(spread["any"].rates))
    assert all(found.low <= found.mean <= found.high for found in spread.values()) and set(spread) == {"any", "end"}


def test_streams_of_a_task_are_no_further_tasks() -> None:
    """Ten times the same outcomes tell as much as once; random numbers that decide all leave the tasks alike."""
    once = [n < 12 for n in range(40)]
    same, single = Spread.of([once] * 10), Rate.of(once)
    assert same.mean == single.rate and same.high - same.low == pytest.approx(single.high - single.low, abs=0.03)
    alike = Spread.of([[True] * 40, [False] * 40])
    assert (alike.mean, (alike.low, alike.high)) == (0.5, wilson(20, 40))
    grouped = Spread.of([once, once], [n // 4 for n in range(40)])
    assert grouped.high - grouped.low > 1.5 * (same.high - same.low)


# --- environments that fail ----------------------------------------------------------------------------------------


class Fragile(gymnasium.Wrapper):
    """Two Rooms that breaks down: after so many steps, or when it is closed."""

    steps = 0
    break_after = 10**9

    def step(self, action):
        Fragile.steps += 1
        if Fragile.steps > Fragile.break_after:
            raise RuntimeError("the floor gave way")
        return self.env.step(action)

    def close(self):
        raise RuntimeError("the door is jammed")


@pytest.fixture
def fragile(tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    gymnasium.register("tests/Fragile-v0", lambda **kwargs: Fragile(gymnasium.make("jepaworld/TwoRoom-v0", **kwargs)))
    monkeypatch.setattr(Fragile, "steps", 0)

    def make(break_after: int) -> Config:
        monkeypatch.setattr(Fragile, "break_after", break_after)
        config = rooms(tiny_config, num_episodes=4, max_steps=12)
        return Config.model_validate(config.to_dict() | {"environment_name": "tests/Fragile-v0"})

    return make


@pytest.fixture(autouse=True)
def _without_fragile() -> Iterator[None]:
    yield
    gymnasium.registry.pop("tests/Fragile-v0", None)


def test_a_close_that_fails_loses_no_results(fragile: Callable[..., Config]) -> None:
    result = evaluate_planning(Blind(), fragile(10**9), None, NOBODY)
    assert len(results(result, "planner")) == len(results(result, "random")) == 4


def test_an_environment_that_fails_is_named(fragile: Callable[..., Config]) -> None:
    with pytest.raises(EnvironmentNotUsableError, match=r"Fragile.*step\(\).*the floor gave way"):
        evaluate_planning(Blind(), fragile(20), None, NOBODY)


def test_a_failure_after_the_planner_leaves_its_result(fragile: Callable[..., Config]) -> None:
    """4 tasks of 12 steps, two failures again for videos, then the random policy."""
    result = evaluate_planning(Blind(), fragile(4 * 12 + 5), None, NOBODY, num_recordings=0)
    planner, random = result.agents[:2]
    assert planner.any["all"].episodes == 4
    assert random.missing is not None and "the floor gave way" in random.missing and random.any == {}


# --- threads -------------------------------------------------------------------------------------------------------


def test_threads_are_given_back(tiny_config: Callable[..., Config]) -> None:
    seen = []

    class Watching(Blind):
        def encode(self, frames: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return super().encode(frames)

    torch.set_num_threads(2)
    try:
        evaluate_planning(Watching(), rooms(tiny_config, num_episodes=2, max_steps=3), None, NOBODY)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
