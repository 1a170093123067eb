"""The kernel for Hopper GPUs, interpreted on a CPU: the numbers of the loop.

One CTA of a cluster is interpreted, so H is at most 64 here. Clusters are compiled by `python -m
benchmarks.ahead gpu`, and run by `python -m benchmarks.gpu_check`. Releases of jax without the
interpreter leave this file out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from cases import only
from jaxgru.backends import CPU, GPU, hopper
from kernels import KINDS, assert_equals_the_loop, both, problem

#: Relative to the largest number. Operands of products are float16, off by up to 2**-11, and six
#: steps of a network with large weights enlarge that. The loop rounds states to 2**-9 where
#: params are bfloat16.
TOL = {"float32": 5e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize("dtype", TOL)
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", only(("gru_after", "lstm"), KINDS))
def test_equals_the_loop(kind, reverse, marked, dtype):
    primals, cts = problem(kind, dtype, marked)
    assert_equals_the_loop(by_kernel(reverse, primals, cts), reverse, primals, cts, TOL[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_any_size(kind):
    """float16 has neither 1e30 nor 1e-30. Each example is compared on its own."""
    (params, *data), cts = problem(kind, "float32", marked=False)
    params = params.__class__(**{**vars(params), "w_hh": 0.3 * params.w_hh})
    sizes = jnp.asarray([1e30, 1e-30, 1.0, 1e-12, 1e8])
    cts = jax.tree.map(lambda a: a * sizes.reshape(-1, 1)[(None,) * (a.ndim - 2)], cts)
    primals = (params, *data)
    found, expected = by_kernel(False, primals, cts), both(CPU, False, primals, cts)
    for k, axis in ((1, 1), (2, 0)):  # the gradients of inputs and of carries: where examples are
        pairs = (jax.tree.leaves(run[2][k]) for run in (found, expected))
        for mine, theirs in zip(*pairs, strict=True):
            for a, b in zip(*(np.moveaxis(g, axis, 0) for g in (mine, theirs)), strict=True):
                assert np.abs(a - b).max() < TOL["float32"] * np.abs(b).max()


def by_kernel(reverse, primals, cts):
    launches = []

    def kernel(*arguments):
        launches.append(arguments)
        return hopper.scan(*arguments)

    with plgpu.force_gpu_interpret_mode():
        actual = both(GPU._replace(kernel=lambda: kernel), reverse, primals, cts)
    assert len(launches) == 2
    return actual
