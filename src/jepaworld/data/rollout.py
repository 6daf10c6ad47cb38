"""Playing episodes: what happens in the environment becomes the arrays that a dataset stores.

`T` transitions, `N` lanes (episodes played side by side), `k` environment steps in a transition
(frame_skipping).

A frame is stored every `k` steps, together with the block of `k` actions played until the next one and the
sum of their rewards. An episode that ends inside a block is stored up to its end: the block is filled up by
repeating the last action played, its frame is the final one, and it is marked as cut. An episode that
reaches the longest length allowed ends as truncated, whatever the environment says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jepaworld.data.policies import BUILT_IN, Policy, RandomPolicy, make_policy
from jepaworld.data.shards import Episode
from jepaworld.data.spec import Collected, DatasetSpec
from jepaworld.envs.make import make_vector_env
from jepaworld.envs.player import Player, VectorPlayer
from jepaworld.envs.seeding import episode_seeds, seed_everything_else
from jepaworld.envs.state import States
from jepaworld.errors import DatasetError


class _Recording(NamedTuple):
    """What was seen and done, over time, of all lanes."""

    frames: list[np.ndarray]
    states: list[States]
    transitions: list[tuple[np.ndarray, ...]]  # block of actions, reward, terminated, truncated
    steps: list[int]  # environment steps that each block was played for


@dataclass(frozen=True)
class Rollout:
    """Plays the episodes of a dataset, each by its number alone.

    Example:
        >>> episodes = Rollout(dataset.spec, dataset.provenance).play(range(2))
    """

    spec: DatasetSpec
    collected: Collected

    def play(self, numbers: Sequence[int]) -> Generator[Episode, None, None]:
        """Play the episodes of these numbers, which follow each other.

        Environment and policy are made anew, so that nothing a badly behaved one carries over from episode to episode
        makes the data depend on which process played what before.

        Raises:
            EnvironmentNotUsableError, ConfigError: the environment or the policy failed.
            DatasetError: a state variable changed its shape.
        """
        collected, spec, lanes = self.collected, self.spec, None
        if collected.policy in BUILT_IN and collected.frame_source in ("auto", "observation"):
            lanes = make_vector_env(collected.environment_name, collected.environment_kwargs, len(numbers))
        if lanes is not None:
            sizes = spec.image_size, spec.input_channels
            with closing(VectorPlayer(lanes, collected.environment_name, *sizes)) as player:
                policy = make_policy(collected, lanes.single_action_space)
                assert isinstance(policy, RandomPolicy)
                recording = self._play_lanes(player, policy, numbers)
            if recording is not None:
                yield from self._episodes(recording, numbers[0])
                return
        with self._player() as player:
            policy = make_policy(collected, player.action_space)
            for number in numbers:
                yield from self._episodes(self._play_one(player, policy, number), number)

    def state_variables(self) -> tuple[dict[str, list[int]], dict[str, tuple[int, ...]]]:
        """Name and shape of each state variable: those with one shape at every frame of the first episode.

        A variable that a later episode lacks is stored as NaN there; one that appears later is not stored.

        Returns:
            The variables, and what is too large for one; see `jepaworld.envs.state.left_out`.
        """
        with self._player() as player:
            policy = make_policy(self.collected, player.action_space)
            first, *others = self._play_one(player, policy, 0, with_frames=False).states
            large = player.lanes[0].left_out()
        variables = {
            name: list(value.shape[1:])
            for name, value in sorted(first.items())
            if value.size and all(name in other and other[name].shape == value.shape for other in others)
        }
        return variables, large

    def _player(self) -> Player:
        spec, collected = self.spec, self.collected
        return Player(
            collected.environment_name,
            collected.environment_kwargs,
            image_size=spec.image_size,
            input_channels=spec.input_channels,
            frame_source=collected.frame_source,
        )

    def _play_one(self, player: Player, policy: Policy, number: int, with_frames: bool = True) -> _Recording:
        """Play an episode in the only lane of a player."""
        seeds, lane = episode_seeds(self.collected.seed, number), player.lanes[0]
        # Before the policy, which may use these generators when it begins.
        seed_everything_else(seeds.everything_else)
        policy.reset(seeds.policy)
        lane.reset(seeds.environment, everything_else=seeds.everything_else, place=f"episode {number}")

        def act(_: int) -> np.ndarray:
            if isinstance(policy, RandomPolicy) and (allowed := lane.allowed_actions()) is not None:
                return np.array(policy.act_among(allowed))[None]
            return np.array(policy.act(lane.observation))[None]

        return self._play(player, act, with_frames)

    def _play_lanes(self, player: VectorPlayer, policy: RandomPolicy, numbers: Sequence[int]) -> _Recording | None:
        """Play one episode in each lane, all at once; bit for bit what `_play_one` gives for the same episodes.

        `None` where the environment's vector version does not give all state variables.
        """
        seeds = [episode_seeds(self.collected.seed, number) for number in numbers]
        longest = self.collected.max_steps_per_episode
        actions = np.stack([policy.sequence(one.policy, longest) for one in seeds], axis=1)  # (steps, N, *shape)
        seed_everything_else(seeds[0].everything_else)
        player.reset([one.environment for one in seeds], f"episodes {numbers[0]} to {numbers[-1]}")
        found = {name: value.shape for name, value in player.states().items()}
        if any(found.get(name) != (len(player), *shape) for name, shape in self.spec.state_variables.items()):
            return None
        return self._play(player, actions.__getitem__)

    def _play(
        self, player: Player | VectorPlayer, act: Callable[[int], np.ndarray], with_frames: bool = True
    ) -> _Recording:
        """Play the episodes that the lanes were reset to, which end together.

        `act` gives the actions (N, *shape) of an environment step by its number.
        """
        skip = self.spec.frame_skipping
        most, ended = self.collected.max_steps_per_episode // skip, False
        frames, states, transitions, steps = recording = _Recording([], [], [], [])
        while True:
            if with_frames:
                frames.append(player.frames())
            states.append(player.states())
            if ended or len(transitions) == most:
                return recording
            block: list[np.ndarray] = []
            rewards = np.zeros(len(player))
            terminated = truncated = np.zeros(len(player), np.bool_)
            while len(block) < skip and not ended:
                block.append(act(len(transitions) * skip + len(block)))
                reward, terminated, truncated = player.step(block[-1])
                rewards += reward
                ends = terminated | truncated
                ended = bool(ends.any())
                assert not ended or ends.all(), "lanes of fixed length end together"
            steps.append(len(block))
            # A block that the end cut short is filled up with its last action.
            block += block[-1:] * (skip - len(block))
            actions = np.stack(block, axis=1).reshape(len(player), -1)
            # Time that runs out cuts the episode, whatever the environment says.
            truncated = truncated | (not ended and len(transitions) + 1 == most)
            transitions.append((actions, rewards, terminated, truncated))

    def _episodes(self, recording: _Recording, first: int) -> Iterator[Episode]:
        """The episode of each lane; that of the first lane has the number `first`."""
        columns = (np.stack(column, axis=1) for column in zip(*recording.transitions, strict=True))
        actions, rewards, terminated, truncated = columns
        rewards = rewards.astype(np.float32)
        states = {
            name: self._state_rows(recording.states, name, (len(actions), *shape), first)
            for name, shape in self.spec.state_variables.items()
        }
        for lane in range(len(actions)):
            frames = np.stack([frames[lane] for frames in recording.frames])
            numbers = {name: rows[:, lane] for name, rows in states.items()}
            ends = terminated[lane], truncated[lane]
            yield Episode(frames, actions[lane], rewards[lane], *ends, numbers, recording.steps[-1])

    def _state_rows(self, states: list[States], name: str, shape: tuple[int, ...], number: int) -> np.ndarray:
        """A state variable over time, (T + 1, N, *shape); NaN where it is missing."""
        missing = np.full(shape, np.nan, np.float32)
        rows = [state.get(name, missing) for state in states]
        for row in rows:
            if row.shape != shape:
                raise DatasetError(
                    f"state variable {name} of the environment has shape {row.shape[1:]} in episode {number}, but "
                    f"{shape[1:]} in episode 0. Give it one shape, or leave it out of info and observation."
                )
        return np.stack(rows)
