"""Params in the state dicts of Flax, which `flax.serialization`, msgpack and TrainState use."""

from typing import Any

import jax
from flax import serialization

from jaxgru import checks
from jaxgru.cell import Params
from jaxgru.forms import watch
from jaxgru.layers import Bidirectional, Stack
from jaxgru.plain import leaves_by_name


def register() -> None:
    """Register all params types with Flax, including those that get forms later."""
    for params_type in (Bidirectional, Stack):
        _know(params_type)
    watch(_know)


def _know(params_type: type) -> None:
    serialization.register_serialization_state(params_type, _to_state, _from_state)


def _to_state(params: Params) -> dict[str, Any]:
    """Return the leaves by the names of `jaxgru.to_dict`."""
    return {
        name: serialization.to_state_dict(leaf) for name, leaf in leaves_by_name(params).items()
    }


def _from_state(params: Params, state: Any) -> Params:
    """Make params with the structure of the given ones and the leaves of the state."""
    leaves = leaves_by_name(params)
    found = list(state) if isinstance(state, dict) else [checks.describe(state)]
    if set(found) != set(leaves):
        fix = "It belongs to other params. jaxgru.from_dict(state) makes them without a template."
        expected, got = f"a dict with {', '.join(leaves)}", ", ".join(map(str, found))
        caller = "flax.serialization.from_state_dict"
        raise checks.error(ValueError, caller, "state", expected, got, fix)
    restored = [
        serialization.from_state_dict(leaf, state[name], name) for name, leaf in leaves.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), restored)
