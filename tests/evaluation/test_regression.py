"""The MLP probe on data whose right answers are known."""

import numpy as np
import pytest
import torch

from jepaworld.evaluation.regression import MLPProbe, fit_linear_probe, fit_mlp_probe, split_by_episode
from jepaworld.evaluation.scores import r2_score


def folded(count: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (N, 4), what is read from them (N, 3): a product, a sum, noise; and 30 episodes as owners."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1, 1, size=(count, 4))
    y = np.stack([z[:, 0] * z[:, 1], z[:, 2] - 2 * z[:, 3], rng.normal(size=count)], axis=1)
    return z, y, np.arange(count) * 30 // count


def scores(probe: MLPProbe, seed: int = 1) -> list[float]:
    z, y, _ = folded(seed=seed)
    return [score for score in r2_score(y, probe.predict(z)) if score is not None]


def test_it_reads_what_no_linear_map_reads_and_learns_no_noise_by_heart() -> None:
    z, y, owners = folded()
    probe = fit_mlp_probe(z, y, owners)
    product, total, noise = scores(probe)
    assert product > 0.97 and total > 0.99
    assert noise > -0.03  # with the weights that read the product best it would be far below
    new_z, new_y, _ = folded(seed=1)
    floor = r2_score(new_y, fit_linear_probe(z, y).predict(new_z))[0]
    assert floor is not None and floor < 0.05
    assert probe.epochs[2] < 5 < probe.epochs[0]
    np.testing.assert_allclose(probe.validation_error[:2], [1 - product, 1 - total], atol=0.02)
    assert probe.validation_error[2] == pytest.approx(1.0, abs=0.2)


def test_each_variable_has_the_epoch_that_suits_it() -> None:
    z, y, owners = folded()
    together, alone = fit_mlp_probe(z, y, owners), fit_mlp_probe(z, y[:, :1], owners)
    assert len(set(together.epochs.tolist())) >= 2
    (own,) = r2_score(folded(seed=1)[1][:, :1], alone.predict(folded(seed=1)[0]))
    assert own == pytest.approx(scores(together)[0], abs=0.02)


def test_a_seed_decides_everything_and_the_callers_random_state_and_threads_stay() -> None:
    z, y, owners = folded(300)
    torch.set_num_threads(2)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():
        first = fit_mlp_probe(z, y, owners, seed=3).predict(z)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2
    torch.set_num_threads(1)
    torch.manual_seed(6)
    np.testing.assert_array_equal(fit_mlp_probe(z, y, owners, seed=3).predict(z), first)
    assert not np.array_equal(fit_mlp_probe(z, y, owners, seed=4).predict(z), first)


def test_units_and_offsets_do_not_matter() -> None:
    z, y, owners = folded(400)
    plain = fit_mlp_probe(z, y, owners)
    other = fit_mlp_probe(z * 1e-3 + 7.0, y * [1e5, 1.0, 1.0] - [0.0, 1e3, 0.0], owners)
    expected = plain.predict(z) * [1e5, 1.0, 1.0] - [0.0, 1e3, 0.0]
    assert np.abs((other.predict(z * 1e-3 + 7.0) - expected) / expected.std(axis=0).clip(1e-9)).max() < 0.2
    assert scores(plain)[1] > 0.9


def test_the_episodes_that_decide_when_to_stop_are_not_trained_on() -> None:
    z, y, owners = folded(600)
    held = split_by_episode(owners, seed=0)
    spoiled = np.where(held[:, None], y + 1000.0, y)
    read = fit_mlp_probe(z, spoiled, owners).predict(z)
    assert np.abs(read).max() < 20.0  # their mean alone would be 200


def test_constants_gaps_and_constant_inputs_do_no_harm() -> None:
    z, y, owners = folded(600)
    y = np.c_[y[:, 1], np.full(600, 5.0), y[:, 1]]
    y[17, 2] = np.nan
    z = np.c_[z, np.full(600, 3.0)]
    probe = fit_mlp_probe(z, y, owners)
    read = probe.predict(torch.from_numpy(z).reshape(600, 5, 1))
    np.testing.assert_array_equal(read[:, 1], 5.0)
    assert np.isnan(read[:, 2]).all() and probe.validation_error[1] == 0.0
    assert (r2_score(y[:, :1], read[:, :1])[0] or 0) > 0.98
    one = fit_mlp_probe(z, y[:, 0], owners)
    assert one.predict(z).shape == (600, 1)


def test_few_frames_are_enough_steps() -> None:
    rng = np.random.default_rng(0)
    z, new = rng.uniform(-1, 1, (120, 2)), rng.uniform(-1, 1, (200, 2))
    probe = fit_mlp_probe(z, z.prod(axis=1), np.arange(120) // 10)
    assert (r2_score(new.prod(axis=1), probe.predict(new))[0] or 0) > 0.9
    assert probe.epochs[0] > 40


def test_what_cannot_be_read_is_given_its_mean() -> None:
    rng = np.random.default_rng(0)
    z, y, owners = rng.normal(size=(40, 64)), rng.normal(size=(40, 8)), np.arange(40) // 5
    probe = fit_mlp_probe(z, y, owners)
    unread = probe.epochs == 0
    assert unread.sum() >= 2
    mean = y[~split_by_episode(owners, seed=0)].mean(axis=0)
    np.testing.assert_allclose(probe.predict(z)[:, unread], np.tile(mean[unread], (40, 1)))


def test_whole_episodes_are_held() -> None:
    owners = np.repeat([3, 5, 8, 9, 11, 20, 21, 22, 23, 30], 7)
    held = split_by_episode(owners, seed=0)
    assert held.sum() == 14 and len(np.unique(owners[held])) == 2
    assert {tuple(np.unique(owners[split_by_episode(owners, seed)])) for seed in range(10)} != {(3, 5)}
    assert split_by_episode(np.array([4, 4, 4, 6]), seed=0).sum() in (1, 3)
    np.testing.assert_array_equal(split_by_episode(np.full(10, 2), seed=0), np.arange(10) >= 8)
    np.testing.assert_array_equal(split_by_episode(np.full(2, 2), seed=0), [False, True])
