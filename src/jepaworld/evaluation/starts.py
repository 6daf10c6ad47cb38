"""A task to plan for: a start, a goal, and how a lane is brought there.

Shapes: k environment steps from start to goal, C channels, S side of a frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from jepaworld.envs.frames import Frame
from jepaworld.envs.player import Lane
from jepaworld.envs.restore import DrawnStart, RecordedStart, RestoreMethod, goal_frame, require_same, restore
from jepaworld.envs.seeding import kept_random_state
from jepaworld.envs.state import States
from jepaworld.errors import EnvironmentNotUsableError, PlanningError


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
        lane: the lane, of whose environment the message says which protocol remains.
        tried: the methods that failed; none of them is "recorded goals are not what was tried".

    Attributes:
        reason: as given.
    """

    def __init__(self, reason: str, lane: Lane, tried: Collection[RestoreMethod]) -> None:
        super().__init__(f"{reason} {_remaining(lane, tried)}")
        self.reason = reason


def begin(lane: Lane, task: Task) -> None:
    """Bring a lane to the start of a task.

    The random generators of Python, numpy and torch are left as they were.

    Args:
        lane: of a player from `make_task_player`.
        task: from `draw_tasks`.

    Raises:
        StartError: what is found there is not what the task says, or the environment failed.
    """
    start = task.start
    if isinstance(start, DrawnStart):
        with kept_random_state(), start_errors(lane, "evaluation.goals"):
            restore(lane, start)
            require_same(f"goal of {lane.place}", goal_frame(lane, start.frame), task.goal_frame)
        return
    with kept_random_state(), start_errors(lane, "evaluation.restore", start.method):
        restore(lane, start)
        if lane.has("set_goal"):
            lane.set_goal(task.goal_state)


@contextmanager
def start_errors(lane: Lane, setting: str, *tried: RestoreMethod) -> Iterator[None]:
    """Say of an environment that fails, or does not come back, which protocols remain."""
    try:
        yield
    except EnvironmentNotUsableError as error:
        problem = StartError(f"{setting}: {error}", lane, tried)
        for note in getattr(error, "__notes__", ()):
            problem.add_note(note)
        raise problem from error


def _remaining(lane: Lane, tried: Collection[RestoreMethod]) -> str:
    """Which protocols are left after recorded starts failed by these methods, or drawn ones where there are none."""
    left = []
    if tried and lane.has("goal_image"):
        left.append("evaluation.goals=environment")
    if "state" not in tried and lane.has("restore_state"):
        left.append("evaluation.goals=recorded with evaluation.restore=state")
    if "replay" not in tried:
        left.append("evaluation.goals=recorded with evaluation.restore=replay, if it is deterministic")
    if left:
        return f"What remains: {', or '.join(left)}."
    return (
        "No protocol remains: it shows no goal of its own (goal_image) and has no other way back. Draw everything "
        "random from self.np_random, or give the environment restore_state() (docs/bring_your_own.md)."
    )
