"""Playing environments: the one place that resets, steps, looks at and closes them.

A `Lane` is one environment that is played; a `Player` has lanes side by side, each reset and stepped on its own. A
`VectorPlayer` has the same batched interface on an environment's own vector version. Frames and state variables are
read only when asked for, so that those which frame skipping drops cost nothing.

Whatever an environment raises becomes an `EnvironmentFailedError` that names environment, call and place. What comes
from it is copied at once, as it may fill the same arrays again, and what is given to it is a copy.

Shapes: N lanes, C channels and S side of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray

from jepaworld.config import Config
from jepaworld.envs.calls import close, env_name, environment_errors, wrong_answer
from jepaworld.envs.frames import Frame, FrameReader, FrameSource, Pictures, image_to_frame, is_image_space
from jepaworld.envs.hooks import Hook, hook
from jepaworld.envs.make import make_env
from jepaworld.envs.seeding import kept_random_state, seed_everything_else, step_seed
from jepaworld.envs.state import States, extract_state, left_out
from jepaworld.errors import EnvironmentNotUsableError

Steps = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]
"""Rewards, terminations and truncations of all lanes, (N,) each."""


_FINAL = ("final_observation", "final_obs", "terminal_observation")
"""Entries of info where environments that reset themselves leave the last observation of an episode."""


class Lane:
    """One environment that is played; frames are those of a `FrameReader` with the same arguments.

    Example:
        >>> lane = Lane(make_env("jepaworld/TwoRoom-v0"), image_size=64, input_channels=3)
        >>> lane.reset(seed=0)
        >>> lane.step([1.0, 0.0])
        False
        >>> lane.frame().shape
        (3, 64, 64)
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], image_size: int, input_channels: int, frame_source: FrameSource = "auto"
    ) -> None:
        self.env, self.name = env, env_name(env)
        self.reader = FrameReader(env, image_size, input_channels, frame_source)
        self.place = ""  # what is played, in words, for messages
        self.observation: Any = None  # what `reset`, `step` or `restore_state` returned last, and the info with it
        self.info: Mapping[str, Any] = {}
        self.reward, self.terminated, self.truncated = 0.0, False, False  # of the last step
        self._forgotten: set[Hook] = set()
        self._everything_else: int | None = None  # seed of the episode for generators that all share
        self._calls = 0  # two for each step since the reset: one of them for its picture

    def reset(
        self,
        seed: int | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        everything_else: int | None = None,
        place: str = "",
    ) -> None:
        """Begin an episode.

        Args:
            seed: for the environment's `reset`.
            options: for the environment's `reset`; an empty mapping is none.
            everything_else: seed for the generators of Python, numpy and torch; `None` takes `seed`, and leaves them as
                they are where that is `None`.
            place: what is played, in words, for messages ("episode 3").
        """
        self._everything_else, self._calls = seed if everything_else is None else everything_else, 0
        self._seed()
        if self._everything_else is not None:  # some environments sample from their own action space
            self.env.unwrapped.action_space.seed(self._everything_else)
        self.place, self.reward, self.terminated, self.truncated = place, 0.0, False, False
        with environment_errors(self.name, "reset", place):
            self._take(*self.env.reset(seed=seed, options=_owned(options) if options else None))

    def step(self, action: ArrayLike) -> bool:
        """Play an action of the action space; whether it ended the episode."""
        action = np.array(action)  # a copy, as the environment may write into what it is given
        self._calls += 2
        self._seed()
        with environment_errors(self.name, "step", self.place):
            played = action if action.shape else action[()]  # actions of Discrete are numbers
            observation, reward, terminated, truncated, info = self.env.step(played)
            self.reward = self._number("reward", reward)
            self.terminated = bool(self._number("terminated", terminated))
            self.truncated = bool(self._number("truncated", truncated))
            ended = self.terminated or self.truncated
            self._take(*self._own_end(observation, info) if ended else (observation, info))
        return ended

    def _own_end(self, observation: Any, info: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
        """Observation and info of the episode that ended, where the environment already reset itself."""
        name = next((name for name in _FINAL if info.get(name) is not None), None)
        if name is None:
            return observation, info
        if self.reader.source == "render":
            raise wrong_answer(
                f"{self.name}: it resets itself in the step that ends an episode (info has {name}), so that its "
                "rendering is of the next one. Set collection.frame_source=observation, or take the reset away.",
                "step",
            )
        of_end = info.get("final_info")
        rest = {key: value for key, value in info.items() if key not in (*_FINAL, "final_info")}
        return info[name], of_end if isinstance(of_end, Mapping) else rest

    def _seed(self, rendering: int = 0) -> None:
        """Seed the generators that all share.

        At every call, so that an environment that draws from them gets the same numbers whoever else draws from them in
        between: a policy that acted when it was recorded, a planner, other lanes. It takes about 0.01 ms.
        """
        if self._everything_else is not None:
            seed_everything_else(step_seed(self._everything_else, self._calls + rendering))

    def _take(self, observation: Any, info: Mapping[str, Any]) -> None:
        """Copy what the environment gave, before it is touched again."""
        self.observation, self.info = _owned(observation), _owned(info)

    def _number(self, what: str, value: Any) -> float:
        if isinstance(value, float | int):  # nearly always
            return float(value)
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "biuf":
            found = f"{array.dtype} {array.shape}" if isinstance(value, np.ndarray | list | tuple) else repr(value)
            raise wrong_answer(
                f"{self.name}: step() gives {found} as {what}; expected one number. Change it in a gymnasium.Wrapper.",
                "step",
            )
        return float(array.item())

    def frame(self) -> Frame:
        """The frame (C, S, S) uint8 of now, a copy."""
        self._seed(rendering=1)
        with environment_errors(self.name, "render", self.place):
            return self.reader(self.observation)

    def states(self) -> States:
        """The state variables of now, copies."""
        return extract_state(self.observation, self.info)

    def allowed_actions(self) -> NDArray[np.int64] | None:
        """The actions of a Discrete space that `info["action_mask"]` allows now; None where all are.

        Raises:
            EnvironmentFailedError: the mask is not one entry for each action, or allows none.
        """
        space, mask = self.env.action_space, self.info.get("action_mask")
        if mask is None or not isinstance(space, Discrete):
            return None
        allowed = np.flatnonzero(mask)
        if np.shape(mask) != (int(space.n),) or not len(allowed):
            raise wrong_answer(
                f"{self.name}: info['action_mask'] is {mask}; expected {space.n} entries, one of them true.", "step"
            )
        return None if len(allowed) == space.n else allowed + int(space.start)

    def possible(self, action: Any) -> Any:
        """The action, or one of the allowed ones where `info["action_mask"]` forbids it."""
        allowed = self.allowed_actions()
        return action if allowed is None or action in allowed else allowed[int(action) % len(allowed)]

    def left_out(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of what is too large for a state variable now, but for the pictures that are frames."""
        found = left_out(self.observation, self.info)
        found.pop(self.reader.source.removeprefix("observation.") if self.reader.source != "render" else "", None)
        return found

    def has(self, name: Hook) -> bool:
        """Whether the environment has this method; see `jepaworld.envs.hooks`."""
        return name not in self._forgotten and hook(self.env, name) is not None

    def forget(self, name: Hook) -> None:
        """Do without this method from now on."""
        self._forgotten.add(name)

    def call(self, name: Hook, *arguments: Any) -> Any:
        """What one of its own methods returns; it must have it.

        Raises:
            EnvironmentFailedError: it failed, or returned something else than `jepaworld.envs.hooks` says.
        """
        method = hook(self.env, name)
        assert method is not None, name
        self._seed()
        with environment_errors(self.name, name, self.place):
            found = _owned(method(*_owned(arguments)))
        expected = {"goal_state": "states", "set_goal": "info", "restore_state": "(observation, info)"}.get(name)
        told = found[1] if name == "restore_state" and isinstance(found, tuple) and len(found) == 2 else found
        if expected and not isinstance(told, Mapping):
            raise wrong_answer(
                f"{self.name}: {name}() returns {type(found).__name__}; expected {expected}. Rename it if it is not "
                "meant for jepaworld.",
                name,
            )
        return found

    def restore_state(self, states: States) -> None:
        """Go to recorded state variables, by the environment's `restore_state`."""
        self.observation, self.info = self.call("restore_state", states)

    def set_goal(self, states: States) -> None:
        """Let the environment's own success mean this goal, by its `set_goal`."""
        self.info = self.call("set_goal", states)


class Player:
    """N environments of `make_env` side by side, each a `Lane`; a context manager closes them.

    Raises:
        EnvironmentNotUsableError: as `make_env` and `FrameReader`.

    Example:
        >>> with Player("jepaworld/TwoRoom-v0", {}, 2, image_size=64, input_channels=3) as player:
        ...     player.reset([0, 1])
        ...     player.frames().shape
        (2, 3, 64, 64)
    """

    def __init__(
        self,
        environment_name: str,
        environment_kwargs: Mapping[str, Any] | None = None,
        num_lanes: int = 1,
        *,
        image_size: int,
        input_channels: int,
        frame_source: FrameSource = "auto",
    ) -> None:
        self.lanes: list[Lane] = []
        with ExitStack() as opened:  # closes those that are there if a later one cannot be made
            for _ in range(num_lanes):
                with kept_random_state():
                    seed_everything_else(0)  # what is drawn when it is made is the same in every process and lane
                    env = make_env(environment_name, environment_kwargs)
                opened.callback(close, env)
                self.lanes.append(Lane(env, image_size, input_channels, frame_source))
            self._opened = opened.pop_all()

    @classmethod
    def of(cls, config: Config) -> Self:
        """One lane of the environment that a configuration collects from."""
        return cls(
            config.environment_name,
            config.environment_kwargs,
            image_size=config.image_size,
            input_channels=config.input_channels,
            frame_source=config.collection.frame_source,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __len__(self) -> int:
        """Lanes."""
        return len(self.lanes)

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """That of an environment."""
        return self.lanes[0].env.action_space

    def reset(self, seeds: Sequence[int], place: str = "") -> None:
        """Begin an episode in every lane, each with its seed for everything."""
        for lane, seed in zip(self.lanes, seeds, strict=True):
            lane.reset(seed, place=place)

    def step(self, actions: Sequence[Any] | NDArray[Any]) -> Steps:
        """Play an action in every lane; rewards, terminations and truncations (N,)."""
        for lane, action in zip(self.lanes, actions, strict=True):
            lane.step(action)
        ends = np.array([(lane.terminated, lane.truncated) for lane in self.lanes])
        return np.array([lane.reward for lane in self.lanes]), ends[:, 0], ends[:, 1]

    def frames(self) -> NDArray[np.uint8]:
        """The frames (N, C, S, S) of now."""
        return np.stack([lane.frame() for lane in self.lanes])

    def states(self) -> States:
        """The state variables (N, *shape) of now that all lanes have."""
        first, *others = [lane.states() for lane in self.lanes]
        return {
            name: np.stack([value, *(other[name] for other in others)])
            for name, value in first.items()
            if all(name in other and other[name].shape == value.shape for other in others)
        }


class VectorPlayer:
    """The batched interface of `Player` on a vector environment of `make_vector_env`.

    Frames come from `frames_chw() -> uint8 (N, C, H, W)` where the environment has it, else from its image
    observations; steps from `advance(actions) -> (reward, terminated, truncated, info)`, which paints nothing, where it
    has that.

    Raises:
        EnvironmentNotUsableError: there are no frames.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], name: str, image_size: int, input_channels: int) -> None:
        self.env, self.name, self.place = env, f"environment {name}", ""
        self._frame_shape = (input_channels, image_size, image_size)
        self._paint = getattr(env.unwrapped, "frames_chw", None)
        self._advance = getattr(env.unwrapped, "advance", None)
        if self._paint is None and not is_image_space(env.single_observation_space):
            raise EnvironmentNotUsableError(f"{self.name}: its vector version has no frames_chw() and no images.")
        self._pictures = Pictures(f"{self.name}: observation")
        self._observations: Any = None
        self._info: Mapping[str, Any] = {}

    def __len__(self) -> int:
        """Lanes."""
        return self.env.num_envs

    def reset(self, seeds: Sequence[int], place: str = "") -> None:
        """As `Player.reset`."""
        self.place = place
        lane_seeds: Any = list(seeds)  # the interface's annotation knows single seeds only
        with environment_errors(self.name, "reset", place):
            self._observations, self._info = self.env.reset(seed=lane_seeds)

    def step(self, actions: NDArray[Any]) -> Steps:
        """As `Player.step`."""
        with environment_errors(self.name, "step", self.place):
            if self._advance is not None:
                reward, terminated, truncated, self._info = self._advance(actions.copy())
            else:
                self._observations, reward, terminated, truncated, self._info = self.env.step(actions.copy())
            # Copies, as the environment may fill the same arrays in the next step.
            return np.array(reward, np.float64), np.array(terminated, np.bool_), np.array(truncated, np.bool_)

    def frames(self) -> NDArray[np.uint8]:
        """As `Player.frames`."""
        with environment_errors(self.name, "render", self.place):
            images = self._observations
            if self._paint is not None:
                frames = self._paint()
                if frames.shape[1:] == self._frame_shape:
                    return frames.copy()
                images = frames.transpose(0, 2, 3, 1)
            channels, side, _ = self._frame_shape
            return np.stack([image_to_frame(self._pictures(image), side, channels) for image in images])

    def states(self) -> States:
        """As `Player.states`."""
        return extract_state(None, self._info, lanes=True)

    def close(self) -> None:
        """Close the environment."""
        close(self.env)


def _owned(value: Any) -> Any:
    """A copy of a value, and of the arrays, mappings and sequences that it holds."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, Mapping):
        return {key: _owned(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_owned(entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else type(value)(entries)
    return value
