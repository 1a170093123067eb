"""A cell that differs from the built-in ones in everything that `register` leaves open.

Its carry is a dict of a matrix and a scalar, and its initial value is learned. Its output depends
on the new carry and on the input. Its step is not defined for inputs of zero.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgru


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryParams:
    w: Any
    start: Any


def equations(m, params, carry, x):
    """Run one step, with NumPy or with JAX."""
    k = x / m.sqrt(m.sum(x * x))
    matrix = 0.7 * carry["matrix"] + m.tanh(m.outer(x @ params.w, k) + 0.3 * carry["matrix"] ** 2)
    total = 0.9 * carry["total"] + 0.1 * m.tanh(carry["total"] + matrix[0, 0])
    return {"matrix": matrix, "total": total}


def output(m, carry, x):
    return m.tanh(carry["matrix"] @ x) * carry["total"]


def step(params, carry, x):
    carry = equations(jnp, params, carry, x)
    return carry, output(jnp, carry, x)


def initial_carry(params):
    return {"matrix": params.start, "total": jnp.ones((), params.start.dtype)}


jaxgru.register(
    MemoryParams,
    step=step,
    initial_carry=initial_carry,
    sizes=lambda params: params.w.shape,
)


def draw(inputs, hidden, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (inputs, hidden), (hidden, inputs)
    return MemoryParams(*(jnp.asarray(0.6 * rng.standard_normal(shape)) for shape in shapes))


def numpy_scan(params, xs, carry, mask, reset, reset_carry, reverse):
    """Return (last carry, outputs) of the steps where the mask is True."""
    steps = len(xs)
    params, xs, carry, reset_carry = jax.tree.map(np.asarray, (params, xs, carry, reset_carry))
    ys = np.zeros((steps, params.w.shape[1]))
    for t in reversed(range(steps)) if reverse else range(steps):
        entered = t + 1 < steps and reset[t + 1] if reverse else reset[t]
        carry = reset_carry if entered else carry
        if mask[t]:
            carry = equations(np, params, carry, xs[t])
            ys[t] = output(np, carry, xs[t])
    return carry, ys
