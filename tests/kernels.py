"""Problems for the kernels, whose results the tests compare with those of the loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgru
import own_gru
from cases import draw
from jaxgru.backends import CPU, loop
from jaxgru.cell import cell_of

KINDS = ("gru_after", "lstm", "gru", "elman", "own")
INPUT, HIDDEN = 3, 10  # not a multiple of what a kernel needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfKernelsParams:
    """Of a cell with two products, ReLUs and choices."""

    w_ih: Any
    w_hh: Any


def step(params: Any, carry: Any, parts: Any, products: Any) -> Any:
    del params
    (h, c), (x,) = carry, parts
    a, b = products[0](h)
    (n,) = products[1](jax.nn.relu(x + a))
    c = 0.5 * jnp.where(n > 0, 1.0, 0.5) * c + 0.1 * jax.nn.relu(b)
    h = jax.nn.sigmoid(n) * jnp.tanh(c) + 0.1 * h
    return (h, c), h


own_gru.register(OfKernelsParams, step=step, **own_gru.TWO_PRODUCTS)


def draw_params(kind: str, dtype: str) -> Any:
    if kind != "own":
        return draw(kind, INPUT, HIDDEN, dtype)
    like = draw("own_gru", INPUT, HIDDEN, dtype)
    return OfKernelsParams(w_ih=like.w_ih[:, :1], w_hh=0.5 * like.w_hh)


def problem(kind: str, dtype: str, marked: bool, steps: int = 6, batch: int = 5) -> tuple[Any, Any]:
    """Return (primals, cotangents). marked adds resets, and steps that are not real."""
    params = draw_params(kind, dtype)
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
    """Return (last carry, saved values, gradients)."""
    cell = cell_of(primals[0])

    @jax.jit
    def run(primals, cts):
        last, saved = loop.forward(plan, cell, 0, reverse, primals, save=cell.carried is None)
        grads = loop.cotangents(plan, cell, 0, reverse, primals, saved, primals[:4], cts)
        return last, saved, grads

    return run(primals, cts)


def assert_equals_the_loop(actual: Any, reverse: bool, primals: Any, cts: Any, tol: float) -> None:
    """Compare with the loop. Differences are relative to the largest number."""
    expected = both(CPU, reverse, primals, cts)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, "float32"), np.asarray(b, "float32")
        assert np.abs(a - b).max() < tol * max(1, np.abs(b).max())
