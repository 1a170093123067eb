"""Linear recurrences, e_t = J_t e_{t-1} + s_t, solved for the whole sequence at once.

J is `[T, D, D]`, or `[T, D]` for diagonal matrices; sources and results are `[T, D]`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax


def times(a: Array, b: Array) -> Array:
    """The product of a J with another J, or with vectors `[T, D]`."""
    if a.ndim == 2:
        return a * b
    return a @ b if b.ndim == 3 else (a @ b[..., None])[..., 0]


def recur(jacobian: Array, sources: Array, reverse: bool = False) -> Array:
    """Solve e_t = J_t e_{t-1} + s_t, starting from e = 0, by an associative scan."""

    def both(earlier, later):
        (j, s), (k, u) = earlier, later
        return times(k, j), times(k, s) + u

    return lax.associative_scan(both, (jacobian, sources), reverse=reverse)[1]


def recur_in_order(jacobian: Array, sources: Array, reverse: bool = False) -> Array:
    """Solve it one step after the other, which overflows only if the solution is too large."""

    def step(e, inputs):
        j, s = inputs
        e = times(j[None], e[None])[0] + s
        return e, e

    start = jnp.zeros_like(sources[0])
    return lax.scan(step, start, (jacobian, sources), reverse=reverse)[1]


def shift(states: Array) -> Array:
    """The state before each step, which is zero for the first step."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def rescue(fine: Array, value: Array, run: Callable[[], Array]) -> Array:
    """value, or run() if value is not fine.

    This is a loop of at most one iteration. Under `vmap` a `lax.cond` runs both branches, but a
    loop that no example needs does not run.
    """
    again = (jnp.logical_not(fine), value)
    return lax.while_loop(lambda s: s[0], lambda s: (jnp.zeros_like(s[0]), run()), again)[1]
