"""Weights of Haiku: `hk.GRU` and `hk.LSTM`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxgru import checks
from jaxgru.cell import Params, accumulator
from jaxgru.gru import GRUParams
from jaxgru.interop.weights import Form, Named, Packed, form_of, mapping, to_packed, to_params
from jaxgru.lstm import LSTMParams

GRU = Form(GRUParams, (1, 0, 2), reset_after=False)
LSTM = Form(LSTMParams, (0, 2, 1, 3))
FORGET = 1  # what hk.LSTM adds to the forget gate
RELU = "hk.VanillaRNN uses relu, and the network of ElmanParams uses tanh."


def from_haiku(params: Mapping[str, Any], name: str | None = None) -> Params:
    """Read the weights of a recurrent core of Haiku.

        w_ih, w_hh, b = w_i, w_h, b                              hk.GRU, reset before the product
        w_ih, w_hh, b = w[:I], w[I:], b + [0, 1, 0, 0]           hk.LSTM, which itself adds 1 to f

    Args:
        params: what `init` of the transformed function returned.
        name: the name of the module in it, such as `"gru"` or `"lstm/linear"`. It is needed if
            there are several modules.

    Returns:
        GRUParams with reset_after=False, or LSTMParams.

    Raises:
        TypeError, ValueError: the module is missing, or it is of another kind. hk.VanillaRNN has
            no counterpart, since its nonlinearity is relu.

    Example:
        >>> import jaxgru, jax.numpy as jnp
        >>> w_i, w_h = jnp.ones((3, 12), "float32"), jnp.ones((4, 12), "float32")
        >>> params = {"gru": {"w_i": w_i, "w_h": w_h, "b": jnp.ones(12, "float32")}}
        >>> jaxgru.interop.from_haiku(params).reset_after
        False

    Source: the documentation of haiku.GRU and haiku.LSTM.
    """
    mapping("from_haiku", "params", params, "a mapping of module names")
    modules = dict(params)
    if any(module.partition("/")[0].startswith("vanilla_rnn") for module in modules):
        raise checks.error(
            ValueError, "from_haiku", "params", "those of a GRU or LSTM", "VanillaRNN", RELU
        )
    known = ", ".join(map(repr, modules)) or "none"
    if name is None:
        if len(modules) != 1:
            fix = "Choose one with name=."
            raise checks.error(
                ValueError, "from_haiku", "params", "those of one module", known, fix
            )
        (name,) = modules
    if name not in modules:
        raise checks.error(
            ValueError, "from_haiku", "name", f"the name of a module ({known})", repr(name)
        )
    named = Named("from_haiku", modules[name])
    if "w_i" in named or "w_h" in named:
        size, _ = named.array("w_h", "H", "3 * H").shape
        form = GRU
        packed = Packed(
            named.array("w_i", "I", 3 * size),
            named.array("w_h", size, 3 * size),
            named.array("b", 3 * size),
        )
    else:
        size = named.array("b", "4 * H").shape[0] // 4
        rows, _ = named.array("w", "I + H", 4 * size).shape
        if rows <= size:
            expected = f"an array with more than {size} rows, I + H"
            raise checks.error(ValueError, "from_haiku", "'w'", expected, str(rows))
        w, form = named.array("w", rows, 4 * size), LSTM
        packed = Packed(
            w[: rows - size], w[rows - size :], _shifted(named.array("b", 4 * size), FORGET)
        )
    named.finish("Pass the params of an hk.GRU or hk.LSTM.")
    return to_params(form, packed)


def to_haiku(params: Params, name: str | None = None) -> dict[str, dict[str, Any]]:
    """Write params as those of a recurrent core of Haiku.

        w_i, w_h, b = w_ih, w_hh, b                              hk.GRU, reset before the product
        w, b = [w_ih; w_hh], b - [0, 1, 0, 0]                    hk.LSTM, which itself adds 1 to f

    Args:
        params: GRUParams with reset_after=False, or LSTMParams. Missing biases become zero.
        name: the name of the module. None stands for `"gru"` or `"lstm/linear"`.

    Returns:
        A mapping of the module's name to its arrays, for `apply`.

    Raises:
        TypeError, ValueError: params have no counterpart in Haiku.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), 3, 4)
        >>> jaxgru.interop.to_haiku(params)["gru"]["w_i"].shape
        (3, 12)

    Source: the documentation of haiku.GRU and haiku.LSTM.
    """
    form = form_of("to_haiku", (GRU, LSTM), params, RELU)
    packed = to_packed(form, params)
    b = np.zeros(packed.w_hh.shape[1:], packed.w_hh.dtype) if packed.b_ih is None else packed.b_ih
    if form is GRU:
        return {name or "gru": {"w_i": packed.w_ih, "w_h": packed.w_hh, "b": b}}
    w = np.concatenate([packed.w_ih, packed.w_hh])
    return {name or "lstm/linear": {"w": w, "b": _shifted(b, -FORGET)}}


def _shifted(b: np.ndarray, by: int) -> np.ndarray:
    """Shift the third quarter of the biases, which is the forget gate in Haiku's order."""
    wide = b.astype(accumulator(b.dtype))
    quarter = len(b) // 4
    wide[2 * quarter : 3 * quarter] += by
    return wide.astype(b.dtype)
