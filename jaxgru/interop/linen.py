"""Weights of `flax.linen`: GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgru import checks
from jaxgru.cell import Params
from jaxgru.interop.weights import (
    ELMAN,
    GRU_LIKE_TORCH,
    LSTM_LIKE_TORCH,
    Form,
    Named,
    Packed,
    form_of,
    mapping,
    to_packed,
    to_params,
)


class _Names(NamedTuple):
    """The names of the Dense layers, in the order of the gates, and of those with a bias."""

    inputs: tuple[str, ...]
    states: tuple[str, ...]
    biased: tuple[str, ...]


NAMES = {
    GRU_LIKE_TORCH: _Names(("ir", "iz", "in"), ("hr", "hz", "hn"), ("ir", "iz", "in", "hn")),
    LSTM_LIKE_TORCH: _Names(
        ("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho"), ("hi", "hf", "hg", "ho")
    ),
    ELMAN: _Names(("i",), ("h",), ("i",)),
}


def from_linen(variables: Mapping[str, Any]) -> Params:
    """Read the weights of a cell of flax.linen.

        w_ih, w_hh   = [ir, iz, in].kernel, [hr, hz, hn].kernel      GRUCell, and so on
        b, b_hn      = [ir, iz, in].bias, hn.bias

    The update gate of Flax weighs the old state, so its weights and bias are negated.

    Args:
        variables: what `init` of a GRUCell, LSTMCell, OptimizedLSTMCell or SimpleCell returned, or
            the cell's own part of the variables of a model. A SimpleCell with `residual=True` has
            the same weights, but is another function. The variables do not tell which it is.

    Returns:
        GRUParams with reset_after=True, LSTMParams or ElmanParams.

    Raises:
        TypeError, ValueError: weights are missing, belong to something else, or do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxgru
        >>> i, h = jnp.ones((3, 4), "float32"), jnp.ones((4, 4), "float32")
        >>> cell = {"i": {"kernel": i, "bias": jnp.ones(4, "float32")}, "h": {"kernel": h}}
        >>> jaxgru.interop.from_linen({"params": cell}).w_ih.shape
        (3, 4)

    Source: the documentation of flax.linen.GRUCell, LSTMCell and SimpleCell.
    """
    expected = "a mapping, the variables of a cell"
    mapping("from_linen", "variables", variables, expected)
    tree = variables.get("params", variables)
    mapping("from_linen", "variables", tree, expected)
    for form, names in NAMES.items():
        if all(name in tree for name in names.inputs):
            return read("from_linen", form, tree)
    expected = "the weights of a GRUCell, LSTMCell or SimpleCell"
    got = ", ".join(map(repr, tree)) or "nothing"
    fix = "Pass the part of a model's variables that belongs to the cell."
    raise checks.error(ValueError, "from_linen", "variables", expected, got, fix)


def read(caller: str, form: Form, tree: Mapping[str, Any]) -> Params:
    """Read a cell that has a Dense layer for each gate."""
    names = NAMES[form]
    for layer, parts in tree.items():
        mapping(caller, repr(layer), parts)
    flat = {f"{layer}/{part}": a for layer, parts in tree.items() for part, a in parts.items()}
    named = Named(caller, flat)
    size = named.array(f"{names.states[0]}/kernel", "H", "H").shape[1]
    inputs = named.array(f"{names.inputs[0]}/kernel", "I", size).shape[0]
    w_hh = [named.array(f"{name}/kernel", size, size) for name in names.states]
    w_ih = [named.array(f"{name}/kernel", inputs, size) for name in names.inputs]
    b_ih = b_hh = None
    if any(f"{name}/bias" in named for name in names.biased):
        b = {name: named.array(f"{name}/bias", size) for name in names.biased}
        zeros = np.zeros(size, w_ih[0].dtype)
        b_ih = np.concatenate([b.get(name, zeros) for name in names.inputs])
        b_hh = np.concatenate([b.get(name, zeros) for name in names.states])
    named.finish("Pass the weights of one cell.")
    return to_params(form, Packed(np.concatenate(w_ih, 1), np.concatenate(w_hh, 1), b_ih, b_hh))


def to_linen(params: Params) -> dict[str, Any]:
    """Write params as the weights of a cell of flax.linen.

        [ir, iz, in].kernel, [hr, hz, hn].kernel = w_ih, w_hh      GRUCell, and so on
        [ir, iz, in].bias, hn.bias               = b, b_hn

    Args:
        params: GRUParams with reset_after=True (GRUCell), LSTMParams (LSTMCell and
            OptimizedLSTMCell) or ElmanParams (SimpleCell).

    Returns:
        The cell's own part of the variables, for `cell.apply({"params": to_linen(params)}, ...)`.
        Cells of Flax always have biases. If params have no biases, those of Flax are zero.

    Raises:
        TypeError, ValueError: params have no counterpart in Flax.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), 3, 4, reset_after=True)
        >>> jaxgru.interop.to_linen(params)["ir"]["kernel"].shape
        (3, 4)

    Source: the documentation of flax.linen.GRUCell, LSTMCell and SimpleCell.
    """
    form = form_of("to_linen", NAMES, params)
    names, packed = NAMES[form], to_packed(form, params)
    zeros = np.zeros(packed.w_hh.shape[1:], packed.w_hh.dtype)
    b_ih, b_hh = (zeros if b is None else b for b in (packed.b_ih, packed.b_hh))
    if names.inputs[0] not in names.biased:  # the LSTM has its biases in the layers of the state
        b_hh = b_ih
    tree: dict[str, Any] = {}
    for side, w, b in ((names.inputs, packed.w_ih, b_ih), (names.states, packed.w_hh, b_hh)):
        parts = zip(side, np.split(w, len(side), 1), np.split(b, len(side)), strict=True)
        for name, kernel, bias in parts:
            tree[name] = {"kernel": kernel} | ({"bias": bias} if name in names.biased else {})
    return tree
