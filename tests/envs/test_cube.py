"""OGBench's cube: exact states, a camera that stands still, and a policy that carries the cube. Needs `ogbench`."""

from __future__ import annotations

import importlib.util
import sys

import gymnasium
import numpy as np
import pytest

from jepaworld.config.schema import CollectionConfig
from jepaworld.data.cube_policy import PickAndPlacePolicy
from jepaworld.data.policies import make_policy
from jepaworld.envs.conformance import check_env
from jepaworld.envs.frames import MOST_DIFFERING, FrameReader, differing
from jepaworld.envs.hooks import hook
from jepaworld.envs.make import make_env
from jepaworld.envs.state import extract_state
from jepaworld.errors import EnvironmentNotUsableError

NAME, POLICY = "jepaworld/Cube-v0", "jepaworld.data.cube_policy:PickAndPlacePolicy"
needs_ogbench = pytest.mark.skipif(importlib.util.find_spec("ogbench") is None, reason="needs the extra ogbench")


def _played(env, seed, steps, **kwargs):
    """Observations, infos and actions of the policy's play, those of the reset first."""
    policy = make_policy(CollectionConfig(policy=POLICY, policy_kwargs=kwargs), env.action_space)
    np.random.seed(seed)  # noqa: NPY002 (as collection does; the oracle draws from it)
    policy.reset(np.random.default_rng(seed))
    observation, info = env.reset(seed=seed)
    observations, infos, actions = [observation], [info], []
    for _ in range(steps):
        actions.append(policy.act(observation))
        observation, *_, info = env.step(actions[-1])
        observations.append(observation)
        infos.append(info)
    return observations, infos, actions


@needs_ogbench
def test_a_seed_decides_an_episode_and_its_policy():
    env, other = make_env(NAME, {"size": 32}), make_env(NAME, {"size": 32})
    other.reset(seed=9)  # which leaves nothing behind
    other.step(other.action_space.sample())
    first, second = _played(env, 3, 20), _played(other, 3, 20)
    for a, b in zip(first[0] + first[2], second[0] + second[2], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(env.render(), other.render())
    assert not np.allclose(env.reset(seed=4)[1]["cube_position"], first[1][0]["cube_position"])


@needs_ogbench
def test_the_oracle_carries_the_cube_in_every_episode():
    env = make_env(NAME, {"size": 32})
    for seed in range(4):
        positions = np.array([info["cube_position"] for info in _played(env, seed, 120)[1]])
        assert positions[:, 2].max() > 0.06, "lifted"
        assert np.linalg.norm(positions[-1, :2] - positions[0, :2]) > 0.04, "carried"


@needs_ogbench
def test_a_state_is_restored_with_its_frame_and_goes_on_as_it_did():
    env, other = make_env(NAME, {"size": 48}), make_env(NAME, {"size": 48})
    _, infos, actions = _played(env, 0, 120)
    held = next(step for step, info in enumerate(infos) if info["cube_position"][2] > 0.06)
    observation, info = env.reset(seed=0)
    for action in actions[:held]:
        observation, *_, info = env.step(action)
    np.testing.assert_array_equal(info["qpos"], infos[held]["qpos"])  # an episode is replayed from its actions
    frame = FrameReader(env, 48, 3)(observation)
    other.reset(seed=1)
    _, restored = hook(other, "restore_state")(extract_state(observation, info))
    assert differing(FrameReader(other, 48, 3)(observation), frame) <= MOST_DIFFERING
    assert set(restored) == set(info)
    for name, value in info.items():
        np.testing.assert_allclose(restored[name], value, atol=1e-5, err_msg=name)
    for action in actions[held : held + 10]:
        *_, restored = other.step(action)
    np.testing.assert_allclose(restored["effector_position"], infos[held + 10]["effector_position"], atol=1e-3)
    np.testing.assert_allclose(restored["cube_position"], infos[held + 10]["cube_position"], atol=0.01)
    with pytest.raises(ValueError, match="states lack qvel"):
        hook(other, "restore_state")({"qpos": info["qpos"]})


@needs_ogbench
def test_the_observation_says_what_the_state_variables_say():
    env = make_env(NAME)
    observations, infos, _ = _played(env, 1, 3)
    for observation, info in zip(observations, infos, strict=True):
        assert observation in env.observation_space
        np.testing.assert_array_equal(observation[:3], info["effector_position"])
        np.testing.assert_array_equal(observation[6:9], info["cube_position"])
        np.testing.assert_array_equal(info["qpos"][14:], [*info["cube_position"], *info["cube_orientation"]])
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
    before = infos[-1]["effector_position"]
    for _ in range(4):  # values outside are clipped
        *_, info = env.step(np.array([0.0, 7.0, 0.0, 0.0, 0.0], np.float32))
    assert 0.05 < info["effector_position"][1] - before[1] < 0.2
    with pytest.raises(ValueError, match="action"):
        env.step(np.full(5, np.nan, np.float32))


@needs_ogbench
def test_the_environment_conforms(monkeypatch):
    monkeypatch.setattr("jepaworld.envs.conformance._PLAY_STEPS", 3)  # drawing is slow without a GPU
    report = check_env(NAME, {"size": 48}, 48)
    assert {finding.name for finding in report.findings if finding.level != "ok"} <= {"end", "speed"}, str(report)


@needs_ogbench
def test_targets_are_of_the_generator():
    carried = np.array([0.4, 0.0, 0.2, 0.0, 0.5, 1.0, 0.4, 0.0, 0.2, 0.0])  # a cube that is held up goes to the target
    actions = []
    for seed, elsewhere in ((0, 0), (0, 1), (1, 0)):
        space = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32, seed=seed)
        np.random.seed(elsewhere)  # noqa: NPY002
        actions.append(PickAndPlacePolicy(space, 0.0)(carried))
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.array_equal(actions[0], actions[2])


@needs_ogbench
def test_noise_is_of_the_generator_and_can_be_left_out():
    env = make_env(NAME, {"size": 32})
    exact, again, noisy = (_played(env, 5, 4, noise=noise)[2] for noise in (0.0, 0, 0.5))
    np.testing.assert_array_equal(exact, again)
    assert not np.array_equal(exact, noisy)


@pytest.mark.parametrize(
    ("space", "noise", "message"),
    [
        (gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), 0.1, "is for jepaworld/Cube-v0"),
        (gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32), -0.1, "noise is -0.1"),
        (gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32), float("nan"), "noise is nan"),
    ],
)
def test_what_the_policy_cannot_use_is_refused(space, noise, message):
    with pytest.raises(ValueError, match=message):
        PickAndPlacePolicy(space, noise)


def test_without_its_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ogbench.manipspace.envs.cube_env", None)
    with pytest.raises(EnvironmentNotUsableError, match=r'lacks a dependency.*pip install "jepaworld\[ogbench\]"'):
        make_env(NAME, {})
