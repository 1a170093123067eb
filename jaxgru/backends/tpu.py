"""A loop over time in one launch, for TPUs.

The kernel runs any step whose only operations between units are products with fixed matrices: a
cell's step, and the transpose of its tangent. The weights and the carry stay in the TPU's fast
memory, VMEM, for the whole sequence. Time is the sequential axis of the grid: blocks of time steps
stream through VMEM, and the kernel loads the next block while it works on one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxgru.backends.flat_step import flatten
from jaxgru.backends.plan import Declined

VMEM = 12 * 2**20  # bytes for the arrays in `Sizes`. A kernel may use 16 MiB.
FEW, STEPS = 2, 64  # the least (if the sequence has so many) and the most time steps of a block
LANES, SUBLANES = 128, 16  # the last two axes of an array in VMEM are padded to multiples of these
UNROLLED = (4, 2, 1)


class Sizes(NamedTuple):
    """The sizes of a kernel, which determine how much VMEM it takes."""

    units: int
    """H."""
    weights: int
    """The number of bytes of all weights."""
    fixed: int
    """The number of arrays `[B, H]` read or written once: constants, and the carry twice."""
    moving: int
    """The number of arrays `[B, H]` that are read or written at every step."""
    marks: int
    """The number of flags `[B]` that are read at every step."""

    def block(self, batch: int, steps: int) -> tuple[int, int, int] | None:
        """Return (examples, time steps, unrolled time steps) of a block, or None if no block fits.

        The number of examples is the batch or a multiple of SUBLANES. The number of unrolled steps
        divides that of a block and that of the sequence.
        """
        for parts in range(1, pl.cdiv(batch, SUBLANES) + 1):
            padded = pl.cdiv(pl.cdiv(batch, parts), SUBLANES) * SUBLANES
            examples = batch if parts == 1 else padded
            row = 4 * padded * LANES
            wide = row * pl.cdiv(self.units, LANES)
            # VMEM holds all arrays except the weights twice, since one block is copied while the
            # kernel works on another.
            left = VMEM - self.weights - 2 * self.fixed * wide
            most = min(left // (2 * (self.moving * wide + self.marks * row)), STEPS, steps)
            if most >= min(steps, FEW):
                unrolled = next(k for k in UNROLLED if k <= most and steps % k == 0)
                return examples, most - most % unrolled, unrolled
        return None


def scan(
    step: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    weights: tuple[Array, ...],
    constants: Any,
    carry: Any,
    xs: Any,
    reverse: bool,
    exact: bool = False,
) -> tuple[Any, Any]:
    """Run `lax.scan` over step(products, constants, carry, x) -> (carry, y), in float32.

    weights are `[to, from, H, H]`, rows first. products has one function for each of them. It takes
    `from` arrays and returns `to` arrays. constants and carries are `[B, H]`, streams of xs and ys
    `[T, B, H]`, flags among xs `[T, B]`. The operands of products are bfloat16, XLA's default on a
    TPU. They are float32 if exact is True or the weights are float16.

    Raises:
        Declined: the weights are float64, or do not fit into VMEM.
    """
    if weights[0].dtype == jnp.float64:
        raise Declined
    leaves = jax.tree.leaves(xs)
    marked = [leaf.dtype == bool for leaf in leaves]
    streams = [_readable(a[..., None] if a.dtype == bool else a) for a in leaves]
    steps, (batch, size) = leaves[0].shape[0], jax.tree.leaves(carry)[0].shape
    kind = jnp.float32 if exact or weights[0].dtype == jnp.float16 else jnp.bfloat16
    matrices = [w.swapaxes(-1, -2).astype(kind) for w in weights]
    products: Any = tuple(w.shape[:2] for w in weights)
    flat = flatten(step, products, constants, carry, xs, (SUBLANES, size))
    count_carry, count_y = flat.carry.num_leaves, flat.y.num_leaves
    fixed = list(map(_readable, jax.tree.leaves((constants, carry))))
    sizes = Sizes(
        size,
        sum(w.size * w.dtype.itemsize for w in matrices),
        len(fixed) + count_carry,
        len(leaves) - sum(marked) + count_y,
        sum(marked),
    )
    block = sizes.block(batch, steps)
    if block is None:
        raise Declined
    examples, stretch, unrolled = block
    parts, count = pl.cdiv(batch, examples), pl.cdiv(steps, stretch)

    def place(t):
        return count - 1 - t if reverse else t

    def moving(a):
        return pl.BlockSpec((stretch, examples, a.shape[-1]), lambda b, t: (place(t), b, 0))

    def still(a):
        return pl.BlockSpec((examples, a.shape[-1]), lambda b, t: (b, 0))

    def whole(a):
        where = lambda b, t: (0,) * a.ndim  # noqa: E731
        return pl.BlockSpec(a.shape, where, pipeline_mode=pl.Buffered(1))

    def types_of(a):  # they vary over the same mesh axes as the carry
        a = a.astype(jnp.float32)
        return [jnp.broadcast_to(a, (steps, *a.shape))] * count_y, [a] * count_carry

    ys, last = jax.eval_shape(types_of, fixed[-1])
    body = partial(_body, flat.run, marked, (steps, stretch, unrolled), count_carry, reverse)
    inputs = (streams, fixed, matrices)
    found_ys, found_last = pl.pallas_call(
        body,
        name=f"jaxgru_{parts}_parts_{unrolled}_steps",  # benchmarks/ahead.py looks for this name
        grid=(parts, count),
        in_specs=[
            list(map(f, part)) for f, part in zip((moving, still, whole), inputs, strict=True)
        ],
        out_specs=[list(map(moving, ys)), list(map(still, last))],
        out_shape=[ys, last],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )(*inputs)
    return jax.tree.unflatten(flat.carry, found_last), jax.tree.unflatten(flat.y, found_ys)


def _body(run, marked, sizes, count_carry, reverse, streams, fixed, matrices, ys, last):
    """The program for one block of examples and one block of time steps."""
    steps, stretch, unrolled = sizes
    block = pl.program_id(1)
    start, first = fixed[:-count_carry], fixed[-count_carry:]

    @pl.when(block == 0)
    def _():
        for ref, value in zip(last, first, strict=True):
            ref[...] = value[...].astype(jnp.float32)

    begin = (pl.num_programs(1) - 1 - block if reverse else block) * stretch
    count = jnp.minimum(stretch, steps - begin)
    shape = last[0].shape
    products = tuple(partial(_product, w) for w in matrices)

    def read(ref, t, mark):
        value = ref[t]
        return jnp.broadcast_to(value, shape) > 0 if mark else value.astype(jnp.float32)

    def turn(j, state):
        for k in range(unrolled):
            t = j * unrolled + k
            t = count - 1 - t if reverse else t
            x = [read(ref, t, mark) for ref, mark in zip(streams, marked, strict=True)]
            known = [ref[...].astype(jnp.float32) for ref in start]
            state, y = run(products, known, state, x)
            for ref, value in zip(ys, y, strict=True):
                ref[t] = value
        return tuple(state)

    state = lax.fori_loop(0, count // unrolled, turn, tuple(ref[...] for ref in last))
    for ref, value in zip(last, state, strict=True):
        ref[...] = value


def _product(matrices, *values):
    """The products of the matrices with values, one array for each result."""
    to, of = matrices.shape[:2]
    kind = matrices.dtype
    precision = lax.Precision.HIGHEST if kind == jnp.float32 else lax.Precision.DEFAULT
    narrow = [value.astype(kind) for value in values]

    def multiply(o, j):
        return lax.dot(
            narrow[j], matrices[o, j], precision=precision, preferred_element_type=jnp.float32
        )

    return tuple(sum(multiply(o, j) for j in range(of)) for o in range(to))


def _readable(a: Array) -> Array:
    """Convert an array to a dtype that a kernel for TPUs can load."""
    return a if a.dtype in (jnp.float32, jnp.bfloat16) else a.astype(jnp.float32)
