"""The minimal gated unit (Zhou et al. 2016), a GRU with one gate, which resets and updates."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, initializers
from jaxgru.cell import advance, cell_of
from jaxgru.equations import Weights
from jaxgru.register import register


@dataclasses.dataclass(frozen=True, kw_only=True)
class MGUParams:
    """The weights of a minimal gated unit, a pytree.

    The middle axis is the gate: forget, candidate. All leaves have one dtype.

    Args:
        w_ih: input weights `[I, 2, H]`.
        w_hh: recurrent weights `[H, 2, H]`.
        b: biases `[2, H]`, or None.

    Example:
        >>> import jax, jaxgru
        >>> jaxgru.mgu_init(jax.random.key(0), input_size=8, hidden_size=64).w_hh.shape
        (64, 2, 64)
    """

    w_ih: Array
    w_hh: Array
    b: Array | None


def mgu_init(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    init: str = "orthogonal",
    chrono: float | None = None,
    dtype: Any = jnp.float32,
) -> MGUParams:
    """Draw the weights of a minimal gated unit.

    Args:
        key: a `jax.random.key`.
        input_size: I, the number of input features.
        hidden_size: H, the number of units.
        bias: whether there are biases.
        init: the initial weights. `"orthogonal"` draws LeCun-normal input weights, an orthogonal
            recurrent block for each gate, and zero biases. `"torch"`, `"keras"`, `"flax"` and
            `"haiku"` draw what those libraries draw as the weights of a recurrent cell.
        chrono: the longest memory to expect, T_max, in time steps. It draws the bias of the forget
            gate as -log(u), u ~ U[1, T_max - 1], so that a fresh unit forgets over u steps.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        MGUParams with w_ih `[I, 2, H]`, w_hh `[H, 2, H]`, b `[2, H]`.

    Raises:
        TypeError, ValueError: an argument does not fit, or chrono is given without biases.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.mgu_init(jax.random.key(0), 8, 64, chrono=1000)
        >>> bool((params.b[0] <= 0).all())
        True

    Source: Zhou et al. 2016, arXiv:1603.09420; chrono: Tallec & Ollivier 2018, arXiv:1804.11188.
    """
    checks.flag("mgu_init", "bias", bias)
    key, chrono_key = jax.random.split(checks.key("mgu_init", key))
    drawn = initializers.draw("mgu_init", key, input_size, hidden_size, 2, init, dtype)
    b = drawn.b_ih + drawn.b_hh if bias else None
    if chrono is not None:
        b = initializers.chrono("mgu_init", chrono_key, b, chrono, {0: -1})
    return MGUParams(w_ih=drawn.w_ih, w_hh=drawn.w_hh, b=b)


def mgu_step(params: MGUParams, h: Array, x: Array) -> Array:
    """One time step of a minimal gated unit.

        f  = sigmoid(x W_f + h U_f + b_f)
        n  = tanh(x W_n + (f * h) U_n + b_n)
        h' = (1 - f) * h + f * n

    W are the gates of w_ih, and U are those of w_hh. Products accumulate in at least float32.

    Args:
        params: MGUParams.
        h: state `[H]`, of the dtype of params.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next state `[H]`, which is also the output.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.mgu_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> jaxgru.mgu_step(params, jnp.zeros(64, "float32"), jnp.ones(8, "float32")).shape
        (64,)

    Source: Zhou et al. 2016, "Minimal gated unit for recurrent neural networks", arXiv:1603.09420.
    """
    params, h, x = checks.step("mgu_step", MGUParams, params, h, x)
    cell = cell_of(params)
    return advance(cell, cell.blocks(params), h, x)[0]


def _weights(params: MGUParams) -> Weights:
    w_hh = params.w_hh[:, :1], params.w_hh[:, 1:]  # the candidate's product waits for the gate
    return Weights(params.w_ih, w_hh, params.b)


def _step(
    params: MGUParams, h: Array, parts: tuple[Array, ...], products: tuple[Any, ...]
) -> tuple[Array, Array]:
    del params
    x_f, x_n = parts
    (a_f,) = products[0](h)
    f = jax.nn.sigmoid(x_f + a_f)
    (a_n,) = products[1](f * h)
    n = jnp.tanh(x_n + a_n)
    h = (1 - f) * h + f * n
    return h, h


def _check(caller: str, params: MGUParams) -> None:
    size = checks.hidden_size(params.w_hh, 3)
    checks.weights(caller, params, w_hh=(size, 2, size), w_ih=("I", 2, size), b=(2, size))


register(
    MGUParams,
    step=_step,
    weights=_weights,
    initial_carry=lambda params: jnp.zeros_like(params.w_hh[0, 0]),
    sizes=lambda params: (params.w_ih.shape[0], params.w_hh.shape[0]),
    check=_check,
    forms={"mgu": {}},
)
