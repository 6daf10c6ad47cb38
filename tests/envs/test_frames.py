"""Frames from any environment, against independent computations, and what is said when there are none."""

from __future__ import annotations

import importlib.util
import os
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from jepaworld.envs import TWO_ROOM_ID
from jepaworld.envs.frames import FrameReader, image_to_frame, is_image_space
from jepaworld.envs.make import make_env, make_vector_env
from jepaworld.errors import EnvironmentNotUsableError


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- pictures to frames --------------------------------------------------------------------------------


def test_a_picture_of_the_right_size_is_only_transposed():
    image = random_image(16, 16)
    frame = image_to_frame(image, 16, 3)
    np.testing.assert_array_equal(frame, np.moveaxis(image, 2, 0))
    assert frame.flags.c_contiguous
    assert frame.flags.writeable


def test_shrinking_averages_areas_also_when_squashing():
    image = random_image(96, 64)
    blocks = image.reshape(32, 3, 32, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(image_to_frame(image, 32, 3), np.moveaxis(blocks, 2, 0), atol=1)


def test_shrinking_by_a_fraction_averages_the_pixels_whose_centres_fall_intoit():
    image = np.random.default_rng(1).integers(0, 256, (210, 160), dtype=np.uint8)
    rows, columns = (np.ceil((np.arange(n) + 0.5) * 64 / n).astype(int) - 1 for n in (210, 160))
    expected = np.array([[image[rows == i][:, columns == j].mean() for j in range(64)] for i in range(64)])
    np.testing.assert_allclose(image_to_frame(image, 64, 1)[0], expected, atol=1)


def test_growing_is_bilinear():
    image = np.zeros((16, 16), np.uint8)
    image[:, 8:] = 200
    frame = image_to_frame(image, 32, 1)[0]
    # Between the centres of the last dark and the first bright pixel: a quarter and three quarters.
    np.testing.assert_array_equal(frame[5, 14:18], [0, 50, 150, 200])


def test_when_one_side_grows_sizes_change_by_bilinear_interpolation():
    image = np.zeros((64, 16), np.uint8)
    image[:, 8:] = 200
    np.testing.assert_array_equal(image_to_frame(image, 32, 1)[0, 5, 14:18], [0, 50, 150, 200])


def test_grey_is_luma_and_grey_becomes_colour_by_repeating():
    image = random_image(16, 16)
    luma = image @ np.array([0.299, 0.587, 0.114])
    frame = image_to_frame(image, 16, 1)
    assert frame.shape == (1, 16, 16)
    np.testing.assert_allclose(frame[0], luma, atol=0.51)
    for grey in (frame[0], frame[0][..., None]):
        np.testing.assert_array_equal(image_to_frame(grey, 16, 3), np.repeat(frame, 3, axis=0))


@pytest.mark.parametrize("shape", [(16, 16), (210, 160), (96, 96, 3), (84, 84, 1)])
def test_pictures_are_recognised(shape):
    assert is_image_space(Box(0, 255, shape, np.uint8))


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 255, (3, 64, 64), np.uint8),
        Box(0, 255, (64, 64, 4), np.uint8),
        Box(0, 255, (7, 7, 3), np.uint8),
        Box(0, 255, (128,), np.uint8),
        Box(0, 10, (64, 64, 3), np.uint8),
        Box(0, 255, (64, 64, 3), np.float32),
        Discrete(3),
    ],
    ids=str,
)
def test_what_is_no_picture_is_not_taken_for_one(space):
    assert not is_image_space(space)


# --- the reader ----------------------------------------------------------------------------------------


def test_the_observation_is_taken_where_it_is_a_picture_unless_the_rendering_is_asked_for():
    env = make_env("broken/Grey-v0", {})
    observation, _ = env.reset()
    observation = env.step(1)[0]
    for source, used in (("auto", "observation"), ("observation", "observation"), ("render", "render")):
        reader = FrameReader(env, 8, 3, source)
        assert reader.source == used
        np.testing.assert_array_equal(reader(observation), np.ones((3, 8, 8), np.uint8))


def test_nothing_is_rendered_before_a_frame_is_asked_for(monkeypatch):
    env = make_env("broken/Grey-v0", {})
    calls = []
    render = env.unwrapped.render
    monkeypatch.setattr(env.unwrapped, "render", lambda: calls.append(1) or render())
    observation, _ = env.reset()
    reader = FrameReader(env, 8, 1, "render")
    env.step(0)
    assert calls == []
    reader(observation)
    assert calls == [1]


def test_two_room_frames_are_its_image():
    env = make_env(TWO_ROOM_ID, {"random_wall": True})
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(FrameReader(env, 64, 3, "auto")(observation), observation.transpose(2, 0, 1))


def test_a_source_that_is_not_there_is_refused():
    env = make_env("broken/Unrendering-v0", {})
    with pytest.raises(EnvironmentNotUsableError, match=r"frame_source is observation.*no image.*render or auto"):
        FrameReader(env, 64, 3, "observation")
    with pytest.raises(EnvironmentNotUsableError, match=r"frame_source is render.*render_mode None"):
        FrameReader(gymnasium.make("broken/Grey-v0"), 64, 3, "render")


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("none", "render gives NoneType"),
        ("float", r"render gives float64 \(20, 20, 3\)"),
        ("rgba", r"render gives uint8 \(20, 20, 4\)"),
    ],
)
def test_a_rendering_that_is_no_picture_is_refused(gives, message):
    env = make_env("broken/Unrendering-v0", {"gives": gives})
    observation, _ = env.reset()
    reader = FrameReader(env, 64, 3, "auto")
    with pytest.raises(EnvironmentNotUsableError, match=message):
        reader(observation)


