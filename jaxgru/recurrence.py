"""The recurrence of a cell as JAX primitives: their types, derivatives and rules for `vmap`.

There are four primitives: the recurrence, the recurrence together with the values that its
derivative needs, the tangent, and the transpose of the tangent, which is the gradient.
`jaxgru.backends` computes them. They are primitives, and not a `jax.custom_jvp`, for two reasons.
First, the rules here put a batch axis right after the time axis. The rules of `lax.scan` would put
it before the time axis inside every stretch of time, and transpose arrays there and back. Second,
the back end is chosen when a program is lowered, since only then are the platform and the devices
known.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jaxgru import backends, lowering
from jaxgru.backends.loop import (
    among,
    cotangents,
    forward,
    known,
    saves_gates,
    tangents,
)
from jaxgru.backends.scans import scan_chunks
from jaxgru.cell import Carry, Cell, Params, advance
from jaxgru.mesh import alike


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
    """Run a cell over time: (last carry, outputs `[T, H]`).

    xs is `[T, I]`, carries are `[H]`. fresh `[T]` marks the steps that start from reset_carry
    instead of the carry before them. keep `[T]` marks the steps that are real. At the other steps
    the carry stays as it is. None means no step for fresh, and all steps for keep. With checkpoint
    the gradient saves the carry only every `checkpoint` steps, and runs the steps between again.
    """
    if cell.formed is not None:
        form, formed = cell.formed
        params, cell = form(params), formed._replace(compute_dtype=cell.compute_dtype)
    arguments = alike((params, xs, carry, reset_carry, fresh, keep))
    config: Any = jax.config
    precision = config.jax_default_matmul_precision  # read now: it may change before lowering
    static = {"cell": cell, "reverse": reverse, "levels": 0, "precision": precision}
    return _bind(_outputs, arguments, checkpoint=checkpoint, **static)


class _Kind(NamedTuple):
    """The kind of an argument or a result, which determines where `vmap` puts its axes.

    A batch of weights becomes a level: an axis of all arrays, which comes first, or right after
    time. A batch of data becomes an axis of all data, after the levels. Axes are never merged,
    since each of them may lie on a different axis of a mesh.
    """

    time: int
    """The number of axes before the levels: 1 with a time axis, else 0."""
    weights: bool = False
    tangent: bool = False
    data: bool = False
    """Whether it holds inputs or outputs. They may be read with the batch before time."""


_PARAMS, _STREAM, _CARRY = _Kind(0, weights=True), _Kind(1), _Kind(0)
_DATA = _STREAM._replace(data=True)
_PRIMALS = (_PARAMS, _DATA, _CARRY, _CARRY, _STREAM, _STREAM)
_SAVED = (_STREAM, _STREAM)  # carries, gates
_TANGENTS = tuple(kind._replace(tangent=True) for kind in _PRIMALS[:4])
_RESULTS = (_CARRY, _DATA)  # last carry, outputs
_DRESULTS = tuple(kind._replace(tangent=True) for kind in _RESULTS)


class _Operation(NamedTuple):
    """A primitive on trees of arrays. Its parameter `tree` holds the structure of the arguments."""

    primitive: Any
    run: Callable[..., Any]
    """(*leaves of arguments, tree=, cell=, reverse=, levels=, and more) -> leaves of results, on
    any platform."""
    types: Callable[..., Any]
    """(arguments, cell=, reverse=, levels=, and more) -> results, with types in place of arrays."""
    arguments: tuple[_Kind, ...]
    results: tuple[_Kind, ...]


def _bind(operation: _Operation, arguments: Any, **static: Any) -> Any:
    leaves, tree = jax.tree.flatten(arguments)
    types = operation.types(jax.tree.map(jax.typeof, arguments), **static)
    outs = operation.primitive.bind(*leaves, tree=tree, **static)
    return jax.tree.unflatten(jax.tree.structure(types), outs)


def _kinds(kinds: tuple[_Kind, ...], parts: Any) -> list[_Kind]:
    """The kind of each leaf of the parts."""
    pairs = zip(kinds, parts, strict=True)
    return [kind for kind, part in pairs for _ in jax.tree.leaves(part)]


def _operation(
    name: str,
    run: Callable[..., Any],
    types: Callable[..., Any],
    arguments: tuple[_Kind, ...],
    results: tuple[_Kind, ...],
) -> _Operation:
    primitive = Primitive(f"jaxgru_{name}")
    primitive.multiple_results = True

    def flat(plan, *leaves, tree, precision, **static):
        with jax.default_matmul_precision(precision):
            return jax.tree.leaves(run(plan, jax.tree.unflatten(tree, leaves), **static))

    def portable(*leaves, **static):
        return flat(backends.portable(), *leaves, **static)

    def abstract(*avals, tree, **static):
        return jax.tree.leaves(types(jax.tree.unflatten(tree, avals), **static))

    def data(*leaves, tree, **_):
        kinds = _kinds(arguments, jax.tree.unflatten(tree, leaves))
        return [k for k, kind in enumerate(kinds) if kind.data]

    def jvp(leaves, dleaves, **static):
        return _jvp_of(partial(portable, **static), leaves, dleaves)

    operation = _Operation(primitive, portable, types, arguments, results)
    primitive.def_impl(portable)
    primitive.def_abstract_eval(abstract)
    lowering.register(primitive, flat, abstract, data)
    ad.primitive_jvps[primitive] = jvp
    batching.fancy_primitive_batchers[primitive] = partial(_batch, operation)
    return operation


def _jvp_of(run, leaves, dleaves):
    """`jax.jvp` with respect to the arguments whose tangents are not symbolic zeros."""
    given = [k for k, tangent in enumerate(dleaves) if not isinstance(tangent, ad.Zero)]

    def part(*values):
        filled = dict(zip(given, values, strict=True))
        return run(*[filled.get(k, leaf) for k, leaf in enumerate(leaves)])

    return jax.jvp(part, [leaves[k] for k in given], [dleaves[k] for k in given])


def _batch(operation, axis, leaves, dims, *, tree, levels, **static):
    primitive, run = operation.primitive, operation.run
    if all(d is None for d in dims):
        outs = primitive.bind(*leaves, tree=tree, levels=levels, **static)
        return outs, [None] * len(outs)
    arguments = jax.tree.unflatten(tree, range(len(leaves)))
    kinds = _kinds(operation.arguments, arguments)
    single = [
        jax.ShapeDtypeStruct(
            leaf.shape if d is None else (*leaf.shape[:d], *leaf.shape[d + 1 :]), leaf.dtype
        )
        for leaf, d in zip(leaves, dims, strict=True)
    ]
    types = operation.types(jax.tree.unflatten(tree, single), levels=levels, **static)
    results = _kinds(operation.results, types)

    batched = [kind for kind, d in zip(kinds, dims, strict=True) if d is not None]
    level = any(kind.weights and not kind.tangent for kind in batched)
    data = any(not kind.weights and not kind.tangent for kind in batched)
    apart = any(kind.weights for kind in [*(k for k in batched if k.tangent), *results])
    if not level and (apart or not data):
        # There are tangents or gradients of weights for each example, or several for the same data.
        inline = jax.vmap(
            partial(run, tree=tree, levels=levels, **static),
            in_axes=tuple(dims),
            axis_size=axis.size,
            spmd_axis_name=axis.spmd_name,
        )
        return inline(*leaves), [0] * len(results)

    depth = 0 if level else levels
    placed = [
        leaf if kind.weights and not level else _place(axis, leaf, d, kind.time + depth)
        for leaf, d, kind in zip(leaves, dims, kinds, strict=True)
    ]
    outs = primitive.bind(*placed, tree=tree, levels=levels + level, **static)
    return outs, [kind.time + depth for kind in results]


def _place(axis: Any, leaf: Array, d: int | None, to: int) -> Array:
    """Move the batch axis d to another place, or make one there."""
    if d is None:
        return batching.broadcast(leaf, axis.size, to, axis.explicit_mesh_axis)
    return jnp.moveaxis(leaf, d, to)


# The recurrence, alone and with the values that its derivative needs.


def _run_outputs(plan, arguments, *, cell, reverse, levels, checkpoint):
    del checkpoint
    carry, (carries, _) = forward(plan, cell, levels, reverse, arguments)
    return carry, cell.output(carries)


def _types_outputs(arguments, *, cell, **_):
    _, xs, carry, *_ = arguments
    return carry, cell.output(_over_time(xs, carry))


def _over_time(xs, carry):
    return jax.tree.map(lambda c: xs.update(shape=(*xs.shape[:-1], c.shape[-1])), carry)


def _run_saved(plan, arguments, *, cell, reverse, levels, save):
    return forward(plan, cell, levels, reverse, arguments, save)


def _types_saved(arguments, *, cell, levels, save, **_):
    _, xs, carry, *_ = arguments
    return carry, (_over_time(xs, carry), _types_gates(cell, levels, arguments) if save else None)


def _types_gates(cell, levels, primals):
    params, xs, carry, *_ = primals

    def last(count):
        return lambda a: jax.ShapeDtypeStruct(a.shape[count:], a.dtype)

    single = jax.tree.map(last(levels), params), jax.tree.map(last(-1), carry), last(-1)(xs)
    leaves, tree = jax.tree.flatten(single)
    return _over_time(xs, _gates_of_one(cell, tree, *leaves))


@lru_cache(maxsize=1024)
def _gates_of_one(cell, tree, *leaves):
    """The types of the gates of one sequence at one step."""

    def gates(params, carry, x):
        return advance(cell, cell.blocks(params), carry, x)[1]

    return jax.eval_shape(gates, *jax.tree.unflatten(tree, leaves))


_outputs = _operation("recurrence", _run_outputs, _types_outputs, _PRIMALS, _RESULTS)
_saved = _operation("recurrence_saved", _run_saved, _types_saved, _PRIMALS, (_CARRY, _STREAM))


def _jvp(leaves, dleaves, *, checkpoint, tree, **static):
    if checkpoint is not None:
        return _jvp_of(partial(_segments, checkpoint, tree=tree, **static), leaves, dleaves)
    primals = jax.tree.unflatten(tree, leaves)
    given = (None if isinstance(tangent, ad.Zero) else tangent for tangent in dleaves)
    dprimals = jax.tree.unflatten(tree, given)[:4]
    cell, levels = static["cell"], static["levels"]
    types = jax.tree.map(jax.typeof, primals)
    save = saves_gates(cell, types[0], _types_gates(cell, levels, types))
    carry, saved = _bind(_saved, primals, save=save, **static)
    tangent = _bind(_tangent, (*primals, *saved, *dprimals), **static)
    outputs = cell.output(saved[0])
    return [*jax.tree.leaves(carry), outputs], jax.tree.leaves(tangent)


ad.primitive_jvps[_outputs.primitive] = _jvp


def _segments(checkpoint, *leaves, reverse, tree, **static):
    """The recurrence as a scan over segments, each of which runs again for the gradient."""
    params, xs, carry, reset_carry, fresh, keep = jax.tree.unflatten(tree, leaves)
    steps = xs.shape[0]
    if not known(steps):  # only whole segments; the last one may contain steps that are not real
        keep = jnp.ones(xs.shape[:-1], bool) if keep is None else keep
        xs, fresh, keep = jax.tree.map(partial(_filled_up, checkpoint), (xs, fresh, keep))

    def segment(carry, stretch):
        xs, fresh, keep = stretch
        arguments = (params, xs, carry, reset_carry, fresh, keep)
        return _bind(_outputs, arguments, reverse=reverse, checkpoint=None, **static)

    segment = jax.checkpoint(segment, prevent_cse=False)
    carry, outputs = scan_chunks(segment, carry, (xs, fresh, keep), checkpoint, reverse)
    return [*jax.tree.leaves(carry), outputs if known(steps) else outputs[:steps]]


def _filled_up(size: int, a: Array) -> Array:
    """Pad an unknown number of steps to a multiple of the size, with zeros or False."""
    count = a.shape[0] // size + 1
    return jnp.concatenate([a, jnp.zeros((size, *a.shape[1:]), a.dtype)])[: count * size]


# The tangent, which is linear in the last four arguments, and its transpose.


def _run_tangent(plan, arguments, *, cell, reverse, levels):
    primals, saved, dprimals = arguments[:6], arguments[6:8], arguments[8:]
    return tangents(plan, cell, levels, reverse, primals, saved, dprimals)


def _run_gradient(plan, arguments, *, cell, reverse, levels, wanted):
    primals, saved, cts = arguments[:6], arguments[6:8], arguments[8:]
    types = _types_gradient(arguments, wanted=wanted)
    return cotangents(plan, cell, levels, reverse, primals, saved, types, cts)


def _types_gradient(arguments, *, wanted, **_):
    return among(jax.tree.unflatten(wanted, range(wanted.num_leaves)), arguments[:4])


_tangent = _operation(
    "tangent", _run_tangent, _types_outputs, (*_PRIMALS, *_SAVED, *_TANGENTS), _DRESULTS
)
_gradient = _operation(
    "gradient", _run_gradient, _types_gradient, (*_PRIMALS, *_SAVED, *_DRESULTS), _TANGENTS
)


def _transpose(cts, *leaves, tree, **static):
    arguments = jax.tree.unflatten(tree, leaves)
    known = arguments[:8]
    unknown = [ad.is_undefined_primal(leaf) for leaf in leaves]
    flags = jax.tree.unflatten(tree, [flag or None for flag in unknown])[8:]
    types = _types_outputs(jax.tree.map(jax.typeof, known), **static)
    cts = jax.tree.unflatten(jax.tree.structure(types), list(map(ad.instantiate_zeros, cts)))
    wanted = jax.tree.structure(flags)
    found = _bind(_gradient, (*known, *cts), wanted=wanted, **static)
    grads = iter(jax.tree.leaves(found))
    return [next(grads) if flag else None for flag in unknown]


ad.primitive_transposes[_tangent.primitive] = _transpose
