"""The point maze: interface, dynamics, walls, restoring."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import jepaworld.envs
from jepaworld.envs.point_maze import CELL, LAYOUTS, SUCCESS_DISTANCE, PointMazeEnv

REST = np.zeros(2, np.float32)


def test_it_follows_gymnasiums_interface_and_is_truncated_after_300_steps():
    env = gymnasium.make(jepaworld.envs.POINT_MAZE_ID, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert [env.step(REST)[2:4] for _ in range(300)] == [(False, False)] * 299 + [(False, True)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_closed_and_connected(layout):
    cells = np.array([list(row) for row in LAYOUTS[layout]])
    assert cells.shape == (8, 8)
    assert (np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]]) == "#").all()
    free = {tuple(cell) for cell in np.argwhere(cells == ".")}
    reached, border = set(), {min(free)}
    while border:
        reached |= border
        border = {(y + a, x + b) for y, x in border for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))} & free - reached
    assert reached == free


@pytest.mark.parametrize("layout", LAYOUTS)
def test_start_and_goal_are_in_different_free_cells_and_everywhere(layout):
    env = PointMazeEnv(layout=layout)
    starts, goals = set(), set()
    for episode in range(400):
        _, info = env.reset(seed=0 if episode == 0 else None)
        start, goal = (tuple((info[name] // CELL).astype(int)) for name in ("state", "goal"))
        assert start != goal
        assert not info["success"]
        for x, y in (start, goal):
            assert LAYOUTS[layout][y][x] == "."
        starts.add(start)
        goals.add(goal)
    assert len(starts) == len(goals) == sum(row.count(".") for row in LAYOUTS[layout])


def test_a_seed_decides_everything():
    def play(seed):
        env = PointMazeEnv()
        frames = [env.reset(seed=seed)[0], env.goal_image()]
        rng = np.random.default_rng(5)
        return np.stack(frames + [env.step(rng.uniform(-1, 1, 2))[0] for _ in range(20)])

    np.testing.assert_array_equal(play(3), play(3))
    assert not np.array_equal(play(3), play(4))


def test_forces_change_the_velocity_which_friction_takes_away():
    env = PointMazeEnv(acceleration=0.5, friction=0.2)
    env.reset(options={"state": [16, 16]})
    first = env.step(np.array([1.0, -0.5]))[4]
    np.testing.assert_allclose(first["velocity"], [0.5, -0.25])
    np.testing.assert_allclose(first["state"], [16.5, 15.75])
    second = env.step(REST)[4]
    np.testing.assert_allclose(second["velocity"], [0.4, -0.2], rtol=1e-6)
    np.testing.assert_allclose(second["state"], [16.9, 15.55], rtol=1e-6)
    env.reset(options={"state": [16, 12]})
    clipped = env.step(np.array([9.0, 0.0]))[4]
    np.testing.assert_allclose(clipped["velocity"], [0.5, 0.0])


@pytest.mark.parametrize(
    ("start", "velocity", "end"),
    [
        ([16, 16], [3, 0], [19, 16]),
        ([52, 12], [5, 0], [53.5, 12]),  # the right wall begins at 56
        ([12, 12], [-5, 0], [10.5, 12]),
        ([12, 12], [0, -5], [12, 10.5]),
        ([12, 20], [0, 5], [12, 21.5]),  # the wall inside begins at 24
        ([12, 44], [0, -5], [12, 42.5]),
        ([12, 20], [2, 5], [14, 21.5]),  # slides
        ([12, 12], [0, 1000], [12, 21.5]),  # nothing is jumped over
        ([12, 44], [0, -1000], [12, 42.5]),
        ([12, 12], [1000, 0], [53.5, 12]),
        ([53.5, 12], [1, 4], [53.5, 16]),  # touching is not hitting
        ([10.5, 12], [-1, 4], [10.5, 16]),
        ([44, 32], [-5, 0], [42.5, 32]),  # in the bend
    ],
)
def test_walls_stop_the_disc_and_what_moves_into_them(start, velocity, end):
    env = PointMazeEnv(friction=1e-12)
    env.reset(options={"state": start, "velocity": velocity})
    info = env.step(REST)[4]
    np.testing.assert_allclose(info["state"], end, rtol=1e-6)
    stopped = ~np.isclose(np.subtract(end, start), velocity)
    np.testing.assert_allclose(info["velocity"], np.where(stopped, 0, velocity), rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_never_gets_into_a_wall_and_every_state_can_be_restored_exactly(layout):
    env, other = PointMazeEnv(layout=layout, acceleration=3.0), PointMazeEnv(layout=layout, acceleration=3.0)
    rng = np.random.default_rng(0)
    for episode in range(5):
        env.reset(seed=episode)
        # Long pushes, so that it runs along walls and into corners.
        for action in np.repeat(rng.uniform(-2, 2, (25, 2)), 8, axis=0):
            observation, *_, info = env.step(action)
            restored, again = other.restore_state(info)  # refuses what is in a wall
            np.testing.assert_array_equal(restored, observation)
            np.testing.assert_array_equal(again["velocity"], info["velocity"])
            np.testing.assert_array_equal(other.step(action)[4]["state"], env.step(action)[4]["state"])


def test_observation_and_rendering_are_the_same_image_without_goal_and_velocity():
    env = PointMazeEnv(render_mode="rgb_array")
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation, env.render())
    moved, _ = env.reset(options={"state": info["state"], "velocity": [1, 1], "goal": [12, 12]})
    np.testing.assert_array_equal(observation, moved)
    assert PointMazeEnv().render() is None
    assert (observation[:8] == observation[0, 0]).all()  # the wall above
    assert (observation[12, 12] != observation[0, 0]).any()


def test_the_goal_is_shown_told_and_set():
    env = PointMazeEnv()
    before, _ = env.reset(seed=0, options={"state": [12, 12], "goal": [44, 44]})
    at_goal, info = PointMazeEnv().reset(options={"state": [44, 44]})
    np.testing.assert_array_equal(env.goal_image(), at_goal)
    assert env.goal_state()["state"].tolist() == [44, 44]
    info = env.set_goal({"state": np.array([12, 11.99 + SUCCESS_DISTANCE]), "velocity": np.ones(2)})
    assert info["success"] is True
    np.testing.assert_allclose(info["goal"], [12, 15.59], rtol=1e-6)
    assert env.step(REST)[1:4] == (1.0, False, False)
    assert env.set_goal({"state": np.array([12, 12.01 + SUCCESS_DISTANCE])})["success"] is False
    assert env.step(REST)[1] == 0.0
    np.testing.assert_array_equal(env.step(REST)[0], before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.reset(options={"state": [30, 30]}), "not in free space"),
        (lambda env: env.reset(options={"state": [1, 12]}), "not in free space"),
        (lambda env: env.reset(options={"goal": [12, 999]}), r"options\['goal'\] .* not in free space"),
        (lambda env: env.reset(options={"goal": [12]}), "expected finite numbers"),
        (lambda env: env.reset(options={"velocity": [np.nan, 0]}), "expected finite numbers"),
        (lambda env: env.reset(options={"wall": [1, 1]}), "is not known; reset takes state, velocity, goal"),
        (lambda env: env.restore_state({"state": [12, 12]}), "states lack velocity"),
        (lambda env: env.set_goal({"goal": [12, 12]}), "states lack state"),
        (lambda env: env.step(np.array([np.inf, 0])), "finite action"),
        (lambda env: env.step(np.zeros(3)), "finite action"),
    ],
)
def test_what_is_impossible_is_refused(call, message):
    env = PointMazeEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        call(env)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"layout": "round"},
        {"acceleration": 0},
        {"acceleration": float("inf")},
        {"friction": 0.0},
        {"friction": 1.1},
        {"render_mode": "human"},
    ],
)
def test_impossible_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        PointMazeEnv(**kwargs)
