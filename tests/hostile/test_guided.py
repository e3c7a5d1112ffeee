"""Coverage-guided fuzzing, for a moment; for hours it is a script (`guided.py`)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
RUNS, SOAK_RUNS = 1500, 1_000_000


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is made for Linux and Python < 3.12")
def test_coverage_guided_fuzzing_finds_nothing(is_soak):
    command = [sys.executable, "-m", "hostile.guided", f"-runs={SOAK_RUNS if is_soak else RUNS}", "-seed=1"]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}

    ended = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=36_000)

    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Done" in ended.stderr, ended.stderr[-500:]
    assert "NEW" in ended.stderr, "nothing was instrumented"
