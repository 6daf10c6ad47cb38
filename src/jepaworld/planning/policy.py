"""A trained world model as an ordinary policy: observation in, action out.

Shapes: H W picture, C channels and S side of the model's frames, P plan steps, A numbers of one action block.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jepaworld.config.changes import PLANNING, require_equal
from jepaworld.config.planning import PlanningConfig
from jepaworld.envs.frames import image_to_frame
from jepaworld.errors import PlanningError
from jepaworld.models import checkpoints
from jepaworld.models.building import load
from jepaworld.models.protocol import WorldModel
from jepaworld.planning.controller import Controller, ImaginedPlan
from jepaworld.utils.devices import resolve_device, use_bf16

_log = logging.getLogger(__name__)


class WorldModelPolicy:
    """Acts towards a goal image by planning with a world model.

    ```
    policy = WorldModelPolicy.from_pretrained("runs/two_room")
    observation, info = env.reset()
    policy.set_goal(goal_image)
    action = policy(observation)
    ```

    A plan is made for every action block, or more rarely with `planning.replan_every`; the actions of a block are
    played one by one, without looking at the observations in between, as in training.

    Args:
        model: The world model, on the device where it is to plan.
        action_space: The environment's `Box` or `Discrete` action space.
        settings: The section `planning`.
        image_size: S, pixels; pictures of another size are resized, as in training.
        input_channels: C, 1 (luma) or 3.
        frame_skipping: Environment steps in an action block.
        seed: Of the planner's random numbers.
        bf16: Imagine in bf16 autocast.

    Attributes:
        controller: Does the work; its `last_plan` and `seconds_per_plan` tell about it.

    Raises:
        ConfigError, PlanningError: as `Controller`.
    """

    def __init__(
        self,
        model: WorldModel,
        action_space: gymnasium.Space,
        settings: PlanningConfig,
        *,
        image_size: int,
        input_channels: Literal[1, 3] = 3,
        frame_skipping: int = 1,
        seed: int = 0,
        bf16: bool = False,
    ) -> None:
        self.controller = Controller(model, action_space, settings, frame_skipping=frame_skipping, seed=seed, bf16=bf16)
        self.image_size = image_size
        self.input_channels: Literal[1, 3] = input_channels
        self._goal_is_set = False
        self._queue: list[Any] = []
        self._noted: set[tuple[str, tuple[int, ...]]] = set()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, overrides: Sequence[str] = (), *, device: str = "auto", seed: int = 0
    ) -> Self:
        """The policy of a trained run.

        Args:
            path: Run folder, or a JEPA checkpoint (.safetensors).
            overrides: `key.path=value` each, for example `planning.horizon=8`. A setting of `planning` or
                `mixed_precision`: the others belong to the training.
            device: As the setting `device`.
            seed: Of the planner's random numbers.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged.
            ConfigError: an override is not possible, or as `Controller`.
        """
        checkpoint, where = checkpoints.load(path, "jepa"), resolve_device(device)
        config = checkpoint.config.with_overrides(overrides)
        require_equal(checkpoint.config, config, PLANNING, f"What can be changed here: {', '.join(PLANNING)}.")
        model = load(checkpoint.path, where)
        return cls(
            model,
            checkpoint.action_space,
            config.planning,
            image_size=config.image_size,
            input_channels=config.input_channels,
            frame_skipping=config.frame_skipping,
            seed=seed,
            bf16=use_bf16(config.mixed_precision, where, model),
        )

    def set_goal(self, image: NDArray[np.uint8]) -> None:
        """Choose what to bring about, and begin a new episode.

        Args:
            image: uint8 (H, W), (H, W, 1) or (H, W, 3); one of another size than the model's frames is resized, with a
                warning.

        Raises:
            PlanningError: this is no such picture.
        """
        self.controller.reset(self._frame(image, "the goal image"))
        self._goal_is_set, self._queue = True, []

    def reset(self) -> None:
        """Begin a new episode with the same goal."""
        self.controller.restart()
        self._queue = []

    def __call__(self, observation: NDArray[np.uint8]) -> Any:
        """The next action, an element of the action space: an array for `Box`, an int for `Discrete`.

        Args:
            observation: uint8 (H, W), (H, W, 1) or (H, W, 3): an image observation, or what `env.render()` gave.

        Raises:
            PlanningError: there is no goal, the observation is no picture, or the cost of a plan is not finite.
        """
        if not self._queue:
            self._queue = list(self.controller.space.split(self._act(observation, "the observation"))[0])
        action = self._queue.pop(0)
        return int(action) if self.controller.space.discrete else action

    def plan(self, image: NDArray[np.uint8]) -> ImaginedPlan:
        """A whole plan from a picture to the goal, with what the model expects of it; a new episode begins.

        Args:
            image: uint8 (H, W), (H, W, 1) or (H, W, 3), where the plan begins.

        Returns:
            The plan of one environment (B = 1); `controller.space.split(plan.actions)[0]` are its P * k actions.

        Raises:
            PlanningError: as calling the policy.
        """
        self.reset()
        self._act(image, "the start image")
        plan = self.controller.last_plan
        assert plan is not None
        self.reset()
        return plan

    def _act(self, image: Any, name: str) -> Tensor:
        """The next action block (1, A)."""
        if not self._goal_is_set:
            raise PlanningError("the policy has no goal yet. Call policy.set_goal(image) after env.reset().")
        return self.controller.act(self._frame(image, name))

    def _frame(self, image: Any, name: str) -> NDArray[np.uint8]:
        """A picture as the model takes it, (1, C, S, S)."""
        is_picture = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3)
        if not is_picture or (image.ndim == 3 and image.shape[2] not in (1, 3)) or 0 in image.shape:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise PlanningError(
                f"{name} is {found}; expected a picture, uint8 (H, W), (H, W, 1) or (H, W, 3), such as env.render() "
                "returns (render_mode rgb_array)."
            )
        size, side = image.shape[:2], self.image_size
        if size != (side, side) and (name, size) not in self._noted:
            self._noted.add((name, size))
            _log.warning("%s is %d x %d pixels; resized to the model's %d x %d.", name, *size[::-1], side, side)
        return image_to_frame(image, side, self.input_channels)[None]
