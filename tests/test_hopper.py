"""The kernel for Hopper GPUs, interpreted on a CPU: the numbers of the loop.

One CTA of a cluster is interpreted, so H is at most 64 here; clusters are compiled by
`python -m benchmarks.ahead gpu`. Releases of jax without the interpreter leave this file out.
"""

import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from cases import only
from jaxgru.backends import GPU, hopper
from kernels import KINDS, assert_equals_the_loop, both, problem

#: Relative to the largest number. Operands of products are float16, off by 2**-11 each, which six steps
#: of a network with large weights enlarge. With bfloat16 params the loop rounds every state to 2**-9.
TOL = {"float32": 5e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("dtype", TOL)
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", only(("gru_after", "lstm"), KINDS))
def test_equals_the_loop(kind, reverse, marked, dtype):
    primals, cts = problem(kind, dtype, marked)
    launches = []

    def kernel(*arguments):
        launches.append(arguments)
        return hopper.scan(*arguments)

    with plgpu.force_gpu_interpret_mode():
        actual = both(GPU._replace(kernel=lambda: kernel), reverse, primals, cts)
    assert len(launches) == 2
    assert_equals_the_loop(actual, reverse, primals, cts, TOL[dtype])
