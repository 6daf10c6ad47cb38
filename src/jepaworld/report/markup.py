"""Pieces of HTML that the sections share; every text that comes in is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from jepaworld.report.figures import picture


def image_cell(image: np.ndarray, text: str) -> str:
    """A table cell with an image (C, H, W) and the text that stands for it."""
    return f'<td><img src="{picture(image)}" alt="{escape(text, quote=True)}"></td>'


def chart_row(figures: Iterable[str | None]) -> str:
    """SVG charts side by side; those that are None are left out."""
    figures_html = "".join(f"<figure>{chart}</figure>" for chart in figures if chart)
    return f'<div class="charts">{figures_html}</div>' if figures_html else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numeric_from: int | None = None) -> str:
    """A table; columns from `numeric_from` on are aligned as numbers, those before it are short labels."""

    def kind(column: int) -> str:
        if numeric_from is None:
            return "long"
        return "number" if column >= numeric_from else "short"

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag} class='{kind(i)}'>{escape(cell)}</{tag}>" for i, cell in enumerate(row))

    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if any(header) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def absent(text: str) -> str:
    """A quiet paragraph on what is not there."""
    return f'<p class="soft">{escape(text)}</p>'


def prose(text: str) -> str:
    """Escaped text in which `words` between backticks are code."""
    parts = escape(text).replace(" %", "\N{NO-BREAK SPACE}%").split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def plain(value: Any) -> str:
    """A JSON value as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {plain(entry)}" for key, entry in value.items()) or "none"
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})" if value else "scalar"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
