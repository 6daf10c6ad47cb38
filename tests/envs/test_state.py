"""Which numbers beside the frames count as state."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from jepaworld.envs.state import extract_state, left_out


def test_numbers_bools_and_arrays_of_info_are_taken_as_float32():
    info = {
        "x": 1.5, "n": np.int64(3), "ok": True, "position": np.array([1, 2], np.int32), "pair": (1, 2),
        "grid": np.ones((2, 2, 2), np.float64), "ball": {"x": 1, "deep": {"v": [0.5]}},
    }  # fmt: skip
    state = extract_state(None, info)
    assert list(state) == ["x", "n", "ok", "position", "pair", "grid", "ball.x", "ball.deep.v"]
    assert all(value.dtype == np.float32 for value in state.values())
    assert state["ok"] == 1
    assert state["grid"].shape == (2, 2, 2)
    assert state["x"].shape == ()
    assert state["ball.deep.v"].tolist() == [0.5]


def test_what_is_not_numeric_is_left_out():
    info = {
        "name": "left", "none": None, "complex": 1j, "ragged": [[1], [1, 2]], "object": object(), "empty": [],
        "words": ["a", "b"], "date": np.datetime64("2020-01-01"), "things": np.array([None]),
    }  # fmt: skip
    assert extract_state("text", info) == {}


@pytest.mark.parametrize(
    ("observation", "size"), [(np.zeros(512), 512), (np.zeros(3, np.uint8), 3), (7, 1), ((1, 2, True), 3)]
)
def test_a_short_vector_observation_is_state(observation, size):
    assert extract_state(observation, {})["observation"].size == size


@pytest.mark.parametrize("observation", [np.zeros(513), np.zeros((16, 16), np.uint8), None])
def test_other_observations_are_not(observation):
    assert extract_state(observation, {}) == {}


def test_the_vectors_of_a_dict_are_state_by_their_own_names_and_its_pictures_are_not():
    observation = {
        "observation": np.arange(10.0),
        "achieved_goal": np.zeros(3),
        "robot": {"joints": (1, 2), "camera": np.zeros((64, 64, 3), np.uint8)},
        "mission": "go",
        "image": np.zeros((7, 7, 3), np.uint8),
    }
    state = extract_state(observation, {"achieved_goal": 5.0})
    assert {name: value.shape for name, value in state.items()} == {
        "achieved_goal": (), "observation": (10,), "achieved_goal-2": (3,), "robot.joints": (2,),
    }  # fmt: skip
    assert left_out(observation, {}) == {"robot.camera": (64, 64, 3), "image": (7, 7, 3)}
    assert list(extract_state((np.zeros(3), np.zeros((20, 20)), {"x": 1}), {})) == ["observation.0", "observation.2.x"]


@pytest.mark.parametrize(("shape", "short"), [((512,), True), ((513,), False), ((8, 8), True), ((9, 9), False)])
def test_large_arrays_of_info_are_left_out_by_name(shape, short):
    info = {"sensor": {"grid": np.ones(shape)}}
    assert list(extract_state(None, info)) == (["sensor.grid"] if short else [])
    assert left_out(None, info) == ({} if short else {"sensor.grid": shape})
    lanes = {"grid": np.ones((1000, *shape)), "x": np.ones(1000)}
    assert list(extract_state(None, lanes, lanes=True)) == (["grid", "x"] if short else ["x"])


def test_names_are_fit_for_files_and_stay_apart():
    state = extract_state(
        np.zeros(2), {"a/b": 1, "a b": 2, "../up": 3, "observation": 4, 5: 5, "": 6, "p": {"q": 7}, "p.q": 8}
    )
    assert list(state) == ["a_b", "a_b-2", "_up", "observation", "5", "_", "p.q", "p.q-2", "observation-2"]
    assert float(state["a_b-2"]) == 2


def test_masks_of_vector_environments_are_left_out():
    state = extract_state(None, {"x": np.zeros(2), "_x": np.ones(2, bool), "_own": np.zeros(2)})
    assert list(state) == ["x", "_own"]


def test_the_arrays_are_copies():
    position = np.zeros(2, np.float32)
    state = extract_state(None, {"position": position})
    position += 1
    assert state["position"].tolist() == [0, 0]


def test_numbers_beyond_float32_become_infinite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert extract_state(None, {"x": 1e300})["x"] == np.inf
