"""Collecting shards in several processes.

The main process hands out shard numbers; each worker collects its shard, writes it, and asks for the next.
Nothing but numbers and error messages goes between them, as a shard depends on the settings and its number
alone.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jepaworld.config import Config
from jepaworld.data.manifest import Manifest
from jepaworld.data.rollout import play_shard
from jepaworld.data.store import ShardWriter
from jepaworld.errors import DatasetError, JepaworldError


def collect_shard(config: Config, manifest: Manifest, index: int, check: Callable[[], None] = lambda: None) -> int:
    """Play the episodes of a shard and write it.

    Args:
        config: settings of the collection.
        manifest: of the dataset in `config.dataset_dir`.
        index: number of the shard.
        check: called between episodes and before the shard gets its name; raises to give up.

    Returns:
        The number of episodes.
    """
    first = index * manifest.episodes_per_shard
    count = min(manifest.episodes_per_shard, manifest.num_episodes - first)
    with (
        ShardWriter(Path(config.dataset_dir), index, manifest) as writer,
        closing(play_shard(config, manifest, first, count)) as episodes,
    ):
        for episode in episodes:
            writer.add(episode)
            check()
        writer.commit()
    return count


def collect_shards(config: Config, manifest: Manifest, pending: Sequence[int], done: Callable[[int], None]) -> None:
    """Collect shards with `config.collection.num_workers` processes; a single one is this process.

    Args:
        config: settings of the collection.
        manifest: of the dataset in `config.dataset_dir`.
        pending: numbers of the shards.
        done: called after each shard with its number of episodes.

    Raises:
        JepaworldError: the first error of a worker; the others are stopped.
        DatasetError: a worker died.
    """
    num_workers = min(config.collection.num_workers, len(pending))
    if num_workers <= 1:
        for index in pending:
            done(collect_shard(config, manifest, index))
        return
    # Spawned, not forked: threads and graphics contexts of this process would be half alive in a fork.
    context = multiprocessing.get_context("spawn")
    remaining = iter(pending)
    workers: dict[Connection, BaseProcess] = {}
    try:
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, config, manifest), name="jepaworld-collect")
            workers[ours] = process
            with _interrupts_ignored():
                process.start()
            theirs.close()  # so that the pipe ends when the worker does
            ours.send(next(remaining))
        active = dict(workers)
        while active:
            for connection in wait(list(active)):
                assert isinstance(connection, Connection)
                done(_receive(connection, active[connection]))
                index = next(remaining, None)
                connection.send(index)
                if index is None:
                    del active[connection]
        for process in workers.values():
            process.join()
    finally:
        _stop(workers)


@dataclass(frozen=True)
class _Failure:
    """An exception of a worker in a form that always travels: the class only where it is one of ours."""

    kind: type[JepaworldError] | None
    message: str
    traceback: str


def _receive(connection: Connection, process: BaseProcess) -> int:
    """Wait for a worker's answer.

    Returns:
        Number of episodes that it collected.
    """
    try:
        answer = connection.recv()
    except EOFError:
        process.join(10)
        raise DatasetError(
            f"a collecting process ended unexpectedly (exit code {process.exitcode}). If it was killed for "
            "lack of memory, lower collection.num_workers. If you call collect from a script, do so below "
            "`if __name__ == '__main__':`, or set collection.num_workers to 1. Finished episodes are kept; "
            "run again to continue."
        ) from None
    if isinstance(answer, _Failure):
        error = RuntimeError(answer.message) if answer.kind is None else answer.kind(answer.message)
        error.add_note(f"In a collecting process:\n{answer.traceback}")
        raise error
    return answer


def _stop(workers: dict[Connection, BaseProcess]) -> None:
    for connection, process in workers.items():
        connection.close()
        if process.pid is None:  # interrupted before it was started
            continue
        process.terminate()
    for process in workers.values():
        if process.pid is None:
            continue
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let a process that is started here ignore Ctrl+C from its first instruction."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class _OrphanedError(Exception):
    """The process that handed out the work is gone."""


def _work(connection: Connection, config: Config, manifest: Manifest) -> None:
    """What a worker does: collect the shards that it is told to until it is told `None`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def check() -> None:
        if parent is not None and not parent.is_alive():
            raise _OrphanedError

    try:
        while (index := connection.recv()) is not None:
            connection.send(collect_shard(config, manifest, index, check))
    except (EOFError, BrokenPipeError, _OrphanedError):
        return  # nobody is left to report to
    except BaseException as error:
        connection.send(_failure(error))


def _failure(error: BaseException) -> _Failure:
    ours = isinstance(error, JepaworldError)
    message = str(error) if ours else f"{type(error).__name__}: {error}"
    kind: Any = type(error) if ours else None
    return _Failure(kind, message, "".join(traceback.format_exception(error)))
