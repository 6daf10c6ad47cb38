"""When a goal counts as reached."""

from __future__ import annotations

import numpy as np
import pytest

from jepaworld.config.planning import RestCondition, SuccessCondition
from jepaworld.errors import ConfigError, PlanningError
from jepaworld.evaluation.success import Criterion, Rest

VARIABLES = {"block": (3,), "agent": (2,), "grid": (2, 2), "angle": ()}


def states(**values):
    return {name: np.asarray(value, np.float32) for name, value in values.items()}


def reached(conditions, now, goal):
    criterion = Criterion([SuccessCondition(**condition) for condition in conditions], VARIABLES)
    return criterion.judge(states(**now), {}, states(**goal))[0]


def test_a_condition_is_the_euclidean_distance_up_to_and_with_its_limit():
    condition = {"variable": "agent", "distance": 5.0}
    assert reached([condition], {"agent": [3, 4]}, {"agent": [0, 0]})
    assert not reached([condition], {"agent": [3, 4.01]}, {"agent": [0, 0]})


def test_only_the_indices_named_count():
    condition = {"variable": "block", "indices": [0, 2], "distance": 1.0}
    assert reached([condition], {"block": [0.5, 99, 0.5]}, {"block": [0, 0, 0]})
    assert not reached([condition], {"block": [0.5, 0, 2.0]}, {"block": [0, 0, 0]})
    entry = {"variable": "grid", "indices": [3], "distance": 1.0}
    assert reached([entry], {"grid": [[9, 9], [9, 0]]}, {"grid": [[0, 0], [0, 0]]})


@pytest.mark.parametrize(("now", "goal"), [(0.1, 2 * np.pi - 0.1), (2 * np.pi - 0.1, 0.1), (-6 * np.pi + 0.1, -0.1)])
def test_an_angle_is_compared_the_short_way_round(now, goal):
    condition = {"variable": "angle", "distance": 0.25}
    assert reached([condition | {"period": 2 * np.pi}], {"angle": now}, {"angle": goal})
    assert not reached([condition | {"period": 2 * np.pi, "distance": 0.15}], {"angle": now}, {"angle": goal})
    assert not reached([condition], {"angle": now}, {"angle": goal})


def test_all_conditions_must_hold():
    conditions = [{"variable": "agent", "distance": 1.0}, {"variable": "angle", "distance": 1.0}]
    goal = {"agent": [0, 0], "angle": 0}
    assert reached(conditions, {"agent": [0, 0], "angle": 0}, goal)
    assert not reached(conditions, {"agent": [0, 2], "angle": 0}, goal)
    assert not reached(conditions, {"agent": [0, 0], "angle": 2}, goal)


def test_distances_are_given_in_the_order_of_the_conditions():
    conditions = [SuccessCondition(variable="angle"), SuccessCondition(variable="agent", distance=9.0)]
    criterion = Criterion(conditions, VARIABLES)
    assert criterion.judge(states(angle=2, agent=[3, 4]), {}, states(angle=0, agent=[0, 0])) == (False, (2.0, 5.0))
    assert str(criterion) == "angle within 1 and agent within 9"


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"variable": "blok"}, r"success\[1\].variable is blok, .* There are: block \(3,\), agent \(2,\)"),
        ({"variable": "agent", "indices": [1, 2]}, r"success\[1\].indices is \[1, 2\].*0 to 1"),
        ({"variable": "agent", "indices": []}, r"success\[1\].indices is \[\]"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_with_what_there_is(condition, message):
    with pytest.raises(ConfigError, match=message):
        Criterion([SuccessCondition(variable="agent"), SuccessCondition(**condition)], VARIABLES)


def test_no_condition_at_all_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.success"):
        Criterion([], VARIABLES)


@pytest.mark.parametrize(("now", "goal", "when"), [([1, np.nan], [0, 0], "now"), ([0, 0], [np.nan, 0], "at the goal")])
def test_an_unknown_value_is_no_success_and_no_failure(now, goal, when):
    with pytest.raises(PlanningError, match=f"agent is not known {when}"):
        reached([{"variable": "agent"}], {"agent": now}, {"agent": goal})
    with pytest.raises(PlanningError, match="agent is not known now"):
        reached([{"variable": "agent", "indices": [1]}], {}, {"agent": [0, 0]})


def test_rest_is_a_small_norm_of_every_velocity():
    rest = Rest(
        [RestCondition(variable="velocity", limit=5.0), RestCondition(variable="spin", indices=[1], limit=0.5)],
        {"velocity": (2,), "spin": (2,)},
    )
    speeds = rest.speeds({"velocity": np.array([3.0, -4.0]), "spin": np.array([9.0, -0.25])})
    assert speeds == (5.0, 0.25) and rest.holds(speeds)
    assert not rest.holds((5.1, 0.25)) and not rest.holds((5.0, 0.6))
    with pytest.raises(PlanningError, match="spin is not known now"):
        rest.speeds({"velocity": np.zeros(2)})
    with pytest.raises(ConfigError, match=r"evaluation\.rest\[0\]\.variable is speed"):
        Rest([RestCondition(variable="speed")], {"velocity": (2,)})
    with pytest.raises(ConfigError, match=r"evaluation\.rest is an empty list"):
        Rest([], {"velocity": (2,)})


def test_the_environments_own_success_is_taken_from_info():
    criterion = Criterion(None, VARIABLES)
    for info, expected in [
        ({"success": True}, True),
        ({"is_success": np.bool_(True)}, True),
        ({"success": np.array([False]), "is_success": True}, False),
        ({"is_success": 0.0}, False),
    ]:
        assert criterion.judge({}, info, {}) == (expected, ()), info
    with pytest.raises(PlanningError, match=r"neither success nor is_success.*agent"):
        criterion.judge({"agent": np.zeros(2)}, {}, {})
