"""The kernel for TPUs, compiled for four of them by tests/for_tpus.py.

It needs libtpu, the compiler, of `pip install "jax[tpu]"`; without that, this file is left out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "0",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "XLA_FLAGS": "",
}


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("for_tpus.py"))],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_one_kernel_forward_and_two_for_a_gradient(found):
    assert len(found) == 8
    for name, program in found.items():
        assert program["kernels"] == (2 if "gradient" in name else 1), name


def test_nothing_is_sent_but_the_gradient_once(found):
    for name, program in found.items():
        assert program["sends"] == (["all-reduce"] if "gradient" in name else []), name
