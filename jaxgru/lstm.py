"""The long short-term memory with a forget gate, whose gates and states the GRU merges."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, exportable, initializers
from jaxgru.cell import Blocks, advance, flat, register
from jaxgru.derivative import derived
from jaxgru.forms import weights


@weights(lstm={})
@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMParams:
    """The weights of an LSTM, a pytree.

    The middle axis is the gate: input, forget, cell, output. All leaves have one dtype.

    Args:
        w_ih: input weights `[I, 4, H]`.
        w_hh: recurrent weights `[H, 4, H]`.
        b: biases `[4, H]`, or None.

    Example:
        >>> import jax, jaxgru
        >>> jaxgru.lstm_init(jax.random.key(0), input_size=8, hidden_size=64).w_hh.shape
        (64, 4, 64)
    """

    w_ih: Array
    w_hh: Array
    b: Array | None


@exportable.named_tuple
class LSTMCarry(NamedTuple):
    """The state of an LSTM: the output h `[H]` and the cell c `[H]`."""

    h: Array
    c: Array


def lstm_init(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    init: str = "orthogonal",
    chrono: float | None = None,
    dtype: Any = jnp.float32,
) -> LSTMParams:
    """Draw the weights of an LSTM.

    Args:
        key: a `jax.random.key`.
        input_size: I, the number of input features.
        hidden_size: H, the number of units.
        bias: whether there are biases.
        init: the initial weights. `"orthogonal"` draws LeCun-normal input weights, an orthogonal
            recurrent block for each gate, and zero biases, except 1 for the forget gate.
            `"torch"`, `"keras"`, `"flax"` and `"haiku"` draw what those libraries draw.
        chrono: the longest memory to expect, T_max, in time steps. It draws the bias of the forget
            gate as log(u), u ~ U[1, T_max - 1], and that of the input gate as -log(u).
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        LSTMParams with w_ih `[I, 4, H]`, w_hh `[H, 4, H]`, b `[4, H]`.

    Raises:
        TypeError, ValueError: an argument does not fit, or chrono is given without biases.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.lstm_init(jax.random.key(0), 8, 64)
        >>> float(params.b[1].min())
        1.0

    Source: Gers et al. 2000; chrono: Tallec & Ollivier 2018, arXiv:1804.11188.
    """
    checks.flag("lstm_init", "bias", bias)
    key, chrono_key = jax.random.split(checks.key("lstm_init", key))
    drawn = initializers.draw("lstm_init", key, input_size, hidden_size, 4, init, dtype)
    b = drawn.b_ih + drawn.b_hh if bias else None
    if chrono is not None:
        b = initializers.chrono("lstm_init", chrono_key, b, chrono, {0: -1, 1: 1})
    return LSTMParams(w_ih=drawn.w_ih, w_hh=drawn.w_hh, b=b)


def lstm_step(params: LSTMParams, carry: LSTMCarry, x: Array) -> LSTMCarry:
    """One time step of an LSTM.

        i  = sigmoid(x W_i + h U_i + b_i)
        f  = sigmoid(x W_f + h U_f + b_f)
        g  = tanh(x W_g + h U_g + b_g)
        o  = sigmoid(x W_o + h U_o + b_o)
        c' = f * c + i * g
        h' = o * tanh(c')

    Args:
        params: LSTMParams.
        carry: LSTMCarry(h `[H]`, c `[H]`), of the dtype of params.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next LSTMCarry. Its h is the output.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.lstm_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> jaxgru.lstm_step(params, jaxgru.initial_carry(params), jnp.ones(8, "float32")).h.shape
        (64,)

    Source: Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000.
    """
    params, carry, x = checks.step("lstm_step", LSTMParams, params, carry, x)
    return advance(_CELL, _blocks(params), carry, x)[0]


def _sizes(params: LSTMParams) -> tuple[int, int]:
    return params.w_ih.shape[0], params.w_ih.shape[-1]


def _check(caller: str, params: LSTMParams) -> None:
    size = checks.hidden_size(params.w_hh, 3)
    checks.weights(caller, params, w_hh=(size, 4, size), w_ih=("I", 4, size), b=(4, size))


def _carry_shape(params: LSTMParams) -> LSTMCarry:
    one: Any = jax.ShapeDtypeStruct(params.w_hh.shape[-1:], checks.dtype_of(params.w_hh))
    return LSTMCarry(one, one)


def _blocks(params: LSTMParams) -> Blocks:
    return Blocks(flat(params.w_ih), (flat(params.w_hh),), flat(params.b))


def _advance(products, blocks: Blocks, carry: LSTMCarry, projected: tuple[Array, ...]):
    h, c = carry
    x_i, x_f, x_g, x_o = projected
    a_i, a_f, a_g, a_o = products[0](h)
    i = jax.nn.sigmoid(x_i + a_i)
    f = jax.nn.sigmoid(x_f + a_f)
    g = jnp.tanh(x_g + a_g)
    o = jax.nn.sigmoid(x_o + a_o)
    new_c = f * c.astype(f.dtype) + i * g
    squashed = jnp.tanh(new_c)
    new = LSTMCarry((o * squashed).astype(h.dtype), new_c.astype(c.dtype))
    return new, (i, f, g, o, squashed)


def _bound(start: LSTMCarry, steps: int) -> LSTMCarry:
    return LSTMCarry(jnp.maximum(start.h, 1), start.c + steps)


_CELL = derived(
    counts=lambda _: (4,),
    gates=4,
    sizes=_sizes,
    check=_check,
    carry_shape=_carry_shape,
    output=lambda carry: carry.h,
    blocks=_blocks,
    advance=_advance,
    bound=_bound,
)
register(LSTMParams, _CELL)
