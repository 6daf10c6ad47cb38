"""Frames from any environment, against independent computations, and what is said when there are none."""

from __future__ import annotations

import importlib.util
import os
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text

from jepaworld.envs import TWO_ROOM_ID
from jepaworld.envs.frames import FrameReader, Pictures, image_to_frame, is_image_space, pictures_in
from jepaworld.envs.make import make_env, make_vector_env
from jepaworld.envs.player import Lane
from jepaworld.errors import EnvironmentNotUsableError
from jepaworld.utils.outside import import_module


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


# --- what arrives --------------------------------------------------------------------------------------


COLOUR = random_image(20, 24, 3)
OPAQUE = np.dstack([COLOUR, np.full((20, 24), 255, np.uint8)])
STACK = np.stack([COLOUR // 2, COLOUR])


@pytest.mark.parametrize(
    "given",
    [
        COLOUR, COLOUR.tolist(), COLOUR.astype(np.int64), COLOUR.astype(np.float32), COLOUR / 255,
        COLOUR / np.float32(255), np.moveaxis(COLOUR, 2, 0), OPAQUE,
        np.moveaxis(OPAQUE, 2, 0) / 255, STACK, np.moveaxis(STACK, 3, 1), STACK / 255,
    ],
    ids=lambda given: f"{getattr(given, 'dtype', 'list')}{np.shape(given)}",
)  # fmt: skip
def test_what_is_certain_becomes_the_same_picture(given):
    np.testing.assert_array_equal(Pictures("it")(given), COLOUR)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (COLOUR[..., 0], COLOUR[..., 0]),
        (COLOUR[..., :1], COLOUR[..., :1]),
        (COLOUR[None, ..., 0], COLOUR[..., :1]),
        (np.moveaxis(OPAQUE, 2, 0) // 2, COLOUR[..., 0] * 0 + 127),  # the newest of four grey ones
        (COLOUR[..., 0] > 99, (COLOUR[..., 0] > 99) * np.uint8(255)),
    ],
)
def test_grey_pictures_and_stacks_of_them(given, expected):
    pictures = Pictures("it")
    np.testing.assert_array_equal(pictures(given), expected)
    assert pictures.is_grey


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (COLOUR.astype(np.uint16) * 16, "from 0 to 4080"),
        (COLOUR / 127.5 - 1, "from -1 to 1; expected values from 0 to 1 or"),
        (np.full((20, 24), np.nan), "values from nan"),
        (OPAQUE // 2, r"uint8 \(20, 24, 4\); expected .* opaque"),
        (np.zeros((20, 24, 9), np.uint8), r"\(20, 24, 9\)"),
        (np.zeros((40, 20, 24), np.uint8), r"\(40, 20, 24\)"),
        (np.zeros((2, 5, 20, 24), np.uint8), r"\(2, 5, 20, 24\)"),
        (np.zeros(20, np.uint8), r"\(20,\)"),
        ([[1], [1, 2]], "list; expected an array"),
        ("picture", "str; "),
    ],
)
def test_what_is_not_certain_is_refused(given, message):
    with pytest.raises(EnvironmentNotUsableError, match=f"^it gives .*{message}"):
        Pictures("it")(given)


def test_the_range_of_floats_is_decided_once():
    pictures = Pictures("it")
    assert not pictures(np.zeros((20, 24))).any()
    assert (pictures(np.full((20, 24), 0.2)) == 51).all()
    with pytest.raises(EnvironmentNotUsableError, match=r"floats up to 51 after ones up to 1"):
        pictures(np.full((20, 24), 51.0))
    bright = Pictures("it")
    bright(np.full((20, 24), 200.0))
    assert (bright(np.ones((20, 24))) == 1).all()


def test_which_parts_of_an_observation_are_pictures():
    space = Dict(
        {
            "pixels": Box(0, 255, (64, 64, 3), np.uint8),
            "arm": Dict({"wrist": Box(0, 1, (3, 32, 32), np.float32), "joints": Box(-1, 1, (7,))}),
            "map": Box(0, 10, (25, 25), np.int64),
            "words": Text(5),
        }
    )
    found = pictures_in(space)
    assert [name for name, problem in found.items() if problem is None] == [
        "observation.arm.wrist",
        "observation.pixels",
    ]
    assert "from 0 to 10" in found["observation.map"]
    assert "float32 (7,)" in found["observation.arm.joints"]
    assert "no array" in found["observation.words"]


