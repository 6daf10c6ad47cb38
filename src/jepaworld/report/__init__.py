"""One page per run: what was learned, how well, and what it looks like."""

from jepaworld.report.write import write_report

__all__ = ["write_report"]
