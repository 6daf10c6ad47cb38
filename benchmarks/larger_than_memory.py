"""Training speed on a dataset four times larger than the memory allowed to the process, against one that fits.

Collects a Two Rooms dataset of four times `--memory` MiB, then trains the same model on it and on a small dataset that
is kept in memory, in alternation, each in a process of its own. The process that trains on the large one runs in a
memory control group with that limit, page cache included (cgroup v1 or v2; needs the right to make one), and the page
cache is dropped before it starts where that is allowed, so that frames really come from the disk.

    python benchmarks/larger_than_memory.py --memory 1024
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

GROUP = "jepaworld-benchmark"
FRAME_BYTES = 3 * 64 * 64
STEPS_PER_EPISODE = 90


def limited_group(limit: int) -> tuple[Path, str]:
    """Make a control group with a memory limit; returns its folder and the file that counts hits of the limit."""
    if Path("/sys/fs/cgroup/memory").is_dir():
        folder, limit_file, counter = Path("/sys/fs/cgroup/memory") / GROUP, "memory.limit_in_bytes", "memory.failcnt"
    else:
        folder, limit_file, counter = Path("/sys/fs/cgroup") / GROUP, "memory.max", "memory.events"
    folder.mkdir(exist_ok=True)
    (folder / limit_file).write_text(str(limit))
    return folder, counter


def train(settings: list[str], group: Path | None) -> dict:
    """Train in a process of its own; returns samples per second of the last epoch and peak memory in MiB."""

    def enter_group() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, __file__, "--train", *settings]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, preexec_fn=enter_group).stdout
    return json.loads(output.strip().splitlines()[-1])


def train_here(settings: list[str]) -> None:
    """Train and print the speed."""
    import resource

    from jepaworld import load_config, run_training

    with tempfile.TemporaryDirectory() as folder:
        run = run_training(load_config(None, settings), Path(folder) / "run").run_dir
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"samples_per_second": epochs[-1]["samples_per_second"], "peak_resident_mib": peak}))


def main() -> None:
    """Collect, alternate the two, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, default=1024, help="MiB allowed to the process")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("datasets"), help="where the two datasets go")
    parser.add_argument("--train", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train_here(args.train)
        return

    from jepaworld import load_config
    from jepaworld.data.collect import collect

    large_episodes = 4 * args.memory * 2**20 // ((STEPS_PER_EPISODE + 1) * FRAME_BYTES) + 1
    common = [
        f"steps_per_epoch={args.steps}", "num_epochs=2", "evaluation_split=0", "early_stopping.validation_split=0.01",
        "jepa_decoder_training.enabled=false", "logging.tensorboard=false", "verify_checksums=false",
        f"max_steps_per_episode_data_collection={STEPS_PER_EPISODE}",
    ]  # fmt: skip
    settings = {}
    for name, episodes, location in (("large", large_episodes, "disk"), ("fits", 900, "device")):
        path = args.folder / f"benchmark_{name}"
        settings[name] = [
            f"dataset_dir={path}", f"num_episodes_data_collection={episodes}", f"data_location={location}",
            f"data_buffer_megabytes={args.memory // 4}", *common,
        ]  # fmt: skip
        dataset = collect(load_config(None, settings[name]))
        print(f"{name}: {dataset.num_frames:,} frames, {dataset.num_frames * FRAME_BYTES / 2**20:,.0f} MiB", flush=True)
        settings[name].append(f"load_dataset_path={path}")
    group, counter = limited_group(args.memory * 2**20)
    speeds: dict[str, list[float]] = {"large": [], "fits": []}
    for _ in range(args.repeats):
        for name in speeds:
            if name == "large" and os.access("/proc/sys/vm/drop_caches", os.W_OK):
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("1")
            result = train(settings[name], group if name == "large" else None)
            print(json.dumps({"dataset": name, **result}), flush=True)
            speeds[name].append(result["samples_per_second"])
    print(f"limit reached, according to {counter}: {(group / counter).read_text().split()[-1]} times")
    group.rmdir()
    large, fits = (statistics.median(speeds[name]) for name in ("large", "fits"))
    print(
        f"{args.memory} MiB allowed: {large:,.0f} samples/s on a dataset 4 times as large, {fits:,.0f} on one that "
        f"fits, ratio {large / fits:.3f} (target 0.90)"
    )


if __name__ == "__main__":
    main()
