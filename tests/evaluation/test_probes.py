"""Probes against linear algebra written another way, and on a model whose embedding is the state."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dot_world import SIDE, DotModel, moving_dot, write_dataset

from jepaworld.data.shards import Episode
from jepaworld.evaluation.encoding import encode_frames, sample_rows
from jepaworld.evaluation.probes import choose_state_probes, mean_r2, probe_states
from jepaworld.evaluation.regression import RIDGES, _leave_one_out_errors, fit_linear_probe
from jepaworld.evaluation.results import Probe
from jepaworld.evaluation.scores import bootstrap_r2, interval_95, r2_score

RNG = np.random.default_rng(0)


def test_ridge_equals_the_normal_equations() -> None:
    z, y = RNG.normal(size=(50, 6)) * [1, 2, 3, 0.1, 1, 1] + 4.0, RNG.normal(size=(50, 3))
    found = fit_linear_probe(z, y, ridge=0.3)
    standard = (z - z.mean(0)) / z.std(0)
    w = np.linalg.solve(standard.T @ standard + 0.3 * 50 * np.eye(6), standard.T @ (y - y.mean(0)))
    new = RNG.normal(size=(7, 6))
    np.testing.assert_allclose(found.predict(new), (new - z.mean(0)) / z.std(0) @ w + y.mean(0), rtol=1e-9)


def test_without_ridge_it_is_least_squares() -> None:
    z, y = RNG.normal(size=(40, 5)), RNG.normal(size=40)
    solution, *_ = np.linalg.lstsq(np.c_[z, np.ones(40)], y, rcond=None)
    found = fit_linear_probe(z, y, ridge=0.0)
    np.testing.assert_allclose(np.r_[found.weight[:, 0], found.bias], solution, rtol=1e-8)


def test_ridge_is_the_one_with_the_least_leave_one_out_error() -> None:
    z = RNG.normal(size=(24, 12))
    y = np.c_[z[:, 0] + 0.01 * RNG.normal(size=24), RNG.normal(size=24)]  # one to be read, one pure noise
    candidates = list(RIDGES)
    errors = np.zeros((len(candidates), 2))
    mean, std = z.mean(0), z.std(0)  # the closed form standardises once, before leaving anything out
    for i, ridge in enumerate(candidates):
        for out in range(24):
            kept = np.arange(24) != out
            x = np.c_[(z - mean) / std, np.ones(24)]
            penalty = np.diag([ridge * 24] * 12 + [0.0])
            w = np.linalg.solve(x[kept].T @ x[kept] + penalty, x[kept].T @ y[kept])
            errors[i] += (y[out] - x[out] @ w) ** 2
    x = (z - mean) / std
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    kept_share = singular**2 / (singular**2 + 24 * np.array(candidates)[:, None])
    centred = y - y.mean(0)
    closed = _leave_one_out_errors(left, left.T @ centred, centred, kept_share)
    np.testing.assert_allclose(closed, errors / 24, rtol=1e-6)
    best = [candidates[k] for k in errors.argmin(axis=0)]
    assert fit_linear_probe(z, y).ridge.tolist() == best
    assert best[0] < best[1]


def test_constant_and_duplicate_inputs_do_no_harm() -> None:
    z = RNG.normal(size=(30, 2))
    y = z @ [1.0, -2.0]
    padded = np.c_[z, z[:, 0], np.full(30, 7.0)]
    found = fit_linear_probe(padded, y)
    np.testing.assert_allclose(found.predict(padded)[:, 0], y, atol=1e-3)
    assert found.weight[3, 0] == 0.0


def test_r2_by_hand() -> None:
    y = np.array([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0], [3.0, 5.0, 3.0]])
    y_hat = np.array([[1.0, 5.0, 9.0], [2.0, 4.0, 0.0], [4.0, 5.0, 3.0]])
    assert r2_score(y, y_hat) == [pytest.approx(0.5), None, pytest.approx(1 - 81 / 6)]


def test_bootstrap_draws_whole_episodes() -> None:
    owners = np.repeat(np.arange(40), 25)
    y = RNG.normal(size=(1000, 1))
    noise = RNG.normal(size=(1000, 1)) * 0.5
    shared = np.repeat(RNG.normal(size=(40, 1)) * 0.5, 25, axis=0)
    exact = bootstrap_r2(y, y, owners)
    np.testing.assert_allclose(exact, 1.0)
    resampled = bootstrap_r2(y, y + noise, owners, seed=1)
    low, high = interval_95(resampled[:, 0]) or (0, 0)
    found = r2_score(y, y + noise)[0]
    assert found is not None and low < found < high and 0.02 < high - low < 0.12
    low_shared, high_shared = interval_95(bootstrap_r2(y, y + shared, owners, seed=1)[:, 0]) or (0, 0)
    assert high_shared - low_shared > 2 * (high - low)  # errors that episodes share count as few
    # One resample, counted by hand.
    drawn = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=2000)[7]
    rows = np.repeat(np.arange(1000), np.repeat(drawn, 25))
    assert resampled[7, 0] == pytest.approx(r2_score(y[rows], (y + noise)[rows])[0])


def test_states_that_are_the_embedding_are_read_and_constants_are_not_measurable(make_dataset) -> None:
    dataset = make_dataset([20, 20, 30, 20, 25, 20, 20])
    model = DotModel().train()
    results = probe_states(model, dataset, np.arange(4), np.arange(4, 7), max_frames=60)
    assert [r.variable for r in results] == ["constant", "position[0]", "position[1]", "reward"]
    constant, x, y, reward = results
    assert (constant.r2, constant.interval_95, constant.baselines_r2) == (None, None, {"pixels": None})
    for result in (x, y, reward):  # the reward of this world is the x before the action
        assert result.r2 == pytest.approx(1.0, abs=1e-6)
        assert result.interval_95 == (pytest.approx(1.0, abs=1e-5), pytest.approx(1.0, abs=1e-5))
    pixels = x.baselines_r2["pixels"]  # few frames: some cells were never seen in training
    assert pixels is not None and 0.2 < pixels < 0.9
    assert (x.num_train_episodes, x.num_train_frames) == (4, 60)
    assert (x.num_heldout_episodes, x.num_heldout_frames) == (3, 60)
    assert mean_r2([x, y])[0] == pytest.approx(1.0, abs=1e-6)
    assert mean_r2([constant]) == (None, None)
    assert all(module.training for module in model.modules())


def test_one_heldout_episode_gives_no_interval(make_dataset) -> None:
    dataset = make_dataset([20, 20, 20])
    results = probe_states(DotModel(), dataset, np.arange(2), np.arange(2, 3), baseline_models={"same": DotModel()})
    x = results[1]
    assert x.interval_95 is None and x.r2 is not None and x.baselines_r2["same"] == pytest.approx(x.r2)
    assert x.mlp is not None and x.mlp.interval_95 is None and x.mlp.gain_interval_95 is None
    assert x.mlp.baselines_r2["same"] == x.mlp.r2 and set(x.mlp.baselines_r2) == {"same", "pixels"}
    assert x.mlp.gain == pytest.approx((x.mlp.r2 or 0.0) - x.r2)


def test_what_does_not_change_in_training_is_not_judged(tmp_path: Path) -> None:
    def make(length: int, rng: np.random.Generator) -> Episode:
        episode = moving_dot(length, rng)
        if length > 20:  # those held out
            episode.states["constant"][:] = rng.normal(size=length + 1)
        return episode

    dataset = write_dataset(tmp_path / "dataset", [20, 20, 30, 30], make=make)
    constant, *_ = probe_states(DotModel(), dataset, np.arange(2), np.arange(2, 4), pixel_baseline=False)
    assert constant.variable == "constant" and constant.r2 is None and constant.interval_95 is None
    assert constant.mlp is not None and constant.mlp.r2 is None


class Folded(DotModel):
    """Embeds each coordinate as a point on a circle that is walked three steps at a time: not linear in it."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        angle = super().encode(frames) * (3 * 2 * np.pi / SIDE)
        return torch.cat([angle.cos(), angle.sin()], dim=2)

    encode_target = encode


