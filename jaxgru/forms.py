"""What the weights of each cell are called, so that no two kinds of params look alike.

A name has the form of the cell in it: `lstm.w_hh`, `gru.w_hh`, and `gru_after.w_hh` for the GRU
whose reset gate acts after the product. These are the names in the paths of JAX, and so in every
checkpoint. Weights of one form are therefore never taken for those of another.
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


#: By name.
FORMS: dict[str, Form] = {}


def weights(**forms: dict[str, Any]) -> Callable[[type[T]], type[T]]:
    """Make a dataclass of weights a pytree, which `jax.export` can write too.

    Args:
        **forms: the static fields of each form, by the name of the form.

    Returns:
        A decorator. It differs from `jax.tree_util.register_dataclass` in the paths alone: a leaf
        is called `form.field`.
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
            form = next(known, params_type.__name__)  # tree transformations build anything
            keys = [GetAttrKey(f"{form}.{name}") for name in names]
            return list(zip(keys, children, strict=True)), aux

        def unflatten(aux, children):
            given = zip((*names, *static), (*children, *aux), strict=True)
            return params_type(**dict(given))

        jax.tree_util.register_pytree_with_keys(params_type, flatten_with_keys, unflatten, flatten)
        exportable.node(params_type)
        for form, options in forms.items():
            FORMS[form] = Form(params_type, options, names)
        return params_type

    return register
