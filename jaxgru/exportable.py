"""Types that `jax.export` can write, for arguments and results of an exported program."""

import json
from typing import TypeVar

import jax.export

T = TypeVar("T")


def node(node_type: type[T]) -> type[T]:
    """Make a registered pytree type exportable. JSON must be able to hold its static fields."""
    jax.export.register_pytree_node_serialization(
        node_type,
        serialized_name=_name(node_type),
        serialize_auxdata=lambda aux: json.dumps(aux).encode(),
        deserialize_auxdata=lambda data: tuple(json.loads(bytes(data))),
    )
    return node_type


def named_tuple(tuple_type: type[T]) -> type[T]:
    """Make a NamedTuple type exportable."""
    jax.export.register_namedtuple_serialization(tuple_type, serialized_name=_name(tuple_type))
    return tuple_type


_names: set[str] = set()


def _name(node_type: type) -> str:
    """A unique name, even for a class that a notebook defines again."""
    module = "jaxgru" if node_type.__module__.startswith("jaxgru.") else node_type.__module__
    name = f"{module}.{node_type.__qualname__}"
    while name in _names:
        name += "'"
    _names.add(name)
    return name
