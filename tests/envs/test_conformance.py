"""The check of environments: good ones, broken ones, and the ones of the optional extras."""

from __future__ import annotations

import re

import broken
import numpy as np
import pytest

from jepaworld.envs import TWO_ROOM_ID
from jepaworld.envs.conformance import check_env
from jepaworld.envs.frames import FrameReader
from jepaworld.envs.make import make_env


def levels(report):
    return {finding.name: finding.level for finding in report.findings}


def text(report, name):
    return next(finding.text for finding in report.findings if finding.name == name)


def test_two_room_has_nothing_to_complain_about():
    report = check_env(TWO_ROOM_ID, {"random_wall": True})
    names = "exists actions frames change determinism state restore planning end speed"
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
    assert "the frame was another one" in text(report, "restore")
    plain = check_env("broken/Grey-v0")
    assert "Put numbers or short vectors in info" in text(plain, "state")
    assert "info holds no arrays" in text(plain, "restore")


@pytest.mark.parametrize(
    ("name", "restore", "planning"),
    [
        (
            "broken/Grey-v0",
            "warn",
            "goals=recorded with starts replayed. Success needs conditions .* has none of its own",
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
    assert levels(report)["planning"] == ("warn" if planning.startswith("no") else "ok")
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
