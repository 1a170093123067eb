"""The lowering of the primitives of a recurrence, by the plan of the platform.

Under `jax.vmap` over the first axis, a program has its arrays as `[B, T, ...]`, and transposes them
for a recurrence over time. The lowering finds these transpositions. On a CPU the recurrence then
reads the arrays from before the transposition (`jaxgru.backends.streams.BatchFirst`).

JAX reuses the lowering of a primitive for all arguments of the same types, and does not look at the
operations that made them. So there are two primitives. JAX lowers the first one each time, and its
lowering looks at the operations that made its arguments. The second one gets the result as a
parameter, so JAX can reuse its lowering.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import mlir

from jaxgru import backends
from jaxgru.backends.streams import BatchFirst


def register(
    primitive: Any,
    run: Callable[..., list[Any]],
    types: Callable[..., list[Any]],
    data: Callable[..., list[int]],
) -> None:
    """Register the lowering of a primitive.

    Args:
        primitive: the primitive.
        run: (plan, *arrays, **static) -> its results. Arrays of `data` may be `BatchFirst`.
        types: (*types of arrays, **static) -> the types of its results.
        data: (*arrays, **static) -> the positions of the arrays `[T, ..., B, F]`.
    """
    computed = Primitive(f"{primitive.name}_computed")
    computed.multiple_results = True

    def lower(context, *values, **static):
        avals = context.avals_in
        moved = [k for k in data(*values, **static) if _is_moved(avals[k], values[k])]
        avals = _each(moved, _batch_first, avals)
        values = _each(moved, lambda value: value.owner.operands[0], values)
        compute = mlir.lower_fun(partial(computed.bind, moved=tuple(moved), **static))
        return compute(context.replace(avals_in=tuple(avals)), *values)

    def abstract(*avals, moved, **static):
        return types(*_each(moved, lambda a: a.update(shape=BatchFirst(a).shape), avals), **static)

    def lower_computed(platform, context, *values, moved, **static):
        plan = backends.plan(platform, context)

        def compute(*leaves):
            read = BatchFirst if plan.batch_first else lambda a: BatchFirst(a).whole()
            return run(plan, *_each(moved, read, leaves), **static)

        return mlir.lower_fun(compute)(context, *values)

    computed.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, lower, cacheable=False)
    for platform in (None, *backends.PLANS):
        mlir.register_lowering(computed, partial(lower_computed, platform), platform=platform)


def _batch_first(aval):
    *others, batch, features = aval.shape
    return aval.update(shape=(batch, *others, features))


def _each(places, change, arrays):
    return [change(a) if k in places else a for k, a in enumerate(arrays)]


def _is_moved(aval, value):
    """Whether the program makes this array by putting time before the batch."""
    operation = value.owner
    if getattr(operation, "name", None) != "stablehlo.transpose" or not aval.sharding.mesh.empty:
        return False
    last = aval.ndim - 1
    return last > 1 and list(operation.attributes["permutation"]) == [*range(1, last), 0, last]
