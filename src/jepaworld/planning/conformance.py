"""A conformance check for world models that were not made here.

Shapes: B environments, K context frames, P plan steps, A numbers of one action block, C H W image, *D latent: (D,) or
(N, D) with tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
    """What `check_dynamics` found."""

    model: str  # its class
    violations: tuple[str, ...]  # a sentence for each, with what to do; empty if the model can be planned with
    passed: tuple[str, ...]  # what was checked and found in order

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
    if declared := tuple(_declarations(model)):
        return DynamicsReport(name, declared, ())
    space = PlanSpace.of(action_space, frame_skipping, device_of(model))
    generator, context = torch.Generator().manual_seed(seed), context_length(model)
    frames = _random_frames(image_shape, context, generator) if frames is None else frames
    if frames.dtype != torch.uint8 or frames.ndim != 5 or len(frames) < 2 or frames.shape[1] < context:
        raise PlanningError(
            f"frames are {frames.dtype} {tuple(frames.shape)}: expected uint8 (B, K, C, H, W), B at least 2 and K at "
            f"least {context}, the model's context_length."
        )
    num_envs, steps = len(frames), context - 1 + min(horizon, max_rollout_steps(model) or horizon)
    if actions is None:
        actions = _random_actions(space, (num_envs, steps, space.width), generator)
    if actions.ndim != 3 or actions.shape[::2] != (num_envs, space.width) or actions.shape[1] < steps:
        raise PlanningError(
            f"actions have shape {tuple(actions.shape)}: expected ({num_envs}, at least {steps}, {space.width}), "
            "those between the context frames first."
        )
    actions = actions[:, :steps].to(space.device, torch.int64 if space.discrete else torch.float32)
    check = _Check(model, space, frames[:, -context:].to(space.device), actions, tolerance)
    with in_eval_mode(model), torch.no_grad(), suppress(_Unknown):
        check.run()
    return DynamicsReport(name, tuple(check.violations), tuple(check.passed))


def _random_frames(image_shape: tuple[int, int, int] | None, context: int, generator: torch.Generator) -> Tensor:
    """Random pixels, uint8 (3, K, C, H, W)."""
    if image_shape is None:
        raise PlanningError("check_dynamics needs image_shape=(C, H, W), or frames to look at.")
    return torch.randint(0, 256, (3, context, *image_shape), generator=generator, dtype=torch.uint8)


def _random_actions(space: PlanSpace, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random action blocks of a shape (B, P, A), as the environment takes them."""
    draw = partial(torch.randint, space.num_actions) if space.discrete else torch.rand
    drawn = draw(shape, generator=generator)
    return space.to_real((drawn if space.discrete else drawn * 2.0 - 1.0).to(space.device))


def _declarations(model: Any) -> Iterator[str]:
    """What is violated before anything is asked of the model."""
    try:
        check_protocol(model)
    except PlanningError as error:
        yield str(error)
        return
    for name, default, alternative in ("context_length", 1, ""), ("max_rollout_steps", None, ", or None for no limit"):
        value = getattr(model, name, default)
        if (type(value) is not int or value < 1) and not (value is None and alternative):
            yield f"{name} is {value!r}: must be an integer of at least 1{alternative}."


class _Unknown(Exception):
    """What comes next cannot be checked; the violation is noted."""


