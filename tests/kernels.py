"""Problems for the kernels, whose results are compared with those of the loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgru
from cases import draw
from jaxgru.backends import CPU, loop
from jaxgru.cell import cell_of

KINDS = ("gru_after", "lstm", "gru", "elman")
INPUT, HIDDEN = 3, 10  # no multiple of what a kernel needs


def problem(kind: str, dtype: str, marked: bool, steps: int = 6, batch: int = 5) -> tuple[Any, Any]:
    """(primals, cotangents); marked says whether there are resets and steps that do not count."""
    params = draw(kind, INPUT, HIDDEN, dtype)
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape) / 2, dtype)

    carries = [
        jax.tree.map(lambda a: normal(batch, *a.shape), jaxgru.initial_carry(params))
        for _ in range(2)
    ]
    flags = (
        [jnp.asarray(rng.random((steps, batch)) < p) for p in (0.3, 0.7)] if marked else [None] * 2
    )
    cts = jax.tree.map(lambda a: normal(*a.shape), carries[0]), normal(steps, batch, HIDDEN)
    return (params, normal(steps, batch, INPUT), *carries, *flags), cts


def both(plan: loop.Plan, reverse: bool, primals: Any, cts: Any) -> Any:
    """(last carry, what is saved, gradients)."""
    cell = cell_of(primals[0])

    @jax.jit
    def run(primals, cts):
        last, saved = loop.forward(plan, cell, 0, reverse, primals, differentiated=True)
        grads = loop.cotangents(plan, cell, 0, reverse, primals, saved, primals[:4], cts)
        return last, saved, grads

    return run(primals, cts)


def assert_equals_the_loop(actual: Any, reverse: bool, primals: Any, cts: Any, tol: float) -> None:
    """What `both` has returned, relative to the largest number."""
    expected = both(CPU, reverse, primals, cts)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, "float32"), np.asarray(b, "float32")
        assert np.abs(a - b).max() < tol * max(1, np.abs(b).max())
