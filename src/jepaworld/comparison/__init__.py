"""Comparing settings: a grid of runs over training seeds, on shared data, and one page about them."""

from jepaworld.comparison.engine import Comparison, compare
from jepaworld.comparison.grid import parse_vary

__all__ = ["Comparison", "compare", "parse_vary"]
