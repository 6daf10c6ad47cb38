"""Playing episodes: what happens in the environment becomes the arrays that a dataset stores.

`T` transitions, `N` lanes (episodes played side by side), `k` environment steps in a transition
(frame_skipping).

A frame is stored every `k` steps, together with the block of `k` actions played until the next one and the
sum of their rewards. An episode that ends inside a block is stored up to its end: the block is filled up by
repeating the last action played, and its frame is the final one. An episode that reaches the longest length
allowed ends as truncated, whatever the environment says.
"""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from jepaworld.config import Config
from jepaworld.data.manifest import Manifest
from jepaworld.data.policies import BUILT_IN, Policy, RandomPolicy, make_policy
from jepaworld.data.store import Episode
from jepaworld.envs.pixels import FrameReader, VectorFrameReader, make_env, make_vector_env
from jepaworld.envs.seeding import episode_seeds, seed_everything_else
from jepaworld.envs.state import extract_state
from jepaworld.errors import DatasetError, EnvironmentNotUsableError, JepaworldError

States = dict[str, np.ndarray]


def play_shard(config: Config, manifest: Manifest, first: int, count: int) -> Generator[Episode, None, None]:
    """Play `count` episodes from episode `first` on.

    Environment and policy are made anew for each shard, so that nothing a badly behaved one carries over from
    episode to episode makes the data depend on which process played what before.

    Raises:
        EnvironmentNotUsableError, ConfigError: the environment or the policy failed.
        DatasetError: a state variable changed its shape.
    """
    if config.collection.policy in BUILT_IN and config.collection.frame_source != "render":
        lanes = make_vector_env(config.environment_name, config.environment_kwargs, count)
        if lanes is not None:
            with closing(lanes):
                history = _play_lanes(lanes, config, manifest, first)
            if history is not None:
                yield from history
                return
    with closing(make_env(config.environment_name, config.environment_kwargs)) as env:
        policy = make_policy(config.collection, env.action_space)
        reader = FrameReader(env, config.image_size, config.input_channels, config.collection.frame_source)
        for episode in range(first, first + count):
            history = _play(env, policy, config, episode, reader)
            yield history.as_episode(manifest, episode)


def discover_state_variables(config: Config, env: gym.Env[Any, Any]) -> dict[str, list[int]]:
    """Name and shape of each state variable: those with one shape at every frame of the first episode.

    A variable that a later episode lacks is stored as NaN there; one that appears later is not stored.

    Args:
        config: settings of the collection.
        env: the environment; it is stepped through the first episode without reading frames.
    """
    history = _play(env, make_policy(config.collection, env.action_space), config, 0, reader=None)
    first, *others = history.states
    return {
        name: list(value.shape)
        for name, value in sorted(first.items())
        if value.size and all(name in other and other[name].shape == value.shape for other in others)
    }


