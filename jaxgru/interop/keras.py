"""Weights of Keras: GRU (both forms), LSTM, SimpleRNN, their cells, and Bidirectional."""

from typing import Any

import numpy as np

from jaxgru import checks
from jaxgru.cell import Params
from jaxgru.gru import GRUParams
from jaxgru.interop.weights import (
    ELMAN,
    LSTM_LIKE_TORCH,
    Form,
    Named,
    Packed,
    form_of,
    other_form,
    to_packed,
    to_params,
)
from jaxgru.layers import Bidirectional

GRU = {
    after: Form(GRUParams, (1, 0, 2), negated=(1,), reset_after=after) for after in (False, True)
}
FORMS = {"LSTMCell": LSTM_LIKE_TORCH, "SimpleRNNCell": ELMAN}
KINDS = "a keras GRU, LSTM, SimpleRNN, one of their cells, or a Bidirectional of them"


def from_keras(layer: Any) -> Params:
    """Read the weights of a recurrent layer of Keras.

        b = bias[0] + [bias[1, z], bias[1, r], 0],  b_hn = bias[1, h]       GRU(reset_after=True)
        b = bias                                                            all others

    The update gate of Keras weighs the old state, so its weights and bias are negated.

    Args:
        layer: a GRU, LSTM, SimpleRNN, GRUCell, LSTMCell, SimpleRNNCell, or a Bidirectional whose
            outputs are concatenated. The layer must be built.

    Returns:
        GRUParams of the form of the layer, LSTMParams or ElmanParams, or a Bidirectional of them.
        The dtype is that of the weights.

    Raises:
        TypeError, ValueError: the layer is of another kind or is not built, or it has options
            without a counterpart: other activations, other merge modes, `go_backwards`.

    Example:
        >>> import jaxgru, keras
        >>> layer = keras.layers.GRU(4, recurrent_initializer="glorot_uniform")
        >>> layer.build((None, None, 3))
        >>> jaxgru.interop.from_keras(layer).reset_after
        True

    Source: the documentation of keras.layers.GRU, LSTM, SimpleRNN and Bidirectional.
    """
    if type(layer).__name__ == "Bidirectional":
        return Bidirectional(*map(_read, _sides("from_keras", layer)))
    return _read(layer)


def to_keras(params: Params, layer: Any) -> None:
    """Write params into a recurrent layer of Keras.

        bias[0] = b,  bias[1] = [0, 0, b_hn]        GRU(reset_after=True)
        bias    = b                                 all others

    Args:
        params: GRUParams, LSTMParams, ElmanParams, or a Bidirectional of them.
        layer: a layer of the same kind, form and sizes, which must be built. If it has biases and
            params have none, its biases become zero.

    Raises:
        TypeError, ValueError: the layer cannot hold these params. In this case nothing is written.

    Example:
        >>> import jax, jaxgru, keras
        >>> params = jaxgru.gru_init(jax.random.key(0), 3, 4)
        >>> layer = keras.layers.GRU(4, reset_after=False, recurrent_initializer="zeros")
        >>> layer.build((None, None, 3))
        >>> jaxgru.interop.to_keras(params, layer)

    Source: the documentation of keras.layers.GRU, LSTM, SimpleRNN and Bidirectional.
    """
    if type(layer).__name__ == "Bidirectional":
        if not isinstance(params, Bidirectional):
            got = type(params).__name__
            raise checks.error(
                TypeError, "to_keras", "params", "a Bidirectional, since layer is one", got
            )
        sides = _sides("to_keras", layer)
        both = zip((params.forward, params.backward), sides, strict=True)
        written = [_written(side_params, side) for side_params, side in both]
    else:
        written = [_written(params, layer)]
    for cell, arrays in written:
        cell.set_weights(arrays)


def _sides(caller: str, layer: Any) -> tuple[Any, Any]:
    if layer.merge_mode != "concat":
        raise checks.error(ValueError, caller, "merge_mode", "'concat'", repr(layer.merge_mode))
    return layer.forward_layer, layer.backward_layer.cell  # without go_backwards, which is True


def _cell(caller: str, layer: Any) -> tuple[Any, Form]:
    """Return the cell in a layer, and its form."""
    cell = getattr(layer, "cell", layer)
    kind = type(cell).__name__
    form = GRU[cell.reset_after] if kind == "GRUCell" else FORMS.get(kind)
    if form is None:
        raise checks.error(TypeError, caller, "layer", KINDS, type(layer).__name__)
    if getattr(layer, "go_backwards", False):
        fix = "Params hold no direction: jaxgru.scan(..., reverse=True) runs backwards."
        raise checks.error(ValueError, caller, "go_backwards", "False", "True", fix)
    for name, wanted in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        got = getattr(getattr(cell, name, None), "__name__", wanted)
        if got != wanted:
            raise checks.error(ValueError, caller, name, repr(wanted), repr(got))
    if not cell.built:
        fix = "Call layer.build((None, None, input_size)) first, which makes the weights."
        raise checks.error(ValueError, caller, "layer", "built", "a layer without weights", fix)
    return cell, form


def _named(caller: str, cell: Any) -> Named:
    import keras

    return Named(caller, {w.name: keras.ops.convert_to_numpy(w) for w in cell.weights})


def _read(layer: Any) -> Any:
    cell, form = _cell("from_keras", layer)
    named = _named("from_keras", cell)
    width = len(form.order) * cell.units
    kernel = named.array("kernel", "I", width)
    recurrent = named.array("recurrent_kernel", cell.units, width)
    b: tuple[Any, ...] = (None, None)
    if cell.use_bias:
        b = (
            tuple(named.array("bias", 2, width))
            if form.reset_after
            else (named.array("bias", width), None)
        )
    named.finish("Other weights have no counterpart.")
    return to_params(form, Packed(kernel, recurrent, *b))


def _written(params: Any, layer: Any) -> tuple[Any, list[np.ndarray]]:
    """Return the cell in the layer, and the values for its weights."""
    cell, form = _cell("to_keras", layer)
    given = form_of("to_keras", (*GRU.values(), *FORMS.values()), params)
    if given.params_type is not form.params_type:
        expected, got = form.params_type.__name__, given.params_type.__name__
        raise checks.error(TypeError, "to_keras", "params", f"{expected}, as for layer", got)
    if given.reset_after != form.reset_after:
        raise other_form(
            "to_keras", "GRUParams.reset_after", bool(form.reset_after), bool(given.reset_after)
        )
    packed = to_packed(form, params)
    arrays = {"kernel": packed.w_ih, "recurrent_kernel": packed.w_hh}
    if cell.use_bias:
        zeros = np.zeros(packed.w_hh.shape[1:], packed.w_hh.dtype)
        b_ih, b_hh = (zeros if b is None else b for b in (packed.b_ih, packed.b_hh))
        arrays["bias"] = np.stack([b_ih, b_hh]) if form.reset_after else b_ih
    elif packed.b_ih is not None:
        raise checks.error(
            ValueError, "to_keras", "layer", "made with use_bias=True", "use_bias=False"
        )
    named = _named("to_keras", cell)
    for name, array in arrays.items():
        have = named.array(name, *(["?"] * array.ndim)).shape
        if have != array.shape:
            expected = f"of shape {list(array.shape)}, as in params"
            raise checks.error(ValueError, "to_keras", repr(name), expected, f"{list(have)}")
    return cell, [arrays[w.name] for w in cell.weights]