# --- making environments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("jepaworld/TwoRum-v0", {}, "TwoRum-v0 is not known.*Close ids: jepaworld/TwoRoom-v0"),
        ("tworoom", {}, "Close ids: jepaworld/TwoRoom-v0"),
        ("jepaworld/TwoRoom-v7", {}, "TwoRoom-v7 is not known.*`v0`.*Close ids: jepaworld/TwoRoom-v0"),
        ("not an id", {}, "not an id is not known"),
        ("no_such_module_here:Env-v0", {}, "No module named 'no_such_module_here'.*start in the folder"),
        (TWO_ROOM_ID, {"speed": 2}, r"cannot be made with .*\{'speed': 2\}.*'speed'"),
        (TWO_ROOM_ID, {"max_speed": -1}, r"environment_kwargs.*max_speed is -1"),
        (TWO_ROOM_ID, {"render_mode": "human"}, "set render_mode to 'human'.*Remove render_mode"),
        ("broken/Blind-v0", {}, "gives no frames.*no image"),
        ("broken/NoModule-v0", {}, "lacks a dependency: No module named.*Install"),
        ("broken/mujoco-v0", {}, r'lacks a dependency: MuJoCo.*pip install "jepaworld\[mujoco\]"'),
    ],
)
def test_an_environment_that_cannot_be_made_says_what_to_do(name, kwargs, message):
    with pytest.raises(EnvironmentNotUsableError, match=message):
        make_env(name, kwargs)


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("ale_py", "ALE/Pong-v5", "atari"), ("gym_pusht", "gym_pusht/PushT-v0", "pusht")],
)
def test_a_missing_package_names_its_extra(monkeypatch, package, name, extra):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == package else find_spec(n, *a))
    namespace = name.partition("/")[0]
    for known in [known for known in gymnasium.registry if known.startswith(f"{namespace}/")]:
        monkeypatch.delitem(gymnasium.registry, known)
    with pytest.raises(EnvironmentNotUsableError, match=rf'pip install "jepaworld\[{extra}\]"'):
        make_env(name, {})


def test_push_t_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht.envs", None)
    with pytest.raises(EnvironmentNotUsableError, match=r'lacks a dependency.*pip install "jepaworld\[pusht\]"'):
        make_env("jepaworld/PushT-v0", {})


@pytest.mark.parametrize(("name", "mode"), [("Function", None), ("FunctionWithMode", "rgb_array")])
def test_entry_points_that_are_functions_work(name, mode):
    assert make_env(f"broken/{name}-v0").render_mode == mode


def test_a_module_is_imported_before_its_id_is_looked_up():
    assert make_env(f"jepaworld.envs:{TWO_ROOM_ID}", {"max_episode_steps": 7}).spec.max_episode_steps == 7


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "egl"), ({"MUJOCO_GL": "osmesa"}, "osmesa"), ({"DISPLAY": ":0"}, None)],
)
def test_mujoco_renders_without_a_window_only_where_there_is_no_display(monkeypatch, variables, expected):
    pytest.importorskip("mujoco")
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "")  # so that the variable is restored after the test
    monkeypatch.delenv("MUJOCO_GL")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    make_env("broken/Grey-v0")
    assert os.environ.get("MUJOCO_GL") == expected


# --- vector environments -------------------------------------------------------------------------------


def test_two_room_has_its_own_vector_environment():
    env = make_vector_env(TWO_ROOM_ID, {"max_episode_steps": 9, "random_wall": True}, 3)
    env.reset(seed=0)
    ends = [env.step(np.zeros((3, 2)))[3].all() for _ in range(9)]
    assert ends == [False] * 8 + [True]


def test_environments_without_a_fitting_one_have_none():
    assert make_vector_env("broken/Grey-v0", {}, 2) is None
    assert make_vector_env("CartPole-v1", {}, 2) is None  # it has one, which resets itself
    assert make_vector_env("broken/ResettingVector-v0", {}, 2) is None
    assert make_vector_env(TWO_ROOM_ID, {"terminate_on_success": True}, 2) is None


def test_a_vector_environment_that_cannot_be_made_says_what_to_do():
    with pytest.raises(EnvironmentNotUsableError, match="is not known"):
        make_vector_env("jepaworld/TwoRum-v0", {}, 2)
    with pytest.raises(EnvironmentNotUsableError, match=r"max_speed is -1"):
        make_vector_env(TWO_ROOM_ID, {"max_speed": -1}, 2)


def test_a_vector_environment_that_is_not_made_for_this_is_left_alone():
    assert make_vector_env("broken/Vector-v0", {}, 2) is None
    pytest.importorskip("ale_py")
    make_env("ALE/Pong-v5", {}).close()
    # Its vector version takes neither our render_mode nor obs_type.
    assert make_vector_env("ALE/Pong-v5", {"obs_type": "ram"}, 2) is None
