"""Looking into a dataset: a summary of what it holds, and a picture of its episodes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepaworld.data.spec import Collected, DatasetSpec
from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import DatasetError
from jepaworld.utils.storage import atomic_write_bytes

LISTED_NUMBERS = 12
"""Numbers of an action block or state variable that the table lists."""
_SMALLEST_TILE, _GAP, _LABEL, _CAPTION = 96, 6, 92, 16  # of the contact sheet, pixels
_WHITE, _INK, _FAINT = (255, 255, 255), (32, 32, 32), (120, 120, 120)


@dataclass(frozen=True)
class Statistics:
    """Minimum, maximum and mean of finite numbers, and how many were not finite; NaN where there are none."""

    minimum: float
    maximum: float
    mean: float
    not_finite: int

    @classmethod
    def of(cls, values: np.ndarray) -> Statistics:
        """The statistics of an array of any shape."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if finite.size == 0:
            return cls(np.nan, np.nan, np.nan, values.size)
        return cls(float(finite.min()), float(finite.max()), float(finite.mean()), int(values.size - finite.size))


@dataclass(frozen=True)
class DatasetSummary:
    """What `inspect_dataset` finds; lengths and rewards are those of transitions.

    Attributes:
        path: the folder.
        spec: what it is; `None` where too much is damaged, as the next one.
        provenance: where it comes from.
        action_space: in words.
        episodes, frames, transitions: how many there are.
        shortest, median, longest: lengths of episodes.
        terminations: episodes whose environment ended them.
        truncations: episodes that were cut, by the environment or the longest length allowed.
        rewards: summed over the block of a transition.
        actions: for each number of an action block.
        states: name -> for each number of the state variable, in C order.
        disk_bytes: size of all files.
        problem: what is wrong with the folder; `None` for a whole dataset, complete or not.
    """

    path: Path
    spec: DatasetSpec | None
    provenance: Collected | None
    action_space: str
    episodes: int
    frames: int
    transitions: int
    shortest: int
    median: float
    longest: int
    terminations: int
    truncations: int
    rewards: Statistics
    actions: list[Statistics]
    states: dict[str, list[Statistics]]
    disk_bytes: int
    problem: str | None

    @property
    def integrity_ok(self) -> bool:
        """Whether every file is there and as it was written."""
        return self.problem is None

    def __str__(self) -> str:
        """A table for the terminal."""
        lines, spec, collected = [f"{self.path}"], self.spec, self.provenance
        if spec is not None and collected is not None:
            kwargs = f" {collected.environment_kwargs}" if collected.environment_kwargs else ""
            lines += [
                f"  environment  {collected.environment_name}{kwargs}, {self.action_space}",
                f"  frames       {spec.input_channels} x {spec.image_size} x {spec.image_size}, "
                f"{spec.frame_skipping} environment step(s) apart",
                f"  policy       {collected.policy}, seed {collected.seed}",
                f"  collected    {self.episodes} of {spec.num_episodes} episodes, {self.frames:,} frames, "
                f"{self.disk_bytes / 2**20:,.1f} MiB",
            ]
        lines += [
            f"  transitions  {self.transitions:,}; an episode has {self.shortest} to {self.longest}, "
            f"median {self.median:g}",
            f"  ends         {self.terminations} terminated, {self.truncations} truncated",
            f"  {'':<24} {'minimum':>11} {'mean':>11} {'maximum':>11}",
        ]
        rows = [("reward", [self.rewards]), ("action", self.actions)]
        rows += [(f"state {name}", statistics) for name, statistics in self.states.items()]
        for name, statistics in rows:
            for index, numbers in enumerate(statistics[:LISTED_NUMBERS]):
                label = name if len(statistics) == 1 else f"{name}[{index}]"
                unusual = f"  ({numbers.not_finite} not finite)" if numbers.not_finite else ""
                values = "".join(f" {value:>11.4g}" for value in (numbers.minimum, numbers.mean, numbers.maximum))
                lines.append(f"  {label:<24}{values}{unusual}")
            if len(statistics) > LISTED_NUMBERS:
                lines.append(f"  {name}: and {len(statistics) - LISTED_NUMBERS} more")
        lines.append(f"  integrity    {self.problem or 'ok: every file is as it was written'}")
        return "\n".join(lines)


