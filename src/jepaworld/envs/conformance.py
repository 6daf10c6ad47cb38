"""Whether an environment can be used, found out by playing it: every doubt is a finding with its remedy."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from jepaworld.envs.calls import close
from jepaworld.envs.frames import MOST_DIFFERING, Frame, FrameSource, differing, pictures_in
from jepaworld.envs.hooks import OWN_SUCCESS, Hook
from jepaworld.envs.make import make_env
from jepaworld.envs.player import Lane
from jepaworld.envs.restore import goal_frame
from jepaworld.envs.seeding import kept_random_state, seed_everything_else
from jepaworld.envs.spaces import check_action_space
from jepaworld.envs.state import States, extract_state
from jepaworld.errors import EnvironmentFailedError, EnvironmentNotUsableError

_PLAY_STEPS = 40
_END_STEPS = 2000
_END_SECONDS = 5.0
_ENDS = 3  # episodes that are played to their end
_JUMP = 2  # times the largest change of an episode
_LATE_EPISODES, _LATE_STEPS = 6, 8
_SMALL_CHANGE = 0.1  # of 255, mean over a frame; smaller ones depend on how single pixels are rounded
_SLOW_FRAMES_PER_SECOND = 30
_UNLIKE = 0.5  # share of a frame from which on a goal is taken for a picture of another kind
_ABOUT_GOALS: tuple[Hook, ...] = ("goal_image", "goal_state", "set_goal")

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
        frame_source: where frames come from, as `collection.frame_source`.

    Returns:
        The findings. Whatever goes wrong inside the environment is a finding too, not an exception.
    """
    findings: list[Finding] = []
    env = None
    try:
        with kept_random_state():
            seed_everything_else(0)  # as `Player` does
            env = make_env(environment_name, environment_kwargs)
            findings.append(Finding("exists", "ok", f"made from {env.spec.entry_point if env.spec else env}."))
            check_action_space(env.action_space)
            findings.append(Finding("actions", "ok", f"{env.action_space}."))
            findings.extend(_play_findings(Lane(env, image_size, input_channels, frame_source)))
    except EnvironmentNotUsableError as error:
        name = ("exists", "actions", "frames")[min(len(findings), 2)]
        if isinstance(error, EnvironmentFailedError) and error.call != "render":
            name = "plays"
        findings.append(Finding(name, "fail", str(error)))
    finally:
        if env is not None and (error := close(env)):
            text = f"close() failed: {error!r}. What was played is kept, but what the environment holds may stay open."
            findings.append(Finding("close", "warn", text))
    return EnvironmentReport(environment_name, tuple(findings))


def _play(lane: Lane, actions: Sequence[Any]) -> tuple[list[Frame], list[States], float]:
    """The frames and states of a seeded play, those of the reset first, and the seconds that the steps took."""
    lane.reset(0)
    frames, states, started = [lane.frame()], [lane.states()], time.perf_counter()
    for action in actions:
        ended = lane.step(lane.possible(action))
        frames.append(lane.frame())
        states.append(lane.states())
        if ended:
            break
    return frames, states, time.perf_counter() - started


def _random_step(lane: Lane) -> bool:
    return lane.step(lane.possible(lane.env.action_space.sample()))


def _play_findings(lane: Lane) -> Iterator[Finding]:
    lane.env.action_space.seed(0)
    actions = [lane.env.action_space.sample() for _ in range(_PLAY_STEPS)]
    first, states, seconds = _play(lane, actions)
    second, other_states, _ = _play(lane, actions)
    info, large = lane.info, lane.left_out()
    yield _frames_finding(lane, first)
    steps = len(first) - 1
    changes = sum(not np.array_equal(a, b) for a, b in pairwise(first))
    yield _judge(
        "change",
        changes > 0,
        f"{changes} of {steps} random actions changed the frame.",
        "A model could learn nothing: check render(), or raise image_size if what moves is small.",
        otherwise="fail",
    )
    if late := _late(lane, first, second):
        yield Finding("late", "fail", f"{late} Show what is so now.")
    elif _hesitates(lane):
        text = "the first action of an episode never changes the picture, and the second does as much as any"
        yield Finding("late", "warn", f"{text}: see that it shows what is so after the action, not before.")
    replays = len(first) == len(second) and np.array_equal(first, second)
    yield _determinism_finding(replays, states, other_states)
    yield _state_finding(states, large)
    restore = _restore_finding(lane, other_states[-1], second[-1], replays)
    yield restore
    goals = _goals_finding(lane, restore.level == "ok")
    yield from goals
    yield _planning_finding(lane, replays, restore.level == "ok", info, all(goal.level == "ok" for goal in goals))
    yield from _end_findings(lane)
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


