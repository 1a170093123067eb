"""The recurrence of a cell as one operation of JAX, with rules of its own for `vmap` and `jvp`.

It is a primitive, and not a `jax.custom_jvp`, for the sake of `vmap`: arrays have an axis N for
sequences that run side by side with the same weights, after time, and batching puts a batch there.
Left to the rules of `lax.scan`, a batch would come before the time inside every stretch of it, and
be transposed there and back.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxgru.cell import Carry, Cell, Params
from jaxgru.loops import forward, scan_chunks, tangents


def recurrence(
    cell: Cell,
    reverse: bool,
    checkpoint: int | None,
    params: Params,
    xs: Array,
    carry: Carry,
    reset_carry: Carry,
    fresh: Array | None,
    keep: Array | None,
) -> tuple[Carry, Array]:
    """Run a cell over time: (last carry, outputs `[T, N, H]`).

    xs is `[T, N, I]`, carries are `[N, H]`. fresh `[T, N]` marks the steps that start from
    reset_carry instead of the carry before them, keep `[T, N]` the steps that count: at the others
    the carry stays as it is. None means none, and all. With checkpoint the gradient keeps the carry
    every so many steps, and runs what lies between again.
    """
    arguments = (params, xs, carry, reset_carry, fresh, keep)
    return _bind(arguments, cell=cell, reverse=reverse, checkpoint=checkpoint, levels=0)


# The primitive. `tree` holds the arguments of `recurrence` from params on. A batch of data is
# merged into N. A batch of weights becomes a level: an axis of all arguments, in front, but after
# time.

_primitive = Primitive("jaxgru_recurrence")
_primitive.multiple_results = True

# For every argument: where a level goes, and which axis is N, if it has one.
_AXES = ((0, None), (1, -2), (0, -2), (0, -2), (1, -1), (1, -1))


def _axes(tree: Any, count: int) -> list[tuple[int, int | None]]:
    arguments = jax.tree.unflatten(tree, range(count))
    parts = zip(_AXES, arguments, strict=True)
    return [axes for axes, part in parts for _ in jax.tree.leaves(part)]


def _bind(arguments, **static):
    leaves, tree = jax.tree.flatten(arguments)
    *carry, outputs = _primitive.bind(*leaves, tree=tree, **static)
    return jax.tree.unflatten(jax.tree.structure(arguments[2]), carry), outputs


def _run(*leaves, cell, reverse, tree, levels, **_):
    arguments = jax.tree.unflatten(tree, leaves)
    carry, (carries, _) = forward(cell, levels, reverse, arguments, differentiated=False)
    return [*jax.tree.leaves(carry), cell.output(carries)]


def _abstract(*avals, tree, **_):
    _, xs, carry, *_ = jax.tree.unflatten(tree, avals)
    carry = jax.tree.leaves(carry)
    return [*carry, xs.update(shape=(*xs.shape[:-1], carry[0].shape[-1]))]


def _jvp(leaves, dleaves, *, cell, reverse, checkpoint, tree, levels):
    if checkpoint is not None:
        static = {"cell": cell, "reverse": reverse, "tree": tree, "levels": levels}
        return _jvp_of(partial(_segments, checkpoint, **static), leaves, dleaves)
    present = []
    for tangent, axes in zip(dleaves, _axes(tree, len(leaves)), strict=True):
        # Those of the carries must be there: they are what the loop carries.
        needed = axes == (0, -2) or not isinstance(tangent, ad.Zero)
        present.append(ad.instantiate_zeros(tangent) if needed else None)
    primals, dprimals = (jax.tree.unflatten(tree, part) for part in (leaves, present))
    value, tangent = tangents(cell, levels, reverse, primals, dprimals)
    return jax.tree.leaves(value), jax.tree.leaves(tangent)


def _segments(checkpoint, leaves, *, reverse, tree, **static):
    """The recurrence as a scan over segments, each run again for the gradient."""
    params, xs, carry, reset_carry, fresh, keep = jax.tree.unflatten(tree, leaves)

    def segment(carry, stretch):
        xs, fresh, keep = stretch
        arguments = (params, xs, carry, reset_carry, fresh, keep)
        return _bind(arguments, reverse=reverse, checkpoint=None, **static)

    segment = jax.checkpoint(segment, prevent_cse=False)
    return jax.tree.leaves(scan_chunks(segment, carry, (xs, fresh, keep), checkpoint, reverse))


def _jvp_of(run, leaves, dleaves):
    """`jax.jvp` in those arguments whose tangents are not known to be zero."""
    given = [k for k, tangent in enumerate(dleaves) if not isinstance(tangent, ad.Zero)]

    def part(*values):
        filled = dict(zip(given, values, strict=True))
        return run([filled.get(k, leaf) for k, leaf in enumerate(leaves)])

    return jax.jvp(part, [leaves[k] for k in given], [dleaves[k] for k in given])


def _batch(leaves, dims, *, levels, tree, **static):
    axes = _axes(tree, len(leaves))
    size = next(leaf.shape[d] for leaf, d in zip(leaves, dims, strict=True) if d is not None)
    weights = (d for d, (_, n) in zip(dims, axes, strict=True) if n is None)
    if any(d is not None for d in weights):
        moved = zip(leaves, dims, (front for front, _ in axes), strict=True)
        leaves = [_insert(leaf, d, front, size) for leaf, d, front in moved]
        outs = _primitive.bind(*leaves, levels=levels + 1, tree=tree, **static)
        return outs, [0] * (len(outs) - 1) + [1]

    def merge(leaf, d, n):
        if n is None:
            return leaf
        n += leaf.ndim - (d is not None)
        leaf = _insert(leaf, d, n, size)
        return leaf.reshape(*leaf.shape[:n], size * leaf.shape[n + 1], *leaf.shape[n + 2 :])

    def part(leaf):
        n = leaf.ndim - 2
        rows = leaf.shape[n] // size if size else 1
        return leaf.reshape(*leaf.shape[:n], size, rows, leaf.shape[-1])

    merged = zip(leaves, dims, (n for _, n in axes), strict=True)
    outs = _primitive.bind(*(merge(*each) for each in merged), levels=levels, tree=tree, **static)
    return [part(leaf) for leaf in outs], [leaf.ndim - 2 for leaf in outs]


def _insert(leaf: Array, d: int | None, axis: int, size: int) -> Array:
    """The batch axis d, moved to another place, or made there."""
    if d is not None:
        return jnp.moveaxis(leaf, d, axis)
    shape = (*leaf.shape[:axis], size, *leaf.shape[axis:])
    return jnp.broadcast_to(jnp.expand_dims(leaf, axis), shape)


_primitive.def_impl(_run)
_primitive.def_abstract_eval(_abstract)
ad.primitive_jvps[_primitive] = _jvp
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, mlir.lower_fun(_run, multiple_results=True))