def inspect_dataset(path: str | Path) -> DatasetSummary:
    """Read a whole dataset and summarise it.

    A damaged dataset is no error here: `problem` says what is wrong, and the numbers are those that can still
    be read, with checksums not compared, or zero.

    Args:
        path: the dataset folder.

    Raises:
        DatasetError: there is no such folder.
    """
    path, problem = Path(path), None
    if not path.is_dir():
        raise DatasetError(f"{path}: no such dataset folder. Give the folder that `jepaworld collect` wrote.")
    try:
        dataset = EpisodeDataset.open(path, verify_checksums=True)
    except DatasetError as error:
        problem = str(error)
        try:
            dataset = EpisodeDataset.open(path, verify_checksums=False)
        except DatasetError:  # sizes or dataset.json are wrong too; the first problem is reported
            dataset = None
    lengths = np.zeros(0, np.int64) if dataset is None else dataset.episode_lengths
    starts = np.zeros(0, np.int64) if dataset is None else dataset.episode_starts
    # Rows of transitions: all but the last of each episode.
    taken = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())

    def column(name: str, rows: np.ndarray) -> np.ndarray:
        return np.zeros(0) if dataset is None else dataset.gather(name, rows)

    frames = 0 if dataset is None else dataset.num_frames
    return DatasetSummary(
        path=path,
        spec=None if dataset is None else dataset.spec,
        provenance=None if dataset is None else dataset.provenance,
        action_space="" if dataset is None else str(dataset.action_space),
        episodes=len(lengths),
        frames=frames,
        transitions=int(lengths.sum()),
        shortest=int(lengths.min()) if len(lengths) else 0,
        median=float(np.median(lengths)) if len(lengths) else 0.0,
        longest=int(lengths.max()) if len(lengths) else 0,
        terminations=int(column("terminated", starts + lengths - 1).sum()),
        truncations=int(column("truncated", starts + lengths - 1).sum()),
        rewards=Statistics.of(column("rewards", taken)),
        actions=_per_number(column("actions", taken)),
        states={
            name: _per_number(column(f"state.{name}", np.arange(frames)))
            for name in ({} if dataset is None else dataset.state_variables)
        },
        disk_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        problem=problem,
    )


def _per_number(values: np.ndarray) -> list[Statistics]:
    return [Statistics.of(column) for column in values.reshape(len(values), -1).T] if values.size else []


def contact_sheet(dataset: EpisodeDataset, path: str | Path, episodes: int = 6, frames: int = 8) -> None:
    """Draw a grid of frames as one PNG file: an episode per row, frames evenly spread over its time.

    Args:
        dataset: the dataset, with at least one episode.
        path: the PNG file; its folder exists.
        episodes: rows, at most as many as there are episodes.
        frames: columns; an episode with fewer frames fills fewer.

    Raises:
        DatasetError: the dataset has no episode.
        StorageError: the file cannot be written.
    """
    total, side = len(dataset.episode_lengths), dataset.spec.image_size
    if total == 0:
        raise DatasetError(f"{dataset.path}: has no episodes yet. Continue its collection.")
    chosen, tile = _spread(total, episodes), side * max(1, -(-_SMALLEST_TILE // side))
    columns = min(frames, int(dataset.episode_lengths[chosen].max()) + 1)
    width, row_height = _LABEL + columns * (tile + _GAP) + _GAP, tile + _CAPTION + _GAP
    sheet = Image.new("RGB", (width, 30 + len(chosen) * row_height + _GAP), _WHITE)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    title = f"{dataset.provenance.environment_name}: {total} episodes, policy {dataset.provenance.policy}"
    draw.text((_GAP, 7), f"{title}, a frame every {dataset.spec.frame_skipping} step(s)", _INK, font)
    for row, episode in enumerate(chosen.tolist()):
        top, length = 30 + row * row_height, int(dataset.episode_lengths[episode])
        start = int(dataset.episode_starts[episode])
        ending = "terminated" if dataset.rows("terminated", start, start + length)[-1] else "truncated"
        label = f"episode {dataset.episode_number(episode)}\n{length} transitions\n{ending}"
        draw.text((_GAP, top + tile // 2 - 18), label, _INK, font)
        for column, step in enumerate(_spread(length + 1, columns).tolist()):
            left, frame = _LABEL + column * (tile + _GAP), dataset.rows("frames", start + step, start + step + 1)[0]
            picture = Image.fromarray(frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)).convert("RGB")
            sheet.paste(picture.resize((tile, tile), Image.Resampling.NEAREST), (left, top))
            draw.rectangle((left - 1, top - 1, left + tile, top + tile), outline=_FAINT)
            draw.text((left + tile // 2, top + tile + 2), f"t = {step}", _FAINT, font, anchor="ma")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    atomic_write_bytes(path, buffer.getvalue())


def _spread(total: int, wanted: int) -> np.ndarray:
    """Up to `wanted` different numbers from 0 to `total - 1`, evenly spread, with both ends."""
    return np.unique(np.linspace(0, total - 1, min(total, max(1, wanted))).round().astype(np.int64))
