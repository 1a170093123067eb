"""Conversion of params to and from arrays by name, a form that every kind of file can hold."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, forms
from jaxgru.cell import Params, is_cell
from jaxgru.forms import FORMS
from jaxgru.layers import Bidirectional, Stack

#: What a name begins with if it belongs to a composition, and not to a single cell.
PARTS = ("layers", "forward", "backward")


def to_dict(params: Params) -> dict[str, Array]:
    """Write params as arrays by name.

        gru.w_ih    gru_after.b_hn    forward.lstm.w_hh    layers.0.elman.b

    A name contains the form of the cell, so the names alone tell which params they belong to. The
    paths of `jax.tree_util`, which checkpoints use, contain the same names.

    Args:
        params: the params of any cell of this library, or a Bidirectional or Stack of such cells. A
            type of your own is accepted if `register` was given its forms. Leading axes, of many
            networks at once, stay as they are.

    Returns:
        A dict of the arrays of params, which are not copied. Weights that are None are left out.

    Raises:
        TypeError, ValueError: `from_dict` could not read these params, or they are something else,
            such as a dict with params and a readout.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.stack_init(jax.random.key(0), 3, 8, num_layers=2, reset_after=True)
        >>> list(jaxgru.to_dict(params))[:2]
        ['layers.0.gru_after.w_ih', 'layers.0.gru_after.w_hh']
        >>> jaxgru.from_dict(jaxgru.to_dict(params)).layers[1].reset_after
        True
    """
    return named("to_dict", params)


def from_dict(tree: Mapping[str, Any]) -> Params:
    """Read params from arrays by name.

    Args:
        tree: the result of `to_dict`. It may be nested, like a checkpoint that is restored without
            a template: `{"layers": [{"gru.w_ih": ...}]}`. None counts as left out.

    Returns:
        The params, of the class and form that the names tell. A missing bias becomes None. `scan`
        and the other functions check the shapes.

    Raises:
        TypeError: tree is not a mapping, or holds anything except arrays of float16, bfloat16,
            float32 or float64.
        ValueError: a name is missing, or is one that no params have; or an array is float64 while
            64-bit types are off.

    Example:
        >>> import jax.numpy as jnp, jaxgru
        >>> tree = {"elman.w_ih": jnp.ones((3, 8)), "elman.w_hh": jnp.ones((8, 8))}
        >>> type(jaxgru.from_dict(tree)).__name__
        'ElmanParams'
    """
    if not isinstance(tree, Mapping):
        fix = "jaxgru.to_dict(params) makes one."
        if isinstance(tree, str | os.PathLike):
            fix = "jaxgru.load(path) reads a file that jaxgru.save wrote."
        got = checks.describe(tree)
        raise checks.error(TypeError, "from_dict", "tree", "a mapping of names to arrays", got, fix)
    arrays: dict[str, Any] = {}
    _flatten("", tree, arrays)
    return read("from_dict", arrays)


def named(caller: str, params: Params) -> dict[str, Any]:
    """The leaves of params by name. It raises an error if `read` could not restore the params."""
    _check(caller, "params", params)
    leaves = leaves_by_name(params)
    _build(caller, "", leaves)
    return leaves


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """The leaves by name of params, or of a tree with their structure, such as gradients."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}


def read(caller: str, arrays: dict[str, Any]) -> Params:
    """Make params from arrays by name, and check each array."""
    for name, value in arrays.items():
        if not checks.is_array(value):
            fix = "jnp.asarray(values, dtype) makes one."
            got = type(value).__name__
            raise checks.error(TypeError, caller, repr(name), "an array", got, fix)
        checks.float_dtype(caller, f"the dtype of {name!r}", value.dtype)
    return jax.tree.map(jnp.asarray, _build(caller, "", arrays))


def _check(caller: str, name: str, params: Params) -> None:
    """Check that params are of known types. Their leaves may be anything."""
    if isinstance(params, Stack):
        layers: Any = params.layers
        if not isinstance(layers, tuple) or not layers:
            expected = "a tuple of params, one for each layer"
            got = checks.describe(layers) if layers else f"an empty {type(layers).__name__}"
            raise checks.error(TypeError, caller, "Stack.layers", expected, got)
        for k, layer in enumerate(layers):
            _check(caller, f"Stack.layers[{k}]", layer)
    elif isinstance(params, Bidirectional):
        _check(caller, "Bidirectional.forward", params.forward)
        _check(caller, "Bidirectional.backward", params.backward)
    elif not any(type(params) is form.params_type for form in FORMS.values()):
        if is_cell(params):
            got = type(params).__name__
            forms_of_it = f'forms={{"{got.lower()}": {{}}}}'
            fix = f"Pass {forms_of_it} to jaxgru.register: it names the arrays in files."
            expected = "of a type that is registered with forms"
            raise checks.error(TypeError, caller, name, expected, got, fix)
        expected = f"{forms.known()}, Bidirectional or Stack"
        got, fix = checks.describe(params), _fix(caller, params)
        raise checks.error(TypeError, caller, name, expected, got, fix)
    else:
        _check_form(caller, name, params)