def _frames_finding(lane: Lane, frames: Sequence[Frame]) -> Finding:
    source, text = lane.reader.source, f"{frames[0].shape} uint8 from the rendering"
    if source != "render":
        text = f"{frames[0].shape} uint8 from {source}"
    else:
        pictures = pictures_in(lane.env.observation_space)
        taken = [name for name, problem in pictures.items() if problem is None]
        reasons = [f"{name} {problem}" for name, problem in pictures.items() if problem]
        text += f"; not from the observation ({'; '.join(reasons)})" if reasons and not taken else ""
        text += f"; collection.frame_source={taken[0]} would take the observation" if taken else ""
    largest = max(int(frame.max()) for frame in frames)
    remedy = "If they are meant to be 0 to 1, give floats or multiply by 255."
    return _judge("frames", largest != 1, f"{text}.", f"No value is above 1 of 255. {remedy}", otherwise="fail")


def _late(lane: Lane, first: Sequence[Frame], second: Sequence[Frame]) -> str:
    """In words, whether frames show what was so one reset or one look ago; else nothing."""
    if not np.array_equal(second[0], first[0]) and np.array_equal(second[0], first[-1]):
        return "The picture after reset() is the last one before it."
    lane.reset(0)
    looks = [(lane.frame(), lane.frame())]
    for _ in range(_LATE_STEPS):
        if _random_step(lane):
            break
        looks.append((lane.frame(), lane.frame()))
    # A second look may differ for good reasons (sparks that fade when they are drawn), but is then not the next first.
    repeated = all(np.array_equal(a[1], b[0]) for a, b in pairwise(looks))
    if repeated and not all(np.array_equal(*look) for look in looks):
        return "The first look after a step shows what the last look before it should have shown."
    return ""


def _hesitates(lane: Lane) -> bool:
    """Whether the first action of an episode never changes the picture, though nothing needs to gather speed."""
    sizes = []
    for seed in range(_LATE_EPISODES):
        lane.reset(seed)
        frames = [lane.frame()]
        for _ in range(_LATE_STEPS):
            ended = _random_step(lane)
            frames.append(lane.frame())
            if ended:
                return False
        sizes.append([_change(a, b) for a, b in pairwise(frames)])
    changes = np.array(sizes)
    later = np.median(changes[:, 2:])
    # What gathers speed also stands still at first, but then begins slowly.
    second = np.median(changes[:, 1])
    return bool(later > _SMALL_CHANGE and not changes[:, 0].any() and changes[:, 1].all() and second > 0.9 * later)


def _change(a: Frame, b: Frame) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


def _determinism_finding(replays: bool, states: Sequence[States], others: Sequence[States]) -> Finding:
    found = f"the same seed and actions gave {'the same frames twice' if replays else 'different frames'}"
    if not replays:
        remedy = (
            "Data cannot be collected again bit for bit: draw from self.np_random, and reset everything in reset()."
        )
        return Finding("determinism", "warn", f"{found}. {remedy}")
    pairs = list(zip(states, others, strict=True))
    clocks = sorted(
        name
        for name in states[-1]
        if any(name in b and not np.array_equal(a[name], b[name], equal_nan=True) for a, b in pairs if name in a)
    )
    if not clocks:
        return Finding("determinism", "ok", f"{found}.")
    remedy = f"Leave it out of info, or set evaluation.ignored_variables=[{','.join(clocks)}] (a clock, perhaps)."
    return Finding("determinism", "warn", f"{found}, but other values of {', '.join(clocks)}. {remedy}")


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


def _restore_finding(lane: Lane, states: States, frame: Frame, replays: bool) -> Finding:
    """Whether `restore_state` brings the lane back to a frame."""
    if not lane.has("restore_state"):
        text = "no restore_state(states); recorded starts are replayed." if replays else "no restore_state(states)."
        return Finding("restore", "ok" if replays else "warn", text)
    try:
        lane.reset(0)
        lane.restore_state(states)
    except EnvironmentFailedError as error:  # an environment may refuse in any way
        text = f"restore_state() does not restore a state: {str(error).splitlines()[0]}"
        also = " If it is not meant for jepaworld, nothing is lost: recorded starts are replayed." if replays else ""
        return Finding("restore", "warn", f"{text}{also}")
    if (share := differing(lane.frame(), frame)) > MOST_DIFFERING:
        text = f"restore_state() does not restore a state: {share:.1%} of the frame are other ones afterwards."
        return Finding("restore", "warn", text)
    return Finding("restore", "ok", "restore_state() with the state variables gives the same frame again.")


