"""The data that devices send in the layout of docs/recipes/tensor_parallel.md."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import collectives

PROGRAM = """
%inner (p: f32[4]) -> f32[4] {
  %g = f32[8,4]{1,0} all-gather(%p), dimensions={0}
}
%body.1 (p: f32[4]) -> f32[4] {
  %r = (f32[2]{0}, bf16[3,5]{1,0}) all-reduce-start(%p), to_apply=%add
  %c = f32[4]{0} call(%p), to_apply=%inner
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4]{0} while(%p), condition=%cond, body=%body.1
  %a = f32[4]{0} all-to-all(%w)
}
"""


def test_loops_are_told_from_the_rest():
    found = collectives.count(PROGRAM)
    assert found.loop == {"all-reduce": 1, "all-gather": 1}
    assert found.outside == {"all-to-all": 1}
    assert found.bytes_in_loop == 4 * 32 + 4 * 2 + 2 * 15


TWO = """
import sys
from benchmarks import collectives

kept = (collectives.RECOMMENDED, "w_hh, input axis")
collectives.LAYOUTS = {layout: collectives.LAYOUTS[layout] for layout in kept}
sys.exit(collectives.main())
"""


@pytest.mark.slow
def test_nothing_is_sent_in_the_time_loop():
    done = subprocess.run(
        [sys.executable, "-c", TWO, "--json"],
        env={**os.environ, "XLA_FLAGS": "", "JAX_ENABLE_X64": "0"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for cell in ("GRU", "GRU, reset_after", "LSTM"):
        for counts in found[f"{cell}; {collectives.RECOMMENDED}"].values():
            assert counts["loop"] == {}
            # Each device computes an eighth, and not everything. Sums go over devices.
            assert counts["work"] < 1.3 / collectives.DEVICES
        # The count shows when data are sent.
        assert found[f"{cell}; w_hh, input axis"]["forward"]["loop"]
