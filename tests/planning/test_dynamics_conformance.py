"""The conformance check finds each violation, and nothing else."""

import re

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from toy_models import GlidingModel, PointModel

from jepaworld.envs.spaces import Spaces
from jepaworld.errors import PlanningError
from jepaworld.models import build
from jepaworld.planning import check_dynamics

BOX = Box(-1, 1, (2,), np.float32)
IMAGE = (1, 16, 16)


@pytest.mark.parametrize("space", [BOX, Discrete(4, start=-2)], ids=["Box", "Discrete"])
@pytest.mark.parametrize("mode", ["default", "vjepa2", "none"])
def test_a_jepa_passes(tiny_config, space, mode) -> None:
    config = tiny_config(
        frame_skipping=3, encoder_type="vit", jepa_model={"target_encoder_mode": mode, "predictor_dropout_rate": 0.5}
    )
    model = build(config, Spaces.of(config, space)).train()
    report = check_dynamics(model, space, (3, 16, 16), frame_skipping=3)
    assert report.ok and report.violations == (), str(report)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_toy_models_pass_with_frames_and_actions_of_ones_own() -> None:
    frames = torch.randint(0, 256, (4, 3, *IMAGE), dtype=torch.uint8)
    actions = torch.zeros(4, 6, 2)  # all equal: the check must choose others to compare with
    for model in (PointModel(), GlidingModel()):
        report = check_dynamics(model, BOX, frames=frames, actions=actions)
        assert report.ok, str(report)
    assert any("2 frames of context is causal" in passed for passed in report.passed)


class _Broken(PointModel):
    """Does right what is not overridden."""

    def step(self, z: Tensor, actions: Tensor) -> Tensor:
        return PointModel.rollout(self, z, actions)


class NoRollout:
    def encode(self, frames):
        return frames.float()


class WrongShape(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions)[:, -1]


