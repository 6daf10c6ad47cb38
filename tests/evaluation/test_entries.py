"""Angles among the state: found by their jumps or by name, read as sine and cosine, compared the short way round."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dot_world import write_dataset
from torch import Tensor, nn

from jepaworld.config.planning import SuccessCondition
from jepaworld.data.store import Episode, EpisodeDataset
from jepaworld.evaluation.entries import Entry, declared_periods, distances, from_columns, state_entries, to_columns
from jepaworld.evaluation.imagination import imagination_error
from jepaworld.evaluation.probes import choose_state_probes, mean_r2, probe_states

SHADES = 250


def hand(length: int, rng: np.random.Generator) -> Episode:
    """A clock hand: the picture's grey value is its angle; the action turns it."""
    actions = rng.uniform(-0.6, 0.9, size=(length, 2)).astype(np.float32)
    turned = rng.uniform(-np.pi, np.pi) + np.concatenate([[0.0], actions[:, 0].cumsum()])
    angle = (turned + np.pi) % (2 * np.pi) - np.pi
    frames = np.round(angle / (2 * np.pi) * SHADES) % SHADES
    flags = np.zeros(length, bool)
    states = {
        "pose": np.stack([np.cos(angle), angle], axis=1).astype(np.float32),
        "turned": turned.astype(np.float32),
        "grip": np.where(rng.random(length + 1) < 0.5, 0.0, 6.0).astype(np.float32),
        "noise": rng.uniform(-np.pi, np.pi, length + 1).astype(np.float32),
    }
    pixels = np.broadcast_to(frames.astype(np.uint8)[:, None, None, None], (length + 1, 1, 8, 8))
    return Episode(pixels, actions, np.zeros(length, np.float32), flags, flags, states)


class Clock(nn.Module):
    """Embeds the angle as a point on a circle and turns it as the action says, `drift` too far."""

    latent_shape, context_length = (2,), 1

    def __init__(self, drift: float = 0.0) -> None:
        super().__init__()
        self.drift = drift

    def encode(self, frames: Tensor) -> Tensor:
        angle = frames[..., 0, 0, 0].float() * (2 * torch.pi / SHADES)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)

    encode_target = encode

    def rollout(self, z: Tensor, actions: Tensor, context_actions: Tensor | None = None) -> Tensor:
        assert context_actions is None
        start = torch.atan2(z[:, -1:, 1], z[:, -1:, 0])
        angle = start + (actions[..., 0] + self.drift).cumsum(dim=1)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)


@pytest.fixture
def clock(tmp_path: Path) -> EpisodeDataset:
    states = {"grip": [], "noise": [], "pose": [2], "turned": []}
    return write_dataset(tmp_path / "dataset", [40] * 12, make=hand, states=states)


def test_what_jumps_by_a_turn_is_an_angle_and_what_jumps_otherwise_is_not(clock: EpisodeDataset) -> None:
    periods = {entry.name: entry.period for entry in state_entries(clock, np.arange(12))}
    assert periods == {
        "grip": None, "noise": None, "pose[0]": None, "pose[1] (angle)": 2 * np.pi, "turned": None, "reward": None,
    }  # fmt: skip


def test_an_angle_may_be_declared(clock: EpisodeDataset) -> None:
    conditions = [
        SuccessCondition(variable="turned", period=360.0),
        SuccessCondition(variable="pose", indices=[0], period=2.0),
        SuccessCondition(variable="grip", distance=1.0),
    ]
    periods = declared_periods(conditions, clock)
    assert periods == {("turned", 0): 360.0, ("pose", 0): 2.0} and declared_periods(None, clock) == {}
    found = {entry.name: entry.period for entry in state_entries(clock, np.arange(12), periods)}
    assert found["turned (angle)"] == 360.0 and found["pose[0] (angle)"] == 2.0


def test_columns_and_distances_go_round() -> None:
    entries = [Entry("x"), Entry("angle", 0, 360.0)]
    values = np.array([[3.0, 170.0], [4.0, -10.0], [5.0, 350.0]])
    columns = to_columns(values, entries)
    assert columns.shape == (3, 3)
    np.testing.assert_allclose(from_columns(columns, entries), [[3.0, 170.0], [4.0, -10.0], [5.0, -10.0]])
    np.testing.assert_allclose(distances(values[:2], values[[1, 2]], entries), [np.hypot(1, 180), 1.0])
    np.testing.assert_allclose(distances(np.array([[0.0, 3.0]]), np.array([[0.0, 358.0]]), entries), 5.0)


def test_an_angle_is_read_where_its_raw_number_is_not(clock: EpisodeDataset) -> None:
    probes = {p.variable: p for p in probe_states(Clock(), clock, np.arange(8), np.arange(8, 12), mlp=False)}
    angle = probes["pose[1] (angle)"]
    assert angle.angle and angle.r2 is not None and angle.r2 > 0.99
    assert angle.interval_95 is not None and 0.99 < angle.interval_95[0] <= angle.r2
    assert angle.truth.shape == angle.prediction.shape == (160, 2)
    raw = probe_states(Clock(), clock, np.arange(8), np.arange(8, 12), mlp=False, periods={("pose", 1): 1e9})
    assert (raw[2 + 1].variable, raw[3].state) == ("pose[1] (angle)", "pose") and (raw[3].r2 or 0) < 0.9
    both = [probes["pose[0]"], angle]
    mean, interval = mean_r2(both)
    assert mean == pytest.approx(((both[0].r2 or 0) + angle.r2) / 2)
    assert interval is not None and interval[0] <= mean <= interval[1] <= 1.0


def test_imagination_of_an_angle_errs_the_short_way_round(clock: EpisodeDataset) -> None:
    followed = choose_state_probes(Clock(), clock, np.arange(8))
    assert sorted(probe.name for probe in followed) == ["pose[0]", "pose[1] (angle)"]
    found = imagination_error(Clock(drift=0.1), clock, np.arange(8, 12), horizon=6, state_probes=followed)
    angle = next(state for state in found.states if state.name == "pose[1] (angle)")
    np.testing.assert_allclose(angle.imagined, 0.1 * np.arange(1, 7), atol=0.03)
    assert max(angle.encoded) < 0.03 and max(angle.copied) < np.pi
