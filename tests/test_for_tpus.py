"""The kernel for TPUs, compiled for four of them by tests/for_tpus.py.

The compiler is libtpu, from `pip install "jax[tpu]"`. Without it this file is left out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock is only for processes that use a TPU
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "0",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "XLA_FLAGS": "",
}


def test_kernels_and_what_they_send():
    """The forward pass has one kernel, and a gradient two. Devices send only the gradient, once."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("for_tpus.py"))],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 8
    for name, program in found.items():
        gradient = "gradient" in name
        assert program["kernels"] == (2 if gradient else 1), name
        assert program["sends"] == (["all-reduce"] if gradient else []), name
