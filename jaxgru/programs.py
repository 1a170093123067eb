"""Programs that are compiled for each type of params."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax

from jaxgru.cell import cells

#: JAX inlines a program into the program that calls it while it traces the caller. So
#: `jaxgru.lowering` sees the operations that make its arguments. Since JAX 0.11, `inline=True`
#: inlines at a later stage.
_EARLY: Any = getattr(getattr(jax, "Inline", None), "JAX_EARLY", True)


def by_type(static: int = 0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` for a function that takes `static` static options, then params and data.

    The types of the cells in params become part of the key under which JAX caches the program.
    Their structure is not enough: JAX treats the structures of two dataclasses as equal if
    `jax.tree_util.register_dataclass` made both pytrees and they have the same number of fields.
    Of 400 such classes, 54 ran a program of another one in `jax.jit` of JAX 0.10.2.
    """

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def program(types: tuple[type, ...], *arguments: Any) -> Any:
            del types
            return function(*arguments)

        run = jax.jit(program, static_argnums=tuple(range(static + 1)), inline=_EARLY)

        @wraps(function)
        def call(*arguments: Any) -> Any:
            return run(tuple(map(type, cells(arguments[static]))), *arguments)

        return call

    return compiled
