"""Who plays the tasks of an evaluation: the planner, and whoever plays actions that stand fixed before.

Shapes: B environments side by side, C H W image, P plan steps, *D latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jepaworld.evaluation.tasks import Task
from jepaworld.planning import Controller

Actions = Sequence[NDArray[Any]]
"""For each environment the actions (steps, *shape) to play next; none at all if it has none left."""


class PlanningAgent:
    """Plays the first block of a plan, then plans again; see `Controller`."""

    name = "planner"

    def __init__(self, controller: Controller) -> None:
        self.controller, self.num_plans = controller, 0

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:
        """Set the goals. A task's number decides its random numbers, whatever is played beside it."""
        goals = np.stack([task.goal_frame for task in tasks])
        self.controller.reset(goals, numbers, [task.history for task in tasks])

    def act(self, frames: NDArray[np.uint8]) -> Actions:
        """The actions of the next block of each environment."""
        blocks = self.controller.act(frames)
        self.num_plans += len(frames) if self.controller.steps_played == 1 else 0  # it was the first of new plans
        return list(self.controller.space.split(blocks))

    def expected(self, envs: Sequence[int]) -> torch.Tensor:
        """What the model expects to see from now on in some environments, (b, P, *D) in half precision.

        A plan that is played over several blocks ends sooner, and rests at its end.
        """
        imagined = self.controller.imagine(envs).imagined.half().cpu()
        played, length = self.controller.steps_played - 1, imagined.shape[1]
        return imagined[:, torch.arange(played, played + length).clamp(max=length - 1)]


class ScriptedAgent:
    """Plays actions that stand fixed before a task begins, once."""

    def __init__(self, name: str, actions_of: Callable[[int, Task], NDArray[Any]]) -> None:
        self.name, self.actions_of = name, actions_of
        self.actions: Actions = []

    def reset(self, numbers: Sequence[int], tasks: Sequence[Task]) -> None:
        """Find the tasks' actions."""
        self.actions = list(map(self.actions_of, numbers, tasks))

    def act(self, frames: NDArray[np.uint8]) -> Actions:  # noqa: ARG002 (it does not look)
        """All actions at first, nothing afterwards."""
        actions, self.actions = self.actions, [one[:0] for one in self.actions]
        return actions


Agent = PlanningAgent | ScriptedAgent
