"""Weights of Equinox: `eqx.nn.GRUCell` and `eqx.nn.LSTMCell`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgru import checks
from jaxgru.cell import Params
from jaxgru.interop.weights import (
    GRU_LIKE_TORCH,
    LSTM_LIKE_TORCH,
    Named,
    Packed,
    form_of,
    to_packed,
    to_params,
)

FORMS = {"GRUCell": GRU_LIKE_TORCH, "LSTMCell": LSTM_LIKE_TORCH}


def from_equinox(cell: Any) -> Params:
    """Read the weights of a cell of Equinox.

        w_ih, w_hh, b, b_hn = weight_ih.T, weight_hh.T, bias, bias_n

    The update gate of Equinox weighs the old state, so its weights and bias are negated.

    Args:
        cell: an `eqx.nn.GRUCell` or `eqx.nn.LSTMCell`.

    Returns:
        GRUParams with reset_after=True, or LSTMParams.

    Raises:
        TypeError, ValueError: cell is a module of another kind, or its arrays do not fit.

    Example:
        >>> import equinox as eqx, jax, jaxgru
        >>> cell = eqx.nn.GRUCell(3, 4, key=jax.random.key(0))
        >>> jaxgru.interop.from_equinox(cell).reset_after
        True

    Source: the documentation of equinox.nn.GRUCell and equinox.nn.LSTMCell.
    """
    form = FORMS.get(type(cell).__name__)
    if form is None:
        expected, got = "an equinox GRUCell or LSTMCell", type(cell).__name__
        raise checks.error(TypeError, "from_equinox", "cell", expected, got)
    arrays = {
        name: getattr(cell, name, None) for name in ("weight_ih", "weight_hh", "bias", "bias_n")
    }
    named = Named("from_equinox", {name: a for name, a in arrays.items() if a is not None})
    width = len(form.order) * cell.hidden_size
    w_ih = named.array("weight_ih", width, cell.input_size)
    w_hh = named.array("weight_hh", width, cell.hidden_size)
    b_ih = b_hh = None
    if cell.use_bias:
        b_ih = named.array("bias", width)
        if form.reset_after:
            b_hn = named.array("bias_n", cell.hidden_size)
            b_hh = np.concatenate([np.zeros_like(b_ih[: -len(b_hn)]), b_hn])
    return to_params(form, Packed(w_ih.T, w_hh.T, b_ih, b_hh))


def to_equinox(params: Params) -> Any:
    """Write params as a cell of Equinox.

        weight_ih, weight_hh, bias, bias_n = w_ih.T, w_hh.T, b, b_hn

    Args:
        params: GRUParams with reset_after=True, or LSTMParams.

    Returns:
        An `eqx.nn.GRUCell` or `eqx.nn.LSTMCell`. It has no biases if params have none.

    Raises:
        TypeError, ValueError: params have no counterpart in Equinox.

    Example:
        >>> import equinox, jax, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), 3, 4, reset_after=True)
        >>> jaxgru.interop.to_equinox(params).weight_ih.shape
        (12, 3)

    Source: the documentation of equinox.nn.GRUCell and equinox.nn.LSTMCell.
    """
    form = form_of("to_equinox", FORMS.values(), params, "Equinox has no plain RNN.")
    import equinox as eqx

    packed = to_packed(form, params)
    size = packed.w_hh.shape[0]
    arrays = {"weight_ih": packed.w_ih.T, "weight_hh": packed.w_hh.T}
    if packed.b_ih is not None and packed.b_hh is not None:
        arrays["bias"] = packed.b_ih
        if form.reset_after:
            arrays["bias_n"] = packed.b_hh[2 * size :]
    kind = eqx.nn.GRUCell if form is GRU_LIKE_TORCH else eqx.nn.LSTMCell
    biased, dtype = "bias" in arrays, packed.w_ih.dtype
    cell = kind(packed.w_ih.shape[0], size, biased, dtype=dtype, key=jax.random.key(0))
    leaves = [jnp.asarray(array) for array in arrays.values()]
    return eqx.tree_at(lambda cell: [getattr(cell, name) for name in arrays], cell, leaves)
