"""How long a plan of a recipe takes, with fresh weights: milliseconds for each of several environments planned at once.

For a Transformer predictor with both kinds of attention, in turn: plain products, which short windows take, and
torch's kernels.

    python benchmarks/planning_speed.py push_t --envs 50
    python benchmarks/planning_speed.py push_t --envs 2 --override planning.num_samples=30
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from gymnasium.spaces import Box

from jepaworld import load_config
from jepaworld.config import Config
from jepaworld.envs.spaces import Spaces
from jepaworld.models import build, transformer
from jepaworld.planning.controller import Controller
from jepaworld.utils.devices import resolve_device, use_bf16

SPACE = Box(-1.0, 1.0, (2,))


def seconds_per_plan(config: Config, num_envs: int, plans: int) -> float:
    """Median over the plans after the first, for all environments together."""
    device, spaces = resolve_device(config.device), Spaces.of(config, SPACE)
    torch.manual_seed(config.seed)
    model = build(config, spaces).to(device).eval()
    bf16 = use_bf16(config.mixed_precision, device, model)
    controller = Controller(model, SPACE, config.planning, frame_skipping=config.frame_skipping, bf16=bf16)
    frames = torch.randint(256, (num_envs, *spaces.frame_shape), dtype=torch.uint8)
    controller.reset(frames)
    times = []
    for _ in range(plans + 1):
        began = time.perf_counter()
        controller.act(frames)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="push_t")
    parser.add_argument("--envs", type=int, default=50)
    parser.add_argument("--plans", type=int, default=5)
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    # Each plan is made anew, so that all of them are equally long.
    config = load_config(args.config, [*args.override, "planning.replan_every=1"])
    kinds = {"products": transformer.SHORT, "kernels": 0}
    if config.jepa_model.predictor_type != "transformer":
        kinds = {"plan": transformer.SHORT}
    result: dict[str, object] = {"config": args.config, "overrides": args.override, "envs": args.envs}
    for name, short in kinds.items():
        transformer.SHORT = short
        result[name] = round(seconds_per_plan(config, args.envs, args.plans) / args.envs * 1e3, 3)
    print(json.dumps(result | {"unit": "ms a plan and environment"}))


if __name__ == "__main__":
    main()