def test_what_only_an_mlp_reads_is_told_apart(make_dataset) -> None:
    dataset = make_dataset([30] * 12)
    results = probe_states(Folded(), dataset, np.arange(8), np.arange(8, 12), pixel_baseline=False)
    constant, x, y, _ = results
    for result in (x, y):
        assert result.r2 is not None and result.mlp is not None and result.mlp.r2 is not None
        assert result.r2 < 0.8 and result.mlp.r2 > 0.95
        assert result.mlp.interval_95 is not None
        assert result.mlp.interval_95[0] <= result.mlp.r2 <= result.mlp.interval_95[1]
        assert result.mlp.gain_interval_95 is not None and result.mlp.gain is not None
        assert 0.1 < result.mlp.gain_interval_95[0] <= result.mlp.gain <= result.mlp.gain_interval_95[1]
        assert r2_score(result.truth, result.mlp.prediction)[0] == pytest.approx(result.mlp.r2)
    assert constant.mlp is not None and (constant.mlp.r2, constant.mlp.gain, constant.mlp.interval_95) == (None,) * 3
    assert mean_r2([x, y], kind="mlp")[0] == pytest.approx((x.mlp.r2 + y.mlp.r2) / 2)
    low, high = mean_r2([x, y], kind="mlp")[1] or (2, 0)
    assert low <= (x.mlp.r2 + y.mlp.r2) / 2 <= high
    assert (mean_r2([x, y])[0] or 1) < 0.8
    written = x.model_dump_json()
    assert "truth" not in written and Probe.model_validate_json(written).mlp.gain_interval_95 == x.mlp.gain_interval_95
    plain = probe_states(Folded(), dataset, np.arange(8), np.arange(8, 12), pixel_baseline=False, mlp=False)
    assert plain[1].mlp is None and plain[1].r2 == x.r2


