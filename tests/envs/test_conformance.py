"""The check of environments: good ones, broken ones, and the ones of the optional extras."""

from __future__ import annotations

import re
import time
from typing import Any, ClassVar

import broken
import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from PIL import Image

from jepaworld.envs import TWO_ROOM_ID
from jepaworld.envs.conformance import check_env
from jepaworld.envs.frames import FrameReader
from jepaworld.envs.make import make_env
from jepaworld.envs.player import Lane
from jepaworld.errors import EnvironmentNotUsableError


def levels(report):
    return {finding.name: finding.level for finding in report.findings}


def text(report, name):
    return next(finding.text for finding in report.findings if finding.name == name)


def test_two_room_has_nothing_to_complain_about():
    report = check_env(TWO_ROOM_ID, {"random_wall": True})
    names = "exists actions frames change determinism state restore goals planning end speed"
    assert list(levels(report)) == names.split()
    assert report.usable
    assert {level for name, level in levels(report).items() if name != "speed"} == {"ok"}
    assert "state (2,), goal (2,), wall (2,), success ()" in text(report, "state")
    assert "truncated after 200" in text(report, "end")
    assert "restore_state() with the state variables gives the same frame" in text(report, "restore")
    assert text(report, "planning") == (
        "goals=environment (goal_image()), goals=recorded with starts set by restore_state() or replayed. "
        "Its own success (info success) can be used."
    )
    assert str(report).startswith("jepaworld/TwoRoom-v0: usable\n  ok    exists: ")


@pytest.mark.parametrize(
    ("name", "finding", "message"),
    [
        ("jepaworld/TwoRum-v0", "exists", "Close ids"),
        ("broken/Blind-v0", "exists", "gives no frames"),
        ("broken/ManyButtons-v0", "actions", "Box and Discrete"),
        ("broken/Unrendering-v0", "frames", "render() failed"),
        ("broken/Crashing-v0", "plays", "motor is on fire"),
        ("broken/Still-v0", "change", "0 of 40 random actions"),
    ],
)
def test_what_makes_an_environment_unusable_is_a_finding(name, finding, message):
    report = check_env(name)
    assert not report.usable
    assert levels(report)[finding] == "fail"
    assert message in text(report, finding)
    assert "not usable" in str(report)


def test_what_restricts_an_environment_is_a_warning(monkeypatch):
    monkeypatch.setattr("jepaworld.envs.conformance._END_STEPS", 50)
    report = check_env("broken/Restless-v0")
    assert report.usable
    found = levels(report)
    assert [found[name] for name in ("determinism", "state", "restore", "end")] == ["warn"] * 4
    assert "count, picky is missing at times" in text(report, "state")
    assert text(report, "restore") == "no restore_state(states)."
    plain = check_env("broken/Grey-v0")
    assert "Put numbers or short vectors in info" in text(plain, "state")
    assert "recorded starts are replayed" in text(plain, "restore")


@pytest.mark.parametrize(
    ("name", "restore", "planning"),
    [
        (
            "broken/Grey-v0",
            "ok",
            "success cannot be told: there are no state variables for conditions, and info has none of its own",
        ),
        (
            "broken/Returning-v0",
            "ok",
            r"goals=environment .*, goals=recorded .* set by .* or replayed. Its own .*success\)",
        ),
        ("broken/Unreturning-v0", "warn", r"goals=environment .*, goals=recorded with starts replayed\. "),
        ("broken/Restless-v0", "warn", r"no protocol: .* self.np_random, or give it restore_state"),
    ],
)
def test_which_planning_protocols_remain_is_told(monkeypatch, name, restore, planning):
    monkeypatch.setattr("jepaworld.envs.conformance._END_STEPS", 50)
    report = check_env(name)
    assert levels(report)["restore"] == restore
    assert levels(report)["planning"] == ("ok" if planning.startswith("goals") else "warn")
    assert re.match(planning, text(report, "planning"))


