"""Numbers, shares, intervals and tables as text: the same on the report's page, in the terminal and in warnings."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

WIDTH = 110
"""Of text in the terminal."""


class Share(Protocol):
    """A rate with its 95 % interval, all from 0 to 1."""

    @property
    def rate(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float: ...  # noqa: D102
    @property
    def high(self) -> float: ...  # noqa: D102


def number(value: float | None) -> str:
    """Three significant digits; `n/a` for None and NaN."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(rate: float) -> str:
    """A share from 0 to 1 in percent: `98.5`, `12`, `100`."""
    return f"{100 * rate:.1f}".removesuffix(".0")


def share(found: Share) -> str:
    """`98.5 % (95.7 to 99.5)`."""
    return f"{percent(found.rate)} % ({percent(found.low)} to {percent(found.high)})"


def interval(ends: tuple[float, float] | None) -> str:
    """`0.25 to 0.75`, or why there is none."""
    if ends is None or not all(map(math.isfinite, ends)):
        return "no interval: too few episodes"
    return f"{number(ends[0])} to {number(ends[1])}"


def with_interval(value: float | None, ends: tuple[float, float] | None) -> str:
    """A number with its 95 % interval: `0.500 (0.250 to 0.750)`."""
    return f"{number(value)} ({interval(ends)})"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `12.3 ms`, `1.23 s`, `42 s`, `10.0 min`; `n/a` for None."""
    if seconds is None:
        return "n/a"
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def ranges(values: Iterable[int]) -> str:
    """Rising integers in short: `1, 3 to 9`."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Lines of a plain table, its first `left` columns aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        yield "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width) for place, (cell, width) in cells
        ).rstrip()


def wrapped(text: str) -> list[str]:
    """The text in lines, of which only the first is not indented; paths and commands stay in one piece."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