def test_the_better_probe_follows_a_variable_and_what_is_not_read_is_not_followed(make_dataset) -> None:
    class OnlyX(DotModel):
        def encode_target(self, frames: torch.Tensor) -> torch.Tensor:
            return self.encode(frames)[..., :1]

    dataset = make_dataset([30] * 10)
    rows, _ = sample_rows(dataset, np.arange(10), 1000, seed=0)
    truth = dataset.gather("state.position", rows)
    (plain,) = choose_state_probes(DotModel(), dataset, np.arange(8))
    assert (plain.variable, plain.indices, plain.kind, plain.name) == ("position", [0, 1], "linear", "position")
    np.testing.assert_allclose(plain.read(encode_frames(DotModel(), dataset, rows)), truth, atol=1e-3)
    (folded,) = choose_state_probes(Folded(), dataset, np.arange(8))
    assert folded.kind == "mlp" and folded.r2 > 0.9
    read = folded.read(encode_frames(Folded(), dataset, rows))
    assert min(score or 0 for score in r2_score(truth, read)) > 0.95
    only_x = OnlyX()
    (half,) = choose_state_probes(only_x, dataset, np.arange(8))
    assert (half.indices, half.size, half.name) == ([0], 2, "position[0]")
    z = encode_frames(only_x, dataset, rows, encode=only_x.encode_target)
    np.testing.assert_allclose(half.read(z), truth[:, :1], atol=1e-3)
    wide = half._replace(entries=half.entries * 20, size=128)
    assert wide.name == "position (20 of 128 entries)"


def test_too_few_frames_choose_no_probe(make_dataset) -> None:
    assert choose_state_probes(DotModel(), make_dataset([1, 1]), np.arange(2)) == []


def test_rows_are_gathered_in_any_order_over_shards(make_dataset) -> None:
    dataset = make_dataset([3, 5, 2, 4, 6, 1, 7])
    assert len(dataset.shards) == 3
    everything = dataset.rows("frames", 0, dataset.num_frames)
    rows = np.random.default_rng(0).permutation(dataset.num_frames)[:20]
    np.testing.assert_array_equal(dataset.gather("frames", rows), everything[rows])
    rows, owners = sample_rows(dataset, np.array([6, 1]), 100, seed=0)
    starts = dataset.episode_starts
    assert rows.tolist() == [*range(starts[1], starts[1] + 5), *range(starts[6], starts[6] + 7)]
    assert owners.tolist() == [1] * 5 + [6] * 7
    drawn, _ = sample_rows(dataset, np.array([6, 1]), 4, seed=0)
    assert len(set(drawn.tolist())) == 4 and set(drawn.tolist()) <= set(rows.tolist())


def test_encoding_is_batched_and_restores_each_mode(make_dataset) -> None:
    dataset = make_dataset([9, 9])
    model = DotModel().train()
    model.dropout.eval()
    rows = np.array([4, 0, 17, 9])
    z = encode_frames(model, dataset, rows, batch_size=3)
    np.testing.assert_array_equal(z.numpy(), dataset.rows("position", 0, dataset.num_frames)[rows])
    assert model.training and not model.dropout.training and not z.requires_grad
