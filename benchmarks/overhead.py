"""Samples per second of the training engine against a bare loop of the same model over the same tensors.

Both train the default JEPA on Two Rooms windows. The bare loop is what one would write by hand: it indexes shuffled
batches out of tensors that are already on the device, forward, loss, backward, clip, step, EMA; no metrics, no
checkpoints. The engine is `run_training` as users call it, measured in the training of its epochs after the first, with
metrics and resume states written. The two alternate, and the ratio is of the medians.

    python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from jepaworld import load_config, run_training
from jepaworld.config import Config
from jepaworld.data.collect import collect
from jepaworld.data.store import EpisodeDataset
from jepaworld.envs.spaces import Spaces
from jepaworld.losses import make_auxiliary_loss
from jepaworld.models import build
from jepaworld.utils.devices import autocast, resolve_device, use_bf16


def bare_loop(config: Config, dataset: EpisodeDataset, steps: int) -> float:
    """Samples per second of a loop written by hand."""
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    episode_starts = torch.from_numpy(dataset.episode_starts)
    lengths = torch.from_numpy(dataset.episode_lengths)
    starts = torch.cat([s + torch.arange(int(n)) for s, n in zip(episode_starts, lengths, strict=True)]).to(device)
    frames = torch.from_numpy(dataset.rows("frames", 0, dataset.num_frames)).to(device)
    actions = torch.from_numpy(dataset.rows("actions", 0, dataset.num_frames)).to(device)
    model = build(config, Spaces.of(config, dataset.action_space)).to(device).train()
    auxiliary_loss = make_auxiliary_loss(config).to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=config.weight_decay, fused=True)
    bf16 = use_bf16(config.mixed_precision, device, model)
    order = starts[torch.randperm(len(starts), device=device)]

    def step(index: int) -> None:
        first = index * config.batch_size % (len(order) - config.batch_size)
        now = order[first : first + config.batch_size]
        pair = frames.index_select(0, torch.stack([now, now + 1], dim=1).flatten()).unflatten(0, (-1, 2))
        with autocast(device, bf16):
            output = model(pair, actions.index_select(0, now).unsqueeze(1))
            prediction = (output.predicted.float() - output.target.float()).square().mean()
            auxiliary, _ = auxiliary_loss.calculate_reg_terms(output.online_s_t.flatten(0, 1))
            loss = prediction + config.auxiliary_loss.weight * auxiliary
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip_norm or torch.inf)
        optimizer.step()
        model._update_target_encoder_ema()

    for index in range(10):
        step(index)
    _synchronize(device)
    began = time.perf_counter()
    for index in range(10, 10 + steps):
        step(index)
    _synchronize(device)
    return steps * config.batch_size / (time.perf_counter() - began)


def engine(config: Config) -> float:
    """Samples per second of a run, in all epochs but the first."""
    with tempfile.TemporaryDirectory() as folder:
        result = run_training(config, Path(folder) / "run")
        lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    # Every epoch has as many steps as the others.
    return statistics.harmonic_mean([epoch["samples_per_second"] for epoch in epochs[1:]])


def epochs_of(config: Config, dataset: EpisodeDataset, steps: int) -> list[str]:
    """Settings with which at least so many steps follow the first epoch, however few batches the dataset has."""
    split = dataset.split(config.early_stopping.validation_split, config.evaluation_split)
    batches = int(dataset.episode_lengths[split.train].sum()) // config.batch_size
    per_epoch = min(steps, batches)
    return [f"steps_per_epoch={per_epoch}", f"num_epochs={1 - (-steps // per_epoch)}"]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Alternate the two and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dataset", default="datasets/two_room", help="collected there if missing")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    overrides = [
        f"dataset_dir={args.dataset}",
        "data_location=device",
        "early_stopping.metric_jepa=latest",
        "jepa_decoder_training.enabled=false",
        *args.override,
    ]
    config = load_config(None, overrides)
    dataset = collect(config)
    config = load_config(None, [*overrides, *epochs_of(config, dataset, args.steps)])
    bare, own = [], []
    for _ in range(args.repeats):
        bare.append(bare_loop(config, dataset, args.steps))
        own.append(engine(config))
        print(json.dumps({"bare_samples_per_second": bare[-1], "engine_samples_per_second": own[-1]}), flush=True)
    ratio = statistics.median(own) / statistics.median(bare)
    print(
        f"engine {statistics.median(own):,.0f} samples/s, bare loop {statistics.median(bare):,.0f} samples/s, "
        f"ratio {ratio:.3f} (target 0.95), {resolve_device(config.device)}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
