"""Collecting shards in several processes.

The main process hands out shard numbers; each worker collects its shard, writes it, and asks for the next. They talk
in lines of JSON: nothing but the settings, numbers and error messages goes between them, as a shard depends on the
settings and its number alone. Workers are fresh interpreters, neither forks, in which threads and graphics contexts
would be half alive, nor multiprocessing's, which would run the user's script again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from jepaworld import errors
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
    if num_workers <= 1 or not _can_be_made_elsewhere(config.environment_name):
        for index in pending:
            done(collect_shard(config, manifest, index))
        return
    remaining = iter(pending)
    workers: list[_Worker] = []
    try:
        for _ in range(num_workers):
            workers.append(_Worker(config, manifest))
            workers[-1].send(next(remaining))
        active = {worker.answers.fileno(): worker for worker in workers}
        while active:
            for descriptor in wait(list(active)):
                assert isinstance(descriptor, int)
                done(active[descriptor].receive())
                index = next(remaining, None)
                active[descriptor].send(index)
                if index is None:
                    del active[descriptor]
        for worker in workers:
            worker.process.wait()
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.close()


def _can_be_made_elsewhere(environment_name: str) -> bool:
    """Whether a fresh interpreter can make the environment: not if it was registered as a class or function."""
    spec = gymnasium.registry.get(environment_name)
    return spec is None or isinstance(spec.entry_point, str)


class _Worker:
    """The main process's end of a worker."""

    def __init__(self, config: Config, manifest: Manifest) -> None:
        program = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from jepaworld.data.workers import work; work()"
        )
        with _interrupts_ignored():
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._orders, self.answers = self.process.stdin, self.process.stdout
        spec = gymnasium.registry.get(config.environment_name)
        self._send_line(
            {
                "config": config.to_dict(),
                "manifest": asdict(manifest),
                "spec": None if spec is None else spec.to_json(),
                "parent": os.getpid(),
            }
        )

    def send(self, index: int | None) -> None:
        """Order a shard; `None` ends the worker."""
        self._send_line(index)

    def receive(self) -> int:
        """The number of episodes of the shard that was ordered.

        Raises:
            JepaworldError: the worker's own error.
            DatasetError: the worker died.
        """
        line = self.answers.readline()
        if not line:
            raise self._died()
        answer = json.loads(line)
        if isinstance(answer, int):
            return answer
        kind = answer["kind"]
        error = RuntimeError(answer["message"]) if kind is None else getattr(errors, kind)(answer["message"])
        error.add_note(f"In a collecting process:\n{answer['traceback']}")
        raise error

    def close(self) -> None:
        """Wait for the end of a worker that was told to end, and close its pipes."""
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.answers.close()
        try:
            self._orders.close()
        except BrokenPipeError:  # an order that the worker did not live to read
            return

    def _send_line(self, content: Any) -> None:
        try:
            self._orders.write(json.dumps(content).encode() + b"\n")
            self._orders.flush()
        except BrokenPipeError:
            raise self._died() from None

    def _died(self) -> DatasetError:
        code = self.process.wait(10)
        return DatasetError(
            f"a collecting process ended unexpectedly (exit code {code}). If it was killed for lack of memory, lower "
            "collection.num_workers. Finished episodes are kept; run again to continue."
        )


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


def work() -> None:
    """What a worker does: collect the shards that it is told to until it is told `None`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Environments print; their output must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = json.loads(sys.stdin.readline())
    config, manifest = Config.model_validate(job["config"]), Manifest(**job["manifest"])
    if job["spec"] is not None:
        spec = EnvSpec.from_json(job["spec"])
        gymnasium.registry.setdefault(spec.id, spec)

    def check() -> None:
        if os.getppid() != job["parent"]:
            raise _OrphanedError

    def answer(content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        for line in sys.stdin:
            if (index := json.loads(line)) is None:
                return
            answer(collect_shard(config, manifest, index, check))
    except (BrokenPipeError, _OrphanedError):
        return  # nobody is left to report to
    except BaseException as error:
        ours = isinstance(error, JepaworldError)
        answer(
            {
                "kind": type(error).__name__ if ours else None,
                "message": str(error) if ours else f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error)),
            }
        )
