"""Batches of windows, gathered by index arithmetic.

Shapes: B windows, T transitions, C H W image, A action block, F frames of a group. `actions[:, t]` is taken at
`frames[:, t]` and leads to `frames[:, t + 1]`.

Episodes are read in groups that fit into the given memory, the next group while this one is trained on. The order of an
epoch is a function of the seed and its number alone, so a resumed run goes on with the very window at which it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepaworld.data.store import EpisodeDataset
from jepaworld.errors import DatasetError


class Batch(NamedTuple):
    """Windows on the device."""

    frames: Tensor  # uint8 (B, T + 1, C, H, W)
    actions: Tensor  # (B, T, A)


class _Group(NamedTuple):
    """Episodes in memory."""

    frames: Tensor  # (F, C, H, W)
    actions: Tensor  # (F, A)
    starts: Tensor  # rows at which windows begin


class WindowLoader:
    """Batches of windows of some episodes of a dataset.

    Args:
        dataset: An opened dataset.
        episodes: Indices of the episodes to draw from.
        num_transitions: T; 0 gives single frames without actions.
        batch_size: B.
        device: Where batches are.
        buffer_bytes: Memory for frames; the larger, the more episodes are mixed in a batch. `None` keeps all of
            them on the device.
        seed: Seed of the order.

    Example:
        >>> loader = WindowLoader(dataset, dataset.split(0.1, 0.1).train, 1, 64, torch.device("cpu"), None, seed=0)
        >>> next(loader.epoch(0)).frames.shape
        torch.Size([64, 2, 3, 64, 64])
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        episodes: np.ndarray,
        num_transitions: int,
        batch_size: int,
        device: torch.device,
        buffer_bytes: int | None,
        seed: int,
    ) -> None:
        self.dataset, self.episodes, self.device, self.seed = dataset, episodes, device, seed
        self.num_transitions, self.batch_size = num_transitions, batch_size
        # Of each episode. An action block that the end cut short does not lead to the frame after it, which is a frame
        # like any other to what is trained on single frames.
        lengths = dataset.whole_lengths if num_transitions else dataset.episode_lengths
        self._windows = np.maximum(lengths - num_transitions + 1, 0)
        self.num_windows = int(self._windows[episodes].sum())
        # Half for the group in use, half for the one that is read meanwhile.
        self._group_bytes = None if buffer_bytes is None else buffer_bytes // 2
        self._resident: _Group | None = None

    def __len__(self) -> int:
        """Full batches in an epoch."""
        return self.num_windows // self.batch_size

    def require_windows(self, least: int, reason: str) -> None:
        """Raise a DatasetError where there are fewer windows than `least`; `reason` is why and what to do."""
        if self.num_windows >= least:
            return
        longest, transitions = int(self.dataset.whole_lengths[self.episodes].max()), self.num_transitions
        about = f"{self.dataset.path}: {len(self.episodes)} episode(s), the longest of {longest} whole transitions,"
        if not self.num_windows:
            lower = "Lower num_transitions, or collect" if longest else "Lower frame_skipping and collect"
            raise DatasetError(
                f"{about} have no window of num_transitions = {transitions}. {lower} longer episodes "
                "(max_steps_per_episode_data_collection)."
            )
        windows = f"windows of num_transitions = {transitions}" if transitions else "frames"
        raise DatasetError(f"{about} have {self.num_windows} {windows}, fewer than {reason}.")

    def too_short(self) -> np.ndarray:
        """Indices of the episodes that have no window."""
        return self.episodes[self._windows[self.episodes] == 0]

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch]:
        """Full batches of an epoch in random order; every window is in at most one of them.

        A resumed run leaves out the batches before `start_batch`.
        """
        groups, orders = self._shuffled(np.random.default_rng((self.seed, epoch)))
        skip = start_batch * self.batch_size
        while groups and skip >= len(orders[0]):  # groups that are not even read
            skip -= len(orders.pop(0))
            groups.pop(0)
        yield from self._batches(groups, orders, skip, [self.batch_size] * (len(self) - start_batch))

    def all_windows(self) -> Iterator[Batch]:
        """Every window once, in batches of nearly equal sizes of at most `batch_size`.

        The order is random and always the same. Batches of neighbouring windows, or a small rest, would be so unlike
        those of training that losses over the statistics of a batch could not be compared.
        """
        count = -(-self.num_windows // self.batch_size)
        smaller, larger_ones = divmod(self.num_windows, max(1, count))
        sizes = [smaller + (index < larger_ones) for index in range(count)]
        yield from self._batches(*self._shuffled(np.random.default_rng(self.seed)), 0, sizes)

    def _shuffled(self, rng: np.random.Generator) -> tuple[list[np.ndarray], list[Tensor]]:
        """Groups of episodes in random order, and for each an order of its windows."""
        episodes = self.episodes if self._group_bytes is None else rng.permutation(self.episodes)
        groups = list(self._cut(episodes))
        return groups, [torch.from_numpy(rng.permutation(int(self._windows[group].sum()))) for group in groups]

    def _cut(self, episodes: np.ndarray) -> Iterator[np.ndarray]:
        """Cut an order of episodes into groups whose frames fit into the buffer."""
        if self._group_bytes is None:
            yield episodes
            return
        ends = np.cumsum((self.dataset.episode_lengths[episodes] + 1) * math.prod(self.dataset.spec.frame_shape))
        first = used = 0
        while first < len(episodes):
            last = max(first + 1, int(np.searchsorted(ends, used + self._group_bytes, side="right")))
            yield episodes[first:last]
            first, used = last, ends[last - 1]

    def _batches(
        self, groups: list[np.ndarray], orders: list[Tensor], skip: int, sizes: Sequence[int]
    ) -> Iterator[Batch]:
        """Gather batches of these sizes; one that begins in a group is completed from the next."""
        begun: list[Batch] = []
        upcoming = iter(sizes)
        missing = next(upcoming, None)
        for group, order in zip(self._load_ahead(groups), orders, strict=True):
            starts = group.starts[order.to(group.starts.device)][skip:]
            skip = 0
            while len(starts):
                if missing is None:
                    return
                rows, starts = starts[:missing], starts[missing:]
                missing -= len(rows)
                begun.append(self._gather(group, rows))
                if missing == 0:
                    yield begun[0] if len(begun) == 1 else Batch(*map(torch.cat, zip(*begun, strict=True)))
                    begun, missing = [], next(upcoming, None)

    def _gather(self, group: _Group, rows: Tensor) -> Batch:
        index = rows.unsqueeze(1) + torch.arange(self.num_transitions + 1, device=rows.device)
        frames = group.frames.index_select(0, index.flatten()).unflatten(0, index.shape)
        index = index[:, :-1]  # the last frame of a window has no action in it
        return Batch(frames, group.actions.index_select(0, index.flatten()).unflatten(0, index.shape))

    def _load_ahead(self, groups: list[np.ndarray]) -> Iterator[_Group]:
        """The groups, each read while the one before is in use."""
        if self._group_bytes is None:
            self._resident = self._resident or self._load(self.episodes)
            yield from [self._resident] * len(groups)
            return
        with ThreadPoolExecutor(1) as reader:
            upcoming = [reader.submit(self._load, group) for group in groups[:1]]
            for number in range(1, len(groups) + 1):
                group = upcoming.pop().result()
                upcoming += [reader.submit(self._load, following) for following in groups[number : number + 1]]
                yield group
                del group  # before the next but one is read, or three groups would be in memory

    def _load(self, episodes: np.ndarray) -> _Group:
        """Episodes on the device, filled shard by shard: the host never holds more than a shard's part of them."""
        dataset = self.dataset
        lengths, windows = dataset.episode_lengths[episodes] + 1, self._windows[episodes]
        offsets = np.cumsum(lengths) - lengths
        rows = _runs(dataset.episode_starts[episodes], lengths)
        tensors = {}
        for name in ("frames", "actions"):
            dtype, shape = dataset.spec.array_layout[name]
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            tensors[name] = torch.empty((len(rows), *shape), dtype=kind, device=self.device)
        for shard in dataset.shards:
            here = np.flatnonzero((rows >= shard.start) & (rows < shard.start + shard.num_frames))
            if len(here):
                places = torch.from_numpy(here).to(self.device)
                for name, tensor in tensors.items():
                    # Kept in the system's cache only where all of it fits beside the buffer.
                    part = shard.gather(name, rows[here] - shard.start, keep_cached=self._group_bytes is None)
                    tensor.index_copy_(0, places, torch.from_numpy(part).to(self.device))
        return _Group(**tensors, starts=torch.from_numpy(_runs(offsets, windows)).to(self.device))


def _runs(firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rising numbers from each of `firsts`, as many as `lengths` says, one run after another."""
    return np.repeat(firsts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
