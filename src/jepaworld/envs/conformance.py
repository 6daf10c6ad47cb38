"""Whether an environment can be used, found out by playing it: every doubt is a finding with its remedy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from jepaworld.envs.calls import close
from jepaworld.envs.frames import MOST_DIFFERING, Frame, FrameSource, differing
from jepaworld.envs.hooks import OWN_SUCCESS
from jepaworld.envs.make import make_env
from jepaworld.envs.player import Lane
from jepaworld.envs.seeding import kept_random_state
from jepaworld.envs.spaces import check_action_space
from jepaworld.envs.state import States
from jepaworld.errors import EnvironmentFailedError, EnvironmentNotUsableError

_PLAY_STEPS = 40
_END_STEPS = 2000
_END_SECONDS = 5.0
_SLOW_FRAMES_PER_SECOND = 30

Level = Literal["ok", "warn", "fail"]
"""warn: usable with a restriction; fail: not usable."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str  # one word
    level: Level
    text: str  # what was found and, unless ok, what to do


@dataclass(frozen=True)
class EnvironmentReport:
    """What `check_env` found."""

    environment_name: str
    findings: tuple[Finding, ...]  # as they were looked at; the first "fail" may end the list early

    @property
    def usable(self) -> bool:
        """Whether nothing failed."""
        return all(finding.level != "fail" for finding in self.findings)

    def __str__(self) -> str:
        verdict = f"{self.environment_name}: {'usable' if self.usable else 'not usable'}"
        return "\n".join([verdict, *(f"  {f.level:<4}  {f.name}: {f.text}" for f in self.findings)])


def check_env(
    environment_name: str,
    environment_kwargs: Mapping[str, Any] | None = None,
    image_size: int = 64,
    input_channels: Literal[1, 3] = 3,
    frame_source: FrameSource = "auto",
) -> EnvironmentReport:
    """Play an environment for some seconds and report whether data can be collected from it.

    Args:
        environment_name: Gymnasium id, also `module:id`.
        environment_kwargs: arguments for `gymnasium.make`.
        image_size: side of a frame, pixels.
        input_channels: channels of a frame, 1 (luma) or 3.
        frame_source: where frames come from; "auto": the observation where it is an image, else `render()`.

    Returns:
        The findings. Whatever goes wrong inside the environment is a finding too, not an exception.
    """
    findings: list[Finding] = []
    env = None
    try:
        env = make_env(environment_name, environment_kwargs)
        findings.append(Finding("exists", "ok", f"made from {env.spec.entry_point if env.spec else env}."))
        check_action_space(env.action_space)
        findings.append(Finding("actions", "ok", f"{env.action_space}."))
        with kept_random_state():
            findings.extend(_play_findings(Lane(env, image_size, input_channels, frame_source)))
    except EnvironmentNotUsableError as error:
        name = ("exists", "actions", "frames")[min(len(findings), 2)]
        if isinstance(error, EnvironmentFailedError) and error.call != "render":
            name = "plays"
        findings.append(Finding(name, "fail", str(error)))
    finally:
        if env is not None:
            close(env)
    return EnvironmentReport(environment_name, tuple(findings))


def _play(lane: Lane, actions: Sequence[Any]) -> tuple[list[Frame], list[States], float]:
    """The frames and states of a seeded play, those of the reset first, and the seconds that the steps took."""
    lane.reset(0, everything_else=0)
    frames, states, started = [lane.frame()], [lane.states()], time.perf_counter()
    for action in actions:
        ended = lane.step(action)
        frames.append(lane.frame())
        states.append(lane.states())
        if ended:
            break
    return frames, states, time.perf_counter() - started


def _play_findings(lane: Lane) -> Iterator[Finding]:
    lane.env.action_space.seed(0)
    actions = [lane.env.action_space.sample() for _ in range(_PLAY_STEPS)]
    (first, states, seconds), (second, _, _) = _play(lane, actions), _play(lane, actions)
    where = f"observation {lane.env.observation_space}" if lane.reader.source == "observation" else "rendering"
    yield Finding("frames", "ok", f"{first[0].shape} uint8 from the {where}.")
    steps = len(first) - 1
    changes = sum(not np.array_equal(a, b) for a, b in pairwise(first))
    yield _judge(
        "change",
        changes > 0,
        f"{changes} of {steps} random actions changed the frame.",
        "A model could learn nothing: check render(), or raise image_size if what moves is small.",
        otherwise="fail",
    )
    replays = len(first) == len(second) and np.array_equal(first, second)
    yield _judge(
        "determinism",
        replays,
        f"the same seed and actions gave {'the same frames twice' if replays else 'different frames'}.",
        "Data cannot be collected again bit for bit: draw from self.np_random, and reset everything in reset().",
    )
    yield _state_finding(states, lane.left_out())
    info = lane.info  # the environment is still where the second play ended
    restore = _restore_finding(lane, second[-1])
    yield restore
    yield _planning_finding(lane, replays, restore.level == "ok", info)
    yield _end_finding(lane)
    rate = steps / seconds
    yield _judge(
        "speed",
        rate >= _SLOW_FRAMES_PER_SECOND,
        f"{rate:.0f} frames per second from one process.",
        "Collecting will take long: raise collection.num_workers, or render smaller pictures.",
    )


