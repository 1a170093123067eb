"""A loop over time in one launch, for NVIDIA GPUs of the Hopper generation.

The kernel runs any step whose only operations between units are products with fixed matrices: a
cell's step, and the transpose of its tangent. The weights stay in shared memory for the whole
sequence, divided by units among the CTAs of a cluster. A CTA has 64 units, the rows of a product on
the tensor cores, and 16 examples, its columns. Before a product every CTA writes its rows of the
operand to the shared memory of all CTAs of the cluster, and waits for theirs.

Operands of products are float16, which has the mantissa of TF32, but not its range. So every CTA
divides its rows of each column by a power of two, which it sends with them. Each block of 64 rows
has its own sum in the product. Nothing overflows, and a column of tiny numbers keeps its precision.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import Literal

from jaxgru.backends import cluster
from jaxgru.backends.flat_step import flatten
from jaxgru.backends.plan import Declined
from jaxgru.jaxprs import called
from jaxgru.mesh import varying

pgpu: Any = plgpu
UNITS = 64  # units of one CTA: the rows of a product on the tensor cores
TILE = 16  # examples of one cluster. With 16 bits each they fill the narrowest swizzle, 32 bytes.
CLUSTER = 8  # the most CTAs in a cluster
CTAS = 264  # the most CTAs that were timed: two for each multiprocessor of an H100
SHARED = 232_448  # bytes of shared memory that a CTA may have
AHEAD = (3, 2)  # numbers of steps whose inputs are loaded ahead, tried in this order
BLOCK = jax.ShapeDtypeStruct((UNITS, TILE), jnp.float32)
_AGREE = 4 * TILE  # words that the four warps of a CTA use for reductions
_SCRATCH = 1024  # bytes that Pallas needs for reductions
_BARRIERS = 8 * 6  # bytes of the barriers that Pallas makes

_LAYOUT = pgpu.Layout.WGMMA
_HALF = jnp.float16
_EXPONENT = 0xFF << 23  # the bits of the exponent in a float32
_LARGE = 2.0**14  # numbers are scaled to at most twice this, in float16
#: The index of a load. Newer releases of jax do not take it.
_WHOLE = ((),) if jax.__version_info__ < (0, 12) else ()


class Sizes(NamedTuple):
    """The sizes of a kernel, which determine how much shared memory it takes."""

    rows: int
    """H, a multiple of UNITS."""
    products: tuple[tuple[int, int], ...]
    """(number of results, number of operands) of each product."""
    streams: int
    """The number of arrays that are read at every step."""
    marks: int
    """The number of flags that are read at every step."""
    outputs: int
    """The number of arrays that are written at once."""

    def powers(self) -> int:
        """The index of the first power of two, after the barriers and the words for reductions."""
        return 4 * len(self.products) + _AGREE

    def words(self) -> int:
        """The 32-bit words for barriers, reductions, and the powers of two of all operands."""
        return self.powers() + len(self.products) * 2 * TILE * (self.rows // UNITS)

    def ahead(self) -> int:
        """The number of steps whose inputs fit into shared memory. 0 if the kernel does not fit."""
        block = 4 * UNITS * TILE
        weights = sum(to * of for to, of in self.products) * 2 * UNITS * self.rows
        operands = sum(of for _, of in self.products) * 2 * 2 * self.rows * TILE
        fixed = weights + operands + 2 * self.outputs * block + _aligned(4 * self.words())
        fixed += _SCRATCH if self.rows == UNITS else 0
        sizes = ((k, k * self.streams * block + _aligned(k * self.marks * 4 * TILE)) for k in AHEAD)
        fits = (k for k, size in sizes if fixed + size + _BARRIERS <= SHARED)
        return next(fits, 0) if self.rows <= CLUSTER * UNITS else 0


def scan(
    step: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    weights: tuple[Array, ...],
    constants: Any,
    carry: Any,
    xs: Any,
    reverse: bool,
) -> tuple[Any, Any]:
    """Run `lax.scan` over step(products, constants, carry, x) -> (carry, y), in float32.

    weights are `[to, from, H, H]`, rows first. products has one function for each of them. It takes
    `from` arrays and returns `to` arrays. constants and carries are `[B, H]`, streams of xs and ys
    `[T, B, H]`, flags among xs `[T, B]`.

    Raises:
        Declined: the weights are float64, or do not fit into shared memory; the batch is larger
            than any that was timed; or the call is inside a `jax.shard_map` that checks which
            arrays vary over devices. Pallas gives no such types to its buffers.
    """
    leaves = jax.tree.leaves(xs)
    if weights[0].dtype == jnp.float64 or varying(leaves[0]):
        raise Declined
    marked = [leaf.dtype == bool for leaf in leaves]
    batch, size = jax.tree.leaves(carry)[0].shape
    rows, columns = pl.cdiv(size, UNITS) * UNITS, pl.cdiv(batch, TILE) * TILE
    if rows // UNITS * (columns // TILE) > CTAS:
        raise Declined
    products: Any = tuple(w.shape[:2] for w in weights)
    flat = flatten(step, products, constants, carry, xs, BLOCK.shape)
    count_carry, count_y = flat.carry.num_leaves, flat.y.num_leaves
    sizes = Sizes(
        rows,
        products,
        len(marked) - sum(marked),
        sum(marked),
        max(count_y, count_carry),
    )
    ahead = min(sizes.ahead(), leaves[0].shape[0])
    if not ahead:
        raise Declined

    def units_first(values):
        """Convert arrays `[..., B, H]` to `[..., n, rows, columns]`.

        This function first joins gates that were split from one array. The compiler removes both
        the split and the join, so one kernel transposes all gates.
        """
        flat = jnp.concatenate([a.astype(jnp.float32) for a in values], axis=-1).swapaxes(-1, -2)
        units = flat.reshape(*flat.shape[:-2], -1, size, batch)
        ends = [(0, rows - size), (0, columns - batch)]
        return jnp.pad(units, [(0, 0)] * (units.ndim - 2) + ends)

    def rows_first(a, structure):
        values = jnp.moveaxis(a[..., :size, :batch].swapaxes(-1, -2), -3, 0)
        return jax.tree.unflatten(structure, list(values))

    pairs = list(zip(leaves, marked, strict=True))
    streams = units_first([a for a, mark in pairs if not mark])
    flags = [
        jnp.pad(a.astype(jnp.float32), [(0, 0), (0, columns - batch)]) for a, mark in pairs if mark
    ]
    marks = [jnp.stack(flags, axis=1)] if flags else []
    fixed = units_first(jax.tree.leaves((constants, carry)))
    matrices, powers = zip(*(_matrices(w, rows) for w in weights), strict=True)

    steps = leaves[0].shape[0]
    body = partial(_body, flat.run, sizes, marked, ahead, steps, flat.constants.num_leaves, reverse)
    shapes = [(steps, count_y, rows, columns), (count_carry, rows, columns)]
    ys, last = _kernel(body, sizes, ahead, shapes, columns)(
        streams, marks, fixed, matrices, jnp.stack(powers)
    )
    return rows_first(last, flat.carry), rows_first(ys, flat.y)


def _kernel(body, sizes, ahead, shapes, columns):
    """Make the body a function of (streams, marks, fixed, matrices, powers)."""
    count = sizes.rows // UNITS
    together: dict[str, Any] = {}
    meet = pgpu.Barrier
    if count > 1:
        together = {"cluster": (count,), "cluster_names": ("c",)}
        meet = partial(pgpu.ClusterBarrier, collective_axes=("c",))
    some = [None] * bool(sizes.marks)
    form = _form()
    products = sizes.products
    scratch = {
        "ring": pgpu.SMEM((ahead, sizes.streams, UNITS, TILE), jnp.float32),
        "ring_marks": [pgpu.SMEM((ahead, sizes.marks, TILE), jnp.float32) for _ in some],
        "ready": pgpu.Barrier(num_arrivals=1 + len(some), num_barriers=ahead),
        "buffer": pgpu.SMEM((2, sizes.outputs, UNITS, TILE), jnp.float32),
        "held": [
            pgpu.SMEM((to * of, UNITS, sizes.rows), _HALF, transforms=form) for to, of in products
        ],
        "loaded": pgpu.Barrier(num_arrivals=len(products)),
        "operands": [
            pgpu.SMEM((2, of * sizes.rows, TILE), _HALF, transforms=form) for _, of in products
        ],
        "words": pgpu.SMEM((sizes.words(),), jnp.int32),
        "ends": meet(),
    }
    leaves, tree = jax.tree.flatten(
        scratch, is_leaf=lambda part: not isinstance(part, (dict, list))
    )

    def run(*inputs):
        given, structure = jax.tree.flatten(inputs)

        def flat(*refs):
            (refs, outs, kept) = (
                refs[: len(given)],
                refs[len(given) : -len(leaves)],
                refs[-len(leaves) :],
            )
            body(jax.tree.unflatten(structure, refs), outs, jax.tree.unflatten(tree, kept))

        return pgpu.kernel(
            flat,
            out_type=tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
            grid=(columns // TILE,),
            grid_names=("b",),
            **together,
            num_threads=1,
            thread_name="warpgroup",
            scratch_types=leaves,
            compiler_params=pgpu.CompilerParams(
                approx_math=True,
                lowering_semantics=pgpu.LoweringSemantics.Lane,
                reduction_scratch_bytes=_SCRATCH if count == 1 else 0,
                unsafe_no_auto_barriers=True,
            ),
        )(*given)

    return run


def _body(run, sizes, marked, ahead, steps, count_fixed, reverse, inputs, outs, scratch):
    """The program of a CTA. It computes its units of its examples for all time steps."""
    (streams, marks, fixed, matrices, powers), (ys, last) = inputs, outs
    ring, ready, buffer = scratch["ring"], scratch["ready"], scratch["buffer"]
    count, count_y = sizes.rows // UNITS, ys.shape[1]
    cta = lax.axis_index("c") if count > 1 else 0
    mine, tile = pl.ds(cta * UNITS, UNITS), pl.ds(lax.axis_index("b") * TILE, TILE)

    def at(t):
        return steps - 1 - t if reverse else t

    def meet():
        if count > 1:
            pgpu.barrier_arrive(scratch["ends"])
            pgpu.barrier_wait(scratch["ends"])

    def fetch(t, k):
        pgpu.copy_gmem_to_smem(streams.at[at(t), :, mine, tile], ring.at[k], ready.at[k])
        for ref, place in zip(marks, scratch["ring_marks"], strict=True):
            pgpu.copy_gmem_to_smem(ref.at[at(t), :, tile], place.at[k], ready.at[k])

    def keep(values, slot):
        for j, value in enumerate(values):
            buffer[slot, j] = value

    def write(count, slot, ref):
        pgpu.copy_smem_to_gmem(buffer.at[slot, pl.ds(0, count)], ref)

    def turn(t, state):
        slot, k = lax.rem(t, 2), lax.rem(t, ahead)
        pgpu.barrier_wait(ready.at[k])
        blocks = iter([_block(ring.at[k, j]) for j in range(sizes.streams)])
        flags = iter([_flags(scratch["ring_marks"][0].at[k, j]) for j in range(sizes.marks)])
        x = [next(flags) if mark else next(blocks) for mark in marked]

        def meanwhile():
            _if_positive(t, lambda: write(count_y, 1 - slot, ys.at[at(t - 1), :, mine, tile]))
            pgpu.wait_smem_to_gmem(1, wait_read_only=True)
            _if_positive(steps - ahead - t, lambda: fetch(t + ahead, k))

        waiting = [meanwhile]
        refs = (scratch[name] for name in ("held", "operands"))
        products = tuple(
            partial(_product, sizes.powers(), cta, count, t, waiting, scratch["words"], *of)
            for of in zip(range(len(scales)), sizes.products, scales, *refs, strict=True)
        )
        state, y = _simplified(partial(run, products))(start, state, x)
        keep(y, slot)
        return tuple(state)

    for w, place in zip(matrices, scratch["held"], strict=True):
        pgpu.copy_gmem_to_smem(w.at[:, mine], place, scratch["loaded"])
    for t in range(ahead):
        fetch(t, t)
    pgpu.barrier_wait(scratch["loaded"])
    known = [_block(fixed.at[j, mine, tile]) for j in range(fixed.shape[0])]
    start, state = known[:count_fixed], known[count_fixed:]
    scales = [powers[j] * _LARGE**-2 for j in range(len(sizes.products))]
    if count > 1:
        cluster.start(scratch["words"], 2 * len(scales))
    meet()  # no CTA may write to one that has not begun
    state = lax.fori_loop(0, steps, turn, tuple(state))
    pgpu.commit_smem()
    write(count_y, (steps - 1) % 2, ys.at[at(steps - 1), :, mine, tile])
    pgpu.wait_smem_to_gmem(0)
    keep(state, 0)
    pgpu.commit_smem()
    write(len(state), 0, last.at[:, mine, tile])
    pgpu.wait_smem_to_gmem(0)
    meet()  # no CTA may write to one that has ended


def _product(start, cta, count, t, waiting, words, index, shape, scale, held, operands, *values):
    """The products of the matrices with values. Every CTA sends one block of the values.

    The functions in waiting run once, during the transfer of the blocks.
    """
    to, of = shape
    slot = lax.rem(t, 2)
    barrier = 2 * index + slot

    def power(c):
        return words.at[pl.ds(start + (barrier * count + c) * TILE, TILE)]

    bits = reduce(jnp.maximum, [_exponent(value) for value in values])
    if count > 1:
        most = cluster.largest(bits, words.at[pl.ds(start - _AGREE, _AGREE)])
    else:
        most = jnp.max(bits, axis=0)
    most, inverse = _within(most)
    inverse = _column(inverse)
    pieces = [(value * inverse * _LARGE).astype(_HALF) for value in values]
    places = [operands.at[slot, pl.ds((j * count + cta) * UNITS, UNITS)] for j in range(of)]
    blocks = list(zip(pieces, places, strict=True))
    if count > 1:
        cluster.send(words, barrier, count, (most, power(cta)), blocks, _form())
    else:
        for value, ref in [(most, power(cta)), *blocks]:
            ref[...] = value
        pgpu.commit_smem()
    while waiting:
        waiting.pop()()
    if count > 1:
        cluster.wait(words, barrier, lax.div(t, 2))

    def multiply(*sums):
        for o, c in pairs:
            for j in range(of):
                w = held.at[o * of + j, :, pl.ds(c * UNITS, UNITS)]
                x = operands.at[slot, pl.ds((j * count + c) * UNITS, UNITS)]
                pgpu.wgmma(sums[o * count + c], w, x)
        return tuple(total[...] for total in sums)

    pairs = [(o, c) for o in range(to) for c in range(count)]
    sums = pl.run_scoped(multiply, *[pgpu.ACC(BLOCK.shape, jnp.float32)] * len(pairs))
    found: list[Any] = [None] * to
    factors = [_column(_float(_row(power(c)))) for c in range(count)]
    for (o, c), total in zip(pairs, sums, strict=True):
        part = total * scale * factors[c]
        found[o] = part if found[o] is None else found[o] + part
    return tuple(found)


def _if_positive(number, run):
    """Run a function if an integer is positive.

    `lax.switch` clamps the number to 0 or 1. `pl.when` would convert a bool to the index of a
    branch, and jax before 0.12 starts a process for this, which prints the version of ptxas.
    """
    lax.switch(number, (lambda: None, run))


def _exponent(value):
    """The bits of the largest power of two that is at most |value|."""
    return lax.bitcast_convert_type(value, jnp.int32) & _EXPONENT


def _within(bits):
    """The bits of the power of two, clipped so that its inverse is finite, and of the inverse."""
    bits = jnp.minimum(jnp.maximum(bits, 1 << 23), 253 << 23)
    return bits, _float((254 << 23) - bits)


def _float(bits):
    return lax.bitcast_convert_type(bits, jnp.float32)


def _aligned(size):
    return pl.cdiv(size, 1024) * 1024


def _simplified(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replace some operations that the kernel compiler does not support.

    An ordinary addition replaces JAX's addition of cotangents. Trivial reshapes are removed, and
    calls of functions such as `jax.nn.relu` are replaced by what they call.
    """

    def run(*arguments):
        leaves, tree = jax.tree.flatten(arguments)

        def flat(*leaves):
            return function(*jax.tree.unflatten(tree, leaves))

        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), _run(closed, leaves))

    return run


