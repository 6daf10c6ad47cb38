"""Train a recipe with several seeds and measure how often its plans reach their goals.

    python benchmarks/planning_success.py configs/two_room_random_wall.yaml --seeds 1 2 3

Each seed has data, weights and evaluation episodes of its own: the evaluation seed is 1000 + seed, so that episodes on
which settings were tried out (small seeds) are not the ones that are reported. Prints a line for each seed and appends
it as JSON to --out. Seconds are wall time; with --parallel all seeds share the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from jepaworld import __version__, load_config, run_training
from jepaworld.data.collect import collect
from jepaworld.evaluation_engine import evaluate_run
from jepaworld.report import write_report


def measure(recipe: str, seed: int, overrides: list[str], folder: str) -> dict[str, Any]:
    """Collect, train and evaluate with one seed."""
    run = Path(folder) / f"{Path(recipe).stem}-{seed}"
    own = [f"seed={seed}", f"evaluation.seed={1000 + seed}", f"dataset_dir={run.with_suffix('.data')}"]
    config = load_config(recipe, [*own, *overrides])
    seconds, began = {}, time.perf_counter()

    def took(what: str) -> None:
        nonlocal began
        seconds[what] = round(time.perf_counter() - began, 1)
        began = time.perf_counter()

    collect(config)
    took("collect")
    summary = run_training(config, run).summary
    took("train")
    planning = evaluate_run(run).model_dump(mode="json")
    took("evaluate")
    write_report(run, device=config.device)
    took("report")
    return {
        "recipe": recipe,
        "overrides": overrides,
        "seed": seed,
        "device": summary["device"],
        "seconds": seconds,
        "phases": {name: phase["seconds"] for name, phase in summary["phases"].items()},
        "protocol": planning["protocol"],
        "agents": planning["agents"],
        "planning": planning["planning"],
    }


def commit() -> str:
    """The commit that is checked out, if this is a checkout."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def line(result: dict[str, Any]) -> str:
    """A result for the terminal."""
    parts = []
    for agent in result["agents"]:
        for name, rate in agent["any"].items():
            end = agent["end"][name]["rate"]
            parts.append(
                f"{agent['name']} {name} {rate['rate']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}), end {end:.1%}"
            )
    plan = result["agents"][0]
    speed = f"{plan['seconds_per_episode']:.3f} s an episode, {plan['seconds_per_plan'] * 1000:.2f} ms a plan"
    return f"{result['recipe']} seed {result['seed']}: {'; '.join(parts)}; {speed}; {result['seconds']}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--folder", default="runs/planning_success", help="where runs and data go")
    parser.add_argument("--parallel", action="store_true", help="all seeds at once")
    parser.add_argument("--out", type=Path, help="JSON lines")
    # After the options, a recipe and its overrides would be taken for seeds.
    arguments = parser.parse_intermixed_args()
    versions = {"jepaworld": __version__, "torch": torch.__version__, "python": platform.python_version()}
    about = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions,
    }
    jobs = [(arguments.recipe, seed, arguments.overrides, arguments.folder) for seed in arguments.seeds]
    processes = len(jobs) if arguments.parallel else 1
    # A fresh process for each seed, so that none begins warmer than another. It may have processes of its own.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, max_tasks_per_child=1) as pool:
        for pending in [pool.submit(measure, *job) for job in jobs]:
            result = about | pending.result()
            print(line(result), flush=True)
            if arguments.out is not None:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
