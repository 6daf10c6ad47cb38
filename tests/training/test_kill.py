"""Real kills: SIGKILL at random moments of collecting, training and saving."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

KILL_RESUME = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_equal_weights() -> None:
    command = [sys.executable, str(KILL_RESUME), "--kills", "5", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5 kills, 5 byte-equal" in result.stdout
