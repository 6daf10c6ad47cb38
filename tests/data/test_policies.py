"""Policies: the distribution of the random ones, and users' own with every mistake they can make."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from toy_envs import DISCRETE_START

from jepaworld.config import Config
from jepaworld.config.schema import CollectionConfig
from jepaworld.data import policies
from jepaworld.data.collect import collect
from jepaworld.data.policies import Policy, RandomPolicy, checked_action, make_policy
from jepaworld.errors import ConfigError

Settings = Callable[..., Config]
BOX = Box(-1.0, 1.0, (2,), np.float32)
IMAGE = np.zeros((16, 16, 3), np.uint8)
SPACES = [
    BOX,
    Box(np.array([-2.0, 5.0]), np.array([0.5, 5.0]), dtype=np.float64),
    Box(np.array([-np.inf, 0.0, -np.inf, -1.0]), np.array([np.inf, np.inf, 3.0, 1.0]), dtype=np.float64),
    Box(0, 255, (2, 3), np.uint8),
    Box(-3, 3, (1,), np.int64),
    Discrete(4, start=DISCRETE_START),
    Discrete(3, start=-1),
]


def made(policy: str, space=BOX, **settings) -> Policy:
    return make_policy(CollectionConfig(policy=policy, **settings), space)


def act_once(policy: Policy):
    policy.reset(np.random.default_rng(0))
    return policy.act(IMAGE)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("name", ["random", "smooth_random"])
def test_step_by_step_equals_all_at_once_and_is_valid(space, name: str):
    policy = made(name, space)
    assert isinstance(policy, RandomPolicy)
    sequence = policy.sequence(np.random.default_rng(3), 300)
    policy.reset(np.random.default_rng(3))
    steps = np.stack([policy.act(None) for _ in range(300)])
    assert steps.dtype == sequence.dtype and steps.tobytes() == sequence.tobytes()
    assert sequence.shape == (300, *space.shape)
    for action in sequence:
        assert space.contains(action)
    # An episode knows nothing of the one before.
    assert policy.sequence(np.random.default_rng(3), 5).tobytes() == sequence[:5].tobytes()


@pytest.mark.parametrize("smoothness", [0.0, 0.9])
def test_actions_are_uniform_from_the_first_step_on(smoothness: float):
    policy = RandomPolicy(Box(-2.0, 6.0, (2,), np.float32), smoothness)
    first, later = [], []
    for episode in range(2000):
        actions = policy.sequence(np.random.default_rng(episode), 12)
        first.append(actions[0])
        later.append(actions[11])
    for sample in (np.concatenate(first), np.concatenate(later)):
        ranks = (np.sort(sample) + 2.0) / 8.0
        distance = np.abs(ranks - (np.arange(4000) + 0.5) / 4000).max()
        assert distance < 1.95 / np.sqrt(4000)  # Kolmogorov-Smirnov at 0.1 %
        assert sample.min() < -1.95 and sample.max() > 5.95


def test_smoothness_is_the_correlation_of_neighbours():
    unbounded = Box(-np.inf, np.inf, (2,), np.float64)
    for smoothness in (0.0, 0.5, 0.9):
        actions = RandomPolicy(unbounded, smoothness).sequence(np.random.default_rng(0), 40_000)
        correlation = np.corrcoef(actions[:-1, 0], actions[1:, 0])[0, 1]
        assert correlation == pytest.approx(smoothness, abs=0.02)
        assert abs(np.corrcoef(actions[:, 0], actions[:, 1])[0, 1]) < 0.06
        assert actions.std() == pytest.approx(1.0, abs=0.05)


def test_discrete_actions_repeat():
    policy = RandomPolicy(Discrete(4, start=DISCRETE_START), 0.8)
    actions = policy.sequence(np.random.default_rng(0), 20_000)
    repeated = (actions[1:] == actions[:-1]).mean()
    assert repeated == pytest.approx(0.8 + 0.2 / 4, abs=0.01)
    counts = np.bincount(actions - DISCRETE_START, minlength=4) / 20_000
    assert counts == pytest.approx([0.25] * 4, abs=0.03)


def test_half_bounded_actions_are_exponential():
    space = Box(np.array([1.0, -np.inf]), np.array([np.inf, 2.0]), dtype=np.float64)
    actions = RandomPolicy(space, 0.0).sequence(np.random.default_rng(0), 20_000)
    assert (actions[:, 0] - 1.0).mean() == pytest.approx(1.0, abs=0.03)
    assert (2.0 - actions[:, 1]).mean() == pytest.approx(1.0, abs=0.03)
    assert (2.0 - actions[:, 1]).std() == pytest.approx(1.0, abs=0.05)


# --- policies of the user


def test_a_function(settings: Settings):
    dataset = collect(settings({"policy": "toy_envs:always_right"}))
    assert (dataset.episode(3).actions == [0.5, -0.5]).all()


def test_a_class_gets_the_space_and_its_arguments_and_is_reset(settings: Settings):
    dataset = collect(settings({"policy": "toy_envs:Stepper", "policy_kwargs": {"gain": 0.05}}))
    for index in range(7):
        assert dataset.episode(index).actions[:, 0] == pytest.approx(0.05 * np.arange(1, 7))


def test_a_policy_that_samples_the_space_is_reproducible(settings: Settings, tmp_path: Path):
    a = collect(settings({"policy": "toy_envs:Sampler"}))
    b = collect(settings({"policy": "toy_envs:Sampler", "num_workers": 2}, dataset_dir=str(tmp_path / "b")))
    assert a.fingerprint == b.fingerprint
    assert a.episode(0).actions.tobytes() != a.episode(1).actions.tobytes()


@pytest.mark.parametrize(
    ("kwargs", "expected"), [({}, [0.25, 0.0]), ({"scale": 2.0, "deterministic": True}, [0.5, 1.0])]
)
def test_an_algorithm_with_load_and_predict(tmp_path: Path, kwargs: dict, expected: list[float]):
    (tmp_path / "model.zip").write_text("0.25")
    for path in (tmp_path / "model.zip", tmp_path / "model"):
        action = act_once(made("toy_envs:FakeAlgorithm", policy_path=str(path), policy_kwargs=kwargs))
        assert action.tolist() == expected and action.dtype == np.float32


def test_another_model_under_the_same_name_is_noticed(settings: Settings, tmp_path: Path):
    from jepaworld.errors import DatasetError

    (tmp_path / "model.zip").write_text("0.25")
    config = settings({"policy": "toy_envs:FakeAlgorithm", "policy_path": str(tmp_path / "model.zip")})
    assert (collect(config).episode(0).actions[:, 0] == 0.25).all()
    collect(config)
    (tmp_path / "model.zip").write_text("0.5")
    with pytest.raises(DatasetError, match=r"the content of the file collection.policy_path is"):
        collect(config)


@pytest.mark.skipif(importlib.util.find_spec("stable_baselines3") is None, reason="extra sb3 is not installed")
def test_stable_baselines3(tmp_path: Path):
    """A model that the library itself saved; in another process, as its import takes seconds and warns."""
    code = textwrap.dedent("""
        import sys
        import gymnasium, numpy as np
        from stable_baselines3 import PPO
        from jepaworld.config.schema import CollectionConfig
        from jepaworld.data.policies import make_policy
        env = gymnasium.make("Pendulum-v1")
        PPO("MlpPolicy", env, seed=0, device="cpu").save(sys.argv[1])
        settings = CollectionConfig(policy="stable_baselines3:PPO", policy_path=sys.argv[1],
                                    policy_kwargs={"device": "cpu"})
        policy = make_policy(settings, env.action_space)
        policy.reset(np.random.default_rng(0))
        observation, _ = env.reset(seed=0)
        action = policy.act(observation)
        assert env.action_space.contains(action), action
    """)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.zip")], check=True, timeout=120)


def test_modules_in_the_folder_of_the_command_are_found(tmp_path: Path, monkeypatch):
    (tmp_path / "my_own_policy.py").write_text("def act(observation):\n    return [0.25, 0.0]\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    with pytest.raises(ConfigError, match=r"No module named 'my_own_policy'. Install it, or start in the folder that"):
        made("my_own_policy:act")
    monkeypatch.chdir(tmp_path)
    assert act_once(made("my_own_policy:act")).tolist() == [0.25, 0.0]
    assert sys.path[-1] == str(tmp_path)  # behind everything that is installed


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (
            "smoth_random",
            {},
            r"is 'smoth_random': neither random nor smooth_random nor .* Did you mean smooth_random\?",
        ),
        ("toy_envs:", {}, "nor an import path module:attribute"),
        (
            "no_such_module_here:act",
            {},
            "No module named 'no_such_module_here'. Install it, or start in the folder",
        ),
        ("toy_envs:always_rigth", {}, r"toy_envs has no always_rigth\. Did you mean always_right\?"),
        ("toy_envs:not_callable", {}, "is 3, which cannot act"),
        ("toy_envs:always_right", {"policy_kwargs": {"a": 1}}, "not a class, so nothing takes them"),
        ("toy_envs:Stepper", {"policy_kwargs": {"a": 1}}, "TypeError: .* unexpected keyword argument 'a'"),
        ("toy_envs:Stepper", {"policy_path": "x.zip"}, r"Stepper has no load\(\)"),
        ("toy_envs:FakeAlgorithm", {"policy_path": "nowhere.zip"}, "nowhere.zip does not exist"),
    ],
)
def test_policies_that_cannot_be_made(name: str, settings: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        made(name, **settings)


def test_modules_that_fail_when_imported(tmp_path: Path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_policy.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match="importing broken_policy failed: ZeroDivisionError"):
        made("broken_policy:act")
    (tmp_path / "needy_policy.py").write_text("import no_such_dependency\n")
    with pytest.raises(ConfigError, match=r"Install no_such_dependency, which it imports"):
        made("needy_policy:act")
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ConfigError, match=r'pip install "jepaworld\[sb3\]"'):
        made("stable_baselines3:PPO")


def test_a_model_that_does_not_load(tmp_path: Path):
    (tmp_path / "model.zip").write_text("not a number")
    with pytest.raises(ConfigError, match=r"loading .*model\.zip failed: ValueError"):
        made("toy_envs:FakeAlgorithm", policy_path=str(tmp_path / "model.zip"))


@pytest.mark.parametrize(
    ("name", "space", "words"),
    [
        ("too_far", BOX, r"action \[0.0, 1.1\] is not in the action space Box.*: it is out of bounds"),
        ("wrong_shape", BOX, r"its shape is \(1,\)"),
        ("not_a_number", BOX, "it is not finite"),
        ("words", BOX, "its dtype is <U4"),
        ("fraction", Box(-3, 3, (), np.int64), "its dtype is float64"),
        ("fraction", Discrete(4), "an integer is needed"),
        ("words", Discrete(4), "an integer is needed"),
        ("out_of_range", Discrete(4, start=DISCRETE_START), "it is out of range"),
        ("raises", BOX, "acting failed: KeyError: 'no plan'"),
    ],
)
def test_actions_that_cannot_be_played(name: str, space, words: str):
    with pytest.raises(ConfigError, match=rf"collection.policy toy_envs:{name}: .*{words}"):
        act_once(made(f"toy_envs:{name}", space))


def test_rounding_at_the_bounds_is_put_right():
    action = act_once(made("toy_envs:rounded_over"))
    assert action.tolist() == [1.0, -1.0] and action.dtype == np.float32
    assert checked_action(np.array([2]), Discrete(3), "x") == 2
    assert checked_action(np.int64(2), Discrete(3), "x") == 2
    with pytest.raises(ConfigError, match="acrobat"):
        checked_action([[1.0], [1.0, 2.0]], BOX, "acrobat")


def test_a_bad_action_stops_a_collection(settings: Settings):
    with pytest.raises(ConfigError, match=r"toy_envs:too_far: .*out of bounds"):
        collect(settings({"policy": "toy_envs:too_far", "num_workers": 2}))


def test_a_policy_is_found_by_its_name_of_an_earlier_version(settings, monkeypatch):
    """Datasets and configurations of 0.1.0 name the policy of Push-T where it was then."""
    old = "jepaworld.envs.push_t:NearBlockPolicy"
    policy = made(old)
    policy.reset(np.random.default_rng(0))
    assert BOX.contains(policy.act(np.zeros(5)))
    monkeypatch.setitem(policies._MOVED, "toy_envs:gone", "toy_envs:always_right")
    begun = collect(settings({"policy": "toy_envs:gone"}))
    again = collect(settings({"policy": "toy_envs:always_right"}))  # is no dataset of other settings
    assert again.fingerprint == begun.fingerprint
