"""Collecting shards in several processes.

A worker gets what the dataset is, how it is collected and the number of a shard, as a shard depends on nothing else.
Workers are loky's: fresh interpreters, neither forks, in which threads and graphics contexts would be half alive, nor
multiprocessing's, which would run the user's script again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import gymnasium
from gymnasium.envs.registration import EnvSpec

from jepaworld.data.rollout import Rollout
from jepaworld.data.shards import ShardWriter
from jepaworld.data.spec import Collected, DatasetSpec
from jepaworld.errors import DatasetError, JepaworldError
from jepaworld.utils.signals import handled


def collect_shard(path: Path, spec: DatasetSpec, collected: Collected, index: int) -> int:
    """Play the episodes of shard `index` of the dataset in `path` and write it; the number of episodes."""
    numbers = spec.episodes_of(index)
    with ShardWriter(path, index, spec) as writer, closing(Rollout(spec, collected).play(numbers)) as episodes:
        for episode in episodes:
            writer.add(episode)
        writer.commit()
    return len(numbers)


def collect_shards(
    path: Path,
    spec: DatasetSpec,
    collected: Collected,
    pending: Sequence[int],
    num_workers: int,
    done: Callable[[int], None],
) -> None:
    """Collect the shards `pending`; `done` is given the number of episodes of each. One worker is this process.

    Raises:
        JepaworldError: the first error of a worker; the others are stopped.
        DatasetError: a worker died.
    """
    num_workers = min(num_workers, len(pending))
    registered = gymnasium.registry.get(collected.environment_name)
    # A fresh interpreter cannot make an environment that was registered as a class or function.
    if num_workers <= 1 or (registered is not None and not isinstance(registered.entry_point, str)):
        for index in pending:
            done(collect_shard(path, spec, collected, index))
        return
    # Imported here, as a single process does not need it.
    from loky import ProcessPoolExecutor, as_completed
    from loky.process_executor import TerminatedWorkerError

    pool = ProcessPoolExecutor(
        num_workers,
        initializer=_prepare_worker,
        initargs=(os.getpid(), registered),
        # Else modules in the current folder would come before the standard library's.
        env={"PYTHONSAFEPATH": "1"},
    )
    try:
        # Ctrl+C is ignored by the processes that the first task starts, from their first instruction: this process
        # stops them.
        with handled(signal.SIG_IGN, signal.SIGINT):
            futures = [pool.submit(_work, path, spec, collected, index) for index in pending]
        for future in as_completed(futures):
            done(future.result())
        pool.shutdown()
    except TerminatedWorkerError as error:
        how = str(error).rpartition("{")[2].partition("}")[0]  # loky ends its message with such as {SIGKILL(-9)}
        raise DatasetError(
            f"a collecting process ended unexpectedly ({how or 'no exit code'}). If it was killed for lack of memory, "
            "lower collection.num_workers. Finished episodes are kept; run again to continue."
        ) from error
    finally:
        pool.shutdown(kill_workers=True)


def _prepare_worker(parent: int, registered: EnvSpec | None) -> None:
    """What a worker does first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Environments print; the output of a command must not be mixed with it.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if registered is not None:
        gymnasium.registry.setdefault(registered.id, registered)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, killed perhaps."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _work(path: Path, spec: DatasetSpec, collected: Collected, index: int) -> int:
    """`collect_shard`, with errors that can be sent to another process, their traceback as a note."""
    try:
        return collect_shard(path, spec, collected, index)
    except Exception as error:
        sent = error if isinstance(error, JepaworldError) else RuntimeError(f"{type(error).__name__}: {error}")
        sent.add_note(f"In a collecting process:\n{traceback.format_exc()}")
        raise sent from None
