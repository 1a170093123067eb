"""The kernel for Hopper GPUs, interpreted on a CPU: the numbers of the loop.

One CTA of a cluster is interpreted, so H is at most 64 here; clusters are compiled by
`python -m benchmarks.ahead gpu`. Releases of jax without the interpreter leave this file out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

import jaxgru
from cases import draw, only
from jaxgru.backends import CPU, GPU, hopper, loop
from jaxgru.cell import cell_of

KINDS = ("gru_after", "lstm", "gru", "elman")

#: Relative to the largest number. Products of float32 split in two bfloat16 parts are off by 2**-16
#: a term. With 16-bit params there is one part, 2**-9, and the loop rounds every state to it too.
TOL = {"float32": 1e-4, "bfloat16": 3e-2}
STEPS, BATCH, INPUT, HIDDEN = 6, 5, 3, 10  # B and H are no multiples of what a kernel needs


def problem(kind, dtype, marked):
    params = draw(kind, INPUT, HIDDEN, dtype)
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape) / 2, dtype)

    carries = [
        jax.tree.map(lambda a: normal(BATCH, *a.shape), jaxgru.initial_carry(params))
        for _ in range(2)
    ]
    flags = (
        [jnp.asarray(rng.random((STEPS, BATCH)) < p) for p in (0.3, 0.7)] if marked else [None] * 2
    )
    cts = jax.tree.map(lambda a: normal(*a.shape), carries[0]), normal(STEPS, BATCH, HIDDEN)
    return (params, normal(STEPS, BATCH, INPUT), *carries, *flags), cts


def both(plan, kind, reverse, primals, cts):
    cell = cell_of(primals[0])
    last, saved = loop.forward(plan, cell, 0, reverse, primals, differentiated=True)
    return last, saved, loop.cotangents(plan, cell, 0, reverse, primals, saved, primals[:4], cts)


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
        actual = both(GPU._replace(kernel=kernel, loop=GPU), kind, reverse, primals, cts)
    assert len(launches) == 2
    expected = both(CPU, kind, reverse, primals, cts)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, "float32"), np.asarray(b, "float32")
        assert np.abs(a - b).max() < TOL[dtype] * max(1, np.abs(b).max())