def test_ones_own_success_is_about_another_goal_where_goals_are_recorded(monkeypatch):
    monkeypatch.setattr("jepaworld.envs.conformance._END_STEPS", 50)
    monkeypatch.delattr(broken.Returning, "goal_image")
    assert "info is_success is about another goal" in text(check_env("broken/Returning-v0"), "planning")


@pytest.mark.parametrize(
    ("module", "name", "source", "state"),
    [
        ("ale_py", "ALE/Pong-v5", "observation", "frame_number"),
        ("Box2D", "CarRacing-v3", "observation", None),
        ("mujoco", "Reacher-v5", "render", "qpos"),
        ("gym_pusht", "gym_pusht/PushT-v0", "render", "block_velocity"),
        ("gym_pusht", "jepaworld/PushT-v0", "render", "observation"),
    ],
)
def test_environments_of_the_extras_play(module, name, source, state):
    pytest.importorskip(module)
    env = make_env(name, {})
    reader = FrameReader(env, 64, 3, "auto")
    assert reader.source == source
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    frames = [reader(observation)]
    for _ in range(4):
        observation = env.step(env.action_space.sample())[0]
        frames.append(reader(observation))
    env.close()
    assert all(frame.shape == (3, 64, 64) and frame.dtype == np.uint8 and frame.std() > 5 for frame in frames)
    assert not np.array_equal(frames[0], frames[-1])
    if state is not None:
        from jepaworld.envs.state import extract_state

        assert state in extract_state(observation, env.reset(seed=0)[1])


# --- environments that keep Gymnasium's contract in their own way ---------------------------------------


class Walker(gymnasium.Env):
    """A bright column walks over a dark board of 64; everything about it is told."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    length = 30

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.action_space, self.observation_space = Box(-2, 2, (1,), np.float32), Box(0, 64, (1,), np.float32)

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.x, self.steps, self.goal = float(self.np_random.uniform(5, 59)), 0, float(self.np_random.uniform(5, 59))
        return self.observation(), self.info()

    def step(self, action):
        self.x = float(np.clip(self.x + 2 * np.sign(action[0]), 1, 62))
        self.steps += 1
        return self.observation(), 0.0, self.steps >= self.length, False, self.info()

    def observation(self):
        return np.array([self.x], np.float32)

    def info(self):
        return {"x": self.x}

    def picture(self, x):
        image = np.zeros((64, 64, 3), np.uint8)
        image[:, int(x) - 1 : int(x) + 2] = 255
        return image

    def render(self):
        return self.picture(self.x)


class Resetting(Walker):
    """Begins the next episode in the step that ends one."""

    def step(self, action):
        observation, reward, ended, cut, info = super().step(action)
        if ended:
            observation, info = self.reset()
        return observation, reward, ended, cut, info


class Seeing(Walker):
    """Its observation is its picture."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.observation_space = Box(0, 255, (64, 64, 3), np.uint8)

    def observation(self):
        return self.render()


class Handing(Seeing):
    """Resets itself, and hands out the last observation and info of the episode."""

    def step(self, action):
        observation, reward, ended, cut, info = super().step(action)
        if ended:
            first, next_info = self.reset()
            return first, reward, ended, cut, next_info | {"final_observation": observation, "final_info": info}
        return observation, reward, ended, cut, info


class ActionLate(Seeing):
    """Observes what was so before the action."""

    def step(self, action):
        before = self.observation()
        return before, *super().step(action)[1:]


class ResetLate(Walker):
    """Draws only in steps."""

    drawn = None

    def step(self, action):
        result = super().step(action)
        self.drawn = super().render()
        return result

    def render(self):
        return super().render() if self.drawn is None else self.drawn


class LookLate(Walker):
    """Shows what it drew at the look before."""

    drawn = None

    def render(self):
        before, self.drawn = self.drawn, super().render()
        return self.drawn if before is None else before


class Sparkling(Walker):
    """A spark goes on whenever it is drawn."""

    looks = 0

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        self.looks = 0
        return super().reset(seed=seed)

    def render(self):
        self.looks += 1
        image = super().render()
        image[self.looks % 64] = 99
        return image


