"""Where the recorded actions rank among random ones by how near to the goal the model expects them to end.

What led to the goal should end nearer than nearly all random actions. Where it does not, the planner is right to do
something else: the model's imagination or its distances are wrong, and no search mends that.

The distance at the end is what counts, whatever `planning.cost.path` says: recorded actions arrive in the end, but need
not take the shortest way, so that a mean over the path would rank them low with a perfect model too.

Shapes: B tasks at once, S random plans, P plan steps, A numbers of one action block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jepaworld.data.policies import RandomPolicy
from jepaworld.evaluation.results import RecordedRank
from jepaworld.evaluation.scores import episode_sums, interval_95, resample_counts
from jepaworld.evaluation.tasks import Task
from jepaworld.models.protocol import max_rollout_steps
from jepaworld.planning import Controller, GoalDistance

NUM_RANDOM = 100
"""Random plans for each task: the rank of one task is then known to a hundredth."""

_STREAM = 2**32 - 3
"""Keeps these random plans apart from those that the random policy plays."""


def rank_recorded(
    controller: Controller, tasks: Sequence[Task], policy: RandomPolicy, seed: int, at_once: int
) -> RecordedRank | None:
    """Rank the recorded actions of all tasks; None where nothing was recorded.

    Args:
        controller: Of the model, with the metric of its settings; a new episode begins in it.
        tasks: At least one. Their actions are imagined as far as the model can.
        policy: Draws the random actions.
        seed: `evaluation.seed`.
        at_once: Tasks that are judged together.
    """
    if any(task.actions is None for task in tasks):
        return None
    shares = [
        share
        for first in range(0, len(tasks), at_once)
        for share in _shares(controller, tasks[first : first + at_once], first, policy, seed)
    ]
    owners = [task.episode for task in tasks]
    counted = episode_sums(np.column_stack([shares, np.ones(len(shares))]), np.asarray(owners))
    total, judged = (resample_counts(len(counted)) @ counted).T
    ends = interval_95(total / judged) if len(counted) > 1 else None
    return RecordedRank(better_than=float(np.mean(shares)), interval_95=ends, tasks=len(tasks), random=NUM_RANDOM)


def _shares(
    controller: Controller, tasks: Sequence[Task], first: int, policy: RandomPolicy, seed: int
) -> NDArray[np.float64]:
    """Share of random plans (B,) that end further from the goal than the recorded one; of equals, half count."""
    numbers = range(first, first + len(tasks))
    controller.reset(np.stack([task.goal_frame for task in tasks]), numbers, [task.history for task in tasks])
    cost = controller.cost(np.stack([task.start.frame for task in tasks]))
    cost.goal_cost = GoalDistance(controller.settings.cost.metric, "last")
    space, plans, most = controller.space, [], max_rollout_steps(controller.model)
    for number, task in zip(numbers, tasks, strict=True):
        recorded = np.asarray(task.actions)
        rng = np.random.default_rng((seed, _STREAM, number))
        drawn: list[Any] = [policy.sequence(rng, len(recorded)) for _ in range(NUM_RANDOM)]
        plans.append(np.stack([recorded, *drawn]).reshape(1 + NUM_RANDOM, -1, space.width)[:, :most])
    candidates = torch.tensor(np.stack(plans), dtype=torch.int64 if space.discrete else torch.float32)
    costs = cost(candidates.to(space.device)).double().cpu().numpy()
    recorded, others = costs[:, :1], costs[:, 1:]
    return ((others > recorded) + 0.5 * (others == recorded)).mean(axis=1)
