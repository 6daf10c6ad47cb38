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
