"""Kill a run with SIGKILL at random moments, resume it, and compare its weights with the uninterrupted run's.

A run collects, trains the JEPA (with dropout) and its decoder. Each trial is killed once, at a moment drawn uniformly
from the duration of the uninterrupted run after the imports, and then resumed to its end; a trial that ended before its
moment does not count. Prints a line per trial and how many ended byte-equal.

    python benchmarks/kill_resume.py --kills 20
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = [
    "num_episodes_data_collection=60",
    "max_steps_per_episode_data_collection=40",
    "num_epochs=3",
    "steps_per_epoch=12",
    "batch_size=64",
    "checkpoint_every_steps=5",
    "logging.log_every_steps=5",
    "logging.tensorboard=false",
    "jepa_model.predictor_dropout_rate=0.1",
    "decoder_dim=32",
    "decoder_mlp_dim=32",
    "decoder_patch_size=16",
    "decoder_dropout=0.1",
    "jepa_decoder_training.num_epochs=2",
    "jepa_decoder_training.steps_per_epoch=10",
    "jepa_decoder_training.batch_size=64",
]
PROGRAM = """
import sys
from jepaworld import load_config, run_training
print("begun", flush=True)
run_training(load_config(None, sys.argv[2:]), sys.argv[1], resume=True)
"""


def start(folder: Path) -> subprocess.Popen:
    """Start or resume the run below a folder and wait until its imports are done."""
    folder.mkdir(exist_ok=True)
    # Relative paths, because checkpoints hold the configuration and shall be equal to the last byte.
    command = [sys.executable, "-c", PROGRAM, "run", "dataset_dir=data", *SETTINGS]
    # A group of its own, so that the kill reaches the collecting processes too.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=folder)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def finish(folder: Path) -> dict[str, bytes]:
    """Run to the end and return the weights."""
    if start(folder).wait() != 0:
        raise SystemExit(f"a run in {folder} failed")
    return {path.name: path.read_bytes() for path in sorted((folder / "run" / "checkpoints").glob("*.safetensors"))}


def progress_of(folder: Path) -> str:
    """How far a killed run had come, in words."""
    if (folder / "run" / "resume" / "decoder.safetensors").exists():
        return "decoder phase"
    if (folder / "run" / "resume" / "jepa.safetensors").exists():
        return "JEPA phase"
    return "collection" if (folder / "data").exists() else "start"


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    kills = equal = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        expected = finish(root / "whole")
        # The second time everything is in the page cache, as for the trials.
        began = time.perf_counter()
        finish(root / "again")
        duration = time.perf_counter() - began
        for trial in itertools.count():
            if kills == args.kills:
                break
            folder = root / f"trial{trial}"
            process = start(folder)
            try:
                process.wait(rng.uniform(0, duration))
                continue  # it ended before its moment came
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            moment = progress_of(folder)
            same = finish(folder) == expected
            kills += 1
            equal += same
            print(f"kill {kills}: {moment}: {'equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{args.kills} kills, {equal} byte-equal")
    sys.exit(equal != args.kills)


if __name__ == "__main__":
    main()
