"""Progress bars and messages in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars

from jepaworld.utils.progress import Progress


class RichProgress(Progress):
    """Shows each piece of work as a bar; messages and warnings scroll above it.

    Args:
        console: Where to write; commands pass one that writes to stderr.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: RichBars | None = None
        self._task: TaskID | None = None

    def start(self, description: str, total: int, completed: int = 0) -> None:
        """Show a bar; one that is still open ends."""
        self.finish()
        description_column, note = TextColumn("{task.description:<22}"), TextColumn("{task.fields[note]}")
        times = TimeElapsedColumn(), TimeRemainingColumn()
        columns = description_column, BarColumn(bar_width=30), MofNCompleteColumn(), *times, note
        self._bars = RichBars(*columns, console=self.console, refresh_per_second=4)
        self._bars.start()
        self._task = self._bars.add_task(escape(description), total=total, completed=completed, note="")

    def advance(self, n: int = 1, note: str = "") -> None:
        """Move the bar; an empty note leaves the last one."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, n)
            if note:
                self._bars.update(self._task, note=escape(note))

    def finish(self) -> None:
        """Stop the bar and leave its last state on the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None

    def message(self, text: str) -> None:
        """Print a sentence."""
        # soft_wrap: a path must be in one piece, for copying and for the programs that read it.
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a sentence that stands out."""
        self.console.print(f"[bold yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)
