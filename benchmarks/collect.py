"""How fast the built-in environment is collected through two processes, files and checksums included.

    python benchmarks/collect.py [--episodes 1800] [--workers 2] [--folder DIR]

Prints a JSON line per measurement and a sentence at the end. `frames_per_second` is that of the whole job,
with the start of the worker processes; `frames_per_second_running` is that of the difference between this job
and one of a third of its size, which both start them. The alternative that `ratio` compares with, in the same
run, is the usual way: `gymnasium.make`, `step` and `render` one after the other in one process, frames kept
in memory and nothing written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.envs.make import make_env


def collection_seconds(config: Config) -> tuple[int, float]:
    """Frames and seconds of one collection into a fresh folder."""
    shutil.rmtree(config.dataset_dir, ignore_errors=True)
    start = time.perf_counter()
    dataset = collect(config)
    return dataset.num_frames, time.perf_counter() - start


def scalar_frames_per_second(config: Config, episodes: int) -> float:
    """The alternative: one environment, stepped and rendered in a loop."""
    env = make_env(config.environment_name, config.environment_kwargs)
    steps = config.max_steps_per_episode_data_collection
    frames = np.empty((steps + 1, 3, config.image_size, config.image_size), np.uint8)
    start = time.perf_counter()
    for episode in range(episodes):
        env.reset(seed=episode)
        frames[0] = np.moveaxis(np.asarray(env.render()), -1, 0)
        for step in range(steps):
            env.step(env.action_space.sample())
            frames[step + 1] = np.moveaxis(np.asarray(env.render()), -1, 0)
    seconds = time.perf_counter() - start
    env.close()
    return episodes * (steps + 1) / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=1800, help="of the large job; the small one has a third")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:

        def config(episodes: int) -> Config:
            return Config(
                num_episodes_data_collection=episodes,
                dataset_dir=str(Path(folder) / "dataset"),
                collection={"num_workers": arguments.workers},  # pyright: ignore[reportArgumentType]
            )

        scalar = scalar_frames_per_second(config(1), 20)
        print(json.dumps({"benchmark": "scalar gymnasium loop", "frames_per_second": round(scalar)}), flush=True)
        small_frames, small_seconds = collection_seconds(config(max(1, arguments.episodes // 3)))
        frames, seconds = collection_seconds(config(arguments.episodes))
    running = (frames - small_frames) / (seconds - small_seconds)
    result = {
        "benchmark": "collect",
        "workers": arguments.workers,
        "frames": frames,
        "seconds": round(seconds, 2),
        "frames_per_second": round(frames / seconds),
        "frames_per_second_running": round(running),
        "ratio": round(frames / seconds / scalar, 1),
        "ratio_running": round(running / scalar, 1),
    }
    print(json.dumps(result))
    print(
        f"{arguments.workers} workers: {frames / seconds:,.0f} frames/s with their start, {running:,.0f} "
        f"without; {running / scalar:.1f} times a scalar gymnasium loop that writes nothing ({scalar:,.0f} "
        "frames/s)."
    )


if __name__ == "__main__":
    main()