class Masked(Walker):
    """Takes what its mask allows and nothing else."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.action_space = gymnasium.spaces.Discrete(3, start=-1)

    def info(self):
        return super().info() | {"action_mask": np.arange(3) != self.steps % 3}

    def step(self, action):
        if action + 1 == self.steps % 3:
            raise ValueError(f"illegal move {action}")
        return super().step([action])


class Heavy(Walker):
    """Gathers speed, so that a first action hardly moves it."""

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        self.speed = 0.0
        return super().reset(seed=seed)

    def step(self, action):
        result, before = super().step([0.0]), self.speed
        self.speed += float(action[0]) / 4 + 0.2
        self.x = float(np.clip(self.x + before, 1, 62))
        return self.observation(), *result[1:4], self.info()


class Timed(Walker):
    """Tells the time."""

    def info(self):
        return super().info() | {"clock": time.perf_counter_ns() % 1000}


class Global(Walker):
    """Draws from numpy's global generator, and writes into its actions."""

    def step(self, action):
        action[...] = np.random.uniform(-2, 2)  # noqa: NPY002
        return super().step(action)


class Rewarding(Walker):
    """Two rewards."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, np.zeros(2), *rest


class Unclosing(Walker):
    """Cannot be closed."""

    def close(self):
        raise RuntimeError("the door is stuck")


class Numberless(Walker):
    """Pictures and words alone."""

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.observation_space = gymnasium.spaces.Dict({"mission": gymnasium.spaces.Text(20)})

    def observation(self):
        return {"mission": "go there"}

    def info(self):
        return {"depth": np.zeros((50, 50))}


class Dim(Walker):
    """Pictures of 0 and 1."""

    def picture(self, x):
        return super().picture(x) // 255


class Aiming(Seeing):
    """All methods about states and goals; `wrong` names one that does something else."""

    def __init__(self, render_mode=None, wrong=""):
        super().__init__(render_mode)
        self.wrong = wrong
        if wrong == "arguments":
            self.set_goal = lambda x, y: None  # noqa: ARG005
        if wrong == "attribute":
            self.goal_image = self.picture(3)

    def info(self):
        return super().info() | {"success": abs(self.x - self.goal) < 2}

    def restore_state(self, states):
        if self.wrong == "restore":
            return None
        self.x = float(states["x"])
        return self.observation(), self.info()

    def goal_image(self):
        if self.wrong == "white":
            return 255 - self.picture(self.goal)
        if self.wrong == "tuple":
            return (3, 4)
        return self.picture(self.goal)

    def goal_state(self):
        return {"nothing": None, "other": {"y": 3.0}, "shape": {"x": [1.0, 2.0]}}.get(self.wrong, {"x": self.goal})

    def set_goal(self, states):
        if self.wrong == "set":
            return
        self.goal = float(states["x"])
        return self.info()


class GreyAiming(Aiming):
    """Sees grey and shows its goal in colour."""

    def __init__(self, render_mode=None, wrong=""):
        super().__init__(render_mode, wrong)
        self.observation_space = Box(0, 255, (64, 64), np.uint8)

    def observation(self):
        return np.asarray(Image.fromarray(self.render()).convert("L"))

    def picture(self, x):
        return super().picture(x) // np.array([1, 3, 5], np.uint8)


KINDS = [
    Walker, Resetting, Seeing, Handing, ActionLate, ResetLate, LookLate, Heavy, Timed, Global, Rewarding, Unclosing,
    Numberless, Dim, Aiming, GreyAiming, Sparkling, Masked,
]  # fmt: skip
for kind in KINDS:
    gymnasium.register(f"walk/{kind.__name__}-v0", entry_point=kind, disable_env_checker=True, order_enforce=False)


@pytest.mark.parametrize(
    ("name", "finding", "level", "message"),
    [
        ("Resetting", "end", "fail", "resets itself in the step that ends an episode"),
        ("ActionLate", "late", "warn", "first action of an episode never changes"),
        ("ResetLate", "late", "fail", r"after reset\(\) is the last one before"),
        ("LookLate", "late", "fail", "last look before it should"),
        ("Dim", "frames", "fail", "No value is above 1"),
        ("Rewarding", "plays", "fail", r"float64 \(2,\) as reward"),
        ("Timed", "determinism", "warn", r"other values of clock.*evaluation.ignored_variables=\[clock\]"),
        ("Unclosing", "close", "warn", "the door is stuck"),
        ("Numberless", "planning", "warn", "success cannot be told"),
        ("Numberless", "state", "warn", r"left out: depth \(50, 50\)"),
        ("Numberless", "frames", "ok", "not from the observation .observation.mission is no array"),
    ],
)
def test_what_breaks_the_contract_is_found(name, finding, level, message):
    report = check_env(f"walk/{name}-v0")
    assert levels(report)[finding] == level
    assert re.search(message, text(report, finding))
    assert report.usable is (level != "fail")


@pytest.mark.parametrize(
    "name", ["Walker", "Seeing", "Handing", "Sparkling", "Masked", "Heavy", "Global", "Aiming", "GreyAiming"]
)
def test_nothing_is_found_where_nothing_is_wrong(name):
    report = check_env(f"walk/{name}-v0")
    assert {level for found, level in levels(report).items() if found != "speed"} == {"ok"}, str(report)
    assert "late" not in levels(report) and "close" not in levels(report)


def test_the_last_observation_of_an_environment_that_resets_itself_is_played():
    lane = Lane(make_env("walk/Handing-v0"), 64, 3)
    lane.reset(0)
    seen = [lane.states()["x"]]
    while not lane.step([1.0]):
        seen.append(lane.states()["x"])
    assert abs(lane.states()["x"] - seen[-1]) <= 2 and "final_observation" not in lane.info
    assert lane.frame()[0, 0].argmax() == int(lane.states()["x"]) - 1
    lane = Lane(make_env("walk/Handing-v0"), 64, 3, "render")
    lane.reset(0)
    with pytest.raises(EnvironmentNotUsableError, match=r"resets itself .*final_observation.*frame_source=observation"):
        while True:
            lane.step([1.0])


@pytest.mark.parametrize(
    ("wrong", "finding", "message"),
    [
        ("white", "goals", r"goal_image\(\) and what is seen at goal_state\(\) differ in 100"),
        ("tuple", "goals", r"goal_image\(\) gives int64 \(2,\)"),
        ("nothing", "goals", r"goal_state\(\) returns NoneType; expected states"),
        ("other", "goals", "gives y, which are no state variables"),
        ("shape", "goals", "gives x in another shape"),
        ("set", "goals", r"set_goal\(\) returns NoneType; expected info"),
        ("restore", "restore", r"restore_state\(\) returns NoneType; expected \(observation, info\)"),
    ],
)
def test_what_an_evaluation_relies_on_is_called(wrong, finding, message):
    report = check_env("walk/Aiming-v0", {"wrong": wrong})
    assert report.usable and levels(report)[finding] == "warn"
    assert re.search(message, text(report, finding))


def test_what_is_only_called_like_our_methods_is_not_taken_for_them():
    report = check_env("walk/Aiming-v0", {"wrong": "arguments"})
    assert text(report, "goals").startswith("goal_image(), goal_state() give")
    report = check_env("walk/Aiming-v0", {"wrong": "attribute"})
    assert text(report, "goals").startswith("goal_state(), set_goal() give")
    assert text(report, "planning").startswith("goals=recorded")


def test_forbidden_actions_are_exchanged_for_allowed_ones():
    lane = Lane(make_env("walk/Masked-v0"), 64, 3)
    lane.reset(0)
    assert [int(lane.possible(action)) for action in (-1, 0, 1)] == [1, 0, 1]
    lane.step(1)
    assert [int(lane.possible(action)) for action in (-1, 0, 1)] == [-1, -1, 1]
