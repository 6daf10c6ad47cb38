"""What long work says while it runs. The library reports to this interface and never prints."""

from __future__ import annotations

import logging

logger = logging.getLogger("jepaworld")


class Progress:
    """Silent but for the log: messages at level INFO, warnings at WARNING. Commands use `console.RichProgress`."""

    def start(self, description: str, total: int, completed: int = 0) -> None:
        """A piece of work of `total` units begins, `completed` of them done before."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """`n` more units are done; `note` is a short text such as the current loss."""

    def finish(self) -> None:
        """The piece of work has ended, done or not."""

    def message(self, text: str) -> None:
        """A sentence for the user."""
        logger.info(text)

    def warn(self, text: str) -> None:
        """A sentence that the user should not miss."""
        logger.warning(text)
