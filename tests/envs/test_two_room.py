"""The environments around the two rooms: interface, seeds, restoring, rewards."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import jepaworld.envs
from jepaworld.envs.two_room import TwoRoomEnv, TwoRoomVectorEnv

VARIANTS = [{}, {"random_wall": True, "goal_room": "other"}, {"max_speed": 1000.0, "random_wall": True}]


def test_it_follows_gymnasiums_interface():
    env = gymnasium.make(jepaworld.envs.TWO_ROOM_ID, render_mode="rgb_array")
    check_env(env.unwrapped)
    env.close()


def test_it_is_found_without_an_import_through_its_module():
    code = 'import gymnasium; gymnasium.make("jepaworld.envs:jepaworld/TwoRoom-v0").reset(seed=0)'
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_importing_the_package_makes_it_known_whatever_the_program_is_called():
    code = "import sys; sys.argv = ['jepaworld']; import jepaworld, gymnasium; gymnasium.spec('jepaworld/TwoRoom-v0')"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_it_is_registered_once():
    before = gymnasium.spec(jepaworld.envs.TWO_ROOM_ID)
    jepaworld.envs.register()
    assert gymnasium.spec(jepaworld.envs.TWO_ROOM_ID) is before


def test_gymnasium_truncates_after_200_steps():
    env = gymnasium.make(jepaworld.envs.TWO_ROOM_ID)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_every_lane_equals_the_scalar_environment_bit_for_bit(kwargs):
    lanes, steps = 7, 60
    actions = np.random.default_rng(0).uniform(-1.2, 1.2, (steps, lanes, 2)).astype(np.float32)
    vector = gymnasium.make_vec(
        jepaworld.envs.TWO_ROOM_ID,
        lanes,
        vectorization_mode="vector_entry_point",
        max_episode_steps=50,
        **kwargs,
    )
    scalars = [gymnasium.make(jepaworld.envs.TWO_ROOM_ID, max_episode_steps=50, **kwargs) for _ in range(lanes)]
    for episode in range(2):  # the second one goes on from the lanes' generators
        seed = 11 if episode == 0 else None
        observations, infos = vector.reset(seed=seed)
        for lane, env in enumerate(scalars):
            single = env.reset(seed=None if seed is None else seed + lane)
            assert_lane_equals(lane, (observations, infos), single)
        for step in range(steps):
            observations, rewards, terminated, truncated, infos = vector.step(actions[step])
            for lane, env in enumerate(scalars):
                observation, reward, *ends, info = env.step(actions[step, lane])
                assert_lane_equals(lane, (observations, infos), (observation, info))
                assert (rewards[lane], [terminated[lane], truncated[lane]]) == (reward, ends)


def assert_lane_equals(lane, batch, single):
    np.testing.assert_array_equal(batch[0][lane], single[0])
    for name, value in single[1].items():
        np.testing.assert_array_equal(batch[1][name][lane], value, err_msg=name)
        assert batch[1][f"_{name}"][lane]


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_a_seed_decides_everything(kwargs):
    def play(seed):
        env = TwoRoomEnv(**kwargs)
        frames = [env.reset(seed=seed)[0]]
        actions = np.random.default_rng(5).uniform(-1, 1, (20, 2))
        return np.stack(frames + [env.step(action)[0] for action in actions])

    np.testing.assert_array_equal(play(3), play(3))
    assert not np.array_equal(play(3), play(4))


def test_observation_and_rendering_are_the_same_image_and_the_goal_is_not_in_it():
    env = TwoRoomEnv(render_mode="rgb_array")
    observation, info = env.reset(seed=0)
    np.testing.assert_array_equal(observation, env.render())
    moved, _ = env.reset(seed=1, options={"state": info["state"], "goal": [10, 10]})
    np.testing.assert_array_equal(observation, moved)
    assert TwoRoomEnv().render() is None


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_a_state_is_restored_exactly(kwargs):
    env = TwoRoomEnv(**kwargs)
    env.reset(seed=0)
    for _ in range(10):
        observation, *_, info = env.step(env.action_space.sample())
    saved = {name: info[name].copy() for name in ("state", "goal", "wall")}
    action = np.array([0.3, -0.7], np.float32)
    expected = env.step(action)[0]
    other = TwoRoomEnv(**kwargs)
    restored, restored_info = other.reset(seed=99, options=saved)
    np.testing.assert_array_equal(restored, observation)
    for name, value in saved.items():
        np.testing.assert_array_equal(restored_info[name], value)
    np.testing.assert_array_equal(other.step(action)[0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": [32, 10]}, r"options\['state'\] = \[32.0, 10.0\] is not in free space"),
        ({"goal": [2, 30]}, r"options\['goal'\] = \[2.0, 30.0\] is not in free space"),
        ({"state": [np.nan, 30]}, "expected finite numbers"),
        ({"wall": [3, 30]}, r"options\['wall'\] = \[3.0, 30.0\] is not possible"),
        ({"state": [10, 10, 10]}, r"\[10, 10, 10\]; expected finite numbers, \(2,\)"),
        ({"position": [10, 10]}, r"options\['position'\] is not known; reset takes state, goal, wall, goal_room"),
        ({"goal_room": "left"}, r"options\['goal_room'\] is 'left'; it must be one of any, other, same"),
    ],
)
def test_impossible_options_are_refused_and_change_nothing(options, message):
    env = TwoRoomEnv()
    env.reset(seed=0)
    before = env.step(np.zeros(2))[0]
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    np.testing.assert_array_equal(env.step(np.zeros(2))[0], before)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_speed": 0},
        {"max_speed": float("nan")},
        {"max_speed": "fast"},
        {"goal_room": "left"},
        {"render_mode": "human"},
    ],
)
@pytest.mark.parametrize("kind", [TwoRoomEnv, TwoRoomVectorEnv])
def test_impossible_arguments_are_refused(kind, kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        kind(**kwargs)


@pytest.mark.parametrize("action", [[np.nan, 0], [0.0], [[0.0, 0.0]]])
def test_impossible_actions_are_refused(action):
    env = TwoRoomEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="finite actions"):
        env.step(np.array(action))


@pytest.mark.parametrize(("goal_room", "share"), [("same", 0.0), ("other", 1.0)])
def test_goals_are_in_the_room_asked_for(goal_room, share):
    env = TwoRoomVectorEnv(500, random_wall=True, goal_room=goal_room)
    _, info = env.reset(seed=0)
    middle = info["wall"][:, 0]
    assert ((info["state"][:, 0] < middle) != (info["goal"][:, 0] < middle)).mean() == share


def test_goals_are_anywhere_by_default():
    _, info = TwoRoomVectorEnv(2000).reset(seed=0)
    apart = (info["state"][:, 0] < 32) != (info["goal"][:, 0] < 32)
    assert 0.45 < apart.mean() < 0.55
    assert (info["wall"] == [32, 32]).all()


def test_walls_are_drawn_anew_in_every_episode_and_a_given_wall_lasts_for_one():
    env = TwoRoomEnv(random_wall=True)
    walls = {tuple(env.reset(seed=0 if i == 0 else None)[1]["wall"]) for i in range(20)}
    assert len(walls) > 15
    fixed = TwoRoomEnv()
    assert fixed.reset(seed=0, options={"wall": [20, 20]})[1]["wall"].tolist() == [20, 20]
    assert fixed.reset()[1]["wall"].tolist() == [32, 32]


def test_reward_is_given_at_the_goal_and_the_episode_goes_on():
    for terminate in (False, True):
        env = TwoRoomEnv(terminate_on_success=terminate)
        _, info = env.reset(seed=0, options={"state": [10, 10], "goal": [16, 10]})
        assert info["success"] is False  # 6 px away
        _, reward, terminated, _, info = env.step(np.array([0.5, 0.0]))
        assert (reward, terminated, info["success"]) == (0.0, False, False)  # 4.75 px
        _, reward, terminated, _, info = env.step(np.array([0.1, 0.0]))
        assert (reward, terminated, info["success"]) == (1.0, terminate, True)  # 4.5 px


def test_actions_are_velocities_in_units_of_max_speed_and_clipped():
    env = TwoRoomEnv(max_speed=3.0)
    env.reset(seed=0, options={"state": [10, 10]})
    assert env.step(np.array([0.5, 1.0]))[4]["state"].tolist() == [11.5, 13]
    assert env.step(np.array([7.0, 0.0]))[4]["state"].tolist() == [14.5, 13]


def test_the_goal_is_shown_without_moving_the_agent():
    env = TwoRoomEnv(random_wall=True)
    before, info = env.reset(seed=0)
    goal = env.goal_image()
    np.testing.assert_array_equal(env.step(np.zeros(2))[0], before)
    there, _ = env.reset(options={"state": info["goal"], "goal": info["goal"], "wall": info["wall"]})
    np.testing.assert_array_equal(goal, there)


def test_a_reset_may_ask_for_another_room_than_the_argument_and_changes_nothing_else():
    env, plain = TwoRoomEnv(goal_room="same", random_wall=True), TwoRoomEnv(goal_room="other", random_wall=True)
    for seed in range(20):
        _, info = env.reset(seed=seed, options={"goal_room": "other"})
        _, expected = plain.reset(seed=seed)
        for name in ("state", "goal", "wall"):
            np.testing.assert_array_equal(info[name], expected[name])
        _, after = env.reset(seed=seed)  # for one episode only
        assert (after["state"][0] < after["wall"][0]) == (after["goal"][0] < after["wall"][0])
    lanes, plain = TwoRoomVectorEnv(4, goal_room="same"), TwoRoomVectorEnv(4, goal_room="other")
    np.testing.assert_array_equal(
        lanes.reset(seed=0, options={"goal_room": "other"})[1]["goal"], plain.reset(seed=0)[1]["goal"]
    )


def test_it_offers_what_planning_can_use():
    env, other = TwoRoomEnv(random_wall=True), TwoRoomEnv()
    env.reset(seed=0)
    for _ in range(10):
        observation, *_, info = env.step(np.array([0.5, 0.3]))
    restored, restored_info = other.restore_state(info | {"success": 1.0})
    np.testing.assert_array_equal(restored, observation)
    np.testing.assert_array_equal(other.goal_image(), env.goal_image())
    assert {name: value.tolist() for name, value in env.goal_state().items()} == {
        "state": info["goal"].tolist(),
        "wall": info["wall"].tolist(),
    }
    near = info["state"] + np.array([0, 4.4], np.float32)
    assert restored_info["success"] is False
    told = other.set_goal({"state": near, "wall": info["wall"]})
    assert told["success"] is True
    np.testing.assert_array_equal(told["goal"], near)
    assert other.step(np.zeros(2))[1] == 1.0
    for call, message in [
        (lambda: other.set_goal({"state": info["wall"] - [0, 20]}), "not in free space"),
        (lambda: other.set_goal({"goal": [10, 10]}), "states lack state"),
        (lambda: other.restore_state({"wall": [30, 30]}), "states lack state"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    np.testing.assert_array_equal(other.goal_state()["state"], near)


# --- lanes ---------------------------------------------------------------------------------------------


def test_lanes_can_be_reset_alone():
    env = TwoRoomVectorEnv(4, max_episode_steps=3)
    env.reset(seed=0)
    for _ in range(3):
        *_, truncated, info = env.step(np.full((4, 2), 0.1))
    assert truncated.all()
    mask = np.array([True, False, False, True])
    _, after = env.reset(seed=[5, 6, 7, 8], options={"reset_mask": mask})
    np.testing.assert_array_equal(after["state"][1:3], info["state"][1:3])
    assert (env.step(np.zeros((4, 2)))[3] == ~mask).all()
    np.testing.assert_array_equal(after["state"][3], TwoRoomEnv().reset(seed=8)[1]["state"])
    _, after = env.reset(seed=list(np.arange(5, 9)))  # seeds of numpy's type are seeds too
    np.testing.assert_array_equal(after["state"][3], TwoRoomEnv().reset(seed=8)[1]["state"])


def test_lanes_are_restored_from_rows_or_from_one_state_for_all():
    env = TwoRoomVectorEnv(3)
    states = np.array([[10, 10], [20, 20], [50, 50]], np.float32)
    _, info = env.reset(seed=0, options={"state": states, "goal": [12, 12]})
    np.testing.assert_array_equal(info["state"], states)
    np.testing.assert_array_equal(info["goal"], [[12, 12]] * 3)
    frames = env.frames_chw(info["goal"])
    np.testing.assert_array_equal(frames[0], frames[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": [1, 2]}, "seed has 2 entries for 3 lanes"),
        ({"options": {"reset_mask": np.array([1, 0, 1])}}, "reset_mask"),
        ({"options": {"reset_mask": np.zeros(3, bool)}}, "reset_mask"),
        ({"options": {"state": np.zeros((2, 2))}}, r"expected finite numbers, \(2,\) or \(3, 2\)"),
    ],
)
def test_impossible_resets_of_lanes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TwoRoomVectorEnv(3).reset(**arguments)


def test_a_vector_environment_has_lanes():
    with pytest.raises(ValueError, match="num_envs is 0"):
        TwoRoomVectorEnv(0)


def test_lanes_declare_what_the_collector_relies_on():
    assert TwoRoomVectorEnv.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert TwoRoomVectorEnv(1).fixed_length
    assert not TwoRoomVectorEnv(1, terminate_on_success=True).fixed_length


def test_returned_arrays_are_not_reused():
    env = TwoRoomVectorEnv(2, render_mode="rgb_array")
    observations, info = env.reset(seed=0)
    kept = observations.copy(), info["state"].copy()
    stepped = env.step(np.ones((2, 2)))[4]["state"]
    kept_step = stepped.copy()
    env.reset(seed=1)
    np.testing.assert_array_equal(observations, kept[0])
    np.testing.assert_array_equal(info["state"], kept[1])
    np.testing.assert_array_equal(stepped, kept_step)
    np.testing.assert_array_equal(np.stack(env.render()), env.frames_chw().transpose(0, 2, 3, 1))


def test_frames_are_painted_only_when_wanted():
    env, twin = TwoRoomVectorEnv(3), TwoRoomVectorEnv(3)
    env.reset(seed=0)
    twin.reset(seed=0)
    actions = np.full((3, 2), 0.7)
    rewards, terminated, truncated, info = env.advance(actions)
    observations, *rest, twin_info = twin.step(actions)
    for ours, theirs in zip((rewards, terminated, truncated), rest, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(info["state"], twin_info["state"])
    np.testing.assert_array_equal(env.frames_chw().transpose(0, 2, 3, 1), observations)