def _goals_finding(lane: Lane, restores: bool) -> list[Finding]:
    """Whether the methods about goals give what an evaluation asks of them; nothing where there are none."""
    there = [name for name in _ABOUT_GOALS if lane.has(name)]
    problems, checked = [], [f"{name}()" for name in there]
    lane.reset(0)
    frame, states = lane.frame(), lane.states()
    try:
        goal = goal_frame(lane, frame) if "goal_image" in there else None
        at_goal = extract_state(None, lane.call("goal_state")) if "goal_state" in there else {}
        if other := [name for name, value in at_goal.items() if name in states and states[name].shape != value.shape]:
            problems.append(f"goal_state() gives {', '.join(other)} in another shape than info.")
        if at_goal and not at_goal.keys() & states.keys():
            problems.append(f"goal_state() gives {', '.join(at_goal)}, which are no state variables.")
        if "set_goal" in there:
            lane.set_goal({**states, **at_goal})
        if goal is not None and restores and at_goal and lane.has("restore_state"):
            lane.restore_state({**states, **at_goal})
            if (share := differing(lane.frame(), goal)) > MOST_DIFFERING:
                problems.append(f"goal_image() and what is seen at goal_state() differ in {share:.1%} of the frame.")
        elif goal is not None and (share := differing(goal, frame)) > _UNLIKE:
            problems.append(
                f"goal_image() differs from the first frame in {share:.1%}: it should look like the frames."
            )
    except EnvironmentNotUsableError as error:
        problems.append(str(error))
    if problems:
        return [Finding("goals", "warn", " ".join(problems))]
    return [Finding("goals", "ok", f"{', '.join(checked)} give what planning asks for.")] if there else []


def _planning_finding(lane: Lane, replays: bool, restores: bool, info: Mapping[str, Any], goals_work: bool) -> Finding:
    """Which starts and goals planning can be measured with; see `jepaworld.evaluation.tasks`."""
    possible = {"set by restore_state()": restores and lane.has("restore_state"), "replayed": replays}
    starts = " or ".join(word for word, there in possible.items() if there)
    protocols = [f"goals=recorded with starts {starts}"] if starts else []
    if shows := lane.has("goal_image") and replays and goals_work:
        protocols.insert(0, "goals=environment (goal_image())")
    if not protocols:
        text = "no protocol: it can neither be replayed nor set to a state. Draw everything random from self.np_random,"
        return Finding("planning", "warn", f"{text} or give it restore_state() (docs/bring_your_own.md).")
    own = next((name for name in OWN_SUCCESS if name in info), None)
    variables = ", ".join(name for name in lane.states() if name not in OWN_SUCCESS)
    if own is not None and goals_work and (lane.has("set_goal") or shows):
        return Finding("planning", "ok", f"{', '.join(protocols)}. Its own success (info {own}) can be used.")
    reason = "has none of its own" if own is None else f"{own} is about another goal"
    if not variables:
        text = f"success cannot be told: there are no state variables for conditions, and info {reason}."
        remedy = "Put numbers that say where things are into info; without them, training and its report work alone."
        return Finding("planning", "warn", f"{text} {remedy}")
    success = f"Success needs conditions (evaluation.success) on state variables ({variables}): info {reason}."
    return Finding("planning", "ok", f"{', '.join(protocols)}. {success}")


def _end_findings(lane: Lane) -> Iterator[Finding]:
    """How episodes end, and whether the environment then begins another one by itself."""
    stop, jumps, text, step = time.perf_counter() + _END_SECONDS, [], "", 0
    for seed in range(_ENDS):
        lane.reset(seed)
        seen, step = [(lane.frame(), lane.states())], 0
        while not (lane.terminated or lane.truncated):
            if step == _END_STEPS or time.perf_counter() > stop:
                break
            step += 1
            _random_step(lane)
            seen.append((lane.frame(), lane.states()))
        else:
            text = text or f"{'terminated' if lane.terminated else 'truncated'} after {step} random steps."
            jumps.append(_jumps(seen) and _goes_on(lane))
            continue
        break
    if not jumps:
        text = f"no end within {step} random steps. Episodes will be cut at max_steps_per_episode_data_collection."
        yield Finding("end", "warn", text)
    elif len(jumps) > 1 and all(jumps):
        problem = "it resets itself in the step that ends an episode, whose last picture is the next one's first."
        remedy = "Take the automatic reset away, or give the last observation as info['final_observation']."
        yield Finding("end", "fail", f"{text} But {problem} {remedy}")
    else:
        yield Finding("end", "ok", text)


def _jumps(seen: Sequence[tuple[Frame, States]]) -> bool:
    """Whether the last transition of an episode changes much more than any other."""
    changes = [_change(a, b) for (a, _), (b, _) in pairwise(seen)]
    sizes = [changes]
    for name in seen[0][1]:
        rows = [states[name] for _, states in seen if name in states]
        if len(rows) == len(seen) and len({row.shape for row in rows}) == 1:
            sizes.append([float(np.abs(b - a).max()) for a, b in pairwise(rows)])
    return any(len(one) > 2 and 0 < _JUMP * max(one[:-1]) < one[-1] for one in sizes)


def _goes_on(lane: Lane) -> bool:
    """Whether an episode that has ended goes on with the next step, which it would not without a reset."""
    try:
        return not _random_step(lane)
    except EnvironmentFailedError:
        return False
