"""`jepaworld/TwoRoom-v0`: a disc in two rooms joined by a door, seen from above.

The scalar environment is a vector environment of one lane: lane i of the vector environment, reset with a seed, gives
the same bits as the scalar environment reset with that seed.

Shapes: N lanes; S side of an image, 64 (published rules: 65); states, goals, walls (N, 2) float32 in pixels, x then y;
images uint8 (S, S, 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from jepaworld.envs import two_room_published as published
from jepaworld.envs import two_room_world as world
from jepaworld.envs.disc import (
    RENDER_MODES,
    DiscEnv,
    Float32Array,
    Float64Array,
    check_choice,
    check_positive,
    frames_to_images,
    read_actions,
    read_options,
    within,
)
from jepaworld.envs.two_room_world import Geometry, GoalRoom, Rules

_RESTORABLE = ("state", "goal", "wall")
_RULES = {"jepaworld": world.RULES, "published": published.RULES}


class TwoRoomVectorEnv(VectorEnv[NDArray[np.uint8], Float32Array, NDArray[Any]]):
    """N lanes of `TwoRoomEnv` in one array program: `gymnasium.make_vec("jepaworld/TwoRoom-v0", num_envs=N)`.

    There is no automatic reset (`AutoresetMode.DISABLED`): a lane that has ended stays ended until it is
    reset, alone with `options={"reset_mask": bool (N,)}` or with all others. `reset(seed=s)` gives lane i the
    seed s + i; a sequence gives each lane its own. "state", "goal" and "wall" in `options` are (N, 2), or
    (2,) for all lanes; "goal_room" is one for all. `info` holds the entries of `TwoRoomEnv` stacked over lanes,
    with Gymnasium's masks (`"_state"`, all True).

    Images are stored channels first; the observation (N, S, S, 3) is a view with the channels last. To skip
    images that nobody looks at, call `advance` instead of `step`, and `frames_chw` when one is wanted.

    Args:
        num_envs: lanes.
        max_episode_steps: steps until truncation; None or -1 for never.
        render_mode, rules, max_speed, random_wall, goal_room, terminate_on_success: as of `TwoRoomEnv`.

    Raises:
        ValueError: an argument, action, seed or option is not possible.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's interface)
        "render_modes": ["rgb_array"],
        "render_fps": 15,
        "autoreset_mode": AutoresetMode.DISABLED,
    }
    fixed_length: bool
    """Whether all lanes end together, after `max_episode_steps` and never before; collection asks for it."""

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 200,
        render_mode: str | None = None,
        *,
        rules: str = "jepaworld",
        max_speed: float | None = None,
        random_wall: bool | None = None,
        goal_room: GoalRoom | None = None,
        terminate_on_success: bool = False,
    ) -> None:
        check_choice("rules", rules, tuple(_RULES))
        self.rules = _RULES[rules]
        max_speed = self.rules.max_speed if max_speed is None else max_speed
        random_wall = self.rules.random_wall if random_wall is None else random_wall
        goal_room = self.rules.goal_rooms[0] if goal_room is None else goal_room
        check_choice("render_mode", render_mode, RENDER_MODES)
        check_choice("goal_room", goal_room, self.rules.goal_rooms)
        check_positive("num_envs", num_envs)
        check_positive("max_speed", max_speed)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.max_episode_steps = math.inf if max_episode_steps in (None, -1) else max_episode_steps
        self.terminate_on_success, self.fixed_length = terminate_on_success, not terminate_on_success
        # Spaces of its own, so that seeding one environment's leaves the others' alone.
        self.single_action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.single_observation_space = Box(0, 255, (self.rules.size, self.rules.size, 3), np.uint8)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._max_speed, self._random_wall, self._goal_room = float(max_speed), bool(random_wall), goal_room
        self.generators: list[np.random.Generator | None] = [None] * num_envs
        self.state, self.goal = np.zeros((num_envs, 2), np.float32), np.zeros((num_envs, 2), np.float32)
        self.wall = np.tile(np.array(self.rules.fixed_wall, np.float32), (num_envs, 1))
        self._geometry, self.rooms = self.rules.geometry(self.wall), self.rules.paint_walls(self.wall)
        self._steps = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start episodes, drawn or restored, in all lanes or in those of the mask; see the class."""
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, np.bool_)))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"options['reset_mask'] is {mask!r}; expected bools ({self.num_envs},), one of them True.")
        goal_room = options.pop("goal_room", self._goal_room)
        check_choice("options['goal_room']", goal_room, self.rules.goal_rooms)
        given = read_options(options, (*_RESTORABLE, "goal_room"), self.num_envs)
        seeds = seed
        if seeds is None or isinstance(seeds, int | np.integer):
            seeds = [None if seeds is None else int(seeds) + lane for lane in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries for {self.num_envs} lanes; give one each, or one number.")
        lanes = np.flatnonzero(mask)
        draws = np.stack([self._generator(lane, seeds[lane]).random(world.DRAWS_PER_RESET) for lane in lanes.tolist()])
        self._begin(lanes, draws, {name: rows[lanes] for name, rows in given.items()}, goal_room)
        return self._images(), self.info()

    def _generator(self, lane: int, seed: int | None = None) -> np.random.Generator:
        generator = self.generators[lane]
        if generator is None or seed is not None:
            generator = self.generators[lane] = np_random(None if seed is None else int(seed))[0]
        return generator

    def _begin(
        self, lanes: NDArray[np.intp], draws: Float64Array, given: Mapping[str, Float32Array], goal_room: GoalRoom
    ) -> None:
        """Start an episode in `lanes` (M,) from uniform numbers (M, 10) and what is given (M, 2)."""
        rules = self.rules
        fixed = np.tile(np.array(rules.fixed_wall, np.float32), (len(lanes), 1))
        wall = given.get("wall", world.draw_walls(draws[:, :2]) if self._random_wall else fixed)
        _check_wall(wall, rules)
        geometry = rules.geometry(wall)
        state = given.get("state", rules.draw_positions(draws[:, 2:6], geometry, None))
        on_left = state[:, 0] < geometry.centre
        goal_side = {"any": None, "same": on_left, "other": ~on_left}[goal_room]
        goal = given.get("goal", rules.draw_positions(draws[:, 6:10], geometry, goal_side))
        _check_free("state", state, wall, geometry)
        _check_free("goal", goal, wall, geometry)
        self.state[lanes], self.goal[lanes], self.wall[lanes] = state, goal, wall
        self._geometry, self.rooms[lanes], self._steps[lanes] = rules.geometry(self.wall), rules.paint_walls(wall), 0

    def advance(self, actions: ArrayLike) -> tuple[Float64Array, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """`step` without painting: rewards, terminated, truncated, each (N,), and infos."""
        steps = read_actions(actions, self.state.shape)
        if self.rules.by_length:
            steps /= np.maximum(1.0, np.linalg.norm(steps, axis=1, keepdims=True))
        start = self.state.astype(np.float64)
        end = self.rules.move(start, self._max_speed * steps, self._geometry, self._normals)
        self.state = end.astype(np.float32)
        self._steps += 1
        info = self.info()
        success, truncated = info["success"], self._steps >= self.max_episode_steps
        return success.astype(np.float64), success & self.terminate_on_success, truncated, info

    def step(
        self, actions: ArrayLike
    ) -> tuple[NDArray[np.uint8], Float64Array, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Move all lanes by actions (N, 2): observations, rewards, terminated, truncated and infos."""
        rewards, terminated, truncated, info = self.advance(actions)
        return self._images(), rewards, terminated, truncated, info

    def _normals(self, lanes: NDArray[np.intp]) -> Float64Array:
        """Standard normal numbers (M, 2), those of each lane from its own generator."""
        return np.stack([self._generator(lane).standard_normal(2) for lane in lanes.tolist()])

    def frames_chw(self, states: ArrayLike | None = None) -> NDArray[np.uint8]:
        """Images (N, 3, S, S), channels first, with the agents where they are or at `states` (N, 2)."""
        frames = self.rooms.copy()
        self.rules.paint_discs(frames, self.state if states is None else states)
        return frames

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """One image (S, S, 3) per lane in mode "rgb_array", else None."""
        return tuple(self._images()) if self.render_mode == "rgb_array" else None

    def set_goal(self, goal: Float32Array) -> None:
        """Make positions (N, 2) the goals of the lanes."""
        _check_free("goal", goal, self.wall, self._geometry)
        self.goal = goal.copy()

    def info(self) -> dict[str, Any]:
        """The infos of now, copies."""
        info = {name: getattr(self, name).copy() for name in _RESTORABLE}
        info["success"] = within(world.SUCCESS_DISTANCE, self.state, self.goal)
        return info | {f"_{name}": np.ones(self.num_envs, np.bool_) for name in info}

    def _images(self) -> NDArray[np.uint8]:
        return self.frames_chw().transpose(0, 2, 3, 1)


