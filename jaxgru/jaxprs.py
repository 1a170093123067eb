"""Reading programs that JAX has traced."""

from typing import Any


def called(equation: Any) -> Any:
    """The jaxpr that an equation runs as a function, or None for an ordinary operation."""
    where = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}.get(equation.primitive.name)
    return where and equation.params[where]


def operations(jaxpr: Any) -> list[Any]:
    """The equations of a jaxpr, with those of the functions that it calls in place of the calls."""
    found = []
    for equation in jaxpr.eqns:
        inner = called(equation)
        found += [equation] if inner is None else operations(inner.jaxpr)
    return found
