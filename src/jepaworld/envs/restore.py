"""Bringing an environment to a start: one of a recorded episode, or one that it draws itself.

Shapes: C channels, S side of a frame.

A start is accepted if at most one in a thousand values of the frame differs from the expected frame by more than 16
of 255 levels (renderers of two machines do not agree to the last bit), and if every recorded state variable that the
environment gives is equal within 1e-3 of its size, at least 1e-3 (they are stored as float32). Where the state was set,
these are the variables of `info` alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jepaworld.envs.frames import MOST_DIFFERING, Frame, as_picture, differing, image_to_frame
from jepaworld.envs.player import Lane
from jepaworld.envs.seeding import episode_seeds
from jepaworld.envs.state import States, extract_state
from jepaworld.errors import EnvironmentNotUsableError

RestoreMethod = Literal["state", "replay"]
"""By setting the state (`restore_state`), or by replaying the episode from its seed and actions."""

_STATE_TOLERANCE = 1e-3


class RestoreError(EnvironmentNotUsableError):
    """An environment did not come back to a start: what is found there is not what was recorded."""


class GoalImageError(EnvironmentNotUsableError):
    """The environment's `goal_image` failed, or gives no picture."""


@dataclass(frozen=True, eq=False)
class RecordedStart:
    """A frame of a recorded episode."""

    method: RestoreMethod
    seed: int  # of the collection
    episode: int  # its number in the complete dataset, which its seeds follow from
    actions: NDArray[Any]  # (steps, *action shape) environment actions from the episode's beginning to the start
    frame: Frame  # (C, S, S), to be found there, as the state variables are
    states: States
    ignored: Collection[str] = ()  # state variables that need not be as they were


@dataclass(frozen=True, eq=False)
class DrawnStart:
    """A start that the environment draws itself, by `reset(seed, options)`, together with a goal."""

    seed: int
    options: Mapping[str, Any]
    frame: Frame  # (C, S, S), to be found there


def draw_start(lane: Lane, seed: int, options: Mapping[str, Any]) -> DrawnStart:
    """Let the environment draw a start, and leave the lane there."""
    lane.reset(seed, options=options, place=_drawn_place(seed, options))
    return DrawnStart(seed, options, lane.frame())


def restore(lane: Lane, start: RecordedStart | DrawnStart) -> None:
    """Bring a lane to a start and check that it is there.

    A replay seeds the generators of Python, numpy and torch; `kept_random_state` puts them back.

    Raises:
        RestoreError: the frame or a state variable found there is another one.
        EnvironmentFailedError: the environment failed.
    """
    if isinstance(start, DrawnStart):
        lane.reset(start.seed, options=start.options, place=_drawn_place(start.seed, start.options))
        require_same(f"start of {lane.place}", lane.frame(), start.frame)
        return
    by_state = start.method == "state"
    how = "set by its state" if by_state else "replayed from its seed and actions"
    place = f"episode {start.episode} of the dataset at step {len(start.actions)}, {how}"
    seeds = episode_seeds(start.seed, start.episode)
    if by_state:
        # A reset begins the episode for wrappers, and draws again whatever is no state variable.
        lane.reset(seeds.environment, everything_else=seeds.everything_else, place=place)
        lane.restore_state({name: value for name, value in start.states.items() if np.isfinite(value).all()})
    else:
        lane.reset(seeds.environment, everything_else=seeds.everything_else, place=place)
        for action in start.actions:
            lane.step(action)
    # An observation may be made of more than what was set, as MuJoCo's of positions that are a substep old.
    found = extract_state(None, lane.info) if by_state else lane.states()
    if (share := differing(lane.frame(), start.frame)) > MOST_DIFFERING:
        problem = f"{share:.1%} of the frame differ from the recorded one (allowed are {MOST_DIFFERING:.1%})"
    elif (problem := _state_problem(start, found)) is None:
        return
    cause = "the state variables are not all there is" if by_state else "it is not deterministic"
    raise RestoreError(f"{place}: {problem}. The environment cannot be restored: {cause}.")


def goal_frame(lane: Lane, like: Frame) -> Frame:
    """What the environment shows at its goal, in the size and the channels of another frame (C, S, S).

    Where the lane's own pictures are grey, a goal in colour becomes grey, as nothing else could be reached.

    Raises:
        GoalImageError: `goal_image` failed, or gives no picture.
    """
    try:
        image = as_picture(lane.call("goal_image"), f"{lane.name}: goal_image()")
    except EnvironmentNotUsableError as error:
        raise GoalImageError(str(error)) from error
    channels, side, _ = like.shape
    goal = image_to_frame(image, side, 1 if lane.reader.is_grey else channels)
    return goal if len(goal) == channels else np.repeat(goal, channels, axis=0)


def require_same(what: str, found: Frame, expected: Frame) -> None:
    """Refuse a frame that is clearly another one than the first time, by a `RestoreError`."""
    if (share := differing(found, expected)) > MOST_DIFFERING:
        raise RestoreError(
            f"another {what} the second time ({share:.1%} of the frame differ): the environment is not deterministic."
        )


def _drawn_place(seed: int, options: Mapping[str, Any]) -> str:
    return f"the episode of seed {seed}" + (f" and options {dict(options)}" if options else "")


def _state_problem(start: RecordedStart, found: States) -> str | None:
    for name, expected in start.states.items():
        value = found.get(name)
        if name in start.ignored or value is None or not np.isfinite(expected).all():
            continue
        allowed = _STATE_TOLERANCE * np.maximum(1.0, np.abs(expected))
        if value.shape != expected.shape or not (np.abs(value - expected) <= allowed).all():
            with np.printoptions(precision=5, threshold=6):
                remedy = "evaluation.ignored_variables could name it"
                return f"the state variable {name} is {value}, recorded was {expected} ({remedy})"
    return None
