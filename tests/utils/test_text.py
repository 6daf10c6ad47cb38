"""Numbers as people read them."""

import math

from jepaworld.utils.text import columns, counted, duration, number, percent, ranges, with_interval


def test_numbers_are_written_for_people() -> None:
    found = [number(v) for v in (None, math.nan, 0.0, 1.23456e-5, 0.98765, 12.3456, 1234.5)]
    assert found == ["n/a", "n/a", "0.000", "1.2e-05", "0.988", "12.35", "1,234"]
    assert with_interval(0.5, (0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert all("too few episodes" in with_interval(0.5, ends) for ends in (None, (math.nan, math.nan)))
    assert [percent(rate) for rate in (0.985, 0.12, 1.0, 0.0, 0.0177)] == ["98.5", "12", "100", "0", "1.8"]
    times = [duration(s) for s in (None, 0.0213, 1.23, 42, 600, 7200)]
    assert times == ["n/a", "21.3 ms", "1.23 s", "42 s", "10.0 min", "2.0 h"]


def test_counts_and_ranges() -> None:
    assert [counted(n, "step") for n in (0, 1, 2)] == ["0 steps", "1 step", "2 steps"]
    assert ranges([1, 3, 4, 5, 9, 10]) == "1, 3 to 5, 9 to 10" and ranges([]) == ""


def test_columns_are_aligned() -> None:
    assert list(columns([["a", "long"], ["longer", "1"]])) == ["a       long", "longer     1"]
