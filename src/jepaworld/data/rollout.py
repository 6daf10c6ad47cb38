"""Playing episodes: what happens in the environment becomes the arrays that a dataset stores.

`T` transitions, `N` lanes (episodes played side by side), `k` environment steps in a transition
(frame_skipping).

A frame is stored every `k` steps, together with the block of `k` actions played until the next one and the
sum of their rewards. An episode that ends inside a block is stored up to its end: the block is filled up by
repeating the last action played, and its frame is the final one. An episode that reaches the longest length
allowed ends as truncated, whatever the environment says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing

import numpy as np

from jepaworld.data.policies import BUILT_IN, Policy, RandomPolicy, make_policy
from jepaworld.data.shards import Episode
from jepaworld.data.spec import Collected, DatasetSpec
from jepaworld.envs.make import make_vector_env
from jepaworld.envs.player import Player, VectorPlayer
from jepaworld.envs.seeding import episode_seeds, seed_everything_else
from jepaworld.envs.state import States
from jepaworld.errors import DatasetError


def play_shard(spec: DatasetSpec, collected: Collected, first: int, count: int) -> Generator[Episode, None, None]:
    """Play `count` episodes from episode `first` on.

    Environment and policy are made anew for each shard, so that nothing a badly behaved one carries over from
    episode to episode makes the data depend on which process played what before.

    Raises:
        EnvironmentNotUsableError, ConfigError: the environment or the policy failed.
        DatasetError: a state variable changed its shape.
    """
    if collected.policy in BUILT_IN and collected.frame_source != "render":
        lanes = make_vector_env(collected.environment_name, collected.environment_kwargs, count)
        if lanes is not None:
            sizes = spec.image_size, spec.input_channels
            with closing(VectorPlayer(lanes, collected.environment_name, *sizes)) as player:
                policy = make_policy(collected, lanes.single_action_space)
                assert isinstance(policy, RandomPolicy)
                history = _play_lanes(player, policy, spec, collected, first)
            if history is not None:
                yield from history.episodes(spec, first)
                return
    with make_player(spec, collected) as player:
        policy = make_policy(collected, player.action_space)
        for episode in range(first, first + count):
            yield from _play_one(player, policy, spec, collected, episode, frames=True).episodes(spec, episode)


def make_player(spec: DatasetSpec, collected: Collected) -> Player:
    """One lane of the environment that a dataset is collected from."""
    return Player(
        collected.environment_name,
        collected.environment_kwargs,
        image_size=spec.image_size,
        input_channels=spec.input_channels,
        frame_source=collected.frame_source,
    )


def discover_state_variables(spec: DatasetSpec, collected: Collected) -> dict[str, list[int]]:
    """Name and shape of each state variable: those with one shape at every frame of the first episode.

    A variable that a later episode lacks is stored as NaN there; one that appears later is not stored.
    The episode is played without reading frames.
    """
    with make_player(spec, collected) as player:
        policy = make_policy(collected, player.action_space)
        first, *others = _play_one(player, policy, spec, collected, 0, frames=False).states
    return {
        name: list(value.shape[1:])
        for name, value in sorted(first.items())
        if value.size and all(name in other and other[name].shape == value.shape for other in others)
    }


class _History:
    """What was seen and done so far: lists over time of arrays over lanes."""

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.states: list[States] = []
        self.blocks: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []
        self.terminated: list[np.ndarray] = []
        self.truncated: list[np.ndarray] = []

    def episodes(self, spec: DatasetSpec, first: int) -> Iterator[Episode]:
        """The episode of each lane; that of the first lane has the number `first`."""
        blocks, terminated, truncated = (np.stack(r, axis=1) for r in (self.blocks, self.terminated, self.truncated))
        rewards = np.stack(self.rewards, axis=1).astype(np.float32)
        states = {name: self._state_rows(name, tuple(s), first) for name, s in spec.state_variables.items()}
        for lane in range(len(blocks)):
            yield Episode(
                frames=np.stack([frames[lane] for frames in self.frames]),
                actions=blocks[lane],
                rewards=rewards[lane],
                terminated=terminated[lane],
                truncated=truncated[lane],
                states={name: rows[lane] for name, rows in states.items()},
            )

    def _state_rows(self, name: str, shape: tuple[int, ...], number: int) -> np.ndarray:
        rows = np.full((len(self.blocks[0]), len(self.states), *shape), np.nan, np.float32)
        for row, state in enumerate(self.states):
            value = state.get(name)
            if value is None:
                continue
            if value.shape[1:] != shape:
                raise DatasetError(
                    f"state variable {name} of the environment has shape {value.shape[1:]} in episode {number}, but "
                    f"{shape} in episode 0. Give it one shape, or leave it out of info and observation."
                )
            rows[:, row] = value
        return rows


def _play_one(
    player: Player, policy: Policy, spec: DatasetSpec, collected: Collected, episode: int, *, frames: bool
) -> _History:
    """Play an episode in the only lane of a player."""
    seeds = episode_seeds(collected.seed, episode)
    # Before the policy, which may use these generators when it begins.
    seed_everything_else(seeds.everything_else)
    policy.reset(seeds.policy)
    player.reset([seeds.environment], f"episode {episode}")
    return _play(player, lambda _: np.array(policy.act(player.observations[0]))[None], spec, collected, frames=frames)


def _play_lanes(
    player: VectorPlayer, policy: RandomPolicy, spec: DatasetSpec, collected: Collected, first: int
) -> _History | None:
    """Play one episode in each lane, all at once; bit for bit what `_play_one` gives for the same episodes.

    `None` where the environment's vector version does not give all state variables, which takes playing the episodes
    one by one.
    """
    lanes = len(player)
    seeds = [episode_seeds(collected.seed, first + lane) for lane in range(lanes)]
    longest = collected.max_steps_per_episode
    actions = np.stack([policy.sequence(one.policy, longest) for one in seeds], axis=1)  # (steps, N, *shape)
    player.reset([one.environment for one in seeds], f"episodes {first} to {first + lanes - 1}")
    states = player.states()
    if any(name not in states or states[name].shape != (lanes, *s) for name, s in spec.state_variables.items()):
        return None
    return _play(player, actions.__getitem__, spec, collected, frames=True)


def _play(
    player: Player | VectorPlayer,
    act: Callable[[int], np.ndarray],
    spec: DatasetSpec,
    collected: Collected,
    *,
    frames: bool,
) -> _History:
    """Play the episodes that the lanes were reset to; they end together.

    Args:
        player: the lanes.
        act: number of the environment step -> actions (N, *shape).
        spec: of the dataset.
        collected: how it is collected.
        frames: whether they are recorded.
    """
    skip = spec.frame_skipping
    blocks = collected.max_steps_per_episode // skip
    history = _History()

    def record() -> None:
        if frames:
            history.frames.append(player.frames())
        history.states.append(player.states())

    record()
    steps, ended = 0, False
    while not ended and len(history.blocks) < blocks:
        block: list[np.ndarray] = []
        rewards = np.zeros(len(player))
        terminated = truncated = np.zeros(len(player), np.bool_)
        while len(block) < skip and not ended:
            block.append(act(steps))
            reward, terminated, truncated = player.step(block[-1])
            rewards += reward
            steps += 1
            ends = terminated | truncated
            ended = bool(ends.any())
            assert not ended or ends.all(), "lanes of fixed length end together"
        # A block that the end cut short is filled up with its last action.
        block += block[-1:] * (skip - len(block))
        history.blocks.append(np.stack(block, axis=1).reshape(len(player), -1))
        history.rewards.append(rewards)
        history.terminated.append(terminated)
        history.truncated.append(truncated | (not ended and len(history.blocks) == blocks))
        record()
    return history
