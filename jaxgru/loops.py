"""The loop over time and its derivative, written once for every cell.

Differentiating `lax.scan` as it stands adds the weight gradient up once per time step. Here the
tangent of the whole recurrence is stated instead:

    dc_t = J_t dc_{t-1} + s_t

with s_t, the direct effect of all parameter and input tangents, formed for many time steps at once
(a few large products), and a scan in which the weights are constants. JAX transposes that scan
into one reverse scan that carries only the cotangent of c, and s into one large product a weight.
Every other derivative follows from the same rule.

All arrays have an axis N after time, for sequences that run side by side with the same weights:
xs is `[T, N, I]`, carries are `[N, H]`, flags `[T, N]`. With levels > 0 there are as many further
axes, for networks side by side: first in params and carries, after time elsewhere.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgru.cell import (
    Carry,
    Cell,
    accumulator,
    advance,
    matmul,
    matmul_left,
    matmul_transposed,
    products,
    project,
    total,
)

# Sizes at which another way becomes faster on a CPU; docs/performance.md has the measurements.
IN_LOOP = 16  # inputs up to here are projected step by step, others a stretch of time at once
HOISTED = 15_000_000  # bytes of projected inputs up to which all of time is one stretch
HOISTED_BOTH = 7_500_000  # the same where a gradient follows, which keeps arrays of this size too
WIDE = 768  # H from here on: states are kept as columns, and weights stand left in the product
WIDE_TANGENT = 512  # H from here on: the backward product takes the weights as they are
RECOMPUTED = 64  # H up to here: gates are recomputed for the gradient, not saved
ROWS = 512  # rows of a product over a stretch of the forward pass
ROWS_H = 2**17  # rows times H over a stretch of the backward pass, but not fewer rows than ROWS


def scan_chunks(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, size: int, reverse: bool
) -> tuple[Any, Any]:
    """`lax.scan` over stretches of `size` steps; the last one processed may be shorter.

    `body` takes (carry, a stretch of xs `[size, ...]`) and returns (carry, a stretch of ys).
    """
    steps = jax.tree.leaves(xs)[0].shape[0]
    count, rest = divmod(steps, size)
    if count == 0 or (count == 1 and rest == 0):
        return body(carry, xs)
    head = (lambda a: a[rest:]) if reverse else (lambda a: a[: steps - rest])
    tail = (lambda a: a[:rest]) if reverse else (lambda a: a[steps - rest :])
    stretches = jax.tree.map(lambda a: head(a).reshape(count, size, *a.shape[1:]), xs)
    carry, ys = lax.scan(body, carry, stretches, reverse=reverse)
    ys = jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:]), ys)
    if rest:
        carry, last = body(carry, jax.tree.map(tail, xs))
        order = (lambda a, b: (b, a)) if reverse else (lambda a, b: (a, b))
        ys = jax.tree.map(lambda a, b: jnp.concatenate(order(a, b)), ys, last)
    return carry, ys


def chunk_size(xs: Array, most: int) -> int:
    """How many steps share one product of at most so many rows, if eight steps fit.

    Few enough to stay in cache, and enough for a product to be worth its start.
    """
    steps, rows = xs.shape[0], max(1, math.prod(xs.shape[1:-1]))
    size = min(steps, max(8, min(most // 4, most // rows)))
    # A size that leaves no rest spares compiling the body twice.
    return next((k for k in range(size, size // 2, -1) if steps % k == 0), size)


def forward(
    cell: Cell, levels: int, reverse: bool, primals: tuple[Any, ...], differentiated: bool
) -> tuple[Carry, tuple[Carry, Any]]:
    """(last carry, (all carries, gates)) of the recurrence.

    The gates are None unless it is differentiated and saving them is faster than computing them
    again.
    """
    params, xs, carry, reset_carry, fresh, keep = primals
    blocks = _lift(cell.blocks, levels, 0)(params)
    size = cell.sizes(params)[1]
    save = differentiated and size > RECOMPUTED
    most = HOISTED_BOTH if differentiated else HOISTED
    projections = math.prod(xs.shape[:-1]) * cell.gates * size
    hoisted = projections * jnp.dtype(accumulator(xs.dtype)).itemsize <= most
    in_loop = xs.shape[-1] <= IN_LOOP and not hoisted
    n_last = size >= WIDE
    product = matmul_left if n_last else matmul
    if n_last:
        blocks = blocks._replace(w_hh=tuple(w.swapaxes(-1, -2) for w in blocks.w_hh))

    def step(blocks, reset_carry, carry, inputs):  # of one sequence
        projected, fresh, keep = inputs
        if in_loop:
            projected = project(cell, blocks, projected)
        previous = _select(fresh, reset_carry, carry)
        new, gates = cell.advance(products(blocks.w_hh, product), blocks, previous, projected)
        new = new if keep is None else _select(keep, new, previous)
        gates = jax.tree.map(lambda a: a.astype(xs.dtype), gates) if save else None
        return new, (new, gates)

    def turn(tree):
        return jax.tree.map(lambda a: a.swapaxes(-1, -2), tree) if n_last else tree

    n = 1 if n_last else 0
    steps = jax.vmap(step, in_axes=(None, n, n, (n, 0, 0)), out_axes=n)
    steps = partial(_lift(steps, levels, 0), blocks, turn(reset_carry))

    def chunk(carry, inputs):
        xs, fresh, keep = inputs
        together = _lift(partial(project, cell), levels, (0, 1), 1)
        projected = xs if in_loop else together(blocks, xs)
        carry, ys = lax.scan(steps, carry, (turn(projected), fresh, keep), reverse=reverse)
        return carry, turn(ys)

    whole = hoisted or (in_loop and not n_last)
    stretch = xs.shape[0] if whole else chunk_size(xs, ROWS)
    carry, ys = scan_chunks(chunk, turn(carry), (xs, fresh, keep), stretch, reverse)
    return turn(carry), ys


def tangents(
    cell: Cell, levels: int, reverse: bool, primals: tuple[Any, ...], dprimals: tuple[Any, ...]
) -> tuple[tuple[Carry, Array], tuple[Carry, Array]]:
    """The value of `recurrence` and its tangent; the tangents of params and xs may hold None."""
    params, xs, carry, reset_carry, fresh, keep = primals
    dparams, dxs, dcarry, dreset_carry, _, _ = dprimals
    size = cell.sizes(params)[1]
    last, (carries, saved) = forward(cell, levels, reverse, primals, differentiated=True)
    blocks, dblocks = (_lift(cell.blocks, levels, 0)(p) for p in (params, dparams))
    transposed = size < WIDE_TANGENT
    product = matmul_transposed if transposed else matmul
    weights = tuple(w.swapaxes(-1, -2) if transposed else w for w in blocks.w_hh)

    def linearize(blocks, dblocks, xs, dxs, before, gates):
        if gates is None:
            gates = advance(cell, blocks, before, xs)[1]
        dx = total(None, (dxs, blocks.w_ih), (xs, dblocks.w_ih))
        if dx is None:
            dx = jnp.zeros((*xs.shape[:-1], cell.gates * size), accumulator(xs.dtype))
        dx = total(dx, dblocks.b)
        gates = jax.tree.map(lambda a: a.astype(dx.dtype), gates)
        return cell.linearize(dblocks, dx, before, gates)

    def tangent(weights, coefficients, dcarry, sources):
        return cell.tangent(products(weights, product), coefficients, dcarry, sources)

    def step(dcarry, inputs):
        (coefficients, sources), fresh, keep = inputs
        dprevious = _select(fresh, dreset_carry, dcarry)
        dnew = _lift(tangent, levels, 0)(weights, coefficients, dprevious, sources)
        dnew = dnew if keep is None else _select(keep, dnew, dprevious)
        return dnew, cell.output(dnew)

    def chunk(state, inputs):
        dcarry, first = state
        xs, dxs, after, gates, fresh, keep = inputs
        before = _select(fresh, reset_carry, _previous(first, after, reverse))
        every = _lift(linearize, levels, (0, 0, 1, 1, 1, 1), 1)
        linear = every(blocks, dblocks, xs, dxs, before, gates)
        dcarry, douts = lax.scan(step, dcarry, (linear, fresh, keep), reverse=reverse)
        return (dcarry, jax.tree.map(lambda a: a[0 if reverse else -1], after)), douts

    chunk = jax.checkpoint(chunk, prevent_cse=False)
    streams = (xs, dxs, carries, saved, fresh, keep)
    stretch = chunk_size(xs, max(ROWS, ROWS_H // size))
    (dlast, _), douts = scan_chunks(chunk, (dcarry, carry), streams, stretch, reverse)
    return (last, cell.output(carries)), (dlast, douts)


def _lift(function: Callable[..., Any], levels: int, in_axes: Any, out_axes: int = 0):
    """`function` over the axes of networks, which come first: after time where there is time."""
    for _ in range(levels):
        function = jax.vmap(function, in_axes=in_axes, out_axes=out_axes)
    return function


def _select(flags: Array | None, a: Any, b: Any) -> Any:
    """a where the flags `[..., N]` are set, b elsewhere; b where there are no flags."""
    if flags is None:
        return b

    def pick(a, b):
        return jnp.where(flags[..., None], jnp.broadcast_to(a, b.shape), b)

    return jax.tree.map(pick, a, b)


def _previous(first: Carry, after: Carry, reverse: bool) -> Carry:
    """The carry before each step of a stretch, from the one before all and the ones after each."""

    def shift(first, after):
        return jnp.concatenate((after[1:], first[None]) if reverse else (first[None], after[:-1]))

    return jax.tree.map(shift, first, after)