def _run(closed, leaves):
    jaxpr = closed.jaxpr
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *leaves], strict=True))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        primitive, values = equation.primitive, list(map(read, equation.invars))
        inner = called(equation)
        if inner is not None:
            found = _run(inner, values)
        elif primitive.name == "add_any":
            found = [lax.add(*values)]
        elif primitive.name == "reshape" and equation.outvars[0].aval.shape == values[0].shape:
            found = values
        else:
            found = primitive.bind(*values, **primitive.get_bind_params(equation.params))
            found = found if primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return list(map(read, jaxpr.outvars))


def _form():
    """The layout of operands in shared memory."""
    swizzle = pgpu.find_swizzle(TILE * 16)
    return (pgpu.TilingTransform((8, swizzle // 2)), pgpu.SwizzleTransform(swizzle))


def _block(ref):
    return pgpu.load(ref, *_WHOLE, layout=_LAYOUT, optimized=False)


def _row(ref):
    return pgpu.load(ref, *_WHOLE, layout=_LAYOUT.reduce(0), optimized=False)


def _column(row):
    return lax.broadcast_in_dim(row, BLOCK.shape, (1,))


def _flags(ref):
    return _column(_row(ref)) > 0


def _matrices(w: Array, rows: int) -> tuple[Array, Array]:
    """Matrices `[to * from, rows, rows]` in float16, and the power of two that divides them."""
    end = (0, rows - w.shape[-1])
    w = jnp.pad(w.astype(jnp.float32), [(0, 0), (0, 0), end, end]).reshape(-1, rows, rows)
    # They are clipped before the maximum, so XLA launches nothing between it and the kernel.
    power = jnp.max(_float(_within(_exponent(w))[0]))
    inverse = _within(_exponent(power))[1]
    return (w * inverse * _LARGE).astype(_HALF), power
