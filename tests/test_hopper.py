"""The kernel for Hopper GPUs, interpreted on a CPU, gives the numbers of the loop.

The interpreter runs one CTA of a cluster, so H is at most 64 here. `python -m benchmarks.ahead gpu`
compiles clusters, and `python -m benchmarks.gpu_check` runs them. On releases of jax without the
interpreter this file is left out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from cases import only
from jaxgru.backends import CPU, GPU, hopper
from kernels import KINDS, assert_equals_the_loop, both, problem

#: These are relative to the largest number. The float16 operands of products have errors of up to
#: 2**-11, which six steps with large weights amplify. With bfloat16 params, the loop rounds states
#: to 2**-9.
TOL = {"float32": 8e-3, "bfloat16": 5e-2}


@pytest.mark.parametrize("dtype", TOL)
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", only(("gru_after", "lstm", "own"), KINDS))
def test_equals_the_loop(kind, reverse, marked, dtype):
    primals, cts = problem(kind, dtype, marked)
    assert_equals_the_loop(by_kernel(reverse, primals, cts), reverse, primals, cts, TOL[dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_any_size(kind):
    """float16 has neither 1e30 nor 1e-30. The test compares each example on its own."""
    (params, *data), cts = problem(kind, "float32", marked=False)
    params = params.__class__(**{**vars(params), "w_hh": 0.3 * params.w_hh})
    sizes = jnp.asarray([1e30, 1e-30, 1.0, 1e-12, 1e8])
    cts = jax.tree.map(lambda a: a * sizes.reshape(-1, 1)[(None,) * (a.ndim - 2)], cts)
    primals = (params, *data)
    found, expected = by_kernel(False, primals, cts), both(CPU, False, primals, cts)
    # (gradients of inputs, axis of examples) and (gradients of carries, axis of examples)
    for k, axis in ((1, 1), (2, 0)):
        pairs = (jax.tree.leaves(run[2][k]) for run in (found, expected))
        for mine, theirs in zip(*pairs, strict=True):
            for a, b in zip(*(np.moveaxis(g, axis, 0) for g in (mine, theirs)), strict=True):
                assert np.abs(a - b).max() < TOL["float32"] * np.abs(b).max()


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1.0, 1e3, 1e30])
def test_products_with_weights_of_any_magnitude(size):
    k1, k2 = jax.random.split(jax.random.key(0))
    w, h = size * jax.random.normal(k1, (64, 64)), jax.random.normal(k2, (3, 64))

    def step(products, constants, h, x):
        (y,) = products[0](h)
        return h, y + x

    with plgpu.force_gpu_interpret_mode():
        _, ys = hopper.scan(step, (w[None, None],), None, h, jnp.zeros((1, 3, 64)), False)
    w, h = np.float64(w), np.float64(h)
    # Both operands are rounded to float16, each with a relative error of at most 2**-11.
    assert np.all(np.abs(ys[0] - h @ w.T) < 2**-10 * np.abs(h) @ np.abs(w.T))


def by_kernel(reverse, primals, cts):
    launches = []

    def kernel(*arguments):
        launches.append(arguments)
        return hopper.scan(*arguments)

    with plgpu.force_gpu_interpret_mode():
        actual = both(GPU._replace(kernel=lambda: kernel), reverse, primals, cts)
    assert len(launches) == 2
    return actual
