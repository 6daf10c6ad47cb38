"""Looking into a dataset: a summary of what it holds, and a picture of its episodes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepaworld.data.spec import Collected, DatasetSpec
from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import DatasetError
from jepaworld.utils.pictures import save_png
from jepaworld.utils.text import columns

LISTED_NUMBERS = 12
"""Numbers of an action block or state variable that the table lists."""
_SMALLEST_TILE, _GAP, _LABEL, _CAPTION = 96, 6, 92, 16  # of the contact sheet, pixels
_WHITE, _INK, _FAINT = (255, 255, 255), (32, 32, 32), (120, 120, 120)


@dataclass(frozen=True)
class Statistics:
    """Minimum, maximum and mean of finite numbers, and how many were not finite; NaN where there are none."""

    minimum: float = np.nan
    maximum: float = np.nan
    mean: float = np.nan
    not_finite: int = 0

    @classmethod
    def of(cls, values: np.ndarray) -> Statistics:
        """The statistics of an array of any shape."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if finite.size == 0:
            return cls(not_finite=values.size)
        return cls(float(finite.min()), float(finite.max()), float(finite.mean()), values.size - finite.size)


@dataclass(frozen=True)
class DatasetSummary:
    """What `inspect_dataset` finds; lengths and rewards are those of transitions.

    Example:
        >>> inspect_dataset("datasets/two_room").episodes
        200
    """

    path: Path
    disk_bytes: int  # size of all files
    problem: str | None = None  # what is wrong with the folder; `None` for a whole dataset, complete or not
    spec: DatasetSpec | None = None  # `None` where too much is damaged, and all below as it stands here
    provenance: Collected | None = None
    action_space: str = ""  # in words
    episodes: int = 0
    frames: int = 0
    transitions: int = 0
    shortest: int = 0  # episode
    median: float = 0.0
    longest: int = 0
    cut: int = 0  # episodes whose end cut the last action block short, which is not trained on
    terminations: int = 0  # episodes that their environment ended
    truncations: int = 0  # episodes that were cut, by the environment or the longest length allowed
    rewards: Statistics = Statistics()  # summed over the block of a transition
    actions: list[Statistics] = field(default_factory=list)  # of each number of an action block
    states: dict[str, list[Statistics]] = field(default_factory=dict)  # of each number of a variable, in C order

    def __str__(self) -> str:
        """A table for the terminal."""
        lines, spec, collected = [str(self.path)], self.spec, self.provenance
        if spec is not None and collected is not None:
            kwargs = f" {collected.environment_kwargs}" if collected.environment_kwargs else ""
            side, skip = spec.image_size, spec.frame_skipping
            lines += [
                f"environment  {collected.environment_name}{kwargs}, {self.action_space}",
                f"frames       {spec.input_channels} x {side} x {side}, {skip} environment step(s) apart",
                f"policy       {collected.policy}, seed {collected.seed}",
                f"collected    {self.episodes} of {spec.num_episodes} episodes, {self.frames:,} frames, "
                f"{self.disk_bytes / 2**20:,.1f} MiB",
            ]
        lengths = f"{self.shortest} to {self.longest}, median {self.median:g}"
        lines.append(f"transitions  {self.transitions:,}; an episode has {lengths}")
        cut = f"; {self.cut} within an action block, which is not trained on" if self.cut else ""
        lines.append(f"ends         {self.terminations} terminated, {self.truncations} truncated{cut}")
        rows: list[tuple[str, ...]] = [("", "minimum", "mean", "maximum", "not finite")]
        found = {"reward": [self.rewards], "action": self.actions}
        for name, statistics in (found | {f"state {name}": of for name, of in self.states.items()}).items():
            for index, one in enumerate(statistics[:LISTED_NUMBERS]):
                label = name if len(statistics) == 1 else f"{name}[{index}]"
                values = (f"{value:.4g}" for value in (one.minimum, one.mean, one.maximum))
                rows.append((label, *values, str(one.not_finite or "")))
            if len(statistics) > LISTED_NUMBERS:
                rows.append((f"{name}: and {len(statistics) - LISTED_NUMBERS} more", *[""] * 4))
        lines += [*columns(rows), f"integrity    {self.problem or 'ok: every file is as it was written'}"]
        return "\n  ".join(lines)


def inspect_dataset(path: str | Path) -> DatasetSummary:
    """Read a whole dataset and summarise it.

    A damaged dataset is no error here: `problem` says what is wrong, and the numbers are those that can still
    be read, with checksums not compared, or zero.

    Args:
        path: the dataset folder.

    Raises:
        DatasetError: there is no such folder.
    """
    path, dataset = Path(path), None
    if not path.is_dir():
        raise DatasetError(f"{path}: no such dataset folder. Give the folder that `jepaworld collect` wrote.")
    summary = DatasetSummary(path, sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    try:
        dataset = EpisodeDataset.open(path, verify_checksums=True)
    except DatasetError as error:
        summary = replace(summary, problem=str(error))
        with contextlib.suppress(DatasetError):  # sizes or dataset.json are wrong too; the first problem is reported
            dataset = EpisodeDataset.open(path, verify_checksums=False)
    if dataset is None:
        return summary
    lengths, starts, frames = dataset.episode_lengths, dataset.episode_starts, dataset.num_frames
    # Rows of transitions: all but the last of each episode.
    taken = np.setdiff1d(np.arange(frames), starts + lengths)
    ends = starts + lengths - 1
    return replace(
        summary,
        spec=dataset.spec,
        provenance=dataset.provenance,
        action_space=str(dataset.action_space),
        episodes=len(lengths),
        frames=frames,
        transitions=len(taken),
        shortest=int(lengths.min(initial=frames)),  # 0 for no episode
        median=float(np.median(lengths)) if len(lengths) else 0.0,
        longest=int(lengths.max(initial=0)),
        cut=int((lengths - dataset.whole_lengths).sum()),
        terminations=int(dataset.gather("terminated", ends).sum()),
        truncations=int(dataset.gather("truncated", ends).sum()),
        rewards=Statistics.of(dataset.gather("rewards", taken)),
        actions=_per_number(dataset.gather("actions", taken)),
        states={name: _per_number(dataset.rows(f"state.{name}", 0, frames)) for name in dataset.state_variables},
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
    most = min(frames, int(dataset.episode_lengths[chosen].max()) + 1)
    width, row_height = _LABEL + most * (tile + _GAP) + _GAP, tile + _CAPTION + _GAP
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
        for column, step in enumerate(_spread(length + 1, most).tolist()):
            left, frame = _LABEL + column * (tile + _GAP), dataset.rows("frames", start + step, start + step + 1)[0]
            picture = Image.fromarray(frame[0] if len(frame) == 1 else frame.transpose(1, 2, 0)).convert("RGB")
            sheet.paste(picture.resize((tile, tile), Image.Resampling.NEAREST), (left, top))
            draw.rectangle((left - 1, top - 1, left + tile, top + tile), outline=_FAINT)
            draw.text((left + tile // 2, top + tile + 2), f"t = {step}", _FAINT, font, anchor="ma")
    save_png(path, sheet)


def _spread(total: int, wanted: int) -> np.ndarray:
    """Up to `wanted` different numbers from 0 to `total - 1`, evenly spread, with both ends."""
    return np.unique(np.linspace(0, total - 1, min(total, max(1, wanted))).round().astype(np.int64))
