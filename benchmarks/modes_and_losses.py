"""What each target encoder mode and auxiliary loss does to the representation, on Two Rooms.

Trains every combination of `target_encoder_mode` (default, vjepa2, none) and `auxiliary_loss.type` (vicreg,
barlow_twins, dino, none) from several seeds, with everything else as in config.yaml, and measures the last
checkpoint on evaluation episodes that no training saw. Prints a JSON line per run and a Markdown table.

    python benchmarks/modes_and_losses.py --out results.jsonl --jobs 4
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MODES = ("default", "vjepa2", "none")
LOSSES = ("vicreg", "barlow_twins", "dino", "none")


def run_one(mode: str, loss: str, seed: int, args: argparse.Namespace) -> dict:
    """Train one combination and measure its last weights."""
    import torch

    from jepaworld import JEPA, load_config, run_training
    from jepaworld.data.store import EpisodeDataset
    from jepaworld.evaluation.encoding import encode_frames, sample_rows
    from jepaworld.evaluation.probes import mean_r2, probe_states
    from jepaworld.losses.collapse import collapse_diagnostics

    torch.set_num_threads(args.threads)
    epochs = 10
    config = load_config(
        None,
        [
            f"load_dataset_path={args.dataset}",
            "verify_checksums=false",
            f"jepa_model.target_encoder_mode={mode}",
            f"auxiliary_loss.type={loss}",
            f"seed={seed}",
            f"num_epochs={epochs}",
            f"early_stopping.patience={epochs}",
            f"steps_per_epoch={args.steps // epochs}",
            "jepa_decoder_training.enabled=false",
            "logging.tensorboard=false",
            *args.override,
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        result = run_training(config, Path(folder) / "run")
        model = JEPA.from_pretrained(result.run_dir / "checkpoints" / "last_jepa.safetensors")
        lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines][-1]
    dataset = EpisodeDataset.open(args.dataset, verify_checksums=False)
    split = dataset.split(config.early_stopping.validation_split, config.evaluation_split, seed)
    rows, _ = sample_rows(dataset, split.evaluation, 2048, seed)
    diagnostics = collapse_diagnostics(encode_frames(model, dataset, rows, encode=model.encode_online))
    probes = probe_states(model, dataset, split.train, split.evaluation, pixel_baseline=False)
    r2, interval = mean_r2([probe for probe in probes if probe.variable == "state"])
    return {
        "mode": mode,
        "loss": loss,
        "seed": seed,
        "steps": args.steps,
        "seconds": result.summary["phases"]["jepa"]["seconds"],
        "device": result.summary["device"],
        "versions": result.summary["versions"],
        "val_prediction_loss": last["val_prediction_loss"],
        "std_mean": diagnostics.std_mean,
        "relative_variation": diagnostics.relative_variation,
        "effective_rank": diagnostics.effective_rank,
        "centred_rank": diagnostics.centred_rank,
        "mean_cosine": diagnostics.mean_cosine,
        "collapsed": diagnostics.collapsed,
        "reasons": diagnostics.reasons,
        "position_r2": r2,
        "position_r2_interval_95": interval,
    }


def markdown(results: list[dict]) -> str:
    """A table with the median over seeds, and the range where it matters."""
    lines = [
        "| mode | loss | prediction loss | mean std | effective rank | mean cosine | position R² (range) | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mode, loss in itertools.product(MODES, LOSSES):
        runs = [result for result in results if (result["mode"], result["loss"]) == (mode, loss)]
        if not runs:
            continue

        def median(key: str, runs: list[dict] = runs) -> float:
            return statistics.median(run[key] for run in runs)

        r2 = sorted(run["position_r2"] for run in runs)
        collapsed = sum(run["collapsed"] for run in runs)
        lines.append(
            f"| {mode} | {loss} | {median('val_prediction_loss'):.2g} | {median('std_mean'):.2g} | "
            f"{median('effective_rank'):.1f} | {median('mean_cosine'):.3f} | {median('position_r2'):.2f} "
            f"({r2[0]:.2f} to {r2[-1]:.2f}) | collapsed in {collapsed} of {len(runs)} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parse arguments, run the combinations in processes of their own, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=1, help="combinations trained at the same time")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each")
    parser.add_argument("--dataset", default="datasets/two_room", help="collected there if missing")
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file too")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", nargs=3, metavar=("MODE", "LOSS", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        mode, loss, seed = args.only
        print(json.dumps(run_one(mode, loss, int(seed), args)))
        return

    from jepaworld import load_config
    from jepaworld.data.collect import collect

    collect(load_config(None, [f"dataset_dir={args.dataset}", *args.override]))

    def spawn(combination: tuple[str, str, int]) -> dict:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", *map(str, combination)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        line = output.strip().splitlines()[-1]
        print(line, flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(line + "\n")
        return json.loads(line)

    combinations = list(itertools.product(MODES, LOSSES, range(args.seeds)))
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(spawn, combinations))
    print(markdown(results))


if __name__ == "__main__":
    main()
