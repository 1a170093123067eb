"""Types that `jax.export` can write: arguments and results of an exported program."""

import json
from typing import TypeVar

import jax.export

T = TypeVar("T")


def node(node_type: type[T]) -> type[T]:
    """A type of pytrees that is registered, and whose static fields JSON can hold."""
    jax.export.register_pytree_node_serialization(
        node_type,
        serialized_name=_name(node_type),
        serialize_auxdata=lambda aux: json.dumps(aux).encode(),
        deserialize_auxdata=lambda data: tuple(json.loads(bytes(data))),
    )
    return node_type


def named_tuple(tuple_type: type[T]) -> type[T]:
    """A NamedTuple."""
    jax.export.register_namedtuple_serialization(tuple_type, serialized_name=_name(tuple_type))
    return tuple_type


_names: set[str] = set()


def _name(node_type: type) -> str:
    """A name of its own, also for a class that a notebook defines once more."""
    module = "jaxgru" if node_type.__module__.startswith("jaxgru.") else node_type.__module__
    name = f"{module}.{node_type.__qualname__}"
    while name in _names:
        name += "'"
    _names.add(name)
    return name
