"""The output of a step as a function of the state that the step ends in."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.extend.core import Literal

from jaxgru.cell import Carry

#: Primitives that call a program: `jax.jit` and `jax.checkpoint`. The program is inlined.
INLINED = ("jit", "remat2")


def output_of(step: Callable[..., tuple[Carry, Array]], after: Carry, *arguments: Any) -> Array:
    """y of (carry, y) = step(*arguments), where each array of the carry is the one in `after`.

    The equations of the step run with these arrays in place of those that they compute. So y
    follows the given carry if the step computes y from the carry that it returns. This holds if y
    is an array of the carry, as in a GRU, and if it is a function of one, as in a rate network.
    """
    program = jax.make_jaxpr(step)(*arguments)
    leaves = jax.tree.leaves(after)
    variables = program.jaxpr.outvars[: len(leaves)]
    given = {variable: leaf for variable, leaf in zip(variables, leaves, strict=True)
             if not isinstance(variable, Literal)}  # fmt: skip
    inputs = (*program.consts, *jax.tree.leaves(arguments))
    return _run(program.jaxpr, inputs, given)[-1]


def _run(jaxpr: Any, inputs: Any, given: dict[Any, Array]) -> list[Any]:
    """The outputs of a program in which the given variables have the given values."""
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        if equation.primitive.name in INLINED and not given.keys().isdisjoint(equation.outvars):
            called: Any = equation.params["jaxpr"]
            inner = getattr(called, "jaxpr", called)
            pairs = zip(inner.outvars, equation.outvars, strict=True)
            within = {
                one: given[other]
                for one, other in pairs
                if other in given and not isinstance(one, Literal)
            }
            results = _run(inner, (*getattr(called, "consts", ()), *values), within)
        else:
            params = equation.primitive.get_bind_params(equation.params)
            results = equation.primitive.bind(*values, **params)
            results = results if equation.primitive.multiple_results else [results]
        for variable, result in zip(equation.outvars, results, strict=True):
            known[variable] = given.get(variable, result)
    return [read(atom) for atom in jaxpr.outvars]
