"""The player: what it plays, what it looks at, and how failures of an environment are told."""

from __future__ import annotations

import logging

import broken
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.envs import TWO_ROOM_ID
from jepaworld.envs.make import make_env, make_vector_env
from jepaworld.envs.player import Lane, Player, VectorPlayer
from jepaworld.errors import EnvironmentFailedError, EnvironmentNotUsableError

GREY = {"image_size": 8, "input_channels": 1}


def test_lanes_are_reset_and_stepped_on_their_own():
    with Player("broken/Returning-v0", {}, 3, **GREY) as player:
        player.reset([0, 1, 2])
        player.lanes[1].step(0)
        player.lanes[2].step(1)
        player.lanes[2].reset(5)
        assert [lane.info["count"] for lane in player.lanes] == [0, 1, 0]
        assert player.frames()[:, 0, 0, 0].tolist() == [0, 1, 0]
        assert player.states()["count"].tolist() == [0.0, 1.0, 0.0]


def test_an_environment_that_writes_into_its_action_does_not_change_ours(monkeypatch):
    lane = Lane(make_env(TWO_ROOM_ID), 64, 3)
    step = lane.env.unwrapped.step

    def writing(action):
        result = step(action)
        action[...] = 0.0
        return result

    monkeypatch.setattr(lane.env.unwrapped, "step", writing)
    action = np.array([0.5, -0.5], np.float32)
    lane.reset(0)
    lane.step(action)
    assert action.tolist() == [0.5, -0.5]


def test_frames_are_read_only_when_asked_for_and_are_copies(monkeypatch):
    lane = Lane(make_env("broken/Grey-v0"), 20, 3, "render")
    buffer, calls = np.zeros((20, 20, 3), np.uint8), []

    def render():  # as dm_control's renderers do, always into the same array
        calls.append(1)
        buffer[...] = lane.env.unwrapped.count
        return buffer

    monkeypatch.setattr(lane.env.unwrapped, "render", render)
    lane.reset(0)
    lane.step(0)
    assert calls == []
    first = lane.frame()
    lane.step(0)
    assert (lane.frame() == 2).all() and (first == 1).all()


class Reusing(broken.Grey):
    """One array for all its pictures, one for its numbers; it writes into what it is given."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.canvas, self.numbers = np.zeros((20, 24), np.uint8), np.zeros(2)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def picture(self):
        self.canvas[...] = self.count
        return self.canvas

    def info(self):
        self.numbers[...] = self.count
        return {"deep": {"numbers": self.numbers}, "list": [self.numbers]}

    def reset(self, *, seed=None, options=None):
        if options:
            options["place"][...] = 9
        return super().reset(seed=seed)[0], self.info()

    def step(self, action):
        action[...] = 7
        return (*super().step(action)[:4], self.info())

    def goal_image(self):
        self.canvas[...] = 99
        return self.canvas

    def goal_state(self):
        self.numbers[...] = 99
        return {"numbers": self.numbers}

    def restore_state(self, states):
        states["numbers"][...] = 55
        return self.picture(), self.info()

    def set_goal(self, states):
        states["numbers"][...] = 55
        return self.info()


gymnasium.register("player/Reusing-v0", entry_point=Reusing, disable_env_checker=True)


def test_what_comes_from_an_environment_is_ours_and_what_is_given_to_it_a_copy():
    lane = Lane(make_env("player/Reusing-v0"), 20, 1)
    place, action, states = np.zeros(2), np.zeros(2), {"numbers": np.zeros(2, np.float32)}
    lane.reset(0, options={"place": place})
    lane.step(action)
    info, goal, at_goal = lane.info, lane.call("goal_image"), lane.call("goal_state")
    assert (lane.frame() == 1).all(), "the goal's picture is in the same array"
    lane.step(action)
    lane.set_goal(states)
    lane.restore_state(states)
    assert (goal == 99).all() and (at_goal["numbers"] == 99).all()
    assert (info["deep"]["numbers"] == 1).all() and (info["list"][0] == 1).all()
    assert not place.any() and not action.any() and not states["numbers"].any()


def test_frames_of_a_vector_environment_are_ours(monkeypatch):
    player = VectorPlayer(make_vector_env(TWO_ROOM_ID, {}, 2), TWO_ROOM_ID, 64, 3)
    player.reset([0, 1])
    reused = np.ones((2, 3, 64, 64), np.uint8)
    monkeypatch.setattr(player, "_paint", lambda: reused)
    frames = player.frames()
    reused[...] = 2
    assert (frames == 1).all()


class Drawing(broken.Grey):
    """All that it does is drawn from numpy's global generator, from when it is made."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.layout = np.random.randint(256)  # noqa: NPY002
        self.action_space = gymnasium.spaces.Discrete(1000)

    def picture(self):
        return np.full((20, 24), (self.layout + self.count) % 256, np.uint8)

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        return super().reset(seed=seed)[0], {"action": self.action_space.sample()}

    def step(self, action):  # noqa: ARG002
        self.count = np.random.randint(256)  # noqa: NPY002
        return self.picture(), 0.0, False, False, {}


gymnasium.register("player/Drawing-v0", entry_point=Drawing, disable_env_checker=True)


