"""Weights of `flax.nnx`: GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgru import checks
from jaxgru.cell import Params
from jaxgru.interop import linen
from jaxgru.interop.weights import (
    ELMAN,
    GRU_LIKE_TORCH,
    LSTM_LIKE_TORCH,
    Named,
    Packed,
    form_of,
    to_packed,
    to_params,
)

FORMS = {"GRUCell": GRU_LIKE_TORCH, "OptimizedLSTMCell": LSTM_LIKE_TORCH, "SimpleCell": ELMAN}


def from_nnx(cell: Any) -> Params:
    """Read the weights of a cell of flax.nnx.

        w_ih, w_hh = dense_i.kernel, dense_h.kernel
        b          = dense_i.bias + dense_h.bias, without those that are missing

    The update gate of Flax weighs the old state, so its weights and bias are negated. A GRUCell of
    nnx has no bias inside the reset product, so b_hn is zero.

    Args:
        cell: a GRUCell, LSTMCell, OptimizedLSTMCell or SimpleCell.

    Returns:
        GRUParams with reset_after=True, LSTMParams or ElmanParams.

    Raises:
        TypeError, ValueError: cell is a module of another kind, or it has options without a
            counterpart: other activations, `residual`.

    Example:
        >>> import jaxgru
        >>> from flax import nnx
        >>> jaxgru.interop.from_nnx(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))).b.shape
        (3, 4)

    Source: the documentation of flax.nnx.GRUCell, LSTMCell and SimpleCell.
    """
    kind = type(cell).__name__
    if kind != "LSTMCell" and kind not in FORMS:
        expected = "an nnx GRUCell, LSTMCell, OptimizedLSTMCell or SimpleCell"
        raise checks.error(TypeError, "from_nnx", "cell", expected, kind)
    _check_options(cell)
    if kind == "LSTMCell":  # it has a Dense layer for each gate, as in linen
        names = linen.NAMES[LSTM_LIKE_TORCH]
        layers = {n: getattr(cell, "if_" if n == "if" else n) for n in names.inputs + names.states}
        return linen.read("from_nnx", LSTM_LIKE_TORCH, {n: _parts(d) for n, d in layers.items()})
    form = FORMS[kind]
    named = Named(
        "from_nnx",
        {
            f"{layer}/{part}": array
            for layer in ("dense_i", "dense_h")
            for part, array in _parts(getattr(cell, layer)).items()
        },
    )
    width = len(form.order) * cell.hidden_features
    w_ih = named.array("dense_i/kernel", cell.in_features, width)
    w_hh = named.array("dense_h/kernel", cell.hidden_features, width)
    zeros = np.zeros(width, w_ih.dtype)
    found = [f"{layer}/bias" in named for layer in ("dense_i", "dense_h")]
    b_ih, b_hh = (
        named.array(f"{layer}/bias", width) if there else zeros
        for layer, there in zip(("dense_i", "dense_h"), found, strict=True)
    )
    return to_params(form, Packed(w_ih, w_hh, *((b_ih, b_hh) if any(found) else (None, None))))


def _parts(dense: Any) -> dict[str, Any]:
    """Return the arrays of a Linear by name."""
    parts = {name: getattr(dense, name, None) for name in ("kernel", "bias")}
    return {name: variable[...] for name, variable in parts.items() if variable is not None}


def _check_options(cell: Any) -> None:
    for name, known in (
        ("gate_fn", (jax.nn.sigmoid,)),
        ("activation_fn", (jnp.tanh, jax.nn.tanh)),
        ("residual", (False,)),
    ):
        value = getattr(cell, name, known[0])
        if not any(value is function for function in known):
            got = getattr(value, "__name__", repr(value))
            expected = getattr(known[0], "__name__", repr(known[0]))
            raise checks.error(ValueError, "from_nnx", name, expected, got)


def to_nnx(params: Params) -> Any:
    """Write params as a cell of flax.nnx.

        dense_i.kernel, dense_h.kernel = w_ih, w_hh
        dense_i.bias (LSTM: dense_h.bias) = b

    Args:
        params: GRUParams with reset_after=True, LSTMParams or ElmanParams. b_hn must be None or
            zeros, since a GRUCell of nnx has no place for it. `jaxgru.interop.flax.RNN` and
            `to_linen` keep it.

    Returns:
        A GRUCell, OptimizedLSTMCell or SimpleCell.

    Raises:
        TypeError, ValueError: params have no counterpart in Flax.

    Example:
        >>> import flax, jax, jaxgru
        >>> params = jaxgru.lstm_init(jax.random.key(0), 3, 4)
        >>> jaxgru.interop.to_nnx(params).dense_i.kernel.shape
        (3, 16)

    Source: the documentation of flax.nnx.GRUCell, OptimizedLSTMCell and SimpleCell.
    """
    form = form_of("to_nnx", FORMS.values(), params)
    b_hn: Any = getattr(params, "b_hn", None)
    if b_hn is not None and np.any(np.asarray(b_hn)):
        fix = "jaxgru.interop.flax.RNN and to_linen keep this bias."
        expected = "zero or None, since nnx.GRUCell has no such bias"
        raise checks.error(ValueError, "to_nnx", "GRUParams.b_hn", expected, "other values", fix)
    from flax import nnx

    packed = to_packed(form, params)
    kind = {
        GRU_LIKE_TORCH: nnx.GRUCell,
        LSTM_LIKE_TORCH: nnx.OptimizedLSTMCell,
        ELMAN: nnx.SimpleCell,
    }[form]
    sizes, dtype = (packed.w_ih.shape[0], packed.w_hh.shape[0]), packed.w_ih.dtype
    cell: Any = kind(*sizes, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    cell.dense_i.kernel[...] = jnp.asarray(packed.w_ih)
    cell.dense_h.kernel[...] = jnp.asarray(packed.w_hh)
    biased = cell.dense_h if form is LSTM_LIKE_TORCH else cell.dense_i
    zeros = np.zeros(packed.w_hh.shape[1:], dtype)
    biased.bias[...] = jnp.asarray(zeros if packed.b_ih is None else packed.b_ih)
    return cell