def _check_form(caller: str, name: str, params: Params) -> None:
    """Check that the static fields of params are those of one of their forms."""
    known = {k: form for k, form in FORMS.items() if form.params_type is type(params)}
    static = {field: getattr(params, field) for field in next(iter(known.values())).static}
    if static not in [form.static for form in known.values()]:
        what = f"the static fields of {name}, {type(params).__name__},"
        expected = " or ".join(f"{form.static} for the form {k}" for k, form in known.items())
        fix = (
            "Files have names for these only. A cell of your own gets them from the forms of "
            "jaxgru.register. It can have an array in place of a static field with many values."
        )
        raise checks.error(ValueError, caller, what, expected, f"{static}", fix)


def _fix(caller: str, tree: Any) -> str:
    """What to do with a tree that is not params."""

    def is_network(part: Any) -> bool:
        return is_cell(part) or isinstance(part, Stack | Bidirectional)

    try:
        parts = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_network)
    except (TypeError, ValueError):  # the keys of a dict cannot be sorted
        parts = []
    found = [(path, part) for path, part in parts if is_network(part)]
    if found:
        path, network = found[0]
        where = jax.tree_util.keystr(path)
        call = f"save(path, tree{where})" if caller == "save" else f"{caller}(tree{where})"
        return (
            f"{call} takes the {type(network).__name__} in it. numpy.savez or Orbax saves a whole "
            "model with other arrays, such as a readout: docs/recipes/saving.md shows how."
        )
    if isinstance(tree, Mapping):
        return "jaxgru.from_dict(tree) makes params of arrays by name."
    return "jaxgru.gru_init and the other functions that end in _init make params."


def _flatten(prefix: str, tree: Any, into: dict[str, Any]) -> None:
    """Add the leaves of nested mappings and sequences, with names joined by dots."""
    if isinstance(tree, Mapping):
        parts = tree.items()
    elif isinstance(tree, (list, tuple)):
        parts = enumerate(tree)
    elif tree is None:
        return
    else:
        if prefix in into:
            got = "two arrays of this name"
            raise checks.error(ValueError, "from_dict", repr(prefix), "a single array", got)
        into[prefix] = tree
        return
    for key, part in parts:
        _flatten(f"{prefix}.{key}" if prefix else f"{key}", part, into)


def _build(caller: str, prefix: str, leaves: dict[str, Any]) -> Params:
    """The params with these leaves, whose names all begin with the prefix."""
    parts: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        head = name[len(prefix) :].partition(".")[0]
        parts.setdefault(head, {})[name] = leaf
    heads = set(parts)
    if heads == {"layers"}:
        return _stack(caller, f"{prefix}layers.", parts["layers"])
    if heads == {"forward", "backward"}:
        forward, backward = (
            _build(caller, f"{prefix}{head}.", parts[head]) for head in ("forward", "backward")
        )
        return Bidirectional(forward, backward)
    form = FORMS.get(next(iter(heads))) if len(heads) == 1 else None
    if form is None:
        raise _strange(caller, prefix, heads, leaves)
    return _cell(caller, f"{prefix}{next(iter(parts))}.", form, leaves)


def _strange(caller: str, prefix: str, heads: set[str], leaves: dict[str, Any]) -> Exception:
    """The error for names that do not belong to one network."""
    names = ", ".join(f"{prefix}{name}." for name in FORMS)
    expected = (
        f"names of one network, which begin with {prefix}layers., with {prefix}forward. and "
        f"{prefix}backward., or with one of {names}"
    )
    known = heads & {*PARTS, *FORMS}
    other = ", ".join(f"{prefix}{head}" for head in sorted(heads - known))
    fix = ""
    if known and other:
        fix = f"Take {other} out first: only the arrays of one network can be read."
    elif len(known) > 1:
        fix = "Pass the arrays of each network on their own."
    elif other:
        fix = (
            "Pass the part that belongs to one network. jaxgru.interop reads the weights of other "
            "libraries. "
        )
        fix = "" if caller == "load" else fix  # `save` wrote the file
        fix += "A cell of your own must be registered before, with forms."
    return checks.error(ValueError, caller, "names", expected, _listed(leaves), fix)


def _stack(caller: str, prefix: str, leaves: dict[str, Any]) -> Stack:
    layers: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        number = name[len(prefix) :].partition(".")[0]
        layers.setdefault(number, {})[name] = leaf
    numbers = [f"{k}" for k in range(len(layers))]
    if set(numbers) != set(layers):
        expected = f"names that begin with {prefix}0., {prefix}1. and so on, without a gap"
        raise checks.error(ValueError, caller, "names", expected, _listed(leaves))
    return Stack(tuple(_build(caller, f"{prefix}{number}.", layers[number]) for number in numbers))


def _cell(caller: str, prefix: str, form: Any, leaves: dict[str, Any]) -> Params:
    names = {prefix + name: name for name in form.weights}
    needed = {name for name, field in names.items() if not field.startswith("b")}
    if not needed <= set(leaves) <= set(names):
        expected = f"{', '.join(names)}, where only biases may be missing"
        nested = any(leaf.startswith(f"{name}.") for leaf in leaves for name in names)
        fix = "Each field of a cell with forms holds one array, not a tree of arrays."
        raise checks.error(
            ValueError, caller, "names", expected, _listed(leaves), fix if nested else ""
        )
    values = {field: leaves.get(name) for name, field in names.items()}
    return form.params_type(**values, **form.static)


def _listed(names: dict[str, Any]) -> str:
    """List at most eight names."""
    shown = ", ".join(list(names)[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "no names"
