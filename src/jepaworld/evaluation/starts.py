"""A task to plan for, and how its start is brought about in an environment and checked.

Shapes: k environment steps from start to goal, C channels, S side of a frame.

A start is accepted if at most one in a thousand values of the frame differs from the expected frame by more than 16
of 255 levels (renderers of two machines do not agree to the last bit), and if every recorded state variable that the
environment gives is equal within 1e-3 of its size, at least 1e-3 (they are stored as float32). Where the state was set,
these are the variables of `info` alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from jepaworld.envs.offers import MOST_DIFFERING, States, differing, offered
from jepaworld.envs.pixels import FrameReader, FrameSource, image_to_frame
from jepaworld.envs.seeding import episode_seeds, kept_random_state, seed_everything_else
from jepaworld.envs.state import extract_state
from jepaworld.errors import JepaworldError, PlanningError

Frame = NDArray[np.uint8]
Way = Literal["state", "replay"]

_STATE_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class RecordedStart:
    """A frame of a recorded episode.

    Attributes:
        way: by setting the state, or by replaying the episode.
        seed: of the collection.
        episode: number of the episode.
        actions: (steps, *action shape) environment actions from the episode's beginning to the start.
        frame: uint8 (C, S, S), to be found there.
        states: state variables, to be found there.
        frame_source: where frames come from.
    """

    way: Way
    seed: int
    episode: int
    actions: NDArray[Any]
    frame: Frame
    states: States
    frame_source: FrameSource


@dataclass(frozen=True, eq=False)
class DrawnStart:
    """A start that the environment draws itself.

    Attributes:
        seed: for its `reset`.
        options: for its `reset`.
        frame: uint8 (C, S, S), to be found there.
        frame_source: where frames come from.
    """

    seed: int
    options: Mapping[str, Any]
    frame: Frame
    frame_source: FrameSource


@dataclass(frozen=True, eq=False)
class Task:
    """A start and a goal.

    Attributes:
        group: which tasks are counted together: "all", or the reset options in words ("goal_room=other").
        goal_frame: uint8 (C, S, S), what is seen at the goal.
        goal_state: state variables at the goal, as far as they are known.
        actions: (k, *action shape) environment actions that led from start to goal when they were recorded; `None`
            where the environment drew both.
        start: how the start is brought about.
    """

    group: str
    goal_frame: Frame
    goal_state: States
    actions: NDArray[Any] | None
    start: RecordedStart | DrawnStart


class StartError(PlanningError):
    """A start could not be brought about.

    Args:
        reason: where, and what was found.
        env: the environment, of which the message says which protocol remains.
        tried: the ways that failed; none of them is "recorded goals are not what was tried".

    Attributes:
        reason: as given.
    """

    def __init__(self, reason: str, env: gymnasium.Env[Any, Any], tried: Collection[Way]) -> None:
        super().__init__(f"{reason} {_remaining(env, tried)}")
        self.reason = reason


def begin(env: gymnasium.Env[Any, Any], task: Task) -> tuple[Any, dict[str, Any]]:
    """Bring an environment to the start of a task.

    The random generators of Python, numpy and torch are left as they were.

    Args:
        env: from `make_task_env`.
        task: from `draw_tasks`.

    Returns:
        Observation and info of the start.

    Raises:
        StartError: what is found there is not what the task says, or the environment failed.
    """
    if isinstance(task.start, DrawnStart):
        return _begin_drawn(env, task, task.start)
    return _begin_recorded(env, task, task.start)


def reset_drawn(
    env: gymnasium.Env[Any, Any], seed: int, options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], NDArray[np.uint8]]:
    """Let the environment draw start and goal.

    Args:
        env: an environment that offers `goal_image()`.
        seed: for its `reset`.
        options: for its `reset`.

    Returns:
        Observation and info of the start, and the image (H, W, 3) of the goal.

    Raises:
        StartError: the environment failed, or gives no such image.
    """
    place = f"evaluation.goals: reset(seed={seed}, options={dict(options) or None})"
    goal_image = offered(env, "goal_image")
    assert goal_image is not None, "checked when goals were chosen"
    with _environment_errors(place, env, ()):
        observation, info = env.reset(seed=seed, options=dict(options) or None)
        image: Any = goal_image()
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise StartError(f"{place}: goal_image() gives {found}; expected a uint8 array (H, W, 3).", env, ())
    return observation, info, image


def as_frame(image: NDArray[np.uint8], like: Frame) -> Frame:
    """An image (H, W, 3) in the size and the channels of another frame (C, S, S)."""
    return image_to_frame(image, like.shape[1], 1 if like.shape[0] == 1 else 3)


def _begin_drawn(env: gymnasium.Env[Any, Any], task: Task, start: DrawnStart) -> tuple[Any, dict[str, Any]]:
    with kept_random_state():
        observation, info, image = reset_drawn(env, start.seed, start.options)
        for what, found, expected in (
            ("start", _look(env, start, observation), start.frame),
            ("goal", as_frame(image, start.frame), task.goal_frame),
        ):
            if (share := differing(found, expected)) > MOST_DIFFERING:
                raise StartError(
                    f"evaluation.goals: reset(seed={start.seed}) gave another {what} the second time "
                    f"({share:.1%} of the frame differ): the environment is not deterministic.",
                    env,
                    (),
                )
    return observation, info


def _begin_recorded(env: gymnasium.Env[Any, Any], task: Task, start: RecordedStart) -> tuple[Any, dict[str, Any]]:
    how = "set by its state" if start.way == "state" else "replayed from its seed and actions"
    place = f"evaluation.restore: episode {start.episode} of the dataset at step {len(start.actions)}, {how}"
    with kept_random_state(), _environment_errors(place, env, (start.way,)):
        observation, info = _restore(env, start) if start.way == "state" else _replay(env, start)
        found = _look(env, start, observation)
        # An observation may be made of more than what was set, as MuJoCo's of positions that are a substep old.
        problem = _state_problem(start.states, extract_state(None if start.way == "state" else observation, info))
        if (share := differing(found, start.frame)) > MOST_DIFFERING:
            problem = f"{share:.1%} of the frame differ from the recorded one (allowed are {MOST_DIFFERING:.1%})"
        if problem is not None:
            cause = "the state variables are not all there is" if start.way == "state" else "it is not deterministic"
            raise StartError(f"{place}: {problem}. The environment cannot be restored: {cause}.", env, (start.way,))
        set_goal = offered(env, "set_goal")
        return observation, (info if set_goal is None else set_goal(task.goal_state))


def _restore(env: gymnasium.Env[Any, Any], start: RecordedStart) -> tuple[Any, dict[str, Any]]:
    restore_state = offered(env, "restore_state")
    assert restore_state is not None, "checked when the way was chosen"
    # Begins the episode for wrappers, and draws again whatever is no state variable.
    env.reset(seed=episode_seeds(start.seed, start.episode).environment)
    return restore_state({name: value for name, value in start.states.items() if np.isfinite(value).all()})


def _replay(env: gymnasium.Env[Any, Any], start: RecordedStart) -> tuple[Any, dict[str, Any]]:
    seeds = episode_seeds(start.seed, start.episode)
    seed_everything_else(seeds.everything_else)
    observation, info = env.reset(seed=seeds.environment)
    for action in start.actions:
        # A copy, as the environment may write into what it is given.
        observation, _, _, _, info = env.step(np.array(action)[()])
    return observation, info


def _look(env: gymnasium.Env[Any, Any], start: RecordedStart | DrawnStart, observation: Any) -> Frame:
    channels, side = start.frame.shape[:2]
    return FrameReader(env, side, 1 if channels == 1 else 3, start.frame_source)(observation)


def _state_problem(recorded: States, found: States) -> str | None:
    for name, expected in recorded.items():
        value = found.get(name)
        if value is None or not np.isfinite(expected).all():
            continue
        allowed = _STATE_TOLERANCE * np.maximum(1.0, np.abs(expected))
        if value.shape != expected.shape or not (np.abs(value - expected) <= allowed).all():
            return f"the state variable {name} is {_short(value)}, recorded was {_short(expected)}"
    return None


def _short(value: NDArray[np.float32]) -> str:
    return np.array2string(value, precision=5, threshold=6, separator=", ").replace("\n", "")


@contextmanager
def _environment_errors(place: str, env: gymnasium.Env[Any, Any], tried: Collection[Way]) -> Iterator[None]:
    """Say where the environment failed, with the traceback as a note."""
    try:
        yield
    except JepaworldError:
        raise
    except Exception as error:  # whatever an environment raises is the user's to know
        problem = StartError(f"{place}: the environment failed: {type(error).__name__}: {error}.", env, tried)
        problem.add_note(traceback.format_exc())
        raise problem from error


def _remaining(env: gymnasium.Env[Any, Any], tried: Collection[Way]) -> str:
    """Which protocols are left after recorded starts failed in these ways, or drawn ones where there are none."""
    left = []
    if tried and offered(env, "goal_image") is not None:
        left.append("evaluation.goals=environment")
    if "state" not in tried and offered(env, "restore_state") is not None:
        left.append("evaluation.goals=recorded with evaluation.restore=state")
    if "replay" not in tried:
        left.append("evaluation.goals=recorded with evaluation.restore=replay, if it is deterministic")
    if left:
        return f"What remains: {', or '.join(left)}."
    return (
        "No protocol remains: it shows no goal of its own (goal_image) and has no other way back. Draw everything "
        "random from self.np_random, or give the environment restore_state() (docs/bring_your_own.md)."
    )
