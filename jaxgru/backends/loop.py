"""The loop over time and its derivative, written once for every cell.

Differentiating `lax.scan` directly would add up the weight gradient once per time step. This file
instead states the tangent of the whole recurrence:

    dc_t = J_t dc_{t-1} + s_t

s_t is the direct effect of all parameter and input tangents. A few large products compute it for
many time steps at once. The weights are constants in the scan over time. JAX transposes that scan
into one reverse scan that carries only the cotangent of c, and s into one large product per weight.
Every other derivative follows from the same rule.

Arrays may have axes N after time, for sequences that run side by side with the same weights: xs
is `[T, *N, I]`, carries are `[*N, H]`, flags `[T, *N]`. With levels > 0 there are that many further
axes, for networks side by side. They come first in params and carries, and right after time
elsewhere.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.export import is_symbolic_dim

from jaxgru.backends import transposes
from jaxgru.backends.divided import divided
from jaxgru.backends.plan import Declined, Plan, or_loop
from jaxgru.backends.scans import scan_chunks, scan_unrolled
from jaxgru.backends.streams import Start, stretch_at
from jaxgru.cell import (
    Blocks,
    Carry,
    Cell,
    accumulator,
    advance,
    matmul,
    matmul_left,
    matmul_transposed,
    operands,
    products,
    project,
    projection,
    split,
    total,
)

#: From this H on, the gradient always reads saved gates instead of computing them again.
SAVED = 256
#: Below that H, it reads saved gates only if they take fewer bytes than this. With larger gates, a
#: program usually needs more than 32 MiB of temporary memory. On Linux, each call maps that memory
#: page by page and returns it, which takes longer than computing the gates again.
SAVED_BYTES = 2**24
#: If a step has fewer numbers than this, saving the gates takes longer than computing them again.
SAVED_ROWS = 512


def chunk_size(xs: Array, most: int) -> int:
    """The number of steps that share one product of at most `most` rows, if eight steps fit.

    The rows should be few enough to stay in cache, and enough to make a product worth its overhead.
    All steps share one product if the number of steps or of rows is not known.
    """
    if not known(*xs.shape):
        return xs.shape[0]
    steps, rows = xs.shape[0], max(1, math.prod(xs.shape[1:-1]))
    return _divisor(steps, min(steps, max(8, min(most // 4, most // rows))))


def _divisor(steps: int, most: int) -> int:
    """A stretch size, if possible one without a remainder, so that the body compiles only once."""
    return next((k for k in range(most, most // 2, -1) if steps % k == 0), most)


def saves_gates(cell: Cell, params: Any, gates: Any) -> bool:
    """Whether to save the gates for the gradient. Their types are `[T, ..., H]`.

    The alternatives are to compute them again, or to take them from the carries.
    """
    types = jax.tree.leaves(gates)
    if cell.carried is not None or not types:
        return False
    if cell.sizes(params)[1] >= SAVED:
        return True
    if not known(*types[0].shape):
        return False
    taken = sum(a.size * a.dtype.itemsize for a in types)
    return math.prod(types[0].shape[1:]) >= SAVED_ROWS and taken < SAVED_BYTES


@or_loop
def forward(
    plan: Plan,
    cell: Cell,
    levels: int,
    reverse: bool,
    primals: tuple[Any, ...],
    save: bool = False,
) -> tuple[Carry, tuple[Carry, Any]]:
    """Run the recurrence: (last carry, (all carries, gates)). The gates are None without save."""
    params, xs, carry, reset_carry, fresh, keep = primals
    blocks = operands(cell, _blocks(cell, levels, params))
    size = cell.sizes(params)[1]
    hoisted = _short(plan, cell, params, xs)
    in_loop = xs.shape[-1] <= plan.in_loop and not hoisted
    packed = plan.packed and plan.kernel is None
    batch = xs.shape[1 + levels : -1]
    n_last = size >= plan.wide and known(*batch) and math.prod(batch) % plan.wide_batch == 0
    product = matmul_left if n_last else matmul
    if n_last:
        blocks = blocks._replace(w_hh=tuple(map(_transposed, blocks.w_hh)))

    def advance(products, blocks, reset_carry, carry, inputs):
        projected, fresh, keep = inputs
        if in_loop:
            projected = project(cell, blocks, projected)
        elif packed:
            projected = split(projected, cell.gates)
        previous = _select(fresh, reset_carry, carry)
        new, gates = cell.advance(products, blocks, previous, projected)
        new = new if keep is None else _select(keep, new, previous)
        gates = _narrowed(xs, gates) if save and plan.gates_in_loop else None
        return new, (new, gates)

    def step(blocks, *rest):
        return advance(products(blocks.w_hh, product), blocks, *rest)

    def launched(products, constants, *rest):
        b_hn, reset_carry = constants
        known = Blocks(None, blocks.w_hh, None, b_hn)
        return advance(products, known, reset_carry, *rest)

    batches = len(batch) if n_last else 0

    def columns(tree):
        return moved(tree, -1, -1 - batches)

    def rows(tree):
        return moved(tree, -1 - batches, -1)

    def moved(tree, source, target):
        return jax.tree.map(lambda a: jnp.moveaxis(a, source, target), tree) if batches else tree

    steps = _lift(step, batches, (None, -1, -1, -1), -1)
    steps = partial(_lift(steps, levels, 0), blocks, columns(reset_carry))

    def chunk(carry, inputs):
        xs, fresh, keep = inputs
        together = _lift(projection if packed else partial(project, cell), levels, (0, 1), 1)
        projected = xs if in_loop else together(blocks, xs)
        streams = (columns(projected), fresh, keep)
        constants = (blocks.b_hn, reset_carry)
        if plan.kernel is None:
            last, ys = _scan(plan, steps, carry, streams, reverse)
        else:
            last, ys = _launch(
                plan, levels, launched, blocks.w_hh, False, constants, carry, streams, reverse
            )
        carries, gates = rows(ys)
        carries = jax.tree.map(lambda a, b: a.astype(b.dtype), carries, carry)
        if save and gates is None:
            shifted = partial(_shifted, plan, reverse)
            before = jax.tree.map(shifted, rows(carry), carries)
            before = _select(fresh, reset_carry, before)
            found = _derivative(plan, cell, levels, params).gates(xs, before, carries)
            gates = _narrowed(xs, found)
        return last, (carries, gates)

    whole = hoisted or (in_loop and not n_last)
    stretch = xs.shape[0] if whole else chunk_size(xs, max(plan.rows, plan.forward // size))
    carry, ys = scan_chunks(chunk, columns(carry), (xs, fresh, keep), stretch, reverse)
    return rows(carry), ys


def tangents(
    plan: Plan,
    cell: Cell,
    levels: int,
    reverse: bool,
    primals: tuple[Any, ...],
    saved: tuple[Carry, Any],
    dprimals: tuple[Any, ...],
) -> tuple[Carry, Array]:
    """The tangent of (last carry, outputs) of `recurrence`. It is linear in dprimals.

    saved comes from `forward`: all carries, and gates or None. dprimals are the tangents of params,
    xs, carry and reset_carry, with None for those that are zero.
    """
    params, xs, carry, reset_carry, fresh, keep = primals
    dparams, dxs, dcarry, dreset_carry = dprimals
    carries, gates = saved
    parts = _derivative(plan, cell, levels, params)
    dblocks = _blocks(cell, levels, dparams)
    dcarry = _filled(dcarry, carry)
    dreset_carry = None if fresh is None else _filled(dreset_carry, carry)

    def step(dcarry, inputs):
        before, gates, sources, fresh, keep = inputs
        dprevious = _select(fresh, dreset_carry, dcarry)
        dnew = parts.tangent(before, gates, dprevious, sources)
        dnew = dnew if keep is None else _select(keep, dnew, dprevious)
        return dnew, cell.output(dnew)

    def chunk(dcarry, inputs):
        start, xs, dxs, after, gates, fresh, keep = inputs
        before = _previous(plan, reverse, start, carry, carries, after)
        before = _select(fresh, reset_carry, before)
        gates = parts.gates(xs, before, after) if gates is None else gates
        sources = parts.sources(dblocks, xs, dxs, before, gates)
        return _scan(plan, step, dcarry, (before, gates, sources, fresh, keep), reverse)

    chunk = jax.checkpoint(chunk, prevent_cse=False)
    streams = (Start(), xs, dxs, carries, gates, fresh, keep)
    stretch = backward_stretch(plan, cell, params, xs)
    return scan_chunks(chunk, dcarry, streams, stretch, reverse)


@or_loop
def cotangents(
    plan: Plan,
    cell: Cell,
    levels: int,
    reverse: bool,
    primals: tuple[Any, ...],
    saved: tuple[Carry, Any],
    wanted: tuple[Any, ...],
    cts: tuple[Carry, Array],
) -> tuple[Any, ...]:
    """The transpose of `tangents`: from the cotangents of its results to those of dprimals.

    wanted has the types of dprimals, with None for those that are not needed.
    """
    params, xs, carry, reset_carry, fresh, keep = primals
    carries, gates = saved
    last, outputs = cts
    wanted_params, wanted_xs, wanted_carry, wanted_reset = wanted
    parts = _derivative(plan, cell, levels, params)
    size, w_hh = cell.sizes(params)[1], ()
    if plan.kernel is not None:
        w_hh = operands(cell, _blocks(cell, levels, params)).w_hh
    dblocks = _blocks(cell, levels, wanted_params)
    still = jax.tree.map(lambda _: None, dblocks)

    def retreat(tangent, source, state, inputs):
        ct, ct_reset = state
        before, gates, output, fresh, keep = inputs
        (from_output,) = jax.linear_transpose(cell.output, ct)(output)
        ct = jax.tree.map(jnp.add, ct, from_output)
        none = jax.tree.map(jnp.zeros_like, ct)
        new = ct if keep is None else _select(keep, ct, none)
        run = partial(tangent, before, gates)
        ct_previous, source = jax.linear_transpose(run, ct, source)(new)
        if keep is not None:
            ct_previous = jax.tree.map(jnp.add, ct_previous, _select(keep, none, ct))
        if ct_reset is not None:
            ct_reset = jax.tree.map(jnp.add, ct_reset, _select(fresh, ct_previous, none))
        return (_select(fresh, none, ct_previous), ct_reset), source

    def chunk(state, inputs):
        ct, ct_reset, ct_blocks = state
        start, xs, after, gates, outputs, fresh, keep = inputs
        before = _previous(plan, reverse, start, carry, carries, after)
        before = _select(fresh, reset_carry, before)
        gates = parts.gates(xs, before, after) if gates is None else gates
        types = parts.sources(still, xs, None, before, gates)
        arrays, flags = (before, gates, outputs), (fresh, keep)
        streams = (*arrays, *flags)
        state = (ct, ct_reset)

        def looped(state, inputs):
            def tangent(before, gates, dcarry, sources):
                return parts.tangent(before, gates, dcarry, jax.tree.map(computed_once, sources))

            # A product takes the cotangent of a source, and the loop also saves it. Without the
            # barrier a compiler may compute this cotangent twice.
            def computed_once(source):
                several = plan.packed and source.shape[-1] > size
                return lax.optimization_barrier(source) if several else source

            return retreat(tangent, jax.tree.map(lambda a: a[0], types), state, inputs)

        def launched(products, _, state, inputs):
            forward = transposes.products(products, [w.shape[-1] // size for w in w_hh])

            def tangent(before, gates, dcarry, sources):
                return cell.tangent(forward, cell.coefficients(before, gates), dcarry, sources)

            block = jax.tree.leaves(inputs)[0]
            source = jax.tree.map(partial(_as_gates, block, size), types)
            return retreat(tangent, source, state, inputs)

        if plan.kernel is None:
            body: Any = looped
            if _for_cpu(plan) and not levels and known(*xs.shape):
                body, streams = _by_rows(looped, arrays, flags)
            state, sources = _scan(plan, body, state, streams, not reverse)
        else:
            state, sources = _launch(
                plan, levels, launched, w_hh, True, None, state, streams, not reverse
            )
            sources = jax.tree.map(_as_one, types, sources)
        ct, ct_reset = state

        def run(dblocks, dxs):
            return parts.sources(dblocks, xs, dxs, before, gates)

        direct = (dblocks, None if wanted_xs is None else xs)
        if not jax.tree.leaves(direct):
            return (ct, ct_reset, ct_blocks), None
        part, ct_xs = jax.linear_transpose(run, *direct)(sources)
        ct_blocks = jax.tree.map(lambda a, b: a + b.astype(a.dtype), ct_blocks, part)
        return (ct, ct_reset, ct_blocks), ct_xs

    chunk = jax.checkpoint(chunk, prevent_cse=False)
    streams = (Start(), xs, carries, gates, outputs, fresh, keep)
    ct_reset = None
    if jax.tree.leaves(wanted_reset):
        ct_reset = jax.tree.map(jnp.zeros_like, carry)
    sums = jax.tree.map(lambda a: jnp.zeros_like(a, accumulator(a.dtype)), dblocks)
    stretch = backward_stretch(plan, cell, params, xs)
    state, ct_xs = scan_chunks(chunk, (last, ct_reset, sums), streams, stretch, not reverse)
    ct, ct_reset, sums = state
    ct_params = wanted_params
    if jax.tree.leaves(wanted_params):
        ct_blocks = jax.tree.map(lambda a, b: a.astype(b.dtype), sums, dblocks)
        run = partial(_blocks, cell, levels)
        (ct_params,) = jax.linear_transpose(run, wanted_params)(ct_blocks)
    return ct_params, ct_xs, among(wanted_carry, ct), among(wanted_reset, ct_reset)


def known(*sizes: Any) -> bool:
    """Whether sizes are numbers. Symbolic sizes of `jax.export` cannot choose a plan."""
    return not any(map(is_symbolic_dim, sizes))


def _for_cpu(plan: Plan) -> bool:
    """Whether to choose shapes of arrays for which the compiler for CPUs generates less code."""
    return plan.merged and not plan.packed


def _short(plan: Plan, cell: Cell, params: Any, xs: Array) -> bool:
    if not known(*xs.shape):
        return False
    projections = math.prod(xs.shape[:-1]) * cell.gates * cell.sizes(params)[1]
    return projections * jnp.dtype(accumulator(xs.dtype)).itemsize <= plan.hoisted


def backward_stretch(plan: Plan, cell: Cell, params: Any, xs: Array) -> int:
    """The number of steps in a stretch of the backward pass."""
    if _short(plan, cell, params, xs):
        return xs.shape[0]
    return chunk_size(xs, max(plan.rows, plan.backward // cell.sizes(params)[1]))


def _scan(plan: Plan, body: Any, carry: Any, xs: Any, reverse: bool) -> tuple[Any, Any]:
    steps = jax.tree.leaves(xs)[0].shape[0]
    turn = _divisor(steps, max(1, min(steps, plan.unroll))) if known(steps) else 1
    if turn == 1:
        return lax.scan(body, carry, xs, reverse=reverse)
    return scan_unrolled(body, carry, xs, turn, reverse)


def _by_rows(body: Callable[[Any, Any], Any], arrays: Any, flags: Any) -> tuple[Any, Any]:
    """(body, xs) of a scan that reads arrays `[T, *N, H]` as rows `[T * N, H]`.

    The products over a stretch take such rows. If the scan took arrays with more axes, the program
    for a CPU would have two kernels for the same numbers, one for each shape. It would also have
    two to transpose an array, and not one. All of them take long to compile.
    """
    steps, *batch, _ = jax.tree.leaves(arrays)[0].shape
    count = math.prod(batch)
    rows = jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), arrays)

    def step(carry, inputs):
        end, flags = inputs
        start = end - count

        def at(a):
            return stretch_at(a, start, count).reshape(*batch, a.shape[-1])

        return body(carry, (*jax.tree.map(at, rows), *flags))

    # The ends of the steps are a constant, so no kernel computes them. The starts would begin with
    # zero, and XLA would replace them by an iota, which a kernel computes.
    ends = np.arange(1, steps + 1, dtype=np.int32) * count
    return step, (ends, flags)


def _launch(
    plan: Plan,
    levels: int,
    step: Callable[..., tuple[Any, Any]],
    weights: tuple[Array, ...],
    transposed: bool,
    constants: Any,
    carry: Any,
    xs: Any,
    reverse: bool,
) -> tuple[Any, Any]:
    """Run the loop over a stretch of time in one launch, by the kernel of the plan."""
    batch = jax.tree.leaves(carry)[0].shape[:-1]
    sizes = (*batch, *(a.shape[0] for a in jax.tree.leaves(xs)))
    if levels or not weights or not known(*sizes):
        raise Declined
    kernel = plan.kernel()
    count = math.prod(batch)

    def merged(a, axis):
        shape = (*batch, a.shape[-1])
        if axis is None:
            return jnp.broadcast_to(a, shape).reshape(count, -1)
        return a.reshape(a.shape[0], count, *a.shape[1 + len(batch) :])

    def matrix(w):
        gates = w.reshape(w.shape[0], -1, w.shape[0])
        return gates.transpose(1, 0, 2)[None] if transposed else gates.transpose(1, 2, 0)[:, None]

    still = jax.tree.map(partial(merged, axis=None), (constants, carry))
    moving = jax.tree.map(partial(merged, axis=0), xs)
    if plan.divided:
        if len(batch) > 1:  # they are merged below, though they may lie on several mesh axes
            raise Declined
        kernel = divided(kernel)
    last, ys = kernel(step, tuple(map(matrix, weights)), *still, moving, reverse)
    last = jax.tree.map(lambda a, b: a.reshape(b.shape).astype(b.dtype), last, carry)
    ys = jax.tree.map(lambda a: a.reshape(a.shape[0], *batch, a.shape[-1]), ys)
    return last, ys


def _as_gates(block: Array, size: int, packed: Array) -> Any:
    """The blocks of a kernel, one per gate, for an array with the gates side by side."""
    count = packed.shape[-1] // size
    return block if count == 1 else (block,) * count


def _as_one(like: Array, gates: Any) -> Array:
    """The inverse of `_as_gates`, for results."""
    one = jnp.concatenate(gates, axis=-1) if isinstance(gates, tuple) else gates
    return one.astype(like.dtype)


def _blocks(cell: Cell, levels: int, params: Any) -> Any:
    """The blocks of params with several levels, or of their tangents."""
    return (_lift(cell.blocks, levels, 0) if jax.tree.leaves(params) else cell.blocks)(params)


class _Derivative(NamedTuple):
    """The parts of the derivative of a cell with known weights."""

    gates: Callable[..., Any]
    """(xs, carries before, carries after) -> gates of a stretch of time."""
    sources: Callable[..., Any]
    """(dblocks, xs, dxs, before, gates) -> sources of a stretch of time."""
    tangent: Callable[..., Any]
    """(before, gates, dcarry, sources) -> the next dcarry, for one step."""


def _derivative(plan: Plan, cell: Cell, levels: int, params: Any) -> _Derivative:
    size = cell.sizes(params)[1]
    blocks = operands(cell, _blocks(cell, levels, params))
    transposed = size < plan.wide_tangent
    product = matmul_transposed if transposed else matmul
    weights = tuple(_transposed(w) if transposed else w for w in blocks.w_hh)

    def gates(blocks, xs, before, after):
        if cell.carried is not None:
            return cell.carried(after)
        return advance(cell, blocks, before, xs)[1]

    def sources(blocks, dblocks, xs, dxs, before, gates):
        shape = xs.shape[:-1]
        if plan.merged:
            # The transpose of a product over two axes, time and batch, takes six times as long on a
            # CPU. On several devices, however, merged axes would have to be gathered.
            flat = partial(jax.tree.map, lambda a: a.reshape(-1, a.shape[-1]))
            xs, dxs, before, gates = flat((xs, dxs, before, gates))
        dx = total(None, (dxs, blocks.w_ih), (xs, dblocks.w_ih))
        if dx is None:
            none = jnp.zeros_like(xs[..., :1], accumulator(xs.dtype))
            dx = jnp.broadcast_to(none, (*xs.shape[:-1], cell.gates * size))
        dx = total(dx, dblocks.b)
        found = cell.sources(dblocks, dx, before, _widened(gates))
        return (
            jax.tree.map(lambda a: a.reshape(*shape, a.shape[-1]), found) if plan.merged else found
        )

    def tangent(weights, before, gates, dcarry, sources):
        coefficients = cell.coefficients(before, _widened(gates))
        return cell.tangent(products(weights, product), coefficients, dcarry, sources)

    gates = partial(_lift(gates, levels, (0, 1, 1, 1), 1), blocks)
    sources = partial(_lift(sources, levels, (0, 0, 1, 1, 1, 1), 1), blocks)
    return _Derivative(gates, sources, partial(_lift(tangent, levels, 0), weights))


def _transposed(w: Array) -> Array:
    """The transpose of `[..., H, G * H]`.

    XLA needs one kernel for it if the axes are split, and two if they are not.
    """
    *levels, size, width = w.shape
    gates = w.reshape(*levels, size, width // size, size)
    return jnp.moveaxis(gates, -3, -1).reshape(*levels, width, size)


def _narrowed(xs: Array, gates: Any) -> Any:
    """The gates in the dtype of params, in which they are saved."""
    return jax.tree.map(lambda a: a.astype(xs.dtype), gates)


def _widened(gates: Any) -> Any:
    """The gates in at least float32, for computations."""
    return jax.tree.map(lambda a: a.astype(accumulator(a.dtype)), gates)


def _filled(tangent: Any, primal: Any) -> Any:
    """The tangent of a carry, with zeros in place of every None."""
    if tangent is None:
        tangent = jax.tree.map(lambda _: None, primal)
    return jax.tree.map(
        lambda p, t: jnp.zeros_like(p) if t is None else t,
        primal,
        tangent,
        is_leaf=lambda part: part is None,
    )


def among(wanted: Any, values: Any) -> Any:
    """The values, with None wherever wanted has None."""
    if not jax.tree.leaves(wanted):
        return wanted
    return jax.tree.map(
        lambda w, v: None if w is None else v, wanted, values, is_leaf=lambda part: part is None
    )


def _lift(function: Callable[..., Any], levels: int, in_axes: Any, out_axes: int = 0):
    """Map `function` over the axes of networks, which come first, or right after time."""
    for _ in range(levels):
        function = jax.vmap(function, in_axes=in_axes, out_axes=out_axes)
    return function


def _select(flags: Array | None, a: Any, b: Any) -> Any:
    """Select a where the flags `[...]` are set, and b `[..., H]` elsewhere or without flags."""
    if flags is None:
        return b

    def pick(a, b):
        marked = flags if flags.ndim == b.ndim else flags[..., None]
        return jnp.where(marked, jnp.broadcast_to(a, b.shape), b)

    return jax.tree.map(pick, a, b)


def _previous(
    plan: Plan, reverse: bool, start: Any, carry: Carry, carries: Carry, after: Carry
) -> Carry:
    """The carry before each step of a stretch, from the carries of all time and of the stretch."""
    at = start + jax.tree.leaves(after)[0].shape[0] if reverse else start - 1

    def shift(carry, carries, after):
        outside = at == carries.shape[0] if reverse else at < 0
        first = lax.dynamic_index_in_dim(carries, at, keepdims=False, allow_negative_indices=False)
        return _shifted(plan, reverse, jnp.where(outside, carry, first), after)

    return jax.tree.map(shift, carry, carries, after)


def _shifted(plan: Plan, reverse: bool, first: Array, after: Array) -> Array:
    """The value before each step: the first, then the values after each step but the last."""
    parts = (after[1:], first[None]) if reverse else (first[None], after[:-1])
    if _for_cpu(plan) and known(*after.shape):  # XLA generates a fifth as much code for vectors
        parts = tuple(part.ravel() for part in parts)
    return jnp.concatenate(parts).reshape(after.shape)
