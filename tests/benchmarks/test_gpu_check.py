"""The check for an accelerator also runs without one, and it detects wrong numbers."""

import os
import subprocess
import sys

import pytest

from benchmarks import gpu_check

pytestmark = pytest.mark.slow

WRONG = """
import sys
import jaxgru
from benchmarks import gpu_check

scan = jaxgru.scan
jaxgru.scan = lambda *args, **options: [1.1 * ys for ys in scan(*args, **options)[1:] * 2]
gpu_check.SIZES = gpu_check.TINY = gpu_check.TINY[:1]
sys.exit(gpu_check.main())
"""


def run(*command):
    return subprocess.run(
        [sys.executable, *command, "--tiny", "--rounds", "1"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_it_runs_to_its_end():
    done = run("-m", "benchmarks.gpu_check")
    assert done.returncode == 0, done.stderr
    assert "all numbers are right" in done.stdout
    assert "WRONG" not in done.stdout
    for sizes in gpu_check.TINY:
        assert "B={} T={} I={} H={}".format(*sizes) in done.stdout


def test_wrong_numbers_are_told():
    done = run("-c", WRONG)
    assert done.returncode == 1, done.stderr
    assert "GRU, reset after, float32, reverse" in done.stdout
    assert done.stdout.count("WRONG") == 2 * len(gpu_check.OPTIONS | gpu_check.WIDTHS)