class TwoRoomEnv(DiscEnv):
    """A disc that moves through two rooms joined by a door.

    Observation: uint8 (64, 64, 3) image of walls and agent; the goal is not drawn. `render()` gives the same
        image.
    Action: Box (2,) in [-1, 1], velocity (x right, y down) in units of `max_speed`; values outside are
    clipped. The agent collides as a square of side 5 px that is swept along its path, so it passes no wall at
    any speed; on contact the motion that is left goes on along the surface.

    With `rules="published"` it is the world of `jepaworld.envs.two_room_published`, which others publish figures for:
    65x65 pixels, walls in green and the disc a red Gaussian of 1.3 px that collides as a point, steps of at most
    2.45 px, walls that end a move and throw it back at random instead of letting it slide, start and goal always in
    different rooms and 2.6 px from all walls. The throws are drawn from the environment's own generator, so a replay
    needs the seed of the episode: after a restored state the same actions lead elsewhere where they meet a wall.

    Reward: 1.0 in each step that ends within 4.5 px of the goal, else 0.0. An episode does not end at the
    goal (data and "success at any time" want whole episodes) unless `terminate_on_success`. `gymnasium.make`
    truncates after 200 steps.

    `info`: "state" agent x, y; "goal" x, y; "wall" wall x, door y: each float32 (2,) in pixels; "success"
        bool.

    `reset(options=...)` takes "state", "goal" and "wall" as given by `info` and restores them exactly; what
    is left out is drawn. Starts and goals are uniform over the free space. "goal_room" holds for this episode
    instead of the argument. For planning there are the methods of `jepaworld.envs.hooks`.

    Args:
        render_mode: "rgb_array" or None.
        rules: "jepaworld" (default) or "published".
        max_speed: pixels per step at action 1 on one axis (published: of length 1); any finite positive number. By
            default 2.5, published 2.45.
        random_wall: draw wall x in [20, 44] and door y in [10, 54], whole numbers, anew in every episode; otherwise
            they are 32 and 32, published 32 and 10. By default false, published true.
        goal_room: "any" (default), "other" (than the start's) or "same"; a room includes its half of the door.
            Published: "other" alone.
        terminate_on_success: end the episode at the goal; by default it goes on.

    Raises:
        ValueError: an argument, action or option is not possible.
    """

    restorable, required = _RESTORABLE, ("state",)
    success_distance = world.SUCCESS_DISTANCE

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        self._lane = TwoRoomVectorEnv(1, None, render_mode, **settings)
        super().__init__(render_mode, self._lane.rules.size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode, drawn or restored; see the class."""
        super().reset(seed=seed)
        self._lane.generators[0] = self.np_random
        self._lane.reset(options=options)
        return self._image(), self._info()

    def step(self, action: ArrayLike) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Move by one action (2,); see the class."""
        reward, terminated, _, _ = self._lane.advance(np.asarray(action)[None])
        return self._image(), float(reward[0]), bool(terminated[0]), False, self._info()

    def goal_state(self) -> dict[str, Float32Array]:
        """The state variables at the goal: "state" and "wall"."""
        variables = self._variables()
        return {"state": variables["goal"], "wall": variables["wall"]}

    def _variables(self) -> dict[str, Float32Array]:
        return {name: getattr(self._lane, name)[0].copy() for name in _RESTORABLE}

    def _place_goal(self, position: ArrayLike) -> None:
        self._lane.set_goal(read_options({"goal": position}, _RESTORABLE)["goal"])

    def _image(self, position: ArrayLike | None = None) -> NDArray[np.uint8]:
        return frames_to_images(self._lane.frames_chw(None if position is None else np.asarray(position)[None]))[0]


def _check_wall(wall: Float32Array, rules: Rules) -> None:
    (x_low, x_high), (y_low, y_high) = rules.wall_limits
    x, y = wall.T
    possible = (x >= x_low) & (x <= x_high) & (y >= y_low) & (y <= y_high)
    if not possible.all():
        raise ValueError(
            f"options['wall'] = {wall[~possible][0].tolist()} is not possible: wall x must be in [{x_low}, {x_high}] "
            f"and door y in [{y_low}, {y_high}]."
        )


def _check_free(name: str, positions: Float32Array, wall: Float32Array, geometry: Geometry) -> None:
    free = geometry.is_free(positions.astype(np.float64))
    if not free.all():
        raise ValueError(
            f"options['{name}'] = {positions[~free][0].tolist()} is not in free space: x and y must be in "
            f"[{geometry.low[0]}, {geometry.high[0]}], not in the wall (wall x, door y = {wall[~free][0].tolist()})."
        )