class _History:
    """What was seen and done in one episode so far."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.states: list[States] = []
        self.blocks: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.terminated: list[bool] = []
        self.truncated: list[bool] = []

    def as_episode(self, manifest: Manifest, number: int) -> Episode:
        return Episode(
            frames=np.stack(self.frames),
            actions=np.stack(self.blocks),
            rewards=np.array(self.rewards, np.float32),
            terminated=np.array(self.terminated),
            truncated=np.array(self.truncated),
            states={
                name: self._state_rows(name, tuple(shape), number) for name, shape in manifest.state_variables.items()
            },
        )

    def _state_rows(self, name: str, shape: tuple[int, ...], number: int) -> np.ndarray:
        rows = np.full((len(self.states), *shape), np.nan, np.float32)
        for row, state in enumerate(self.states):
            value = state.get(name)
            if value is None:
                continue
            if value.shape != shape:
                raise DatasetError(
                    f"state variable {name} of the environment has shape {value.shape} in episode {number}, "
                    f"but {shape} in episode 0. Give it one shape, or leave it out of the environment's info "
                    "and observation."
                )
            rows[row] = value
        return rows


def _play(env: gym.Env[Any, Any], policy: Policy, config: Config, episode: int, reader: FrameReader | None) -> _History:
    """Play one episode; without a reader nothing but states is recorded of what is seen."""
    seeds = episode_seeds(config.dataset_seed, episode)
    seed_everything_else(seeds.everything_else)
    policy.reset(seeds.policy)
    history = _History()
    skip = config.frame_skipping
    blocks = config.max_steps_per_episode_data_collection // skip

    def record(observation: Any, info: dict[str, Any]) -> None:
        if reader is not None:
            history.frames.append(reader(observation))
        history.states.append(extract_state(observation, info))

    with _environment_errors(config.environment_name, episode):
        observation, info = env.reset(seed=seeds.environment)
        record(observation, info)
        ended = False
        while not ended and len(history.blocks) < blocks:
            block: list[Any] = []
            reward_sum, terminated, truncated = 0.0, False, False
            while len(block) < skip and not ended:
                action = policy.act(observation)
                block.append(np.array(action))  # a copy, as the environment may write into what it is given
                observation, reward, terminated, truncated, info = env.step(action)
                reward_sum += float(reward)
                ended = bool(terminated or truncated)
            block += block[-1:] * (skip - len(block))
            history.blocks.append(np.stack(block).reshape(-1))
            history.rewards.append(reward_sum)
            history.terminated.append(bool(terminated))
            history.truncated.append(bool(truncated) or (not ended and len(history.blocks) == blocks))
            record(observation, info)
    return history


def _play_lanes(
    env: VectorEnv[Any, Any, Any], config: Config, manifest: Manifest, first: int
) -> Iterator[Episode] | None:
    """Play one episode in each lane, all at once; bit for bit what `_play` gives for the same episodes.

    The lanes of `make_vector_env` end together. `None` where the environment's vector version does not give
    all state variables, which takes playing the episodes one by one.
    """
    seeds = [episode_seeds(config.dataset_seed, first + lane) for lane in range(env.num_envs)]
    lane_seeds: Any = [seed.environment for seed in seeds]  # the interface's annotation knows single seeds only
    skip = config.frame_skipping
    blocks = config.max_steps_per_episode_data_collection // skip
    smoothness = config.collection.smoothness if config.collection.policy == "smooth_random" else 0.0
    policy = RandomPolicy(env.single_action_space, smoothness)
    # (N, steps, *shape)
    actions = np.stack([policy.sequence(seed.policy, blocks * skip) for seed in seeds])
    read_frames = VectorFrameReader(env, config.image_size, config.input_channels)
    advance = getattr(env.unwrapped, "advance", None)  # a step without observations, where there is one
    frame_shape = (config.input_channels, config.image_size, config.image_size)
    frames = np.empty((env.num_envs, blocks + 1, *frame_shape), np.uint8)
    # Lists over time of arrays over lanes.
    states: list[States] = []
    played: list[np.ndarray] = []
    rewards: list[np.ndarray] = []
    ends: list[tuple[np.ndarray, np.ndarray]] = []
    with _environment_errors(config.environment_name, first):
        observations, info = env.reset(seed=lane_seeds)
        frames[:, 0] = read_frames(observations)
        states.append(extract_state(None, info))
        if not _covers(states[0], manifest, env.num_envs):
            return None
        ended = False
        while not ended and len(played) < blocks:
            begin = step = len(played) * skip
            reward_sum = np.zeros(env.num_envs)
            terminated = truncated = np.zeros(env.num_envs, np.bool_)
            while step < begin + skip and not ended:
                if advance is None:
                    observations, reward, terminated, truncated, info = env.step(actions[:, step])
                else:
                    reward, terminated, truncated, info = advance(actions[:, step])
                reward_sum += reward
                step += 1
                ended = bool((terminated | truncated).any())
            assert not ended or (terminated | truncated).all(), "lanes of fixed length end together"
            block = actions[:, begin : begin + skip].copy()
            block[:, step - begin :] = block[:, step - begin - 1, None]
            played.append(block.reshape(env.num_envs, -1))
            rewards.append(reward_sum)
            ends.append((terminated, truncated | (not ended and len(played) == blocks)))
            frames[:, len(played)] = read_frames(observations)
            states.append(extract_state(None, info))
    over_lanes = {name: np.stack([row[name] for row in states], axis=1) for name in manifest.state_variables}
    blocks_played, rewards_summed = np.stack(played, axis=1), np.stack(rewards, axis=1).astype(np.float32)
    all_terminated, all_truncated = (np.stack(rows, axis=1) for rows in zip(*ends, strict=True))
    return (
        Episode(
            frames=frames[lane, : len(played) + 1],
            actions=blocks_played[lane],
            rewards=rewards_summed[lane],
            terminated=all_terminated[lane],
            truncated=all_truncated[lane],
            states={name: rows[lane] for name, rows in over_lanes.items()},
        )
        for lane in range(env.num_envs)
    )


def _covers(states: States, manifest: Manifest, num_envs: int) -> bool:
    return all(
        name in states and states[name].shape == (num_envs, *shape) for name, shape in manifest.state_variables.items()
    )


@contextmanager
def _environment_errors(name: str, episode: int) -> Iterator[None]:
    """Say which environment failed in which episode, with the traceback as a note."""
    try:
        yield
    except JepaworldError:
        raise
    except Exception as error:
        problem = EnvironmentNotUsableError(
            f"environment_name {name}: failed in episode {episode}: {type(error).__name__}: {error}. "
            "Correct the environment (`jepaworld check-env` plays it) and run again: finished episodes are kept."
        )
        problem.add_note(traceback.format_exc())
        raise problem from error
