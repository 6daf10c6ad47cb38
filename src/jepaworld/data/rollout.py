"""Playing episodes: what happens in the environment becomes the arrays that a dataset stores.

`T` transitions, `N` lanes (episodes played side by side), `k` environment steps in a transition
(frame_skipping).

A frame is stored every `k` steps, together with the block of `k` actions played until the next one and the
sum of their rewards. An episode that ends inside a block is stored up to its end: the block is filled up by
repeating the last action played, and its frame is the final one. An episode that reaches the longest length
allowed ends as truncated, whatever the environment says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from jepaworld.data.policies import BUILT_IN, Policy, RandomPolicy, make_policy
from jepaworld.data.shards import Episode
from jepaworld.data.spec import Collected, DatasetSpec
from jepaworld.envs.make import make_vector_env
from jepaworld.envs.player import Player, VectorPlayer
from jepaworld.envs.seeding import episode_seeds, seed_everything_else
from jepaworld.envs.state import States
from jepaworld.errors import DatasetError


def play_shard(spec: DatasetSpec, collected: Collected, numbers: Sequence[int]) -> Generator[Episode, None, None]:
    """Play the episodes of these numbers, which follow each other.

    Environment and policy are made anew for each shard, so that nothing a badly behaved one carries over from
    episode to episode makes the data depend on which process played what before.

    Raises:
        EnvironmentNotUsableError, ConfigError: the environment or the policy failed.
        DatasetError: a state variable changed its shape.
    """
    lanes = None
    if collected.policy in BUILT_IN and collected.frame_source != "render":
        lanes = make_vector_env(collected.environment_name, collected.environment_kwargs, len(numbers))
    if lanes is not None:
        with closing(VectorPlayer(lanes, collected.environment_name, spec.image_size, spec.input_channels)) as player:
            policy = make_policy(collected, lanes.single_action_space)
            assert isinstance(policy, RandomPolicy)
            history = _play_lanes(player, policy, spec, collected, numbers)
        if history is not None:
            yield from history.episodes(spec, numbers[0])
            return
    with _make_player(spec, collected) as player:
        policy = make_policy(collected, player.action_space)
        for number in numbers:
            yield from _play_one(player, policy, spec, collected, number, frames=True).episodes(spec, number)


def discover_state_variables(spec: DatasetSpec, collected: Collected) -> dict[str, list[int]]:
    """Name and shape of each state variable: those with one shape at every frame of the first episode.

    A variable that a later episode lacks is stored as NaN there; one that appears later is not stored.
    The episode is played without reading frames.
    """
    with _make_player(spec, collected) as player:
        policy = make_policy(collected, player.action_space)
        first, *others = _play_one(player, policy, spec, collected, 0, frames=False).states
    return {
        name: list(value.shape[1:])
        for name, value in sorted(first.items())
        if value.size and all(name in other and other[name].shape == value.shape for other in others)
    }


def _make_player(spec: DatasetSpec, collected: Collected) -> Player:
    return Player(
        collected.environment_name,
        collected.environment_kwargs,
        image_size=spec.image_size,
        input_channels=spec.input_channels,
        frame_source=collected.frame_source,
    )


@dataclass
class _History:
    """What was seen and done so far: lists over time of arrays over lanes."""

    frames: list[np.ndarray] = field(default_factory=list)
    states: list[States] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)  # blocks
    rewards: list[np.ndarray] = field(default_factory=list)
    terminated: list[np.ndarray] = field(default_factory=list)
    truncated: list[np.ndarray] = field(default_factory=list)

    def episodes(self, spec: DatasetSpec, first: int) -> Iterator[Episode]:
        """The episode of each lane; that of the first lane has the number `first`."""
        names = ("actions", "rewards", "terminated", "truncated")
        arrays = {name: np.stack(getattr(self, name), axis=1) for name in names}
        arrays["rewards"] = arrays["rewards"].astype(np.float32)
        states = {name: self._state_rows(name, tuple(s), first) for name, s in spec.state_variables.items()}
        for lane in range(len(arrays["actions"])):
            yield Episode(
                frames=np.stack([frames[lane] for frames in self.frames]),
                **{name: array[lane] for name, array in arrays.items()},
                states={name: rows[lane] for name, rows in states.items()},
            )

    def _state_rows(self, name: str, shape: tuple[int, ...], number: int) -> np.ndarray:
        rows = np.full((len(self.actions[0]), len(self.states), *shape), np.nan, np.float32)
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
    player: Player, policy: Policy, spec: DatasetSpec, collected: Collected, number: int, *, frames: bool
) -> _History:
    """Play an episode in the only lane of a player."""
    seeds = episode_seeds(collected.seed, number)
    # Before the policy, which may use these generators when it begins.
    seed_everything_else(seeds.everything_else)
    policy.reset(seeds.policy)
    player.reset([seeds.environment], f"episode {number}")
    return _play(player, lambda _: np.array(policy.act(player.observations[0]))[None], spec, collected, frames)


def _play_lanes(
    player: VectorPlayer, policy: RandomPolicy, spec: DatasetSpec, collected: Collected, numbers: Sequence[int]
) -> _History | None:
    """Play one episode in each lane, all at once; bit for bit what `_play_one` gives for the same episodes.

    `None` where the environment's vector version does not give all state variables, which takes playing the episodes
    one by one.
    """
    seeds = [episode_seeds(collected.seed, number) for number in numbers]
    longest = collected.max_steps_per_episode
    actions = np.stack([policy.sequence(one.policy, longest) for one in seeds], axis=1)  # (steps, N, *shape)
    player.reset([one.environment for one in seeds], f"episodes {numbers[0]} to {numbers[-1]}")
    states = player.states()
    if any(name not in states or states[name].shape != (len(player), *s) for name, s in spec.state_variables.items()):
        return None
    return _play(player, actions.__getitem__, spec, collected, frames=True)


def _play(
    player: Player | VectorPlayer,
    act: Callable[[int], np.ndarray],
    spec: DatasetSpec,
    collected: Collected,
    frames: bool,
) -> _History:
    """Play the episodes that the lanes were reset to, which end together, and record frames where asked to.

    `act` gives the actions (N, *shape) of an environment step by its number.
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
    while not ended and len(history.actions) < blocks:
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
        history.actions.append(np.stack(block, axis=1).reshape(len(player), -1))
        history.rewards.append(rewards)
        history.terminated.append(terminated)
        # Time that runs out cuts the episode, whatever the environment says.
        history.truncated.append(truncated | (not ended and len(history.actions) == blocks))
        record()
    return history
