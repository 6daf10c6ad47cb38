"""Looking into a dataset: a summary of what it holds, and a picture of its episodes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepaworld.data.manifest import Manifest
from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import DatasetError
from jepaworld.utils.storage import atomic_write_bytes

LISTED_NUMBERS = 12
"""Numbers of an action block or state variable that the table lists."""


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
        not_finite = int(values.size - finite.size)
        if finite.size == 0:
            return cls(np.nan, np.nan, np.nan, not_finite)
        return cls(float(finite.min()), float(finite.max()), float(finite.mean()), not_finite)


@dataclass(frozen=True)
class DatasetSummary:
    """What `inspect_dataset` finds.

    Lengths are in transitions; rewards are those of a transition (summed over its block of `frame_skipping`
    steps).
    """

    path: Path
    manifest: Manifest | None
    """Environment, spaces, policy, seed and all other settings; `None` where too much is damaged."""
    action_space: str
    episodes: int
    frames: int
    transitions: int
    shortest: int
    median: float
    longest: int
    terminations: int
    """Episodes whose environment said so."""
    truncations: int
    """Episodes that were cut, by the environment or the longest length allowed."""
    rewards: Statistics
    actions: list[Statistics]
    """One for each number of an action block."""
    states: dict[str, list[Statistics]]
    """Name -> one for each number of the state variable, in C order."""
    disk_bytes: int
    problem: str | None
    """What is wrong with the folder; `None` for a whole dataset, complete or not."""

    @property
    def integrity_ok(self) -> bool:
        """Whether every file is there and as it was written."""
        return self.problem is None

    def __str__(self) -> str:
        """A table for the terminal."""
        lines = [f"{self.path}"]
        manifest = self.manifest
        if manifest is not None:
            kwargs = f" {manifest.environment_kwargs}" if manifest.environment_kwargs else ""
            channels = manifest.input_channels
            lines += [
                f"  environment  {manifest.environment_name}{kwargs}, {self.action_space}",
                f"  frames       {channels} x {manifest.image_size} x {manifest.image_size}, "
                f"{manifest.frame_skipping} environment step(s) apart",
                f"  policy       {manifest.policy}, seed {manifest.seed}",
                f"  collected    {self.episodes} of {manifest.num_episodes} episodes, {self.frames:,} frames, "
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
        lines.append(f"  integrity    {'ok: every file is as it was written' if self.integrity_ok else self.problem}")
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
    path = Path(path)
    if not path.is_dir():
        raise DatasetError(f"{path}: no such dataset folder. Give the folder that `jepaworld collect` wrote.")
    problem = None
    try:
        dataset = EpisodeDataset.open(path, verify_checksums=True)
    except DatasetError as error:
        problem = str(error)
        try:
            dataset = EpisodeDataset.open(path, verify_checksums=False)
        except DatasetError:  # sizes or the manifest are wrong too; the first problem is reported
            dataset = None
    return _summarise(path, dataset, problem)


def _summarise(path: Path, dataset: EpisodeDataset | None, problem: str | None) -> DatasetSummary:
    lengths = np.zeros(0, np.int64) if dataset is None else dataset.episode_lengths
    transitions = _transition_rows(dataset)
    ends = np.cumsum(lengths) - 1  # the last transition of each episode
    states = {} if dataset is None else dataset.state_variables
    return DatasetSummary(
        path=path,
        manifest=None if dataset is None else dataset.manifest,
        action_space="" if dataset is None else str(dataset.action_space),
        episodes=len(lengths),
        frames=0 if dataset is None else dataset.num_frames,
        transitions=int(lengths.sum()),
        shortest=int(lengths.min(initial=np.iinfo(np.int64).max)) if len(lengths) else 0,
        median=float(np.median(lengths)) if len(lengths) else 0.0,
        longest=int(lengths.max()) if len(lengths) else 0,
        terminations=int(_column(dataset, "terminated", transitions)[ends].sum()),
        truncations=int(_column(dataset, "truncated", transitions)[ends].sum()),
        rewards=Statistics.of(_column(dataset, "rewards", transitions)),
        actions=_per_number(_column(dataset, "actions", transitions)),
        states={name: _per_number(_column(dataset, f"state.{name}", None)) for name in states},
        disk_bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        problem=problem,
    )


def _transition_rows(dataset: EpisodeDataset | None) -> np.ndarray:
    """Which rows are transitions, (num_frames,): all but the last of each episode."""
    rows = np.ones(0 if dataset is None else dataset.num_frames, np.bool_)
    if dataset is not None:
        rows[dataset.episode_starts + dataset.episode_lengths] = False
    return rows


def _column(dataset: EpisodeDataset | None, name: str, rows: np.ndarray | None) -> np.ndarray:
    if dataset is None:
        return np.zeros(0)
    values = dataset.rows(name, 0, dataset.num_frames)
    return values if rows is None else values[rows]


def _per_number(values: np.ndarray) -> list[Statistics]:
    if values.size == 0:
        return []
    return [Statistics.of(column) for column in values.reshape(len(values), -1).T]


# --- picture

_BACKGROUND, _INK, _FAINT = (255, 255, 255), (32, 32, 32), (120, 120, 120)
_SMALLEST_TILE = 96
_GAP = 6


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
    total = len(dataset.episode_lengths)
    if total == 0:
        raise DatasetError(f"{dataset.path}: has no episodes yet. Continue its collection.")
    manifest = dataset.manifest
    chosen = _spread(total, episodes)
    scale = max(1, -(-_SMALLEST_TILE // manifest.image_size))
    tile = manifest.image_size * scale
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    label, header, caption = 92, 30, 16
    columns = min(frames, int(dataset.episode_lengths[chosen].max()) + 1)
    width = label + columns * (tile + _GAP) + _GAP
    height = header + len(chosen) * (tile + caption + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    skip = "" if manifest.frame_skipping == 1 else f", a frame every {manifest.frame_skipping} steps"
    title = f"{manifest.environment_name}: {total} episodes, policy {manifest.policy}{skip}"
    draw.text((_GAP, 7), _fitting(draw, title, font, width - 2 * _GAP), _INK, font)
    for row, episode in enumerate(chosen):
        top = header + row * (tile + caption + _GAP)
        length = int(dataset.episode_lengths[episode])
        number = dataset.episode_number(int(episode))
        draw.text((_GAP, top + tile // 2 - 18), f"episode {number}", _INK, font)
        draw.text((_GAP, top + tile // 2), f"{length} transitions\n{_ending(dataset, int(episode))}", _FAINT, small)
        for column, step in enumerate(_spread(length + 1, columns)):
            left = label + column * (tile + _GAP)
            first = int(dataset.episode_starts[episode] + step)
            picture = _picture(dataset.rows("frames", first, first + 1)[0])
            sheet.paste(picture.resize((tile, tile), Image.Resampling.NEAREST), (left, top))
            draw.rectangle((left - 1, top - 1, left + tile, top + tile), outline=(200, 200, 200))
            draw.text((left + tile // 2, top + tile + 2), f"t = {step}", _FAINT, small, anchor="ma")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    atomic_write_bytes(path, buffer.getvalue())


def _spread(total: int, wanted: int) -> np.ndarray:
    """Up to `wanted` different numbers from 0 to `total - 1`, evenly spread, with both ends."""
    return np.unique(np.linspace(0, total - 1, min(total, max(1, wanted))).round().astype(np.int64))


def _ending(dataset: EpisodeDataset, episode: int) -> str:
    last = int(dataset.episode_starts[episode] + dataset.episode_lengths[episode]) - 1
    return "terminated" if dataset.rows("terminated", last, last + 1)[0] else "truncated"


def _picture(frame: np.ndarray) -> Image.Image:
    """A frame (C, S, S) as an RGB picture."""
    return Image.fromarray(frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)).convert("RGB")


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    while len(text) > 4 and draw.textlength(text, font=font) > width:
        text = text[:-4] + "..."
    return text
