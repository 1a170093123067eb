"""Weights and batches over eight devices, by tests/on_eight_devices.py in its own process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cases import GRAD_TOL

pytestmark = pytest.mark.slow  # some dozen programs for eight devices


@pytest.fixture(scope="module")
def found():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "on_eight_devices.py")],
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_everything_was_checked(found):
    # 3 cells: 2 axes x (one sequence, a batch), the recipe, shard_map without checks
    assert len(found["differences"]) == 3 * (2 * 2 + 2)


@pytest.mark.parametrize("what", ["one,", "batch,", "recipe", "shard_map"])
def test_equals_one_device(found, what):
    """Values and gradients, in float64. Partial sums over devices are the same sums in another
    order, so the tolerance of derivatives holds."""
    differences = {k: v for k, v in found["differences"].items() if what in k}
    assert differences
    assert max(differences.values()) < GRAD_TOL["float64"], differences


def test_the_zero_carry_must_be_cast_to_varying(found):
    """If this fails, docs/tensor_parallel.md need no longer say so."""
    assert "to='varying'" in found["refused"]
