"""The plain recurrent network (Elman 1990), the baseline without gates."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, initializers
from jaxgru.cell import Blocks, advance, register
from jaxgru.derivative import derived
from jaxgru.forms import weights


@weights(elman={})
@dataclasses.dataclass(frozen=True, kw_only=True)
class ElmanParams:
    """The weights of a plain RNN, a pytree. All leaves have one dtype.

    Args:
        w_ih: input weights `[I, H]`.
        w_hh: recurrent weights `[H, H]`.
        b: bias `[H]`, or None.

    Example:
        >>> import jax, jaxgru
        >>> jaxgru.elman_init(jax.random.key(0), input_size=8, hidden_size=64).w_hh.shape
        (64, 64)
    """

    w_ih: Array
    w_hh: Array
    b: Array | None


def elman_init(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    init: str = "orthogonal",
    dtype: Any = jnp.float32,
) -> ElmanParams:
    """Draw the weights of a plain RNN.

    Args:
        key: a `jax.random.key`.
        input_size: I, the number of input features.
        hidden_size: H, the number of units.
        bias: whether there is a bias.
        init: the initial weights. `"orthogonal"` draws LeCun-normal input weights, orthogonal
            recurrent weights, and a zero bias. `"torch"`, `"keras"`, `"flax"` and `"haiku"` draw
            what those libraries draw.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        ElmanParams with w_ih `[I, H]`, w_hh `[H, H]`, b `[H]`.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Example:
        >>> import jax, jaxgru
        >>> jaxgru.elman_init(jax.random.key(0), 8, 64, bias=False).b is None
        True
    """
    checks.flag("elman_init", "bias", bias)
    checks.key("elman_init", key)
    drawn = initializers.draw("elman_init", key, input_size, hidden_size, 1, init, dtype)
    b = (drawn.b_ih + drawn.b_hh)[0] if bias else None
    return ElmanParams(w_ih=drawn.w_ih[:, 0], w_hh=drawn.w_hh[:, 0], b=b)


def elman_step(params: ElmanParams, h: Array, x: Array) -> Array:
    """One time step of a plain RNN.

        h' = tanh(x W + h U + b)

    Args:
        params: ElmanParams.
        h: state `[H]`, of the dtype of params.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next state `[H]`, which is also the output.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.elman_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> jaxgru.elman_step(params, jnp.zeros(64, "float32"), jnp.ones(8, "float32")).shape
        (64,)

    Source: Elman 1990, "Finding structure in time".
    """
    params, h, x = checks.step("elman_step", ElmanParams, params, h, x)
    return advance(_CELL, _blocks(params), h, x)[0]


def _sizes(params: ElmanParams) -> tuple[int, int]:
    return params.w_ih.shape[0], params.w_ih.shape[-1]


def _check(caller: str, params: ElmanParams) -> None:
    size = checks.hidden_size(params.w_hh, 2)
    checks.weights(caller, params, w_hh=(size, size), w_ih=("I", size), b=(size,))


def _carry_shape(params: ElmanParams) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(params.w_hh.shape[-1:], checks.dtype_of(params.w_hh))


def _blocks(params: ElmanParams) -> Blocks:
    return Blocks(params.w_ih, (params.w_hh,), params.b)


def _advance(
    products, blocks: Blocks, h: Array, projected: tuple[Array, ...]
) -> tuple[Array, Array]:
    (a,) = products[0](h)
    new = jnp.tanh(projected[0] + a)
    return new.astype(h.dtype), new


_CELL = derived(
    counts=lambda _: (1,),
    gates=1,
    sizes=_sizes,
    check=_check,
    carry_shape=_carry_shape,
    output=lambda h: h,
    blocks=_blocks,
    advance=_advance,
    bound=lambda start, steps: jnp.maximum(start, 1),
    carried=lambda h: h,
)
register(ElmanParams, _CELL)
