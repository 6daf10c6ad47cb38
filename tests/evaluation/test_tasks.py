"""Starts and goals: drawn, brought about, checked, refused."""

from __future__ import annotations

import dataclasses
import random
import re
import secrets
import shutil
import time
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from jepaworld.data.collect import collect
from jepaworld.data.spec import write_description
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.seeding import episode_seeds
from jepaworld.envs.state import extract_state
from jepaworld.errors import ConfigError, PlanningError
from jepaworld.evaluation.tasks import DrawnStart, RecordedStart, begin, draw_tasks, make_task_player

HELD_OUT = [2, 5, 7]


class Dial(gymnasium.Env):
    """A bar of 16 pixels that is as long as the number x, from 0 to 16; actions change it by up to 1."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None, noise="none", discrete=False, dtype="float32"):
        self.render_mode, self.noise, self.discrete = render_mode, noise, discrete
        self.action_space = Discrete(3, start=-1) if discrete else Box(-1, 1, (1,), np.dtype(dtype).type)
        self.observation_space = Box(0, 16, (1,), np.float32)
        self.ended = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if options and set(options) != {"x"}:
            raise KeyError("x is all that can be set")
        self.ended = False
        self.x = options["x"] if options else self.np_random.uniform(4, 12)
        if self.noise == "global":
            self.x += random.random() + np.random.random()  # noqa: NPY002
        if self.noise == "true":
            self.x += secrets.randbelow(1000) / 250
        self.goal = float(self.np_random.uniform(0, 16))
        if self.noise == "goal":
            self.goal = secrets.randbelow(1600) / 100
        return self.look(), self.info()

    def step(self, action):
        assert isinstance(action, int | np.integer) if self.discrete else action.dtype == self.action_space.dtype, (
            action
        )
        drift = random.random() + np.random.normal() if self.noise == "global" else 0.0  # noqa: NPY002
        self.x = float(np.clip(self.x + np.squeeze(action) + drift, 0, 16))
        return self.look(), 0.0, False, False, self.info()

    def look(self):
        return np.array([self.x], np.float32)

    def info(self):
        return {"x": self.x}

    def draw(self, x):
        lit = np.clip(x - np.arange(16), 0, 1) * 255
        return np.repeat(np.broadcast_to(lit, (16, 16))[..., None], 3, axis=2).astype(np.uint8)

    def render(self):
        return self.draw(self.x)


class Settable(Dial):
    """Can be set to a state; but if it is told to, to another one, or not at all."""

    def __init__(self, render_mode=None, lie=0.0, hidden=0.0, **kwargs):
        super().__init__(render_mode, **kwargs)
        self.lie, self.hidden = lie, hidden

    def restore_state(self, states):
        if self.lie < 0:
            raise RuntimeError("the dial is stuck")
        self.x = float(states["x"]) + self.lie
        return self.look(), {"x": self.x - self.hidden}


class Goalish(Settable):
    """Shows its goal and knows when it is there."""

    def info(self):
        return super().info() | {"is_success": abs(self.x - self.goal) < 1.5}

    def goal_image(self):
        return self.draw(self.goal)


class Telling(Goalish):
    """Also tells where its goal is."""

    def goal_state(self):
        return {"x": self.goal}


class Silent(Dial):
    """Shows its goal but does not know when it is there."""

    def goal_image(self):
        return self.draw(self.goal)


class Timed(Dial):
    """Tells the time; its set_goal means something else."""

    def info(self):
        return super().info() | {"clock": time.perf_counter_ns() % 1000}

    def set_goal(self, motor):
        return motor.start()


for _kind in (Dial, Settable, Goalish, Telling, Silent, Timed):
    gymnasium.register(f"tasks/{_kind.__name__}-v0", _kind, max_episode_steps=7, disable_env_checker=True)


@pytest.fixture
def play(tiny_config, tmp_path):
    """`play(id, evaluation settings, **settings)` collects and gives settings, environment and dataset."""

    def make(name, evaluation=None, **settings):
        number = len(list(tmp_path.iterdir()))
        config = tiny_config(
            environment_name=name,
            dataset_dir=str(tmp_path / f"data{number}"),
            num_episodes_data_collection=8,
            evaluation={"num_episodes": 6, "goal_steps": 4} | (evaluation or {}),
            **settings,
        )
        return config, make_task_player(config, None).lanes[0], collect(config)

    return make


NEAR = {"success": [{"variable": "x", "distance": 0.4}]}
LONG = {"environment_kwargs": {"max_episode_steps": 12}}


def follow(lane, task):
    """State variables and info where the recorded actions end."""
    begin(lane, task)
    for action in task.actions:
        lane.step(action)
    return lane.states(), lane.info


# --- recorded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "used"), [("auto", "state"), ("state", "state"), ("replay", "replay")])
def test_recorded_starts_and_goals_are_frames_of_held_out_episodes(play, way, used):
    evaluation = {"goals": "recorded", "goal_steps": 15, "restore": way}
    config, lane, dataset = play(
        "jepaworld/TwoRoom-v0",
        evaluation,
        frame_skipping=3,
        image_size=64,
        max_steps_per_episode_data_collection=36,
        environment_kwargs={"random_wall": True},
    )
    drawn = draw_tasks(config, lane, dataset, HELD_OUT)
    assert (drawn.goals, drawn.restore, len(drawn.tasks), drawn.notes) == ("recorded", used, 6, ())
    assert len({(task.start.episode, len(task.start.actions)) for task in drawn.tasks}) == 6
    for task in drawn.tasks:
        start = task.start
        assert isinstance(start, RecordedStart)
        assert start.episode in HELD_OUT
        first, episode = len(start.actions) // 3, dataset.episode(start.episode)
        np.testing.assert_array_equal(start.frame, episode.frames[first])
        np.testing.assert_array_equal(task.goal_frame, episode.frames[first + 5])
        np.testing.assert_array_equal(task.goal_state["state"], episode.states["state"][first + 5])
        begin(lane, task)
        observation, info = lane.observation, lane.info
        np.testing.assert_array_equal(observation.transpose(2, 0, 1), start.frame)
        np.testing.assert_array_equal(info["state"], episode.states["state"][first])
        assert info["success"] is False
        states, info = follow(lane, task)
        np.testing.assert_array_equal(states["state"], task.goal_state["state"])
        assert info["success"] is True  # the goal of Two Rooms was set to that of the task
        assert drawn.criterion.judge(states, info, task.goal_state)[0]


def test_what_was_recorded_before_a_start_is_kept_as_far_as_there_is_some(play):
    evaluation = {"goals": "recorded", "goal_steps": 2, **NEAR}
    config, lane, dataset = play("tasks/Dial-v0", evaluation, frame_skipping=2, environment_kwargs={})
    drawn = draw_tasks(config, lane, dataset, HELD_OUT, context=3).tasks
    lengths = set()
    for task in drawn:
        first, episode = len(task.start.actions) // 2, dataset.episode(task.start.episode)
        frames, blocks = task.history
        lengths.add(len(frames))
        assert len(frames) == len(blocks) == min(first, 2)
        np.testing.assert_array_equal(frames, episode.frames[first - len(frames) : first])
        np.testing.assert_array_equal(blocks, episode.actions[first - len(frames) : first])
    assert len(lengths) > 1
    assert all(len(task.history[0]) == 0 for task in draw_tasks(config, lane, dataset, HELD_OUT).tasks)


def test_the_seed_decides_the_draw(play):
    config, lane, dataset = play("tasks/Dial-v0", NEAR, **LONG)
    again = [draw_tasks(config, lane, dataset, HELD_OUT).tasks for _ in range(2)]
    where = [[(task.start.episode, len(task.start.actions)) for task in tasks] for tasks in again]
    assert where[0] == where[1]
    other = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"seed": 1})})
    tasks = draw_tasks(other, lane, dataset, HELD_OUT).tasks
    assert [(task.start.episode, len(task.start.actions)) for task in tasks] != where[0]


def test_the_last_frame_of_an_episode_is_no_goal(play):
    config, lane, dataset = play("tasks/Dial-v0", NEAR | {"goal_steps": 11, "num_episodes": 1}, **LONG)
    far = {"success": [{"variable": "x", "distance": 1e-6}], "goal_steps": 11, "num_episodes": 3}
    wide = config.model_copy(update={"evaluation": config.evaluation.model_validate(far)})
    tasks = draw_tasks(wide, lane, dataset, HELD_OUT).tasks
    assert sorted(task.start.episode for task in tasks) == HELD_OUT
    assert all(len(task.start.actions) == 0 and len(task.actions) == 11 for task in tasks)
    longer = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"goal_steps": 12})})
    with pytest.raises(ConfigError, match=r"goal_steps is 12: .*at most 11"):
        draw_tasks(longer, lane, dataset, HELD_OUT)


@pytest.mark.parametrize(("goal_steps", "remedy"), [(4, "3 or 6"), (2, "3"), (10, "9"), (100, "9")])
def test_goals_are_where_frames_were_stored(play, goal_steps, remedy):
    config, lane, dataset = play("tasks/Dial-v0", NEAR | {"goal_steps": goal_steps}, frame_skipping=3, **LONG)
    with pytest.raises(
        ConfigError, match=rf"goal_steps is {goal_steps}: must be a multiple of 3.*nearest is {remedy}\."
    ):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_solved_starts_are_left_out_and_counted(play):
    wide = {"success": [{"variable": "x", "distance": 1.0}], "num_episodes": 12}
    config, lane, dataset = play("tasks/Dial-v0", wide, **LONG)
    drawn = draw_tasks(config, lane, dataset, HELD_OUT)
    assert drawn.solved > 0
    for task in drawn.tasks:
        assert abs(task.start.states["x"] - task.goal_state["x"]) > 1.0
    wider = {"success": [{"variable": "x", "distance": 99.0}], "goal_steps": 4, "num_episodes": 4}
    config = config.model_copy(update={"evaluation": config.evaluation.model_validate(wider)})
    # 8 starts in each of three episodes of 12 steps
    with pytest.raises(
        PlanningError, match=r"is 4, but only 0 starts .* not solved already \(24 were, by: x within 99"
    ):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_a_start_is_brought_about_wherever_the_environment_is_and_without_a_time_limit(play):
    config, lane, dataset = play("tasks/Settable-v0", NEAR, **LONG)
    tasks = draw_tasks(config, lane, dataset, HELD_OUT).tasks
    other = make_task_player(config, dataset).lanes[0]
    for task in tasks:
        begin(other, task)
        assert other.info["x"] == pytest.approx(task.start.states["x"], abs=1e-5)
        assert not any(other.step(np.array([0.7], np.float32)) for _ in range(20))


def test_discrete_actions_are_replayed_as_they_were_played(play):
    kwargs = {"discrete": True, "max_episode_steps": 12}
    evaluation = NEAR | {"goal_steps": 4, "num_episodes": 9}
    config, lane, dataset = play("tasks/Dial-v0", evaluation, environment_kwargs=kwargs, frame_skipping=2)
    tasks = draw_tasks(config, lane, dataset, HELD_OUT).tasks
    assert {action for task in tasks for action in task.actions.tolist()} == {-1, 0, 1}
    begin(lane, max(tasks, key=lambda task: len(task.start.actions)))  # Dial asserts that it gets an integer


def test_actions_are_replayed_in_the_dtype_of_the_space(play):
    kwargs = {"dtype": "float64", "max_episode_steps": 12}
    config, lane, dataset = play("tasks/Dial-v0", NEAR, environment_kwargs=kwargs)
    assert all(follow(lane, task) for task in draw_tasks(config, lane, dataset, HELD_OUT).tasks)  # Dial asserts it


def test_what_a_policy_of_ones_own_did_is_replayed(play, tmp_path, monkeypatch):
    (tmp_path / "moody.py").write_text(
        "import secrets\nimport numpy as np\n\n"
        "def act(observation):\n    return np.array([secrets.randbelow(100) / 100], np.float32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config, lane, dataset = play("tasks/Dial-v0", NEAR, collection={"policy": "moody:act"}, **LONG)
    drawn = draw_tasks(config, lane, dataset, HELD_OUT)
    assert drawn.restore == "replay"
    for task in drawn.tasks:
        assert follow(lane, task)[0]["x"] == pytest.approx(task.goal_state["x"], abs=1e-5)


def test_global_generators_are_seeded_for_a_replay_and_given_back(play):
    kwargs = {"noise": "global", "max_episode_steps": 12}
    config, lane, dataset = play("tasks/Dial-v0", NEAR, environment_kwargs=kwargs)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    drawn = draw_tasks(config, lane, dataset, HELD_OUT)
    begin(lane, drawn.tasks[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_global_generators_give_each_episode_its_own_numbers_whoever_else_draws(play):
    config, lane, dataset = play("tasks/Dial-v0", NEAR, environment_kwargs={"noise": "global"})
    tasks = draw_tasks(config, lane, dataset, HELD_OUT).tasks[:2]
    with make_task_player(config, dataset, 2) as player:
        for one, task in zip(player.lanes, tasks, strict=True):
            begin(one, task)
        for step in range(len(tasks[0].actions)):
            for one, task in zip(player.lanes, tasks, strict=True):
                np.random.random(step)  # noqa: NPY002 (as a policy might)
                one.step(task.actions[step])
        for one, task in zip(player.lanes, tasks, strict=True):
            assert one.states()["x"] == pytest.approx(task.goal_state["x"], abs=1e-5)


def test_an_environment_that_is_not_deterministic_is_said_to_be_so(play):
    kwargs = {"noise": "true", "max_episode_steps": 12}
    config, lane, dataset = play("tasks/Dial-v0", NEAR, environment_kwargs=kwargs)
    with pytest.raises(PlanningError, match=r"replayed from its seed and actions: .* not deterministic. No protocol"):
        draw_tasks(config, lane, dataset, HELD_OUT)
    config, lane, dataset = play(
        "tasks/Telling-v0", NEAR | {"goals": "recorded", "restore": "replay"}, environment_kwargs=kwargs
    )
    with pytest.raises(PlanningError, match=r"remains: evaluation.goals=environment, or .*evaluation.restore=state"):
        draw_tasks(config, lane, dataset, HELD_OUT)
    config, lane, dataset = play("tasks/Telling-v0", NEAR, environment_kwargs=kwargs)
    with pytest.raises(
        PlanningError, match=r"another start of .* second time .*recorded with evaluation.restore=state"
    ):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_a_goal_that_is_another_one_the_second_time_is_noticed(play):
    kwargs = {"noise": "goal", "max_episode_steps": 12}
    config, lane, dataset = play("tasks/Telling-v0", NEAR, environment_kwargs=kwargs)
    with pytest.raises(PlanningError, match=r"another goal of .* the second time"):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_setting_the_state_does_not_need_determinism(play):
    kwargs = {"noise": "true", "max_episode_steps": 12}
    config, lane, dataset = play("tasks/Settable-v0", NEAR, environment_kwargs=kwargs)
    drawn = draw_tasks(config, lane, dataset, HELD_OUT)
    assert drawn.restore == "state"
    assert follow(lane, drawn.tasks[0])[0]["x"] == pytest.approx(drawn.tasks[0].goal_state["x"], abs=1e-4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"lie": 2.0}, "% of the frame differ from the recorded one"),
        ({"lie": -1.0}, "RuntimeError: the dial is stuck"),
        ({"hidden": 0.1}, "the state variable x is"),
    ],
)
def test_a_state_that_does_not_come_back_is_noticed(play, fault, reason):
    kwargs = fault | {"max_episode_steps": 12}
    config, lane, dataset = play("tasks/Settable-v0", NEAR | {"restore": "state"}, environment_kwargs=kwargs)
    with pytest.raises(PlanningError, match=f"set by its state.*{reason}.*evaluation.restore=replay"):
        draw_tasks(config, lane, dataset, HELD_OUT)
    auto = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"restore": "auto"})})
    drawn = draw_tasks(auto, lane, dataset, HELD_OUT)
    assert drawn.restore == "replay"
    assert re.match(f"Starts are replayed. .*{reason}", drawn.notes[0])


def test_where_neither_way_works_both_reasons_are_told(play):
    kwargs = {"lie": 2.0, "noise": "true", "max_episode_steps": 12}
    config, lane, dataset = play("tasks/Settable-v0", NEAR, environment_kwargs=kwargs)
    with pytest.raises(PlanningError, match=r"set by its state.*replayed from.*No protocol remains"):
        draw_tasks(config, lane, dataset, HELD_OUT)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({}, r"no set_goal\(\).*observation, x"),
        (NEAR | {"restore": "state"}, r"no restore_state\(\).*replay"),
        (NEAR | {"goals": "environment"}, r"goals is environment, .*shows no goal.*evaluation.goals to recorded"),
    ],
)
def test_what_an_environment_does_not_offer_is_refused_with_the_remedy(play, evaluation, message):
    config, lane, dataset = play("tasks/Dial-v0", evaluation, **LONG)
    with pytest.raises(PlanningError, match=message):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_tasks_of_an_incomplete_dataset_are_restored_by_their_numbers(play):
    """Episodes are replayed from the seeds of their numbers, whatever shards are missing before them."""
    config, lane, dataset = play("tasks/Dial-v0", NEAR | {"num_episodes": 9}, **LONG)
    spec = dataclasses.replace(dataset.spec, complete=False, shards=None)
    write_description(dataset.path, spec, dataset.provenance)
    shutil.rmtree(dataset.path / "shard-00001")
    incomplete = EpisodeDataset.open(dataset.path)
    present = [number for number in range(8) if number // spec.episodes_per_shard != 1]
    assert [incomplete.episode_number(index) for index in range(len(present))] == present
    drawn = draw_tasks(config, lane, incomplete, np.arange(1, len(present)))
    assert {task.start.episode for task in drawn.tasks} <= set(present[1:])
    for task in drawn.tasks:
        assert follow(lane, task)[0]["x"] == pytest.approx(task.goal_state["x"], abs=1e-5)


def test_recorded_goals_need_held_out_episodes(play):
    config, lane, dataset = play("tasks/Dial-v0", NEAR, **LONG)
    with pytest.raises(PlanningError, match=r"held-out episodes.*evaluation_split"):
        draw_tasks(config, lane, dataset, [])
    tuning = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"split": "validation"})})
    with pytest.raises(PlanningError, match=r"split is validation.*validation_split"):
        draw_tasks(tuning, lane, dataset, [])
    with pytest.raises(PlanningError, match=r"dataset.*Restore it"):
        draw_tasks(config, lane, None, HELD_OUT)


def test_single_transitions_are_too_short(play):
    config, lane, dataset = play("tasks/Dial-v0", NEAR, environment_kwargs={"max_episode_steps": 1})
    with pytest.raises(PlanningError, match=r"single transitions"):
        draw_tasks(config, lane, dataset, HELD_OUT)


# --- the environment's own ------------------------------------------------------------------------------


def test_the_environment_draws_start_and_goal_from_seeds_of_its_own(play):
    options = [{"goal_room": "other"}, {"goal_room": "same"}, {}]
    config, lane, dataset = play("jepaworld/TwoRoom-v0", {"reset_options": options}, image_size=64)
    drawn = draw_tasks(config, lane, dataset, HELD_OUT)
    assert (drawn.goals, drawn.restore) == ("environment", None)
    assert [task.group for task in drawn.tasks] == ["goal_room=other", "goal_room=same", "default"] * 2
    collected = {episode_seeds(config.seed, episode).environment for episode in range(8)}
    seeds = {task.start.seed for task in drawn.tasks}
    assert len(seeds) == 6
    assert not seeds & collected
    for task in drawn.tasks:
        assert isinstance(task.start, DrawnStart)
        assert task.actions is None
        begin(lane, task)
        observation, info = lane.observation, lane.info
        np.testing.assert_array_equal(observation.transpose(2, 0, 1), task.start.frame)
        np.testing.assert_array_equal(lane.env.unwrapped.goal_image().transpose(2, 0, 1), task.goal_frame)
        np.testing.assert_array_equal(task.goal_state["state"], info["goal"])
        apart = (info["state"][0] < 32) != (info["goal"][0] < 32)
        assert task.group == "default" or apart == (task.group == "goal_room=other")


def test_seeds_that_were_collected_with_are_not_drawn(play, monkeypatch):
    config, lane, dataset = play("tasks/Telling-v0", NEAR, **LONG)
    collected = [episode_seeds(config.seed, episode).environment for episode in range(8)]
    numbers = iter([*collected, *range(100)])
    monkeypatch.setattr("jepaworld.evaluation.tasks._drawn_seed", lambda *_: next(numbers))
    for data in (dataset, None):
        numbers = iter([*collected, *range(100)])
        drawn = draw_tasks(config, lane, data, [])
        assert all(task.start.seed < 100 for task in drawn.tasks)


def test_solved_starts_of_the_environment_are_drawn_again(play):
    config, lane, dataset = play("tasks/Goalish-v0", {"num_episodes": 20}, **LONG)
    drawn = draw_tasks(config, lane, dataset, HELD_OUT)
    assert drawn.solved > 0
    for task in drawn.tasks:
        begin(lane, task)
        assert not lane.info["is_success"]
    # 20 solved starts for each of the 2 that are wanted
    everywhere = {"success": [{"variable": "x", "distance": 99.0}], "num_episodes": 2}
    config, lane, dataset = play("tasks/Telling-v0", everywhere, **LONG)
    with pytest.raises(PlanningError, match=r"only 0 starts .* \(40 were"):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_conditions_are_compared_with_the_state_that_the_environment_tells_of_its_goal(play):
    config, lane, dataset = play("tasks/Telling-v0", NEAR, **LONG)
    drawn = draw_tasks(config, lane, dataset, HELD_OUT)
    task = drawn.tasks[0]
    begin(lane, task)
    assert task.goal_state["x"] == pytest.approx(lane.env.unwrapped.goal, abs=1e-5)
    lane.env.unwrapped.x = lane.env.unwrapped.goal
    assert drawn.criterion.judge(extract_state(None, lane.env.unwrapped.info()), {}, task.goal_state)[0]


def test_conditions_without_such_a_state_take_recorded_goals_or_are_refused(play):
    config, lane, dataset = play("tasks/Goalish-v0", NEAR, **LONG)
    assert draw_tasks(config, lane, dataset, HELD_OUT).goals == "recorded"
    config, lane, dataset = play("tasks/Goalish-v0", NEAR | {"goals": "environment"}, **LONG)
    with pytest.raises(PlanningError, match=r"does not tell the state at the goal.*goal_state\(\)"):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_a_goal_without_a_word_about_success_is_refused(play):
    config, lane, dataset = play("tasks/Silent-v0", **LONG)
    with pytest.raises(PlanningError, match=r"neither success nor is_success.*goals to recorded.*x"):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_reset_options_that_the_environment_refuses_are_told(play):
    config, lane, dataset = play("tasks/Goalish-v0", {"reset_options": [{"y": 3}]}, **LONG)
    with pytest.raises(PlanningError, match=r"reset\(\) .*\{'y': 3\} failed: KeyError"):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_a_goal_image_that_is_none_is_told(play, monkeypatch):
    config, lane, dataset = play("tasks/Goalish-v0", **LONG)
    monkeypatch.setattr(Goalish, "goal_image", lambda _: np.zeros(16))
    with pytest.raises(PlanningError, match=r"goal_image\(\) gives float64 \(16,\); expected HxW"):
        draw_tasks(config, lane, dataset, HELD_OUT)


def test_reset_options_are_said_to_have_no_effect_on_recorded_goals(play):
    config, lane, dataset = play("tasks/Dial-v0", NEAR | {"reset_options": [{"x": 3}]}, **LONG)
    assert "reset_options has no effect" in draw_tasks(config, lane, dataset, HELD_OUT).notes[0]


def test_goals_are_given_in_grey_where_frames_are(play):
    config, lane, dataset = play("tasks/Telling-v0", NEAR, input_channels=1, image_size=16, **LONG)
    task = draw_tasks(config, lane, dataset, HELD_OUT).tasks[0]
    assert task.goal_frame.shape == task.start.frame.shape == (1, 16, 16)


def test_variables_can_be_left_out_of_the_comparison_and_a_foreign_set_goal_is_not_needed(play):
    config, lane, dataset = play("tasks/Timed-v0", NEAR)
    with pytest.raises(PlanningError, match=r"clock is .*evaluation.ignored_variables"):
        draw_tasks(config, lane, dataset, HELD_OUT)
    config = config.with_overrides(["evaluation.ignored_variables=[clock]"])
    task = draw_tasks(config, lane, dataset, HELD_OUT).tasks[0]
    assert follow(lane, task)[0]["x"] == pytest.approx(task.goal_state["x"], abs=1e-5)
    own = config.with_overrides(["evaluation.success=null"])
    with pytest.raises(PlanningError, match=r"set_goal\(\) .*AttributeError"):
        draw_tasks(own, lane_of(config, dataset), dataset, HELD_OUT)


def test_a_foreign_goal_image_leaves_recorded_goals(play, monkeypatch):
    monkeypatch.setattr(Telling, "goal_image", lambda _: (3, 4))
    config, lane, dataset = play("tasks/Telling-v0", NEAR)
    assert draw_tasks(config, lane, dataset, HELD_OUT).goals == "recorded"
    with pytest.raises(PlanningError, match=r"goal_image\(\) gives"):
        draw_tasks(config.with_overrides(["evaluation.goals=environment"]), lane, dataset, HELD_OUT)


def lane_of(config, dataset):
    return make_task_player(config, dataset).lanes[0]


def test_a_start_that_is_set_goes_on_with_the_same_global_numbers(play):
    config, lane, dataset = play("tasks/Settable-v0", NEAR, environment_kwargs={"noise": "global"})
    task, places = draw_tasks(config, lane, dataset, HELD_OUT).tasks[0], []
    assert task.start.method == "state"
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        begin(lane, task)
        lane.step(np.zeros(1, np.float32))
        places.append(float(lane.states()["x"]))
    assert places[0] == places[1]
