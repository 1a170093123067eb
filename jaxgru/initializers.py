"""Initial weights: what torch, keras, flax and haiku really draw, orthogonal blocks, chrono biases.

| init | w_ih | w_hh | biases |
| --- | --- | --- | --- |
| `"orthogonal"` | LeCun normal | one orthogonal block a gate | 0; LSTM forget gate 1 |
| `"torch"` | U(-1/sqrt H, 1/sqrt H) | the same | the same, both of torch's biases |
| `"keras"` | Glorot uniform over all gates | orthogonal rows over all gates | as orthogonal |
| `"flax"` | LeCun normal | one orthogonal block a gate | 0 |
| `"haiku"` | truncated normal, fan-in | the same | 0; LSTM forget gate 1 |

Sources: `torch.nn.GRU`, `keras.layers.GRU`, `flax.linen.GRUCell`, `haiku.GRU` and their LSTM and
plain RNN counterparts; chrono: Tallec & Ollivier 2018, arXiv:1804.11188.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import initializers

from jaxgru import checks
from jaxgru.cell import accumulator
from jaxgru.orthonormal import orthogonal

PRESETS = ("orthogonal", "torch", "keras", "flax", "haiku")
LSTM_GATES = 4


class Drawn(NamedTuple):
    """Fresh weights of one cell with G gates. A cell with one bias uses the sum of the two."""

    w_ih: Array
    """`[I, G, H]`"""
    w_hh: Array
    """`[H, G, H]`"""
    b_ih: Array
    """`[G, H]`"""
    b_hh: Array
    """`[G, H]`"""


def draw(
    caller: str, key: Array, input_size: int, hidden_size: int, gates: int, init: str, dtype: Any
) -> Drawn:
    """Draw the weights of one cell by a named preset.

    Raises: TypeError or ValueError for a key, size, preset or dtype that does not fit.
    """
    i = checks.size(caller, "input_size", input_size, most=checks.INT32_MAX)
    h = checks.size(caller, "hidden_size", hidden_size, most=checks.INT32_MAX)
    if not (isinstance(init, str) and init in PRESETS):
        raise checks.error(
            ValueError, caller, "init", f"one of {', '.join(PRESETS)}", checks.shown(init)
        )
    checks.float_dtype(caller, "dtype", dtype)
    wide = accumulator(dtype)  # there is no QR in half precision
    key_ih, key_hh, key_bias = jax.random.split(key, 3)
    w_ih, w_hh = _WEIGHTS[init](key_ih, key_hh, i, gates, h, wide)
    b_ih = b_hh = jnp.zeros((gates, h), wide)
    if init == "torch":
        bound = 1 / math.sqrt(h)
        b_ih, b_hh = jax.random.uniform(key_bias, (2, gates, h), wide, -bound, bound)
    elif gates == LSTM_GATES and init != "flax":
        b_ih = b_ih.at[1].set(1)
    return Drawn(*(a.astype(dtype) for a in (w_ih, w_hh, b_ih, b_hh)))


def chrono(
    caller: str, key: Array, bias: Array | None, t_max: float, signs: dict[int, int]
) -> Array:
    """Draw the biases of the gates that forget for long memories, in biases `[G, H]`.

        bias[gate] = sign * log(u),    u ~ U[1, T_max - 1], one value for each unit

    Raises: TypeError or ValueError without biases, or if T_max is not a number of at least 2.
    """
    if bias is None:
        fix = "chrono sets the biases of gates."
        raise checks.error(ValueError, caller, "bias", "True with chrono", "False", fix)
    checks.number(caller, "chrono", t_max)
    if not 2 <= t_max <= float(jnp.finfo(accumulator(bias.dtype)).max):
        expected = "a finite number of time steps, at least 2"
        raise checks.error(ValueError, caller, "chrono", expected, f"{t_max}")
    u = jax.random.uniform(key, bias.shape[-1:], accumulator(bias.dtype), 1.0, t_max - 1.0)
    for gate, sign in signs.items():
        bias = bias.at[gate].set((sign * jnp.log(u)).astype(bias.dtype))
    return bias


def _blocks(initializer: Any, key: Array, rows: int, gates: int, h: int, dtype: Any) -> Array:
    """Draw `[rows, gates, h]`, with a separate draw for the block of each gate."""
    keys = jax.random.split(key, gates)
    return jax.vmap(lambda k: initializer(k, (rows, h), dtype), out_axes=1)(keys)


def _packed(initializer: Any, key: Array, rows: int, gates: int, h: int, dtype: Any) -> Array:
    """Draw `[rows, gates, h]` as one matrix `[rows, gates * h]`."""
    return initializer(key, (rows, gates * h), dtype).reshape(rows, gates, h)


def _orthogonal(key_ih, key_hh, i, gates, h, dtype):
    return (
        _blocks(initializers.lecun_normal(), key_ih, i, gates, h, dtype),
        _blocks(orthogonal, key_hh, h, gates, h, dtype),
    )


def _torch(key_ih, key_hh, i, gates, h, dtype):
    bound = 1 / math.sqrt(h)
    return (
        jax.random.uniform(key_ih, (i, gates, h), dtype, -bound, bound),
        jax.random.uniform(key_hh, (h, gates, h), dtype, -bound, bound),
    )


def _keras(key_ih, key_hh, i, gates, h, dtype):
    return (
        _packed(initializers.glorot_uniform(), key_ih, i, gates, h, dtype),
        _packed(orthogonal, key_hh, h, gates, h, dtype),
    )


def _haiku(key_ih, key_hh, i, gates, h, dtype):
    if gates == 3:  # haiku.GRU: VarianceScaling, which corrects for the truncation
        normal = initializers.lecun_normal()
        return (
            _packed(normal, key_ih, i, gates, h, dtype),
            _packed(normal, key_hh, h, gates, h, dtype),
        )
    # haiku.Linear does not correct for it; haiku.LSTM has one Linear over [x, h]
    fan_ih, fan_hh = (i + h, i + h) if gates == LSTM_GATES else (i, h)
    return (
        jax.random.truncated_normal(key_ih, -2, 2, (i, gates, h), dtype) / math.sqrt(fan_ih),
        jax.random.truncated_normal(key_hh, -2, 2, (h, gates, h), dtype) / math.sqrt(fan_hh),
    )


_WEIGHTS = {
    "orthogonal": _orthogonal,
    "torch": _torch,
    "keras": _keras,
    "flax": _orthogonal,
    "haiku": _haiku,
}