class _Check:
    """Runs the checks and collects what they find."""

    def __init__(self, model: Any, space: PlanSpace, frames: Tensor, actions: Tensor, tolerance: float) -> None:
        self.model, self.space, self.tolerance = model, space, tolerance
        self.frames, self.context = frames, frames.shape[1]
        self.past, self.actions = actions[:, : self.context - 1], actions[:, self.context - 1 :]
        self.violations: list[str] = []
        self.passed: list[str] = []

    def run(self) -> None:
        """All checks, as far as they can be made."""
        z = self._encoding("encode")
        if hasattr(self.model, "encode_target"):
            goal = self._encoding("encode_target")
            remedy = f"gives {tuple(goal.shape)}, encode() {tuple(z.shape)}: make them the same shape"
            self._note("encode_target()", "fits encode()", goal.shape == z.shape, remedy)
        shape = tuple(getattr(self.model, "latent_shape", z.shape[2:]))
        remedy = f"is {shape}, that of embeddings {tuple(z.shape[2:])}: make both the same (D,) or (N, D)"
        self._note("latent_shape", "holds", shape == z.shape[2:] and len(shape) <= 2, remedy)
        imagined = self._rollout(z[:, -1:], None)
        for length in range(2, self.context + 1):  # an episode begins with fewer frames than the model can use
            imagined = self._rollout(z[:, -length:], self.past[:, 1 - length :])
        if hasattr(self.model, "predict"):
            actions = torch.cat([self.past, self.actions[:, :1]], dim=1)
            found = self._result("predict()", self.model.predict, {"z": z, "actions": actions}, tuple(z.shape))
            remedy = "gives another next embedding than rollout(): let rollout() imagine by predict()"
            self._note("predict()", "agrees with rollout()", self._same(found[:, -1], imagined[:, 0]), remedy)
        if self.context > 1:
            other = self.model.rollout(torch.cat([z.flip(0)[:, :-1], z[:, -1:]], dim=1), self.actions, self.past)
            remedy = f"is {self.context}, but frames before the last, the present, change nothing: make it 1"
            self._note("context_length", "is used", _differ(other, imagined), remedy)

    def _encoding(self, method: str) -> Tensor:
        """Everything about `encode` or `encode_target`."""
        name, prefix = f"{method}()", tuple(self.frames.shape[:2])
        z = self._result(name, getattr(self.model, method), {"frames": self.frames}, prefix)
        remedy = "gives the same embedding for different frames: train the encoder with a regulariser against collapse"
        self._note(name, "tells frames apart", _differ(z, z[:1]), remedy)
        return z

    def _rollout(self, z: Tensor, past: Tensor | None) -> Tensor:
        """Everything about `rollout` with K = z.shape[1] frames of context."""
        name = "rollout()" if past is None else f"rollout() with {z.shape[1]} frames of context"

        def rollout(actions: Tensor, start: Tensor = z) -> Tensor:
            return self._call(name, self.model.rollout, start, actions, past)

        inputs = {"z": z, "actions": self.actions, "context_actions": past}
        imagined = self._result(name, self.model.rollout, inputs, (*self.actions.shape[:2], *z.shape[2:]))
        remedy = "gives the same embeddings wherever it begins: let what is imagined depend on z"
        # Each environment from where another one is, with its own actions.
        elsewhere = rollout(self.actions, z.roll(1, dims=0))
        self._note(name, "begins where it is told to", _differ(elsewhere, imagined), remedy)
        self._causal(name, imagined, rollout)
        if not self.space.discrete:
            self._gradients(name, rollout)
        return imagined

    def _causal(self, name: str, imagined: Tensor, rollout: Callable[[Tensor], Tensor]) -> None:
        """Each step depends on its own action, on none that comes later, and not on how many come later."""
        ignored, leaking = [], []
        for step in range(imagined.shape[1]):
            changed = rollout(self._with_other(step))
            if not _differ(changed[:, step], imagined[:, step]):
                ignored.append(step)
            if step and not self._same(changed[:, :step], imagined[:, :step]):
                leaking.append(step)
        remedy = f"leaves the embedding after step(s) {ignored} as it was with another action there: check their order"
        self._note(name, "uses the actions", not ignored, remedy)
        remedy = f"changes embeddings before step(s) {leaking} with another action there: a sequence model needs a mask"
        self._note(name, "is causal", not leaking, remedy)
        if imagined.shape[1] > 1:
            same = self._same(rollout(self.actions[:, :1])[:, :1], imagined[:, :1])
            remedy = "gives another first step with more actions: let step p not depend on how many steps follow"
            self._note(name, "does not depend on the horizon", same, remedy)

    def _gradients(self, name: str, rollout: Callable[[Tensor], Tensor]) -> None:
        actions, found = self.actions.clone().requires_grad_(), None
        with torch.enable_grad():
            imagined = rollout(actions)
            if imagined.requires_grad:
                (found,) = torch.autograd.grad(imagined.square().sum(), actions, allow_unused=True)
        reached = found is not None and bool((found != 0).any(dim=2).any(dim=0).all())
        problem = "are not finite at the" if reached else "do not reach all"
        remedy = f"has gradients that {problem} actions: remove no_grad, detach and rounding, or plan with cem"
        self._note(name, "passes gradients", found is not None and reached and bool(found.isfinite().all()), remedy)

    def _result(
        self, name: str, method: Callable[..., Any], inputs: dict[str, Tensor | None], shape: tuple[int, ...]
    ) -> Tensor:
        """What a method gives, if that is as it must be of any; for `encode`, `shape` is the beginning of the shape.

        Finite floats of that shape on the model's device, the same when asked again and for one environment alone, and
        inputs that are left alone.
        """

        def ask(count: int | None = None) -> tuple[Tensor, list[Tensor | None]]:
            """The answer for the first environments alone, or all; and the inputs, which the method may have spoilt."""
            given = [None if one is None else one[:count].clone() for one in inputs.values()]
            return self._call(name, method, *given), given

        value, given = ask()
        if name.startswith("encode"):
            shape = (*shape, *(value.shape[2:] or (1,)))  # whatever the latent is, it has an axis
        problem = ""
        if tuple(value.shape) != shape:
            problem = f"gives shape {tuple(value.shape)}, expected {shape}: environments, frames or steps, embedding"
        elif not value.is_floating_point():
            problem = f"gives {value.dtype}: return floating point embeddings"
        elif value.device != self.space.device:
            problem = f"gives a tensor on {value.device}, but the model is on {self.space.device}: use one device"
        elif not value.isfinite().all():
            problem = f"gives {int((~value.isfinite()).sum())} of {value.numel()} values that are NaN or infinite"
        elif not self._same(ask()[0], value):
            problem = "gives another result when called again: no randomness in eval mode, no state between calls"
        self._note(name, "gives finite embeddings of the right shape, again the same", not problem, problem)
        if problem:
            raise _Unknown
        now = dict(zip(inputs, given, strict=True))
        modified = [key for key, before in inputs.items() if before is not None and (now[key] != before).any()]
        remedy = f"modifies its input {', '.join(modified)}: work on a copy (no operations that end in _)"
        self._note(name, "leaves its inputs alone", not modified, remedy)
        remedy = "gives an environment another result alone than in a batch: no statistics over the batch, right axes"
        self._note(name, "treats environments apart", self._same(ask(1)[0], value[:1]), remedy)
        return value

    def _call(self, name: str, method: Callable[..., Any], *inputs: Tensor | None) -> Tensor:
        """A result of the model; if there is none, that is a violation and the end."""
        try:
            result = method(*inputs)
        except Exception as error:  # whatever a model raises is its author's to know
            shapes = ", ".join("None" if one is None else str(tuple(one.shape)) for one in inputs)
            self.violations.append(f"{name} of shapes {shapes} raises {type(error).__name__}: {error}.")
            raise _Unknown from error
        if not isinstance(result, Tensor):
            self.violations.append(f"{name} returns {type(result).__name__}: return a torch tensor.")
            raise _Unknown
        return result

    def _with_other(self, step: int) -> Tensor:
        """The actions with those of one step replaced by those of another environment, or moved if all are equal."""
        actions = self.actions.clone()
        actions[:, step] = actions[:, step].roll(1, dims=0)
        if torch.equal(actions, self.actions):
            moved = self.space.normalise(actions[:, step])
            if self.space.discrete:
                moved = (moved.long() + 1) % self.space.num_actions
            else:
                moved = torch.where(moved > 0, moved - 0.5, moved + 0.5)
            actions[:, step] = self.space.to_real(moved)
        return actions

    def _same(self, a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and bool((a - b).abs().max() <= self.tolerance * b.abs().max())

    def _note(self, name: str, title: str, holds: bool, violation: str) -> None:
        (self.passed if holds else self.violations).append(f"{name} {title}" if holds else f"{name} {violation}.")


def _differ(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() > 0)
