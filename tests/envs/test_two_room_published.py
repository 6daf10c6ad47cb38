"""Two Rooms by the published rules: where a disc may be, how it is thrown back, what is drawn and painted."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_checks

from jepaworld.envs import TWO_ROOM_ID
from jepaworld.envs import two_room_published as published
from jepaworld.envs.conformance import check_env
from jepaworld.envs.two_room import TwoRoomEnv, TwoRoomVectorEnv

PUBLISHED = {"rules": "published"}


def test_it_is_an_environment_that_can_be_used():
    gymnasium_checks(gymnasium.make(TWO_ROOM_ID, render_mode="rgb_array", **PUBLISHED).unwrapped)
    report = check_env(TWO_ROOM_ID, PUBLISHED, image_size=65)
    assert report.usable
    assert {finding.level for finding in report.findings if finding.name != "speed"} == {"ok"}
    assert any("(3, 65, 65)" in finding.text for finding in report.findings)


def in_rooms(position, wall):
    """Whether points are inside the border and not in the wall, touching included."""
    beside = (np.abs(position[:, 0] - wall[:, 0]) >= 1) | (np.abs(position[:, 1] - wall[:, 1]) <= 4)
    return ((position >= 4) & (position <= 60)).all(axis=1) & beside


@pytest.mark.parametrize("max_speed", [None, 40.0])
def test_walls_are_never_passed_outside_the_door(max_speed):
    lanes = 300
    env = TwoRoomVectorEnv(lanes, max_speed=max_speed, **PUBLISHED)
    _, info = env.reset(seed=0)
    rng, passed, thrown = np.random.default_rng(0), 0, 0
    speed = 2.45 if max_speed is None else max_speed
    for _ in range(100):
        start, wall = info["state"].astype(np.float64), info["wall"].astype(np.float64)
        actions = rng.uniform(-1, 1, (lanes, 2))
        moved = speed * actions / np.maximum(1, np.linalg.norm(actions, axis=1, keepdims=True))
        *_, info = env.step(actions)
        end = info["state"].astype(np.float64)
        assert in_rooms(end, wall).all()
        straight = np.abs(end - start - moved).max(axis=1) < 1e-4
        thrown += (~straight).sum()
        other = (start[:, 0] < wall[:, 0]) != (end[:, 0] < wall[:, 0])
        passed += other.sum()
        # A straight move into the other room passes both faces at a height of the door; a throw there ends at one,
        # unless a long step went on to the border.
        at_door = np.abs(end[:, 1] - wall[:, 1]) <= 4
        assert max_speed or at_door[other & ~straight].all()
        for lane in np.flatnonzero(other & straight):
            for face in wall[lane, 0] + np.array([-1.0, 1.0]):
                share = (face - start[lane, 0]) / moved[lane, 0]
                if 0 <= share <= 1:
                    assert abs(start[lane, 1] + share * moved[lane, 1] - wall[lane, 1]) <= 4 + 1e-4
    assert passed > 20 and thrown > 1000


def test_a_wall_ends_a_move_and_throws_it_back_without_sliding():
    env = TwoRoomVectorEnv(2000, random_wall=False, **PUBLISHED)
    for state, action, contact, sign in [
        ([4.5, 30], [-0.7, 0.7], [4, 30.5], 1),  # the border on the left
        ([30, 40], [0.9, 0.0], [31, 40], -1),  # the wall, which begins 1 before its middle
        ([34, 40], [-0.9, 0.3], [33, 40 + 1 / 3], 1),
    ]:
        env.reset(seed=0, options={"state": state})
        throw = env.advance(np.tile(action, (2000, 1)))[3]["state"] - np.array(contact)
        across, along = sign * throw[:, 0], throw[:, 1]
        assert (across >= -1e-5).all()
        assert across.mean() == pytest.approx(0.5 * math.sqrt(2 / math.pi), abs=0.03)
        assert np.sqrt((across**2).mean()) == pytest.approx(0.5, abs=0.04)
        assert along.mean() == pytest.approx(0, abs=0.05)
        assert along.std() == pytest.approx(0.5, abs=0.04)
        assert abs(np.corrcoef(across, along)[0, 1]) < 0.1
    env.reset(seed=0, options={"state": [32, 12]})  # in the door of height 6 to 14
    throw = env.advance(np.tile([0.0, 1.0], (2000, 1)))[3]["state"] - np.array([32, 14])
    assert (throw[:, 1] <= 0).all() and abs(throw[:, 0].mean()) < 0.05


@pytest.mark.parametrize("throw", [(50.0, 50.0), (-50.0, 50.0), (50.0, -50.0), (-50.0, -50.0)])
def test_a_throw_stays_in_the_room_however_far_it_goes(throw):
    wall = np.tile(np.array([[32, 10]], np.float32), (6, 1))
    # Beside the wall at both borders, at both faces, at both edges of the door.
    start = np.array([[30.5, 4.5], [33.5, 59.5], [30.5, 30], [33.5, 30], [32, 6.5], [32, 13.5]])
    moves = np.array([[0, -1], [0, 1], [1, 0], [-1, 0], [0, -1], [0, 1]])
    end = published.move(start, moves.astype(float), published.obstacles(wall), lambda _: np.tile(throw, (6, 1)))
    assert in_rooms(end, wall).all()
    assert (end[[0, 2], 0] <= 30.7 + 1e-9).all() and (end[[1, 3], 0] >= 33.3 - 1e-9).all()
    assert (np.abs(end[4:, 1] - 10) <= 3.7 + 1e-9).all()


def test_a_step_is_bounded_by_its_length():
    env = TwoRoomEnv(random_wall=False, **PUBLISHED)
    for action, moved in [([0.5, 0.0], [1.225, 0]), ([1, 1], [2.45 / math.sqrt(2)] * 2), ([-9, 0.0], [-2.45, 0])]:
        env.reset(seed=0, options={"state": [20, 30]})
        np.testing.assert_allclose(env.step(np.array(action))[4]["state"] - [20, 30], moved, rtol=1e-5)


def test_start_and_goal_are_in_different_rooms_away_from_walls_which_are_drawn_anew():
    _, info = TwoRoomVectorEnv(3000, **PUBLISHED).reset(seed=0)
    wall = info["wall"]
    assert set(wall[:, 0]) == set(range(20, 45)) and set(wall[:, 1]) == set(range(10, 55))
    side = {name: np.sign(info[name][:, 0] - wall[:, 0]) for name in ("state", "goal")}
    assert (side["state"] == -side["goal"]).all()
    assert 0.45 < (side["state"] < 0).mean() < 0.55
    for name in side:
        assert (np.abs(info[name][:, 0] - wall[:, 0]) >= 3.6 - 1e-4).all()
        assert info[name].min() >= 6.6 - 1e-4 and info[name].max() <= 57.4 + 1e-4
    assert TwoRoomEnv(random_wall=False, **PUBLISHED).reset(seed=0)[1]["wall"].tolist() == [32, 10]
    with pytest.raises(ValueError, match="goal_room is 'same'"):
        TwoRoomEnv(goal_room="same", **PUBLISHED)
    with pytest.raises(ValueError, match=r"options\['goal_room'\] is 'any'"):
        TwoRoomEnv(**PUBLISHED).reset(options={"goal_room": "any"})
    with pytest.raises(ValueError, match="rules is 'theirs'"):
        TwoRoomEnv(rules="theirs")


def test_a_seed_decides_everything_throws_included_and_lanes_are_scalar_environments():
    actions = np.random.default_rng(1).uniform([-0.4, -1], [1.6, 1], (80, 4, 2))
    vector, scalars = TwoRoomVectorEnv(4, **PUBLISHED), [TwoRoomEnv(**PUBLISHED) for _ in range(4)]
    frames, info = vector.reset(seed=7)
    singles = [env.reset(seed=7 + lane) for lane, env in enumerate(scalars)]
    for step in range(80):
        for lane, (frame, single) in enumerate(singles):
            np.testing.assert_array_equal(frames[lane], frame)
            np.testing.assert_array_equal(info["state"][lane], single["state"])
        frames, *_, info = vector.step(actions[step])
        singles = [env.step(actions[step, lane])[::4] for lane, env in enumerate(scalars)]
    other = TwoRoomEnv(**PUBLISHED)
    assert other.reset(seed=8)[1]["wall"].tolist() == info["wall"][1].tolist()


def test_a_restored_state_goes_on_in_the_same_way_with_the_same_seed_alone():
    env = TwoRoomEnv(**PUBLISHED)
    env.reset(seed=0)
    for _ in range(30):
        observation, *_, info = env.step(np.array([1.0, 0.1]))

    def go_on(seed):
        env.reset(seed=seed)
        restored, again = env.restore_state(info)
        np.testing.assert_array_equal(restored, observation)
        np.testing.assert_array_equal(again["state"], info["state"])
        return np.stack([env.step(np.array([1.0, 0.0]))[4]["state"] for _ in range(40)])

    np.testing.assert_array_equal(go_on(3), go_on(3))
    assert not np.array_equal(go_on(3), go_on(4))


def test_walls_are_green_and_the_disc_is_a_red_gaussian():
    env = TwoRoomEnv(random_wall=False, **PUBLISHED)
    image, _ = env.reset(seed=0, options={"state": [20.3, 40.8], "goal": [50, 50]})
    assert image.shape == (65, 65, 3) and not image[..., 2].any()
    y, x = np.mgrid[:65, :65]
    disc = 255 * np.exp(-((x - 20.3) ** 2 + (y - 40.8) ** 2) / (2 * 1.3**2))
    np.testing.assert_allclose(image[..., 0], np.floor(disc), atol=1)
    walls = (np.abs(x - 32) <= 1) & (np.abs(y - 10) > 4) | np.isin(x, [4, 60]) | np.isin(y, [4, 60])
    np.testing.assert_array_equal(image[..., 1], np.where(walls, 255, 0))
    at_goal, _ = TwoRoomEnv(random_wall=False, **PUBLISHED).reset(options={"state": [50, 50]})
    np.testing.assert_array_equal(env.goal_image(), at_goal)


def test_the_goal_is_reached_within_4_and_a_half_pixels_and_time_is_up_after_200_steps():
    env = gymnasium.make(TWO_ROOM_ID, **PUBLISHED)
    env.reset(seed=0, options={"state": [10, 30], "goal": [15.3, 30], "wall": [32, 10]})
    assert env.step(np.zeros(2))[1] == 0.0
    assert env.step(np.array([0.4, 0.0]))[1] == 1.0
    assert [env.step(np.zeros(2))[3] for _ in range(198)] == [False] * 197 + [True]
