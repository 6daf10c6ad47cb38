"""One page per run: what was learned, how well, and what it looks like."""

from jepaworld.report.page import read_results, write_report

__all__ = ["read_results", "write_report"]
