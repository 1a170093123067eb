"""Products that are defined by their transposes only."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad

from jaxgru.cell import Products

_product = Primitive("jaxgru_product")
_product.multiple_results = True


@_product.def_abstract_eval
def _types(x, *, back, count):
    del back
    return [x] * count


def _transpose(cts, x, *, back, count):
    del x, count
    return list(back(*map(ad.instantiate_zeros, cts)))


ad.primitive_transposes[_product] = _transpose


def products(transposes: tuple[Callable[..., Any], ...], counts: list[int]) -> Products:
    """Make `jaxgru.cell.products` that only `jax.linear_transpose` can use.

    Each transpose takes one array for each of `count` gates, and returns one array for x.
    """

    def multiply(back, count, x, plus=None):
        gates = tuple(_product.bind(x, back=back, count=count))
        if plus is None:
            return gates
        return tuple(map(jnp.add, gates, plus if count > 1 else (plus,)))

    return tuple(map(partial(partial, multiply), transposes, counts))
