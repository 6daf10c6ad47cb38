"""Methods for planning: found through wrappers, added to MuJoCo and Push-T."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from jepaworld.envs.frames import MOST_DIFFERING, FrameReader, differing
from jepaworld.envs.hooks import hook
from jepaworld.envs.make import make_env
from jepaworld.envs.state import extract_state

SMALL = {"width": 64, "height": 64}


def played(env, steps, seed=3, forced=1.0):
    """State variables and the frame after some steps."""
    reader = FrameReader(env, 64, 3)
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        observation, *_, info = env.step((forced * rng.uniform(-1, 1, env.action_space.shape)).astype(np.float32))
    return extract_state(observation, info), reader(observation), info


def test_methods_are_found_through_wrappers_and_wrappers_come_first():
    env = make_env("jepaworld/TwoRoom-v0")
    assert env is not env.unwrapped
    assert hook(env, "goal_image") == env.unwrapped.goal_image
    assert hook(make_env("broken/Grey-v0"), "goal_image") is None

    class Painted(gymnasium.Wrapper):
        def goal_image(self):
            return np.zeros((64, 64, 3), np.uint8)

    assert not hook(Painted(env), "goal_image")().any()


def test_frames_are_equal_up_to_what_renderers_differ_in():
    frame = np.full((3, 64, 64), 100, np.uint8)
    assert differing(frame + np.uint8(16), frame) == differing(frame, frame + np.uint8(16)) == 0
    assert differing(frame + np.uint8(17), frame) == 1
    other = frame.copy()
    other[:, :2, :2] = 255  # four pixels
    assert differing(other, frame) <= MOST_DIFFERING
    other[:, 2, 0] = 255
    assert differing(other, frame) > MOST_DIFFERING


def test_mujoco_states_are_stored_and_restored():
    pytest.importorskip("mujoco")
    env = make_env("Reacher-v5", SMALL)
    states, frame, info = played(env, 20)
    assert (states["qpos"].shape, states["qvel"].shape) == ((4,), (4,))
    np.testing.assert_array_equal(info["qpos"], env.unwrapped.data.qpos)
    assert abs(info["qvel"]).max() > 0.1
    other = make_env("Reacher-v5", SMALL)
    _, reset_info = other.reset(seed=9)
    assert "qpos" in reset_info
    observation, restored = hook(other, "restore_state")(states)
    assert differing(FrameReader(other, 64, 3)(observation), frame) <= MOST_DIFFERING
    for name in ("qpos", "qvel"):
        np.testing.assert_allclose(restored[name], info[name], rtol=1e-6, atol=1e-7)
    action = np.array([0.5, -0.5], np.float32)
    np.testing.assert_allclose(other.step(action)[4]["qpos"], env.step(action)[4]["qpos"], atol=1e-5)
    with pytest.raises(ValueError, match="states lack qvel; there are qpos"):
        hook(other, "restore_state")({"qpos": states["qpos"]})
    env.close()
    other.close()


def test_variables_that_were_given_out_do_not_change_afterwards():
    pytest.importorskip("mujoco")
    env = make_env("Reacher-v5", SMALL)
    _, info = env.reset(seed=0)
    before = info["qpos"].copy()
    env.step(np.ones(2, np.float32))
    np.testing.assert_array_equal(info["qpos"], before)
    env.close()


def test_the_camera_does_not_depend_on_when_the_first_picture_was_made():
    pytest.importorskip("mujoco")
    early, late = make_env("Reacher-v5", SMALL), make_env("Reacher-v5", SMALL)
    early.reset(seed=0)
    early.render()
    _, frame, _ = played(early, 30)
    late.reset(seed=3)
    rng = np.random.default_rng(3)
    for _ in range(30):
        late.step(rng.uniform(-1, 1, 2).astype(np.float32))
    np.testing.assert_array_equal(FrameReader(late, 64, 3)(None), frame)
    aside = make_env("Reacher-v5", SMALL | {"default_camera_config": {"lookat": np.array([0.3, 0.0, 0.0])}})
    assert differing(played(aside, 30)[1], frame) > MOST_DIFFERING
    for env in (early, late, aside):
        env.close()


def test_environments_side_by_side_do_not_paint_into_each_others_pictures():
    pytest.importorskip("mujoco")
    env = make_env("Reacher-v5", SMALL)
    env.reset(seed=0)
    alone = env.render()
    other = make_env("InvertedPendulum-v5", {"width": 200, "height": 100})
    other.reset(seed=0)
    theirs = other.render()
    np.testing.assert_array_equal(env.render(), alone)
    np.testing.assert_array_equal(other.render(), theirs)
    other.close()
    np.testing.assert_array_equal(env.render(), alone)
    env.close()


def test_environments_that_are_known_to_be_neither_are_left_alone():
    assert hook(make_env("broken/Grey-v0"), "restore_state") is None


# --- Push-T -----------------------------------------------------------------------------------------------


@pytest.fixture
def pushed():
    """Push-T after the disc pushed the block, with its states, frame and info."""
    pytest.importorskip("gym_pusht")
    from jepaworld.data.push_t_policy import NearBlockPolicy

    env = make_env("jepaworld/PushT-v0")
    policy = NearBlockPolicy(env.action_space)
    env.action_space.seed(0)
    observation, info = env.reset(seed=4)
    start = info["block_pose"].copy()
    for _ in range(60):
        observation, *_, info = env.step(policy(observation))
    assert np.linalg.norm(info["block_pose"][:2] - start[:2]) > 20
    return env, extract_state(observation, info), FrameReader(env, 64, 3)(observation), info


def test_push_t_is_restored_wherever_it_was(pushed):
    env, states, frame, info = pushed
    other = make_env("jepaworld/PushT-v0")
    for seed in (1, 2):
        other.reset(seed=seed)
        observation, restored = hook(other, "restore_state")(states)
        assert differing(FrameReader(other, 64, 3)(observation), frame) <= MOST_DIFFERING
        for name in ("pos_agent", "vel_agent", "block_pose", "block_velocity"):
            np.testing.assert_allclose(restored[name], info[name], rtol=1e-4, atol=1e-4, err_msg=name)
        assert "n_contacts" not in restored
    for _ in range(5):
        action = np.array([0.1, -0.1], np.float32)
        moved, expected = other.step(action)[4], env.step(action)[4]
    np.testing.assert_allclose(moved["pos_agent"], expected["pos_agent"], atol=1e-3)
    np.testing.assert_allclose(moved["block_pose"], expected["block_pose"], atol=0.5)
    with pytest.raises(ValueError, match="states lack block_velocity"):
        hook(other, "restore_state")({n: v for n, v in states.items() if n != "block_velocity"})


def test_the_mark_of_the_last_action_is_not_in_the_picture():
    pytest.importorskip("gym_pusht")
    env = make_env("gym_pusht/PushT-v0")
    env.reset(seed=0)
    env.step(np.array([500.0, 10.0], np.float32))
    red = lambda image: int(((image[..., 0] > 200) & (image[..., 1:] < 50).all(axis=2)).sum())  # noqa: E731
    assert red(env.render()) == 0
    env.unwrapped._last_action = np.array([500.0, 10.0])
    assert red(env.unwrapped.render()) > 0  # there is such a mark


def test_relative_actions_draw_the_disc_from_where_it_is_and_are_clipped():
    pytest.importorskip("gym_pusht")
    env = make_env("jepaworld/PushT-v0", {"reach": 40.0})
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    absolute = make_env("gym_pusht/PushT-v0")
    _, info = env.reset(seed=1)
    absolute.reset(seed=1)
    for action in ([1.0, 0.0], [-0.5, 7.0], [0.0, -1.0]):
        target = np.clip(info["pos_agent"] + 40.0 * np.clip(action, -1, 1), 0, 512)
        *_, info = env.step(np.array(action, np.float32))
        expected = absolute.step(target)[4]["pos_agent"]
        np.testing.assert_allclose(info["pos_agent"], expected, rtol=1e-12)
    for _ in range(40):
        *_, info = env.step(np.array([1.0, 0.0], np.float32))
    assert info["pos_agent"][0] <= 512


@pytest.mark.parametrize("reach", [0, -3.0, float("inf"), "far"])
def test_an_impossible_reach_is_refused(reach):
    from jepaworld.envs.push_t import make_push_t

    with pytest.raises(ValueError, match="reach is"):
        make_push_t(reach=reach)


def test_the_policy_pushes_the_block_in_most_episodes_and_is_decided_by_its_generator():
    pytest.importorskip("gym_pusht")
    from jepaworld.config.schema import CollectionConfig
    from jepaworld.data.policies import make_policy

    env = make_env("jepaworld/PushT-v0")
    policy = make_policy(CollectionConfig(policy="jepaworld.envs.push_t:NearBlockPolicy"), env.action_space)

    def play(seed):
        observation, info = env.reset(seed=seed)
        policy.reset(np.random.default_rng(seed))
        start, farthest = info["block_pose"][:2].copy(), 0.0
        for _ in range(100):
            observation, _, _, _, info = env.step(policy.act(observation))
            farthest = max(farthest, float(np.linalg.norm(info["block_pose"][:2] - start)))
        return farthest

    moved = [play(seed) for seed in range(12)]
    assert sum(distance > 20 for distance in moved) >= 11
    assert play(0) == moved[0]


def test_the_policy_is_refused_elsewhere():
    from jepaworld.data.push_t_policy import NearBlockPolicy

    with pytest.raises(ValueError, match=r"is for jepaworld/PushT-v0"):
        NearBlockPolicy(gymnasium.spaces.Box(0.0, 512.0, (2,), np.float32))
