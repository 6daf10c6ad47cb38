"""A training step kernel by kernel and as one CUDA graph: milliseconds, their ratio, and how long the curves agree.

Both train a configuration's model from the same weights on the same random pictures. Needs a CUDA device.

    python benchmarks/captured_step.py two_room_random_wall
    python benchmarks/captured_step.py two_room_random_wall --override mixed_precision=off
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from gymnasium.spaces import Box

from jepaworld import load_config
from jepaworld.config import Config
from jepaworld.data.windows import Batch
from jepaworld.envs.spaces import Spaces
from jepaworld.losses import make_objective
from jepaworld.models import build
from jepaworld.training_loops.epoch_loop import TrainingStep
from jepaworld.utils.devices import use_bf16

DEVICE = torch.device("cuda")
SPACE = Box(-1.0, 1.0, (2,))
WARM_UP = 10  # the captured step's eager ones and its capture among them


def make_step(config: Config) -> TrainingStep:
    """The step of a fresh model; the same weights for the same seed."""
    torch.manual_seed(config.seed)
    spaces = Spaces.of(config, SPACE)
    objective = make_objective(config, build(config, spaces).to(DEVICE), spaces).train()
    bf16 = use_bf16(config.mixed_precision, DEVICE, objective)
    return TrainingStep(objective, config, config.learning_rate, 10_000, DEVICE, bf16)


def random_batches(config: Config, count: int) -> list[Batch]:
    """Windows of noise."""
    spaces, generator = Spaces.of(config, SPACE), torch.Generator(DEVICE).manual_seed(0)
    windows = config.batch_size, config.num_transitions
    shape = windows[0], windows[1] + 1, *spaces.frame_shape
    return [
        Batch(
            torch.randint(256, shape, generator=generator, device=DEVICE, dtype=torch.uint8),
            torch.rand(*windows, spaces.action_size, generator=generator, device=DEVICE) * 2 - 1,
        )
        for _ in range(count)
    ]


def measure(config: Config, batches: list[Batch], steps: int) -> tuple[float, torch.Tensor]:
    """Milliseconds a step after the warm-up, and the loss of every step."""
    step, losses = make_step(config), []
    for index in range(WARM_UP + steps):
        if index == WARM_UP:
            torch.cuda.synchronize()
            began = time.perf_counter()
        terms = step(batches[index % len(batches)])
        losses.append(terms[step.objective.loss_name].clone())
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps * 1e3, torch.stack(losses).cpu()


def equal_steps(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many losses are equal to the digit before the first that is not."""
    return int((one == other).int().cumprod(0).sum())


def main() -> None:
    """Alternate the two and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="two_room_random_wall")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    times: dict[str, list[float]] = {"eager": [], "graph": []}
    curves: dict[str, list[torch.Tensor]] = {"eager": [], "graph": []}
    for _ in range(args.repeats):
        for execution, seen in times.items():
            config = load_config(args.config, [*args.override, f"execution={execution}"])
            milliseconds, losses = measure(config, random_batches(config, 4), args.steps)
            seen.append(milliseconds)
            curves[execution].append(losses)
    eager, graph = (sorted(seen)[len(seen) // 2] for seen in times.values())
    result = {
        "config": args.config,
        "overrides": args.override,
        "eager_ms": eager,
        "graph_ms": graph,
        "ratio": eager / graph,
        "steps": args.steps + WARM_UP,
        # Some kernels add in another order each time: then two eager runs part as well.
        "equal_steps_of_eager_and_graph": equal_steps(curves["eager"][0], curves["graph"][0]),
        "equal_steps_of_eager_and_eager": equal_steps(curves["eager"][0], curves["eager"][-1]),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