class OneStepTooMany(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return torch.cat([z, self.step(z, actions)], dim=1)


class WithoutTime(_Broken):
    def encode(self, frames):
        return super().encode(frames)[:, 0]


class NoLatentAxis(_Broken):
    def encode(self, frames):
        return super().encode(frames)[:, :, 0, 0]


class Integers(_Broken):
    def encode(self, frames):
        return super().encode(frames).long()


class Infinite(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions) / 0.0


class Raising(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        raise ValueError("one environment only")


class GivingATuple(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions), None


class Random(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions) + torch.randn(())


class Stateful(_Broken):
    calls = 0

    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        self.calls += 1
        return self.step(z, actions) + self.calls


class MixingTheBatch(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        imagined = self.step(z, actions)
        return imagined - imagined.mean(dim=0, keepdim=True) * 0.1


class MixingTheEncodings(_Broken):
    def encode(self, frames):
        z = super().encode(frames)
        return z - z.mean(dim=0, keepdim=True) * 0.1


class Prophetic(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions) + actions.sum(dim=(1, 2))[:, None, None, None]


class OffByOne(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions.roll(-1, dims=1))


class CountingTheSteps(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions) + actions.shape[1] * 10.0


class IgnoringActions(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return z.expand(-1, actions.shape[1], -1, -1) + 0.0 * self.step(z, actions)


class IgnoringTheSecondAction(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        kept = torch.ones(actions.shape[1], 1)
        kept[1:2] = 0.0
        return self.step(z, actions * kept)


class IgnoringTheStart(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(torch.zeros_like(z), actions)


class Meddling(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        with torch.no_grad():
            actions.clamp_(-0.1, 0.1)
        return self.step(z, actions)


class MeddlingWithFrames(_Broken):
    def encode(self, frames):
        z = super().encode(frames)
        frames.zero_()
        return z


class Detached(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions.detach())


class WithoutGrad(_Broken):
    @torch.no_grad()
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions)


class ExplodingGradient(_Broken):
    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return self.step(z, actions) + (actions.detach() - actions).abs().sqrt().sum(dim=-1)[..., None, None]


class Collapsed(_Broken):
    def encode(self, frames):
        return super().encode(frames) * 0.0


class OtherTarget(_Broken):
    def encode_target(self, frames):
        return self.encode(frames).flatten(2)


class CollapsedTarget(_Broken):
    def encode_target(self, frames):
        return self.encode(frames) * 0.0


class FalseMemory(_Broken):
    context_length = 2


class MemoryOnly(GlidingModel):
    def rollout(self, z, actions, context_actions=None):
        assert context_actions is not None, "context_actions are needed"
        return super().rollout(z, actions, context_actions)


class NoMemoryOfAnyKind(_Broken):
    context_length = 0


class NoSteps(_Broken):
    max_rollout_steps = 2.5


class TrainsInEvalMode(_Broken):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
        return nn.functional.dropout(self.step(z, actions), 0.5, training=True)


class ForeignPrediction(_Broken):
    def predict(self, z, actions):
        return z + actions.sum(dim=-1)[..., None, None]


class FalseLatentShape(_Broken):
    latent_shape = (2,)


# The method, and what of it is violated.
VIOLATIONS = {
    NoRollout: ["rollout"],
    WrongShape: [r"rollout.*\(3, 2, 1\), expected \(3, 4, 2, 1\)"],
    OneStepTooMany: [r"rollout.*\(3, 5, 2, 1\), expected \(3, 4, 2, 1\)"],
    WithoutTime: [r"encode.*\(3, 2, 1\), expected \(3, 1, 1\)"],
    NoLatentAxis: [r"encode.*\(3, 1\), expected \(3, 1"],
    Integers: ["encode.*int64"],
    Infinite: ["rollout.*of 24 values.*infinite"],
    Raising: ["rollout.*ValueError: one environment only"],
    GivingATuple: ["rollout.*tuple"],
    Random: ["rollout.*again"],
    Stateful: ["rollout.*again"],
    TrainsInEvalMode: ["rollout.*again"],
    MixingTheBatch: ["rollout.*alone"],
    MixingTheEncodings: ["encode.*alone"],
    Prophetic: [r"before step\(s\) \[1, 2, 3\]", "steps follow"],
    OffByOne: [r"after step\(s\) \[0\]", r"before step\(s\) \[1, 2, 3\]", "steps follow"],
    CountingTheSteps: ["steps follow"],
    IgnoringActions: [r"after step\(s\) \[0, 1, 2, 3\]", "gradients that do not reach"],
    IgnoringTheSecondAction: [r"after step\(s\) \[1\]", "gradients that do not reach"],
    IgnoringTheStart: ["rollout.*wherever it begins"],
    Meddling: ["rollout.*modifies its input actions"],
    MeddlingWithFrames: ["encode.*modifies its input frames"],
    Detached: ["gradients that do not reach"],
    WithoutGrad: ["gradients that do not reach"],
    ExplodingGradient: ["gradients that are not finite"],
    Collapsed: ["encode.*same embedding", "wherever it begins"],
    OtherTarget: [r"encode_target.*\(3, 1, 2\)"],
    CollapsedTarget: ["encode_target.*same embedding"],
    FalseMemory: ["context_length is 2"],
    MemoryOnly: ["rollout.*context_actions are needed"],
    NoMemoryOfAnyKind: ["context_length is 0"],
    NoSteps: [r"max_rollout_steps is 2\.5"],
    ForeignPrediction: ["predict.*another next embedding"],
    FalseLatentShape: [r"latent_shape is \(2,\)"],
}


@pytest.mark.parametrize("broken", VIOLATIONS, ids=lambda broken: broken.__name__)
def test_a_violation_is_found_and_nothing_else(broken) -> None:
    report = check_dynamics(broken(), BOX, IMAGE)
    text = str(report)
    assert not report.ok and broken.__name__ in text
    expected = VIOLATIONS[broken]
    assert len(report.violations) == len(expected), text
    for pattern, violation in zip(expected, report.violations, strict=True):
        assert re.search(pattern, violation, re.DOTALL), (pattern, violation)
        assert violation in text


def test_the_horizon_stays_within_what_the_model_can_imagine() -> None:
    class Short(PointModel):
        max_rollout_steps = 2

        def rollout(self, z, actions, context_actions=None):
            assert actions.shape[1] <= 2
            return super().rollout(z, actions, context_actions)

    assert check_dynamics(Short(), BOX, IMAGE).ok
    assert check_dynamics(Short(), BOX, frames=torch.randint(0, 256, (2, 1, *IMAGE), dtype=torch.uint8)).ok


def test_discrete_actions_are_given_as_the_environment_takes_them() -> None:
    class Table(PointModel):
        def rollout(self, z, actions, context_actions=None):  # noqa: ARG002
            assert actions.dtype == torch.int64 and actions.min() >= 7 and actions.max() <= 8
            return z + actions.sum(dim=-1).float().cumsum(dim=1)[..., None, None]

    assert check_dynamics(Table(), Discrete(2, start=7), IMAGE, frame_skipping=2).ok
    equal = torch.full((3, 4, 2), 8)
    report = check_dynamics(Table(), Discrete(2, start=7), IMAGE, frame_skipping=2, actions=equal)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "image_shape"),
        ({"frames": torch.zeros(3, 1, *IMAGE)}, r"frames are torch\.float32 .*expected uint8"),
        ({"frames": torch.zeros(1, 1, *IMAGE, dtype=torch.uint8)}, "B at least 2"),
        ({"image_shape": IMAGE, "actions": torch.zeros(3, 4, 3)}, r"expected \(3, at least 4, 2\)"),
        ({"image_shape": IMAGE, "actions": torch.zeros(3, 2, 2)}, r"expected \(3, at least 4, 2\)"),
    ],
)
def test_what_cannot_be_checked_with(arguments, message) -> None:
    with pytest.raises(PlanningError, match=message):
        check_dynamics(PointModel(), BOX, **arguments)
