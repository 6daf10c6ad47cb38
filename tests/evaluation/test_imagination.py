"""Imagination error of models whose error is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dot_world import DotModel, write_dataset

from jepaworld.evaluation.encoding import encode_frames, sample_rows
from jepaworld.evaluation.entries import Entry
from jepaworld.evaluation.imagination import Windows, choose_windows, imagination_error, imagine
from jepaworld.evaluation.probes import StateProbe
from jepaworld.evaluation.regression import fit_linear_probe
from jepaworld.evaluation.results import Imagination


def test_exact_model_has_no_error_and_copying_has(make_dataset) -> None:
    dataset = make_dataset([12, 15, 20, 12])
    model = DotModel().train()
    result = imagination_error(model, dataset, np.arange(4), horizon=6, batch_size=5)
    np.testing.assert_array_equal(result.error, 0.0)
    np.testing.assert_array_equal(result.error_high_95, 0.0)
    assert min(result.copy_error) > 0
    assert result.num_windows == [16] * 6 and result.num_episodes == [4] * 6
    assert model.training


def test_known_drift_over_known_variance(make_dataset) -> None:
    dataset = make_dataset([10, 14, 9])
    result = imagination_error(
        DotModel(drift=0.5), dataset, np.arange(3), horizon=5, windows_per_episode=3, batch_size=2
    )
    targets, copies = [], []
    for row, length in zip(result.windows.rows, result.windows.lengths, strict=True):
        position = dataset.rows("position", row, row + length + 1)
        targets.append(position[1:])
        copies.append(((position[1:] - position[0]) ** 2).mean(axis=1))
    variance = np.concatenate(targets).astype(float).var(axis=0).mean()
    assert result.target_variance == pytest.approx(variance)
    np.testing.assert_allclose(result.error, (0.5 * np.arange(1, 6)) ** 2 / 2 / variance, rtol=1e-5)
    np.testing.assert_allclose(result.copy_error, np.mean(copies, axis=0) / variance, rtol=1e-5)
    np.testing.assert_allclose(result.error_low_95, result.error, rtol=1e-5)  # the same error in every episode
    assert result.window_errors == pytest.approx(np.full(9, np.mean(result.error)))


def test_short_episodes_count_for_the_steps_they_have(make_dataset) -> None:
    dataset = make_dataset([1, 3, 8])
    result = imagination_error(DotModel(drift=1.0), dataset, np.arange(3), horizon=8)
    assert result.num_windows == [3, 2, 2, 1, 1, 1, 1, 1]
    assert result.num_episodes == [3, 2, 2, 1, 1, 1, 1, 1]
    targets = [
        dataset.rows("position", start + 1, start + 1 + n) for start, n in zip((0, 2, 6), (1, 3, 8), strict=True)
    ]
    assert result.target_variance == pytest.approx(np.concatenate(targets).astype(float).var(axis=0).mean())
    np.testing.assert_allclose(np.array(result.error) * result.target_variance, np.arange(1, 9) ** 2 / 2, rtol=1e-5)
    assert np.isfinite(result.error_low_95[:3]).all() and np.isnan(result.error_low_95[3:]).all()
    longer = imagination_error(DotModel(), dataset, np.arange(2), horizon=5)
    assert np.isnan(longer.error[3:]).all()
    written = longer.model_dump_json()
    assert '"error":[0.0,0.0,0.0,null,null]' in written and "windows" not in written.replace("num_windows", "")
    np.testing.assert_array_equal(Imagination.model_validate_json(written).error, longer.error)


def test_position_error_through_a_probe(make_dataset) -> None:
    dataset = make_dataset([12, 15, 20, 12])
    model = DotModel(drift=0.5)
    rows, _ = sample_rows(dataset, np.arange(4), 100, seed=0)
    positions = dataset.rows("position", 0, dataset.num_frames)
    z = encode_frames(model, dataset, rows)
    entries = (Entry("position", 0), Entry("position", 1))
    fitted = fit_linear_probe(z, positions[rows], ridge=0.0)
    both = StateProbe("position", entries, 2, "linear", 1.0, fitted, np.arange(2))
    only_y = StateProbe("position", entries[1:], 2, "linear", 1.0, fitted, np.array([1]))
    found = imagination_error(model, dataset, np.arange(4), horizon=4, state_probes=[both, only_y])
    state, state_y = found.states
    np.testing.assert_allclose(state.imagined, 0.5 * np.arange(1, 5), rtol=1e-4)
    np.testing.assert_allclose(state.imagined_low_95, state.imagined, rtol=1e-6)  # the same in every episode
    np.testing.assert_allclose(state.encoded, 0.0, atol=1e-5)
    np.testing.assert_allclose(state_y.imagined, 0.0, atol=1e-4)  # the drift is in x
    assert (state.entries, state.name, state.probe) == ([0, 1], "position", "linear")
    assert (state_y.entries, state_y.name) == ([1], "position[1]")
    result = imagination_error(model, dataset, np.arange(4), horizon=4)  # the same seed, so the same windows
    moved = [positions[row + 1 : row + 5] - positions[row] for row in result.windows.rows]
    np.testing.assert_allclose(state.copied, np.linalg.norm(moved, axis=2).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(state_y.copied, np.abs(np.stack(moved)[:, :, 1]).mean(axis=0), rtol=1e-6)


def test_constant_targets_leave_no_scale(make_dataset) -> None:
    class Collapsed(DotModel):
        def encode_target(self, frames):
            return torch.zeros(*frames.shape[:2], 2)

    result = imagination_error(Collapsed(), make_dataset([9, 9]), np.arange(2), horizon=3)
    assert result.target_variance == 0.0 and np.isnan(result.error).all()


def test_windows_stay_inside_their_episode_and_differ(make_dataset) -> None:
    dataset = make_dataset([5, 9, 30])
    windows = choose_windows(dataset, np.arange(3), horizon=8, per_episode=4, seed=0)
    rows, owners, lengths = windows.rows, windows.owners, windows.lengths
    assert np.bincount(owners).tolist() == [1, 2, 4]
    assert len(set(rows.tolist())) == len(rows)
    ends = dataset.episode_starts[owners] + dataset.episode_lengths[owners]
    assert (rows + lengths <= ends).all() and (rows >= dataset.episode_starts[owners]).all()
    assert lengths.tolist() == [5, 8, 8, 8, 8, 8, 8]


def test_a_model_with_context_begins_with_as_many_real_frames_and_the_actions_between(make_dataset) -> None:
    class LooksBack(DotModel):
        context_length = 3

        def rollout(self, z, actions, context_actions):
            assert z.shape[1] == 3 and context_actions.shape[1] == 2
            # The dot moves by its action, so that the frames before must be those that led here.
            torch.testing.assert_close(super().rollout(z[:, :1], context_actions), z[:, 1:])
            return super().rollout(z[:, -1:], actions)

    dataset = make_dataset([2, 9, 9])  # the first is too short to look back in
    result = imagination_error(LooksBack(), dataset, np.arange(3), horizon=4)
    assert result.context_frames == 3
    np.testing.assert_allclose(result.error, 0.0, atol=1e-9)
    assert set(result.windows.owners) == {1, 2}
    assert (result.windows.rows >= dataset.episode_starts[result.windows.owners] + 2).all()


def test_patch_latents_are_imagined_like_others(make_dataset) -> None:
    class Patches(DotModel):
        def encode(self, frames):
            return super().encode(frames).unsqueeze(2).expand(-1, -1, 3, 2)

        encode_target = encode

        def rollout(self, z, actions):
            return super().rollout(z[:, :, 0], actions).unsqueeze(2).expand(-1, -1, 3, 2)

    dataset = make_dataset([9, 9])
    z = imagine(Patches(), dataset, Windows(np.array([0, 10]), np.array([0, 1]), np.array([4, 4])), 4)
    assert z.shape == (2, 4, 3, 2)
    np.testing.assert_array_equal(imagination_error(Patches(), dataset, np.arange(2), horizon=3).error, 0.0)


def test_imagination_ends_before_a_block_that_the_end_cut(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", [4, 6, 1])
    dataset.whole_lengths = dataset.episode_lengths - 1
    windows = choose_windows(dataset, np.arange(3), 100, 3, 0)
    assert (windows.rows - dataset.episode_starts[windows.owners]).tolist() == [0, 0]
    assert windows.lengths.tolist() == [3, 5]
