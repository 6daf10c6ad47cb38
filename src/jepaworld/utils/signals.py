"""Ending work in good order on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handled(handler: Any, *signals: signal.Signals) -> Iterator[None]:
    """Signals go to this handler; nothing changes outside the main thread, to which signal handlers belong."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Tell whether to stop: after the first Ctrl-C or SIGTERM. A second one raises KeyboardInterrupt at once."""
    requested = threading.Event()

    def request(_number: int, _frame: Any) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    with handled(request, signal.SIGINT, signal.SIGTERM):
        yield requested.is_set
