"""A loop over time in one launch, for NVIDIA GPUs of the Hopper generation.

Any step runs here whose only operations between units are products with fixed matrices: a cell's
step, and the transpose of its tangent. The weights lie in shared memory for the whole sequence, cut
over the units of a cluster of CTAs. A CTA has 64 units, the rows of a product on the tensor cores,
and 16 examples, its columns. Before a product every CTA writes its rows of the operand to the
shared memory of all CTAs of the cluster, and a barrier over the cluster ends the exchange.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import Literal

from jaxgru.backends.flat_step import flatten
from jaxgru.backends.plan import Declined
from jaxgru.mesh import varying

pgpu: Any = plgpu
UNITS = 64  # of one CTA: the rows of a product on the tensor cores
TILE = 16  # examples of one cluster: in 16 bits the narrowest swizzle, 32 bytes
CLUSTER = 8  # CTAs of a cluster, at most
SHARED = 232_448  # bytes of shared memory that a CTA may have
AHEAD = (3, 2)  # of how many steps the inputs are on their way
BLOCK = jax.ShapeDtypeStruct((UNITS, TILE), jnp.float32)

_LAYOUT = pgpu.Layout.WGMMA
_HALF = jnp.bfloat16
#: The index of a load, which newer releases of jax do not take.
_WHOLE = ((),) if jax.__version_info__ < (0, 12) else ()


class Sizes(NamedTuple):
    """What a kernel is made of: enough to know how much shared memory it takes."""

    rows: int
    """H, a multiple of UNITS."""
    products: tuple[tuple[int, int], ...]
    """(how many matrices lead to, and from, something) of each product."""
    parts: int
    """In how many 16-bit numbers a float32 is split."""
    streams: int
    """Arrays that are read at every step."""
    marks: int
    """Flags that are read at every step."""
    outputs: int
    """Arrays that are written at once."""

    def ahead(self) -> int:
        """Of how many steps the inputs fit into shared memory; 0 if the kernel does not fit."""
        block = 4 * UNITS * TILE
        weights = sum(to * of for to, of in self.products) * 2 * self.parts * UNITS * self.rows
        operands = sum(of for _, of in self.products) * 2 * 2 * self.parts * self.rows * TILE
        fixed = weights + operands + 2 * self.outputs * block + 1024  # barriers
        step = self.streams * block + self.marks * 4 * TILE
        fits = (k for k in AHEAD if fixed + k * step <= SHARED)
        return next(fits, 0) if self.rows <= CLUSTER * UNITS else 0


def scan(
    step: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    weights: tuple[Array, ...],
    constants: Any,
    carry: Any,
    xs: Any,
    reverse: bool,
) -> tuple[Any, Any]:
    """As `lax.scan` over step(products, constants, carry, x) -> (carry, y), in float32.

    weights are `[to, from, H, H]`, rows first. products has a function for each: it takes as many
    arrays as the matrix has from, and returns as many as it has to. constants and carries are
    `[B, H]`, streams of xs and ys `[T, B, H]`, flags among xs `[T, B]`. The operands of products
    are float32 numbers split in two of bfloat16, or bfloat16 where the weights have 16 bits.

    Raises:
        Declined: the weights are float64, or do not fit into shared memory; or it is in a
            `jax.shard_map` that checks what varies, since Pallas does not say that of its buffers.
    """
    leaves = jax.tree.leaves(xs)
    if weights[0].dtype == jnp.float64 or varying(leaves[0]):
        raise Declined
    marked = [leaf.dtype == bool for leaf in leaves]
    batch, size = jax.tree.leaves(carry)[0].shape
    rows, columns = pl.cdiv(size, UNITS) * UNITS, pl.cdiv(batch, TILE) * TILE
    products: Any = tuple(w.shape[:2] for w in weights)
    flat = flatten(step, products, constants, carry, xs, BLOCK.shape)
    count_carry, count_y = flat.carry.num_leaves, flat.y.num_leaves
    sizes = Sizes(
        rows,
        products,
        2 if weights[0].dtype == jnp.float32 else 1,
        len(marked) - sum(marked),
        sum(marked),
        max(count_y, count_carry),
    )
    ahead = min(sizes.ahead(), leaves[0].shape[0])
    if not ahead:
        raise Declined

    def units_first(values):
        """`[..., B, H]` each -> `[..., n, rows, columns]`."""
        ends = [(0, rows - size), (0, columns - batch)]
        turned = [a.astype(jnp.float32).swapaxes(-1, -2) for a in values]
        return jnp.stack([jnp.pad(a, [(0, 0)] * (a.ndim - 2) + ends) for a in turned], axis=-3)

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
    matrices = [_matrices(w, rows, sizes.parts) for w in weights]

    steps = leaves[0].shape[0]
    body = partial(_body, flat.run, sizes, marked, ahead, steps, flat.constants.num_leaves, reverse)
    shapes = [(steps, count_y, rows, columns), (count_carry, rows, columns)]
    ys, last = _kernel(body, sizes, ahead, shapes, columns)(streams, marks, fixed, matrices)
    return rows_first(last, flat.carry), rows_first(ys, flat.y)


def _kernel(body, sizes, ahead, shapes, columns):
    """The body as a function of (streams, marks, fixed, matrices), a list of arrays or an array."""
    count = sizes.rows // UNITS
    swizzle = pgpu.find_swizzle(TILE * 16)
    form = (pgpu.TilingTransform((8, swizzle // 2)), pgpu.SwizzleTransform(swizzle))
    cluster: dict[str, Any] = {}
    meet = pgpu.Barrier
    if count > 1:
        cluster = {"cluster": (count,), "cluster_names": ("c",)}
        meet = partial(pgpu.ClusterBarrier, collective_axes=("c",))
    some = [None] * bool(sizes.marks)
    parts, products = sizes.parts, sizes.products
    scratch = {
        "ring": pgpu.SMEM((ahead, sizes.streams, UNITS, TILE), jnp.float32),
        "ring_marks": [pgpu.SMEM((ahead, sizes.marks, TILE), jnp.float32) for _ in some],
        "ready": pgpu.Barrier(num_arrivals=1 + len(some), num_barriers=ahead),
        "buffer": pgpu.SMEM((2, sizes.outputs, UNITS, TILE), jnp.float32),
        "held": [
            pgpu.SMEM((parts * to * of, UNITS, sizes.rows), _HALF, transforms=form)
            for to, of in products
        ],
        "loaded": pgpu.Barrier(num_arrivals=len(products)),
        "operands": [
            pgpu.SMEM((2, parts, of * sizes.rows, TILE), _HALF, transforms=form)
            for _, of in products
        ],
        "arrived": [meet(num_barriers=2) for _ in products],
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
            **cluster,
            num_threads=1,
            thread_name="warpgroup",
            scratch_types=leaves,
            compiler_params=pgpu.CompilerParams(
                approx_math=True, lowering_semantics=pgpu.LoweringSemantics.Lane
            ),
        )(*given)

    return run


def _body(run, sizes, marked, ahead, steps, count_fixed, reverse, inputs, outs, scratch):
    """What a CTA does: its units of its examples, through all of time."""
    (streams, marks, fixed, matrices), (ys, last) = inputs, outs
    ring, ready, buffer = scratch["ring"], scratch["ready"], scratch["buffer"]
    count = sizes.rows // UNITS
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

    def write(values, slot, ref):
        pgpu.wait_smem_to_gmem(1, wait_read_only=True)
        for j, value in enumerate(values):
            buffer[slot, j] = value
        pgpu.commit_smem()
        pgpu.copy_smem_to_gmem(buffer.at[slot, pl.ds(0, len(values))], ref)

    def turn(t, state):
        slot, k = lax.rem(t, 2), lax.rem(t, ahead)
        pgpu.barrier_wait(ready.at[k])
        blocks = iter([_block(ring.at[k, j]) for j in range(sizes.streams)])
        flags = iter([_flags(scratch["ring_marks"][0].at[k, j]) for j in range(sizes.marks)])
        x = [next(flags) if mark else next(blocks) for mark in marked]
        refs = (scratch[name] for name in ("held", "operands", "arrived"))
        products = tuple(
            partial(_product, sizes, cta, slot, *of)
            for of in zip(sizes.products, *refs, strict=True)
        )
        state, y = _simplified(partial(run, products))(start, state, x)
        write(y, slot, ys.at[at(t), :, mine, tile])
        pl.when(t + ahead < steps)(lambda: fetch(t + ahead, k))
        return tuple(state)

    for w, place in zip(matrices, scratch["held"], strict=True):
        pgpu.copy_gmem_to_smem(w.at[:, mine], place, scratch["loaded"])
    for t in range(ahead):
        fetch(t, t)
    pgpu.barrier_wait(scratch["loaded"])
    known = [_block(fixed.at[j, mine, tile]) for j in range(fixed.shape[0])]
    start, state = known[:count_fixed], known[count_fixed:]
    meet()  # nobody writes to a CTA that has not begun
    state = lax.fori_loop(0, steps, turn, tuple(state))
    pgpu.wait_smem_to_gmem(0)
    write(state, 0, last.at[:, mine, tile])
    pgpu.wait_smem_to_gmem(0)
    meet()  # nor to one that has ended


def _product(sizes, cta, slot, shape, held, operands, arrived, *values):
    """The products of the held matrices with values, a block of each from every CTA."""
    to, of = shape
    rows, count = sizes.rows, sizes.rows // UNITS
    for j, value in enumerate(values):
        for p, piece in enumerate(_split(value, sizes.parts)):
            place = operands.at[slot, p, pl.ds(j * rows + cta * UNITS, UNITS)]
            others = (
                [pgpu.cluster_ref(place, {"c": c}) for c in range(count)] if count > 1 else [place]
            )
            for ref in others:
                ref[...] = piece
    pgpu.commit_smem()
    pgpu.barrier_arrive(arrived.at[slot])
    pgpu.barrier_wait(arrived.at[slot])
    pgpu.commit_smem()
    pairs = [(0, 0)] if sizes.parts == 1 else [(0, 0), (0, 1), (1, 0)]

    def multiply(*sums):
        for o, total in enumerate(sums):
            for j in range(of):
                for p, q in pairs:
                    w = held.at[(p * to + o) * of + j]
                    pgpu.wgmma(total, w, operands.at[slot, q, pl.ds(j * rows, rows)])
        return tuple(total[...] for total in sums)

    return pl.run_scoped(multiply, *[pgpu.ACC(BLOCK.shape, jnp.float32)] * to)


def _simplified(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without two operations of transposes that the compiler of kernels does not know.

    Where JAX adds up cotangents there is an ordinary addition, and no reshape that changes nothing.
    """

    def run(*arguments):
        leaves, tree = jax.tree.flatten(arguments)

        def flat(*leaves):
            return function(*jax.tree.unflatten(tree, leaves))

        closed, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
        jaxpr = closed.jaxpr
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *leaves], strict=True))

        def read(atom):
            return atom.val if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            primitive, values = equation.primitive, list(map(read, equation.invars))
            if primitive.name == "add_any":
                found = [lax.add(*values)]
            elif primitive.name == "reshape" and equation.outvars[0].aval.shape == values[0].shape:
                found = values
            else:
                found = primitive.bind(*values, **primitive.get_bind_params(equation.params))
                found = found if primitive.multiple_results else [found]
            known.update(zip(equation.outvars, found, strict=True))
        return jax.tree.unflatten(jax.tree.structure(shapes), map(read, jaxpr.outvars))

    return run


def _block(ref):
    return pgpu.load(ref, *_WHOLE, layout=_LAYOUT, optimized=False)


def _flags(ref):
    row = pgpu.load(ref, *_WHOLE, layout=_LAYOUT.reduce(0), optimized=False)
    return lax.broadcast_in_dim(row, BLOCK.shape, (1,)) > 0


def _matrices(w: Array, rows: int, parts: int) -> Array:
    """`[to, from, H, H]` -> `[parts * to * from, rows, rows]`, 16 bits."""
    end = (0, rows - w.shape[-1])
    w = jnp.pad(w.astype(jnp.float32), [(0, 0), (0, 0), end, end])
    return jnp.concatenate(_split(w.reshape(-1, rows, rows), parts))


def _split(x: Array, parts: int) -> list[Array]:
    """A float32 as one or two 16-bit numbers of its own range, whose sum it nearly is."""
    high = x.astype(_HALF)
    return [high] if parts == 1 else [high, (x - high.astype(jnp.float32)).astype(_HALF)]
