"""The step in the form that kernels run: on flat lists of arrays instead of trees."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgru.backends.plan import Declined
from jaxgru.jaxprs import operations

#: The operations that the compilers of both kernels support, with the precision of the loop.
SUPPORTED = {
    "abs", "add", "add_any", "and", "broadcast_in_dim", "clamp", "convert_element_type", "copy",
    "eq", "exp", "ge", "gt", "integer_pow", "le", "logistic", "lt", "max", "min", "mul", "ne",
    "neg", "not", "one_minus_square", "or", "reshape", "round", "select_n", "sign", "square", "sub",
    "tanh", "xor",
    "reshard",  # on one device it does nothing
}  # fmt: skip


class FlatStep(NamedTuple):
    """A step(products, constants, carry, x) -> (carry, y) on lists of leaves."""

    run: Callable[..., tuple[list[Any], list[Any]]]
    """(products, leaves of constants, of carry, of x) -> (leaves of carry, of y)."""
    constants: Any
    """The tree structure of constants. The next two fields are those of carry and y."""
    carry: Any
    y: Any


def flatten(
    step: Callable[..., tuple[Any, Any]],
    products: tuple[tuple[int, int], ...],
    constants: Any,
    carry: Any,
    xs: Any,
    shape: tuple[int, int],
) -> FlatStep:
    """Flatten the step, for blocks of this shape. products has (to, from) for each product.

    Raises:
        Declined: the step contains an operation that a kernel does not support.
    """
    block, flag = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape, bool)

    def fake(to, *_):
        return tuple(jnp.zeros(shape, jnp.float32) for _ in range(to))

    fakes = tuple(partial(fake, to) for to, _ in products)
    x = jax.tree.map(lambda a: flag if a.dtype == bool else block, xs)
    still = jax.tree.map(lambda _: block, (constants, carry))
    closed, (_, y) = jax.make_jaxpr(partial(step, fakes), return_shape=True)(*still, x)
    if any(equation.primitive.name not in SUPPORTED for equation in operations(closed.jaxpr)):
        raise Declined
    known, state, moving = map(jax.tree.structure, (constants, carry, xs))

    def run(products, *leaves):
        after, y = step(products, *map(jax.tree.unflatten, (known, state, moving), leaves))
        return jax.tree.leaves(after), jax.tree.leaves(y)

    return FlatStep(run, known, state, jax.tree.structure(y))