def test_one_seed_decides_all_numbers_that_an_environment_draws():
    def played(between: int) -> list[int]:
        np.random.seed(between)  # noqa: NPY002
        with Player("player/Drawing-v0", {}, 2, **GREY) as player:
            player.lanes[0].env.action_space.sample()
            player.reset([3, 3])
            shades = [lane.info["action"] for lane in player.lanes]
            for _ in range(3):
                np.random.random(between)  # noqa: NPY002
                player.step([0, 0])
                shades += player.frames()[:, 0, 0, 0].tolist()
        return shades

    first = played(1)
    assert first == played(2) and first[::2] == first[1::2] and len(set(first)) > 2


@pytest.mark.parametrize("reward", [np.zeros(2), [0.0, 1.0], None, "much"])
def test_a_reward_that_is_no_number_is_refused_by_name(monkeypatch, reward):
    lane = Lane(make_env("broken/Grey-v0"), 8, 1)
    lane.reset(0)
    picture = lane.env.unwrapped.picture()
    monkeypatch.setattr(lane.env.unwrapped, "step", lambda _: (picture, reward, False, False, {}))
    with pytest.raises(EnvironmentNotUsableError, match=r"Grey-v0: step\(\) gives .* as reward; expected one number"):
        lane.step(0)
    monkeypatch.setattr(lane.env.unwrapped, "step", lambda _: (picture, np.array([2.5]), np.True_, [0], {}))
    assert lane.step(0) and lane.reward == 2.5 and lane.terminated and not lane.truncated


def failing(_name: str):
    def fail(*_arguments, **_settings):
        raise RuntimeError("motor is on fire")

    return fail


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("reset", lambda lane: lane.reset(0, place="episode 3")),
        ("step", lambda lane: lane.step(0)),
        ("render", lambda lane: lane.frame()),
        ("restore_state", lambda lane: lane.restore_state({})),
        ("goal_image", lambda lane: lane.call("goal_image")),
    ],
)
def test_every_failure_names_environment_call_and_place(monkeypatch, method, call):
    lane = Lane(make_env("broken/Returning-v0"), 8, 1, "render")
    lane.reset(0, place="episode 3")
    monkeypatch.setattr(lane.env.unwrapped, method, failing(method))
    with pytest.raises(EnvironmentFailedError) as caught:
        call(lane)
    message = str(caught.value)
    assert all(part in message for part in ("broken/Returning-v0", f"{method}()", "episode 3", "motor is on fire"))
    assert caught.value.call == method
    assert "raise RuntimeError" in caught.value.__notes__[0]


def test_failures_of_a_vector_environment_are_told_in_the_same_way(monkeypatch):
    env = make_vector_env(TWO_ROOM_ID, {}, 2)
    player = VectorPlayer(env, TWO_ROOM_ID, 64, 3)
    player.reset([0, 1], "episodes 4 to 5")
    monkeypatch.setattr(player, "_advance", failing("step"))
    with pytest.raises(EnvironmentFailedError, match=r"TwoRoom-v0: step\(\) in episodes 4 to 5 failed: RuntimeError"):
        player.step(np.zeros((2, 2), np.float32))


def test_what_a_vector_environment_returns_is_kept_though_it_reuses_its_arrays(monkeypatch):
    env = make_vector_env(TWO_ROOM_ID, {}, 2)
    player, reused = VectorPlayer(env, TWO_ROOM_ID, 64, 3), np.zeros(2, np.bool_)
    player.reset([0, 1])
    monkeypatch.setattr(player, "_advance", lambda _: (np.zeros(2), reused, reused, {}))
    _, terminated, _ = player.step(np.zeros((2, 2), np.float32))
    reused[:] = True
    assert not terminated.any()


@pytest.mark.parametrize("name", ["broken/Grey-v0", TWO_ROOM_ID])
def test_a_close_that_fails_loses_nothing(monkeypatch, tmp_path, caplog, name):
    from jepaworld.envs.two_room import TwoRoomEnv, TwoRoomVectorEnv

    for kind in (broken.Grey, TwoRoomEnv, TwoRoomVectorEnv):
        monkeypatch.setattr(kind, "close", failing("close"))
    config = Config(
        environment_name=name,
        image_size=16,
        num_episodes_data_collection=3,
        max_steps_per_episode_data_collection=4,
        dataset_dir=str(tmp_path / "data"),
        collection={"num_workers": 1},
    )
    with caplog.at_level(logging.WARNING, "jepaworld"):
        assert len(collect(config).episode_lengths) == 3
    assert any("close()" in message and "motor is on fire" in message for message in caplog.messages)


@pytest.mark.parametrize("size", [64, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("painter", [True, False])
def test_lanes_of_a_vector_environment_are_those_of_single_ones(monkeypatch, size, channels, painter):
    player = VectorPlayer(make_vector_env(TWO_ROOM_ID, {}, 3), TWO_ROOM_ID, size, channels)
    if not painter:
        monkeypatch.setattr(player, "_paint", None)
        monkeypatch.setattr(player, "_advance", None)
    with Player(TWO_ROOM_ID, {}, 3, image_size=size, input_channels=channels) as singles:
        for one in (player, singles):
            one.reset([5, 6, 7])
        actions = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
        for a, b in zip(player.step(actions), singles.step(actions), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(player.frames(), singles.frames())
        assert player.states().keys() == singles.states().keys()
        for name, rows in singles.states().items():
            np.testing.assert_array_equal(player.states()[name], rows)


def test_lanes_without_pictures_are_refused():
    env = SyncVectorEnv([lambda: gymnasium.make("broken/Blind-v0")] * 2)
    with pytest.raises(EnvironmentNotUsableError, match="frames_chw"):
        VectorPlayer(env, "broken/Blind-v0", 8, 3)
