"""Linear recurrences, e_t = J_t e_{t-1} + s_t, over all of time at once.

J is `[T, D, D]`, or `[T, D]` for diagonal matrices; sources and results are `[T, D]`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax


def times(a: Array, b: Array) -> Array:
    """The product of a J with a J, or with vectors `[T, D]`."""
    if a.ndim == 2:
        return a * b
    return a @ b if b.ndim == 3 else (a @ b[..., None])[..., 0]


def recur(jacobian: Array, sources: Array, reverse: bool = False) -> Array:
    """e_t = J_t e_{t-1} + s_t, from e = 0, by an associative scan."""

    def both(earlier, later):
        (j, s), (k, u) = earlier, later
        return times(k, j), times(k, s) + u

    return lax.associative_scan(both, (jacobian, sources), reverse=reverse)[1]


def recur_in_order(jacobian: Array, sources: Array, reverse: bool = False) -> Array:
    """The same, one step after the other: what does not overflow on the way, does not at all."""

    def step(e, inputs):
        j, s = inputs
        e = times(j[None], e[None])[0] + s
        return e, e

    start = jnp.zeros_like(sources[0])
    return lax.scan(step, start, (jacobian, sources), reverse=reverse)[1]


def shift(states: Array) -> Array:
    """Each step's predecessor, zero before the first."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def rescue(fine: Array, value: Array, run: Callable[[], Array]) -> Array:
    """value, or run() where it is not fine.

    As a loop of one turn or none: a `lax.cond` runs both ways under `vmap`, a loop that no example
    needs is not entered.
    """
    again = (jnp.logical_not(fine), value)
    return lax.while_loop(lambda s: s[0], lambda s: (jnp.zeros_like(s[0]), run()), again)[1]