class Cameras(gymnasium.Env):
    """Two pictures and a vector in a Dict, and no rendering."""

    def __init__(self, names=("front", "image"), render_mode=None):
        self.render_mode = render_mode
        self.names, self.action_space = names, Discrete(2)
        pictures = {name: Box(0, 1, (3, 20, 20), np.float32) for name in names}
        self.observation_space = Dict({"cameras": Dict(pictures), "joints": Box(-1, 1, (2,), np.float32)})

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        shades = {name: np.full((3, 20, 20), (i + 1) / 255, np.float32) for i, name in enumerate(self.names)}
        return {"cameras": shades, "joints": np.ones(2, np.float32)}, {}


gymnasium.register("frames/Cameras-v0", entry_point=Cameras, disable_env_checker=True)


def test_pictures_of_a_dict_are_frames_and_its_vectors_states():
    for source, used, shade in (
        ("auto", "image", 2),
        ("observation", "image", 2),
        ("observation.cameras.front", "front", 1),
    ):
        lane = Lane(make_env("frames/Cameras-v0"), 8, 3, source)
        lane.reset(0)
        assert lane.reader.source == f"observation.cameras.{used}"
        assert (lane.frame() == shade).all() and lane.frame().shape == (3, 8, 8)
        assert list(lane.states()) == ["joints"]
        other = {"image": "front", "front": "image"}[used]
        assert lane.left_out() == {f"cameras.{other}": (3, 20, 20)}
    with pytest.raises(EnvironmentNotUsableError, match=r"several .* observation.cameras.a, observation.cameras.b"):
        FrameReader(make_env("frames/Cameras-v0", {"names": ("a", "b")}), 8, 3)
    lane = Lane(make_env("frames/Cameras-v0"), 8, 3, "observation.cameras.back")
    lane.reset(0)
    with pytest.raises(EnvironmentNotUsableError, match=r"observation.cameras.back.*observation.cameras.front"):
        lane.frame()


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
    with pytest.raises(EnvironmentNotUsableError, match=r"frame_source is observation.*no picture.*render or auto"):
        FrameReader(env, 64, 3, "observation")
    with pytest.raises(EnvironmentNotUsableError, match=r"frame_source is render.*render_mode is None"):
        FrameReader(gymnasium.make("broken/Grey-v0"), 64, 3, "render")


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("none", "render gives NoneType"),
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
        ("broken/Asserting-v0", {}, r"cannot be made .*: AssertionError in broken.py, line \d+: assert not size\."),
        ("broken/mujoco_arm-v0", {}, r"No module named 'no_such_sensor'. Install it: pip install no_such_sensor\."),
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


def test_mujoco_is_told_before_a_users_module_is_imported(monkeypatch, tmp_path):
    pytest.importorskip("mujoco")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "")
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "asks_early.py").write_text("import os\nFOUND = os.environ.get('MUJOCO_GL')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentNotUsableError, match="not known"):
        make_env("asks_early:asks/Early-v0")
    assert sys.modules.pop("asks_early").FOUND == "egl"
    monkeypatch.delenv("MUJOCO_GL")
    assert import_module("asks_early", "a policy").FOUND == "egl", "as policies and components are imported"
    del sys.modules["asks_early"]


@pytest.mark.parametrize(
    ("module", "hinted"),
    [
        ("mujoco.rendering.classic.renderer", True),
        ("dm_control._render", True),
        ("gymnasium.envs.mujoco.mujoco_rendering", True),
        ("OpenGL.error", True),
        ("my_mujoco_renderer", False),
        ("mujoco.mjx", False),
    ],
)
def test_hints_about_mujoco_are_given_where_its_rendering_failed(monkeypatch, module, hinted):
    code = {"__name__": module}
    exec("def render():\n raise RuntimeError('no context')", code)
    env = make_env("broken/Unrendering-v0")
    lane = Lane(env, 8, 3)
    lane.reset(0)
    monkeypatch.setattr(env.unwrapped, "render", code["render"])
    with pytest.raises(EnvironmentNotUsableError, match="no context") as caught:
        lane.frame()
    assert ("MuJoCo" in str(caught.value)) is hinted
    assert ("MUJOCO_GL=egl" in str(caught.value)) is hinted


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