def _judge(name: str, good: bool, text: str, remedy: str, *, otherwise: Level = "warn") -> Finding:
    """The finding "ok" where it is good, else another level and what to do."""
    return Finding(name, "ok", text) if good else Finding(name, otherwise, f"{text} {remedy}")


def _state_finding(states: Sequence[States], large: Mapping[str, tuple[int, ...]]) -> Finding:
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    last = shapes[-1]
    left_out = f" Too large and left out: {_listed(large)}." if large else ""
    if not any(shapes):
        text = "none: probes of embeddings and conditions of success will have nothing to read."
        return Finding("state", "warn", f"{text}{left_out} Put numbers or short vectors in info.")
    changing = sorted(name for name in set().union(*shapes) if any(step.get(name) != last.get(name) for step in shapes))
    listed = _listed({name: value.shape for name, value in states[-1].items()})
    if not changing:
        return Finding("state", "ok", f"stored beside the frames: {listed}.{left_out}")
    text = f"{listed}; but {', '.join(changing)} is missing at times (often after reset) or changes its shape."
    return Finding("state", "warn", f"{text} Give it after reset() and after every step(), in one shape.{left_out}")


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())


def _restore_finding(lane: Lane, frame: Frame) -> Finding:
    """Whether `restore_state`, else `reset(options=...)` with the arrays of info, brings the lane back to its frame."""
    states = lane.states()
    arrays = {name: value for name, value in lane.info.items() if isinstance(value, np.ndarray)}
    sets_state = lane.has("restore_state")
    how = "restore_state()" if sets_state else "reset(options=...)"
    reason = "info holds no arrays to give it"
    if sets_state or arrays:
        try:
            if sets_state:
                lane.reset(0)
                lane.restore_state(states)
            else:
                lane.reset(1, options=arrays)
        except EnvironmentFailedError as error:  # an environment may refuse in any way
            reason = f"it refused with {type(error.__cause__).__name__}: {error.__cause__}"
        else:
            if differing(lane.frame(), frame) <= MOST_DIFFERING:
                given = "the state variables" if sets_state else f"{', '.join(arrays)} of info"
                return Finding("restore", "ok", f"{how} with {given} gives the same frame again.")
            reason = "the frame was another one"
    return Finding("restore", "warn", f"{how} does not restore a state ({reason}).")


def _planning_finding(lane: Lane, replays: bool, restores: bool, info: Mapping[str, Any]) -> Finding:
    """Which starts and goals planning can be measured with; see `jepaworld.evaluation.tasks`."""
    possible = {"set by restore_state()": restores and lane.has("restore_state"), "replayed": replays}
    starts = " or ".join(word for word, there in possible.items() if there)
    protocols = [f"goals=recorded with starts {starts}"] if starts else []
    if lane.has("goal_image") and replays:
        protocols.insert(0, "goals=environment (goal_image())")
    if not protocols:
        text = "no protocol: it can neither be replayed nor set to a state. Draw everything random from self.np_random,"
        return Finding("planning", "warn", f"{text} or give it restore_state() (docs/bring_your_own.md).")
    own = next((name for name in OWN_SUCCESS if name in info), None)
    success = f"Its own success (info {own}) can be used."
    if own is None or not (lane.has("set_goal") or len(protocols) > 1):
        reason = "has none of its own" if own is None else f"{own} is about another goal"
        success = f"Success needs conditions on state variables (evaluation.success): info {reason}."
    return Finding("planning", "ok", f"{', '.join(protocols)}. {success}")


def _end_finding(lane: Lane) -> Finding:
    lane.reset(0)
    stop, step = time.perf_counter() + _END_SECONDS, 0
    while step < _END_STEPS and time.perf_counter() < stop:
        step += 1
        if lane.step(lane.env.action_space.sample()):
            text = f"{'terminated' if lane.terminated else 'truncated'} after {step} random steps."
            return Finding("end", "ok", text)
    text = f"no end within {step} random steps. Episodes will be cut at max_steps_per_episode_data_collection."
    return Finding("end", "warn", text)
