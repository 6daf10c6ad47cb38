"""A conformance check for world models that were not made here.

Shapes: B environments, K context frames, P plan steps, A numbers of one action block, C H W image, D latent (one axis
or more).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from torch import Tensor

from jepaworld.errors import PlanningError
from jepaworld.models.protocol import check_protocol, context_length, max_rollout_steps
from jepaworld.planning.plan_space import PlanSpace
from jepaworld.utils.modules import device_of, in_eval_mode


@dataclass(frozen=True)
class DynamicsReport:
    """What `check_dynamics` found.

    Attributes:
        model: The model's class.
        violations: A sentence for each, with what to do; empty if the model can be planned with.
        passed: What was checked and found in order.
    """

    model: str
    violations: tuple[str, ...]
    passed: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations

    def __str__(self) -> str:
        if self.ok:
            return f"{self.model} can be planned with. Checked: {', '.join(self.passed)}."
        lines = "\n".join(f"  - {violation}" for violation in self.violations)
        return f"{self.model} violates what planning needs in {len(self.violations)} point(s):\n{lines}"


def check_dynamics(
    model: Any,
    action_space: gymnasium.Space,
    image_shape: tuple[int, int, int] | None = None,
    *,
    frame_skipping: int = 1,
    frames: Tensor | None = None,
    actions: Tensor | None = None,
    horizon: int = 4,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> DynamicsReport:
    """Tell what a model violates of the protocol `WorldModel`. It is looked at in eval mode and left as it was.

    Give real `frames` and `actions` where there are some; random ones may be so far from what the model was trained on
    that its predictions mean nothing, though the protocol holds for them too.

    Args:
        model: The world model.
        action_space: The environment's `Box` or `Discrete` action space.
        image_shape: (C, H, W) of the frames that it takes; not needed with `frames`.
        frame_skipping: Environment steps in an action block.
        frames: uint8 (B, K, C, H, W) with B of at least 2 and K of at least the model's `context_length`; by default
            3 environments with random pixels.
        actions: Action blocks as the environment takes them (B, K - 1 + P, A), P of at least 2; by default random.
        horizon: P of the random actions; at most the model's `max_rollout_steps`.
        tolerance: Largest difference, relative to the largest absolute value, of what must be equal.
        seed: Of random frames and actions.

    Returns:
        The report: `.ok`, `.violations`, and as text.

    Raises:
        PlanningError: there are neither frames nor an image shape, or they do not fit.
    """
    name = type(model).__name__
    try:
        check_protocol(model)
    except PlanningError as error:
        return DynamicsReport(name, (str(error),), ())
    declared = list(_declarations(model))
    if declared:
        return DynamicsReport(name, tuple(declared), ())
    space = PlanSpace.of(action_space, frame_skipping, device_of(model))
    frames, actions = _material(model, space, image_shape, frames, actions, horizon, seed)
    check = _Check(model, space, frames, actions, tolerance)
    with in_eval_mode(model), torch.no_grad():
        check.run()
    return DynamicsReport(name, tuple(check.violations), tuple(check.passed))


def _declarations(model: Any) -> Iterator[str]:
    for name, optional in (("context_length", False), ("max_rollout_steps", True)):
        value = getattr(model, name, None if optional else 1)
        if value is None and optional:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            choice = "an integer of at least 1" + (", or None for no limit" if optional else "")
            yield f"{name} is {value!r}: make it {choice}."


def _material(
    model: Any,
    space: PlanSpace,
    image_shape: tuple[int, int, int] | None,
    frames: Tensor | None,
    actions: Tensor | None,
    horizon: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Frames (B, K, C, H, W) and actions (B, K - 1 + P, A) on the model's device, given or random."""
    generator, context = torch.Generator().manual_seed(seed), context_length(model)
    if frames is None:
        if image_shape is None:
            raise PlanningError("check_dynamics needs image_shape=(C, H, W), or frames to look at.")
        frames = torch.randint(0, 256, (3, context, *image_shape), generator=generator, dtype=torch.uint8)
    if frames.dtype != torch.uint8 or frames.ndim != 5 or len(frames) < 2 or frames.shape[1] < context:
        raise PlanningError(
            f"frames are {frames.dtype} {tuple(frames.shape)}; expected uint8 (B, K, C, H, W) with at least 2 "
            f"environments and {context} frame(s), the model's context_length."
        )
    frames = frames[:, -context:]
    steps = context - 1 + min(horizon, max_rollout_steps(model) or horizon)
    if actions is None:
        shape = (len(frames), steps, space.width)
        if space.discrete:
            drawn = torch.randint(space.num_actions, shape, generator=generator).to(space.device)
        else:
            drawn = torch.rand(shape, generator=generator).to(space.device) * 2.0 - 1.0
        actions = space.to_real(drawn)
    if actions.ndim != 3 or len(actions) != len(frames) or actions.shape[2] != space.width or len(actions[0]) < steps:
        raise PlanningError(
            f"actions have shape {tuple(actions.shape)}; expected ({len(frames)}, at least {steps}, {space.width}): "
            "environments, steps (those between the context frames first), numbers of an action block."
        )
    dtype = torch.int64 if space.discrete else torch.float32
    return frames.to(space.device), actions[:, :steps].to(space.device, dtype)


