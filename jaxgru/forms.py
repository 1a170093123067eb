"""The names of the weights of each cell, which tell all kinds of params apart.

A name contains the form of the cell: `lstm.w_hh`, `gru.w_hh`, and `gru_after.w_hh` for the GRU
whose reset gate acts after the product. The paths of JAX contain these names, and so does every
checkpoint. The weights of one form are therefore never mistaken for those of another.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jax.tree_util import GetAttrKey

from jaxgru import exportable

T = TypeVar("T")


class Form(NamedTuple):
    """One form of one cell."""

    params_type: type
    static: dict[str, Any]
    """The static fields of params of this form."""
    weights: tuple[str, ...]
    """The other fields, which hold arrays."""


#: The forms by name.
FORMS: dict[str, Form] = {}
_LISTENERS: list[Callable[[type], None]] = []


def watch(listener: Callable[[type], None]) -> None:
    """Call the listener with each params type that has forms, or gets them later."""
    for params_type in {form.params_type for form in FORMS.values()}:
        listener(params_type)
    _LISTENERS.append(listener)


def known() -> str:
    """The names of all params types that have forms, for messages."""
    types = dict.fromkeys(form.params_type.__name__ for form in FORMS.values())
    return ", ".join(types)


def weights(**forms: dict[str, Any]) -> Callable[[type[T]], type[T]]:
    """Make a dataclass of weights a pytree, which `jax.export` can also write.

    Args:
        **forms: the static fields of each form, by the name of the form.

    Returns:
        A decorator. It differs from `jax.tree_util.register_dataclass` only in the paths: a leaf is
        called `form.field`.
    """

    def register(params_type: type[T]) -> type[T]:
        fields: Any = dataclasses.fields(params_type)  # type: ignore[arg-type]
        static = tuple(field.name for field in fields if field.metadata.get("static"))
        names = tuple(field.name for field in fields if field.name not in static)

        def flatten(params):
            values = params.__dict__
            return [values[name] for name in names], tuple([values[name] for name in static])

        def flatten_with_keys(params):
            children, aux = flatten(params)
            options = dict(zip(static, aux, strict=True))
            known = (form for form, wanted in forms.items() if wanted == options)
            form = next(known, params_type.__name__)  # tree transformations may build unknown forms
            keys = [GetAttrKey(f"{form}.{name}") for name in names]
            return list(zip(keys, children, strict=True)), aux

        def unflatten(aux, children):
            given = zip((*names, *static), (*children, *aux), strict=True)
            return params_type(**dict(given))

        jax.tree_util.register_pytree_with_keys(params_type, flatten_with_keys, unflatten, flatten)
        exportable.node(params_type)
        for form, options in forms.items():
            FORMS[form] = Form(params_type, options, names)
        for listener in _LISTENERS:
            listener(params_type)
        return params_type

    return register
