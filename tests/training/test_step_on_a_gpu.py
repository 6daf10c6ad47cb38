"""The captured training step on a GPU: the curve of the eager one, resumed too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.errors import ConfigError
from jepaworld.losses import make_objective
from jepaworld.models import build
from jepaworld.training_loops.epoch_loop import StepGraph, TrainingStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA, SPACE = torch.device("cuda"), Box(-1, 1, (2,), np.float32)


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def make_step(config: Config) -> TrainingStep:
    torch.manual_seed(0)
    spaces = Spaces.of(config, SPACE)
    objective = make_objective(config, build(config, spaces).cuda(), spaces).train()
    return TrainingStep(objective, config, 1e-3, 40, CUDA, bf16=False)


def curve(step: TrainingStep, numbers: range) -> list[list[float]]:
    rows = []
    for number in numbers:
        generator = torch.Generator(CUDA).manual_seed(number)
        frames = torch.randint(256, (8, 4, 3, 16, 16), generator=generator, device=CUDA, dtype=torch.uint8)
        actions = torch.rand(8, 3, 2, generator=generator, device=CUDA)
        rows.append([term.item() for term in step(Batch(frames, actions)).values()])
    return rows


@pytest.mark.parametrize("mode", ["default", "vjepa2", "none"])
@pytest.mark.parametrize("loss", ["vicreg", "barlow_twins", "dino", "sigreg"])
def test_a_captured_step_has_the_eager_curve(tiny_config: Callable[..., Config], mode: str, loss: str) -> None:
    settings = {
        "num_transitions": 3,
        "jepa_model": {"target_encoder_mode": mode, "predictor_dropout_rate": 0.1},
        "auxiliary_loss": {"type": loss},
        "dynamics_losses": {"inverse_dynamics_weight": 1.0, "rollout_weight": 1.0, "rollout_steps": 3},
        "warmup_steps": 10,
    }
    eager = make_step(tiny_config(execution="eager", **settings))
    expected = curve(eager, range(20))
    graph = make_step(tiny_config(execution="auto", **settings))
    np.testing.assert_allclose(curve(graph, range(20)), expected, rtol=1e-4)
    assert graph.graph is not None and graph.graph.graph is not None and eager.graph is None
    for one, other in zip(graph.objective.state_dict().values(), eager.objective.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_captured_step_goes_on_from_its_state(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(num_transitions=3, jepa_model={"predictor_dropout_rate": 0.1})
    expected = curve(make_step(config), range(16))[8:]
    first = make_step(config)
    curve(first, range(8))
    weights = {name: value.clone() for name, value in first.objective.state_dict().items()}
    state, random = first.state(), torch.cuda.get_rng_state()
    again = make_step(config)
    again.objective.load_state_dict(weights)
    again.load_state(state)
    torch.cuda.set_rng_state(random)
    np.testing.assert_allclose(curve(again, range(8, 16)), expected, rtol=1e-4)


def test_python_runs_while_it_is_captured_and_no_more() -> None:
    calls = []

    def step(batch: Batch) -> dict[str, torch.Tensor]:
        calls.append(batch)
        return {"sum": batch.frames.float().sum() + batch.actions.sum()}

    graph = StepGraph(step)
    for value in range(8):
        frames = torch.full((2, 1), value, dtype=torch.uint8, device=CUDA)
        assert graph(Batch(frames, torch.ones(2, 1, device=CUDA)))["sum"].item() == 2 * value + 2
    assert len(calls) == StepGraph.EAGER_STEPS + 1


def test_a_step_that_waits_for_the_device_is_refused_with_the_remedy() -> None:
    graph = StepGraph(lambda batch: {"sum": torch.tensor(batch.frames.float().sum().item())})
    batch = Batch(torch.ones(2, 1, device=CUDA), torch.ones(2, 1, device=CUDA))
    for _ in range(StepGraph.EAGER_STEPS):
        graph(batch)
    with pytest.raises(ConfigError, match="execution=eager"):
        graph(batch)