class _Failed(Exception):
    """What comes next cannot be checked; the violation is noted."""


class _Check:
    """Runs the checks and collects what they find. A check is a method with a title, that returns what is wrong."""

    def __init__(self, model: Any, space: PlanSpace, frames: Tensor, actions: Tensor, tolerance: float) -> None:
        self.model, self.space, self.tolerance = model, space, tolerance
        self.frames = frames
        context = frames.shape[1]
        self.context_actions = actions[:, : context - 1] if context > 1 else None
        self.actions = actions[:, context - 1 :]
        self.violations: list[str] = []
        self.passed: list[str] = []

    def run(self) -> None:
        """All checks, as far as they can be made."""
        try:
            z = self._encoding("encode", self.frames)
            if hasattr(self.model, "encode_target"):
                goal = self._encoding("encode_target", self.frames)
                self._note(
                    "encode_target fits encode",
                    goal.shape != z.shape,
                    f"encode_target() gives shape {tuple(goal.shape)}, encode() {tuple(z.shape)}: give goals and "
                    "predictions the same shape.",
                )
            lengths = range(1, z.shape[1] + 1)
            for length in lengths:
                past = None if length == 1 or self.context_actions is None else self.context_actions[:, 1 - length :]
                self._rollout(z[:, -length:], past)
            if len(lengths) > 1:
                self._context_matters(z)
        except _Failed:
            return

    def _encoding(self, name: str, frames: Tensor) -> Tensor:
        method, modified = getattr(self.model, name), set[str]()

        def encode(frames: Tensor) -> Tensor:
            given = frames.clone()
            z = method(given)
            if not torch.equal(given, frames):
                modified.add("frames")
            return z

        z = self._call(f"{name}(frames)", lambda: encode(frames))
        self._values(f"{name}()", z, (*frames.shape[:2],), "(B, K, *D) for frames (B, K, C, H, W)")
        self._unmodified(f"{name}()", modified)
        self._repeats(f"{name}()", z, lambda: encode(frames), lambda: encode(frames[:1]))
        spread = (z - z[:1]).abs().max()
        self._note(
            f"{name} tells frames apart",
            not bool(spread > 0),
            f"{name}() gives the same embedding for different frames, so that no goal can be told from another. Train "
            "the encoder, with a regulariser against collapse.",
        )
        return z

    def _rollout(self, z: Tensor, past: Tensor | None) -> None:
        """Everything about `rollout` with K = z.shape[1] frames of context."""
        model, actions, length = self.model, self.actions, z.shape[1]
        name = "rollout()" if length == 1 else f"rollout() with {length} frames of context"
        modified = set[str]()

        def rollout(z: Tensor, actions: Tensor, past: Tensor | None) -> Tensor:
            copies = z.clone(), actions.clone(), None if past is None else past.clone()
            imagined = model.rollout(*copies)
            for key, copy, original in zip(
                ("z", "actions", "context_actions"), copies, (z, actions, past), strict=True
            ):
                if copy is not None and original is not None and not torch.equal(copy, original):
                    modified.add(key)
            return imagined

        what = f"rollout(z {tuple(z.shape)}, actions {tuple(actions.shape)}, "
        what += "None)" if past is None else f"context_actions {tuple(past.shape)})"
        imagined = self._call(what, lambda: rollout(z, actions, past))
        expected = (len(z), actions.shape[1], *z.shape[2:])
        self._values(name, imagined, expected, "(B, P, *D), an embedding after each action")
        self._unmodified(name, modified)
        first = None if past is None else past[:1]
        self._repeats(name, imagined, lambda: rollout(z, actions, past), lambda: rollout(z[:1], actions[:1], first))
        elsewhere = self._call(f"{name} from elsewhere", lambda: rollout(z.roll(1, dims=0), actions, past))
        self._note(
            f"{name} begins where it is told to",
            not bool((elsewhere - imagined).abs().max() > 0),
            f"{name} gives the same embeddings wherever it begins. Let what is imagined depend on z.",
        )
        self._causal(name, imagined, lambda changed: rollout(z, changed, past))
        if not self.space.discrete:
            self._gradients(name, lambda changed: rollout(z, changed, past))

    def _causal(self, name: str, imagined: Tensor, rollout: Callable[[Tensor], Tensor]) -> None:
        """Each step depends on its own action, on none that comes later, and not on how many come later."""
        steps = imagined.shape[1]
        ignored, leaking = [], []
        for step in range(steps):
            changed = self._call(f"{name} with other actions", lambda step=step: rollout(self._with_other(step)))
            if not bool((changed[:, step] - imagined[:, step]).abs().max() > 0):
                ignored.append(step)
            if step and not self._same(changed[:, :step], imagined[:, :step]):
                leaking.append(step)
        self._note(
            f"{name} uses the actions",
            bool(ignored),
            f"{name}: another action at step(s) {ignored} leaves the embedding after it as it was. Let the embedding "
            "after step p depend on actions[:, p]; check the order of the actions and their scale.",
        )
        self._note(
            f"{name} is causal",
            bool(leaking),
            f"{name}: another action at step(s) {leaking} changes embeddings before it. Let step p depend on the "
            "actions up to p alone; a sequence model needs a causal mask.",
        )
        if steps > 1:
            shorter = self._call(f"{name} of one step", lambda: rollout(self.actions[:, :1]))
            self._note(
                f"{name} does not depend on the horizon",
                not self._same(shorter[:, :1], imagined[:, :1]),
                f"{name}: the first of {steps} imagined steps is another than with one action alone. Let step p not "
                "depend on how many steps follow.",
            )

    def _gradients(self, name: str, rollout: Callable[[Tensor], Tensor]) -> None:
        actions = self.actions.clone().requires_grad_()
        with torch.enable_grad():
            imagined = self._call(f"{name} with gradients", lambda: rollout(actions))
            found = None
            if imagined.requires_grad:
                (found,) = torch.autograd.grad(imagined.square().sum(), actions, allow_unused=True)
        missing = found is None or not bool((found != 0).any(dim=2).any(dim=0).all())
        finite = found is None or bool(found.isfinite().all())
        self._note(
            f"{name} passes gradients",
            missing or not finite,
            f"{name}: gradients {'do not reach all' if missing else 'are not finite at the'} actions, so that "
            "planning.planner=gradient is not possible. Remove no_grad, detach and rounding from the rollout, or plan "
            "with cem, which needs no gradients.",
        )

    def _context_matters(self, z: Tensor) -> None:
        present = self.model.rollout(z, self.actions, self.context_actions)
        other = torch.cat([z.flip(0)[:, :-1], z[:, -1:]], dim=1)
        self._note(
            "context is used",
            not bool((self.model.rollout(other, self.actions, self.context_actions) - present).abs().max() > 0),
            f"context_length is {z.shape[1]}, but frames before the present change nothing. Set context_length to 1, "
            "or check which of the frames the model looks at: the last is the present.",
        )

    def _call(self, what: str, function: Callable[[], Any]) -> Tensor:
        """A result of the model; if there is none, that is a violation and the end."""
        try:
            result = function()
        except Exception as error:  # whatever a model raises is its author's to know
            self.violations.append(
                f"{what} raises {type(error).__name__}: {error}. It must take these shapes (all environments at once)."
            )
            raise _Failed from error
        if not isinstance(result, Tensor):
            self.violations.append(f"{what} returns {type(result).__name__}: return a torch tensor.")
            raise _Failed
        return result

    def _values(self, name: str, value: Tensor, expected: tuple[int, ...], words: str) -> None:
        exact = name.startswith("rollout")
        shape = tuple(value.shape)
        if (shape != expected) if exact else (shape[: len(expected)] != expected or len(shape) <= len(expected)):
            wanted = expected if exact else f"{expected} and one or more axes of the embedding"
            self.violations.append(f"{name} gives shape {shape}, expected {wanted}: return {words}.")
            raise _Failed
        if not value.is_floating_point():
            self.violations.append(f"{name} gives {value.dtype}: return floating point embeddings.")
            raise _Failed
        if value.device != self.space.device:
            self.violations.append(
                f"{name} gives a tensor on {value.device}, the model's parameters are on {self.space.device}: keep "
                "everything on one device."
            )
            raise _Failed
        not_finite = int((~value.isfinite()).sum())
        if not_finite:
            self.violations.append(
                f"{name} gives {not_finite} of {math.prod(shape)} values that are NaN or infinite. Check the weights, "
                "and what the model divides by."
            )
            raise _Failed
        self.passed.append(f"{name} gives finite embeddings of the right shape")

    def _unmodified(self, name: str, modified: set[str]) -> None:
        self._note(
            f"{name} leaves its inputs alone",
            bool(modified),
            f"{name} modifies its input {', '.join(sorted(modified))}. Work on a copy (no operations that end in _).",
        )

    def _repeats(
        self, name: str, value: Tensor, again: Callable[[], Tensor], first_alone: Callable[[], Tensor]
    ) -> None:
        repeated = self._same(self._call(f"{name} called again", again), value)
        self._note(
            f"{name} is deterministic",
            not repeated,
            f"{name} gives another result when called again with the same inputs. Switch randomness off in eval mode, "
            "and keep no state between calls.",
        )
        if not repeated:
            raise _Failed  # no comparison would say anything
        self._note(
            f"{name} treats environments apart",
            not self._same(self._call(f"{name} of one environment", first_alone), value[:1]),
            f"{name} gives an environment another result alone than in a batch. Let no statistics go over the batch "
            "(BatchNorm in eval mode), and check for transposed axes.",
        )

    def _with_other(self, step: int) -> Tensor:
        """The actions with those of one step replaced by those of another environment, or moved if all are equal."""
        actions = self.actions.clone()
        actions[:, step] = actions[:, step].roll(1, dims=0)
        if torch.equal(actions, self.actions):
            normalised = self.space.normalise(actions[:, step])
            if self.space.discrete:
                moved = (normalised.long() + 1) % self.space.num_actions
            else:
                moved = torch.where(normalised > 0, normalised - 0.5, normalised + 0.5)
            actions[:, step] = self.space.to_real(moved)
        return actions

    def _same(self, a: Tensor, b: Tensor) -> bool:
        if a.shape != b.shape:
            return False
        return bool((a - b).abs().max() <= self.tolerance * b.abs().max())

    def _note(self, title: str, violated: bool, sentence: str) -> None:
        if violated:
            self.violations.append(sentence)
        else:
            self.passed.append(title)
