"""Scans over time by several steps at once: by stretches, and by the iterations of a loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxgru.backends.streams import Indexed, Start


def scan_chunks(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, size: int, reverse: bool
) -> tuple[Any, Any]:
    """Run `lax.scan` over stretches of `size` steps. The last one processed may be shorter.

    `body` takes (carry, a stretch of xs `[size, ...]`) and returns (carry, a stretch of ys). Some
    of xs may be `Indexed`.
    """

    def each(of_array, of_indexed, *rest):
        def choose(a, *rest):
            return (of_indexed if isinstance(a, Indexed) else of_array)(a, *rest)

        return jax.tree.map(choose, xs, *rest)

    steps = next(a.shape[0] for a in jax.tree.leaves(xs) if not isinstance(a, Start))
    count, rest = divmod(steps, size)
    if count == 0 or (count == 1 and rest == 0):
        return body(carry, each(lambda a: a, lambda a: a.whole()))
    begin, end = (rest, steps) if reverse else (0, steps - rest)

    def parts(a):
        return a[begin:end].reshape(count, size, *a.shape[1:])

    def starts(_):  # constants, so no kernel computes them
        return np.arange(begin, end, size, dtype=np.int32)

    def stretch(carry, inputs):
        return body(carry, each(lambda _, part: part, lambda a, k: a.steps(k, size), inputs))

    carry, ys = lax.scan(stretch, carry, each(parts, starts), reverse=reverse)
    last = None
    if rest:
        k = 0 if reverse else end
        carry, last = body(carry, each(lambda a: a[k : k + rest], lambda a: a.steps(k, rest)))
    return carry, _joined(ys, last, reverse)


def scan_unrolled(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, turn: int, reverse: bool
) -> tuple[Any, Any]:
    """Run `lax.scan` with `turn` steps in each iteration. The steps that remain run after the loop.

    With `lax.scan(unroll=turn)` the place of a step within the iteration is a constant in its
    kernels, so a compiler for GPUs makes different kernels for each step. Here each step reads its
    number from the state of the loop. The first numbers pass through a barrier, so that the
    compiler does not derive one number from another.
    """
    steps = jax.tree.leaves(xs)[0].shape[0]
    count, rest = divmod(steps, turn)
    body = jax.jit(body)  # it is traced and lowered once
    ahead = -turn if reverse else turn
    first = tuple(jnp.int32(steps - 1 - k if reverse else k) for k in range(turn))

    def together(carry, times):
        ys = []
        for t in times:
            at = partial(
                lax.dynamic_index_in_dim, index=t, keepdims=False, allow_negative_indices=False
            )
            carry, y = body(carry, jax.tree.map(at, xs))
            ys.append(y)
        return carry, jax.tree.map(lambda *a: jnp.stack(a), *(ys[::-1] if reverse else ys))

    def iteration(state, _):
        carry, times = state
        carry, ys = together(carry, times)
        return (carry, tuple(t + ahead for t in times)), ys

    state = (carry, lax.optimization_barrier(first))
    (carry, times), ys = lax.scan(iteration, state, None, count, reverse=reverse)
    last = None
    if rest:
        carry, last = together(carry, times[:rest])
    return carry, _joined(ys, last, reverse)


def _joined(ys: Any, last: Any, reverse: bool) -> Any:
    """The ys of all steps, from those of pieces `[count, size, ...]` and of the last, or None."""
    ys = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), ys)
    if last is None:
        return ys
    order = (lambda a, b: (b, a)) if reverse else (lambda a, b: (a, b))
    return jax.tree.map(lambda a, b: jnp.concatenate(order(a, b)), ys, last)
