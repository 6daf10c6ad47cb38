"""The policy of Two Rooms by the published rules: its steps, its turns, and its episodes through the door."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from jepaworld.config.schema import CollectionConfig
from jepaworld.data.policies import make_policy
from jepaworld.data.two_room_policy import DoorPolicy
from jepaworld.envs import TWO_ROOM_ID

SPACE = Box(-1.0, 1.0, (2,), np.float32)


def play(env, episode, **kwargs):
    """The steps that an episode asks for, in pixels (90, 2), and in which of its frames it is in the other room."""
    name = "jepaworld.data.two_room_policy:DoorPolicy"
    policy = make_policy(CollectionConfig(policy=name, policy_kwargs=kwargs), env.action_space)
    policy.reset(np.random.default_rng(episode))
    observation, info = env.reset(seed=episode)
    on_left = lambda: info["state"][0] < info["wall"][0]  # noqa: E731
    start, other, steps = on_left(), [], []
    for _ in range(90):
        steps.append(2.45 * policy.act(observation))
        observation, *_, info = env.step(steps[-1] / 2.45)
        other.append(on_left() != start)
    return np.stack(steps), other


@pytest.fixture(scope="module")
def env():
    return gymnasium.make(TWO_ROOM_ID, rules="published")


def test_steps_and_turns_are_those_of_the_published_data(env):
    walks = np.stack([play(env, episode, crossing_share=0.0)[0] for episode in range(40)])
    lengths = np.linalg.norm(walks, axis=-1)
    assert lengths.min() >= 0.2 - 1e-5 and lengths.max() <= 1.8 + 1e-5
    # Normal, 1.0 ± 0.4, without its tails: not cut to the bounds, where many would then be.
    assert lengths.mean() == pytest.approx(1.0, abs=0.02) and lengths.std() == pytest.approx(0.351, abs=0.015)
    assert (np.abs(lengths - 1.0) > 0.79).mean() < 0.01
    headings = np.arctan2(walks[..., 1], walks[..., 0])
    turns = np.exp(1j * np.diff(headings, axis=1))
    assert turns.mean().real == pytest.approx(0.8934, abs=0.01)  # I1(5) / I0(5) of the von Mises distribution
    assert abs(turns.mean().imag) < 0.03
    assert abs(np.exp(1j * headings[:, 0]).mean()) < 0.4, "walks begin in any direction"
    straighter = np.exp(1j * np.diff(np.arctan2(*play(env, 0, crossing_share=0.0, concentration=100.0)[0].T[::-1])))
    assert straighter.mean().real > 0.98


def test_an_episode_that_is_made_to_cross_gets_into_the_other_room(env):
    crossing = [play(env, episode, crossing_share=1.0)[1] for episode in range(40)]
    assert sum(any(other) for other in crossing) >= 38
    assert sum(other[-1] for other in crossing) >= 35, "it stays there"
    assert sum(any(play(env, episode, crossing_share=0.0)[1]) for episode in range(40)) <= 12


def test_a_third_of_the_episodes_are_made_to_cross(env):
    observation, _ = env.reset(seed=0)
    space, made = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32, seed=0), 0
    policy = DoorPolicy(space)
    for _ in range(2000):
        policy.reset()
        policy(observation)
        made += bool(policy._way)
    assert 0.31 < made / 2000 < 0.39


def test_everything_random_is_the_generators(env):
    np.testing.assert_array_equal(play(env, 5)[0], play(env, 5)[0])
    assert not np.array_equal(play(env, 5)[0], play(env, 6)[0])


def test_it_is_refused_elsewhere():
    with pytest.raises(ValueError, match="is for jepaworld/TwoRoom-v0"):
        DoorPolicy(Box(0.0, 512.0, (2,), np.float32))
    with pytest.raises(ValueError, match="rules: published"):
        DoorPolicy(SPACE)(np.zeros((64, 64, 3), np.uint8))
    for kwargs in ({"crossing_share": 1.1}, {"concentration": 0.0}):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            DoorPolicy(SPACE, **kwargs)
