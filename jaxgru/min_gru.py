"""The minimal GRU (Feng et al. 2024), whose gate and candidate see only the input."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, initializers
from jaxgru.cell import Blocks, Cell, advance, flat, register, split
from jaxgru.forms import weights


@weights(min_gru={})
@dataclasses.dataclass(frozen=True, kw_only=True)
class MinGRUParams:
    """The weights of a minimal GRU, a pytree.

    The middle axis is the gate: update, candidate. All leaves have one dtype.

    Args:
        w_ih: input weights `[I, 2, H]`.
        b: biases `[2, H]`, or None.

    Example:
        >>> import jax, jaxgru
        >>> jaxgru.min_gru_init(jax.random.key(0), input_size=8, hidden_size=64).w_ih.shape
        (8, 2, 64)
    """

    w_ih: Array
    b: Array | None


def min_gru_init(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    bias: bool = True,
    init: str = "orthogonal",
    chrono: float | None = None,
    dtype: Any = jnp.float32,
) -> MinGRUParams:
    """Draw the weights of a minimal GRU.

    Args:
        key: a `jax.random.key`.
        input_size: I, the number of input features.
        hidden_size: H, the number of units.
        bias: whether there are biases.
        init: the initial weights. `"orthogonal"` draws LeCun-normal input weights and zero biases.
            `"torch"`, `"keras"`, `"flax"` and `"haiku"` draw what those libraries draw as the input
            weights of a recurrent cell.
        chrono: the longest memory to expect, T_max, in time steps. It draws the bias of the update
            gate as -log(u), u ~ U[1, T_max - 1], so that a fresh unit forgets over u steps.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        MinGRUParams with w_ih `[I, 2, H]`, b `[2, H]`.

    Raises:
        TypeError, ValueError: an argument does not fit, or chrono is given without biases.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.min_gru_init(jax.random.key(0), 8, 64, chrono=1000)
        >>> bool((params.b[0] <= 0).all())
        True

    Source: Feng et al. 2024, arXiv:2410.01201; chrono: Tallec & Ollivier 2018, arXiv:1804.11188.
    """
    checks.flag("min_gru_init", "bias", bias)
    key, chrono_key = jax.random.split(checks.key("min_gru_init", key))
    drawn = initializers.draw("min_gru_init", key, input_size, hidden_size, 2, init, dtype)
    b = drawn.b_ih if bias else None
    if chrono is not None:
        b = initializers.chrono("min_gru_init", chrono_key, b, chrono, {0: -1})
    return MinGRUParams(w_ih=drawn.w_ih, b=b)


def min_gru_step(params: MinGRUParams, h: Array, x: Array) -> Array:
    """One time step of a minimal GRU, in the form that the paper computes in log space.

        z  = sigmoid(x W_z + b_z)
        n  = g(x W_n + b_n),    g(a) = a + 1/2 where a >= 0, sigmoid(a) elsewhere
        h' = (1 - z) * h + z * n

    The function g makes the candidate positive, so that the paper can take its logarithm. Without
    g the cell would be the other form of the paper, which is another function. jaxgru needs
    no logarithm. It computes 1 - z as sigmoid(-a), and products of numbers below 1 do not overflow.

    Args:
        params: MinGRUParams.
        h: state `[H]`, of the dtype of params.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next state `[H]`, which is also the output.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.min_gru_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> jaxgru.min_gru_step(params, jnp.zeros(64, "float32"), jnp.ones(8, "float32")).shape
        (64,)

    Source: Feng et al. 2024, "Were RNNs all we needed?", arXiv:2410.01201, appendix B.
    """
    params, h, x = checks.step("min_gru_step", MinGRUParams, params, h, x)
    return advance(_CELL, _blocks(params), h, x)[0]


def _sizes(params: MinGRUParams) -> tuple[int, int]:
    return params.w_ih.shape[0], params.w_ih.shape[-1]


def _check(caller: str, params: MinGRUParams) -> None:
    shape: Any = getattr(params.w_ih, "shape", ())
    size = shape[-1] if len(shape) == 3 else "H"
    checks.weights(caller, params, w_ih=("I", 2, size), b=(2, size))


def _carry_shape(params: MinGRUParams) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(params.w_ih.shape[-1:], checks.dtype_of(params.w_ih))


def _blocks(params: MinGRUParams) -> Blocks:
    return Blocks(flat(params.w_ih), (), flat(params.b))


def _advance(_, blocks: Blocks, h: Array, projected: tuple[Array, ...]) -> tuple[Array, Any]:
    x_z, x_n = projected
    z, leak, n, _ = _gates(x_z, x_n)
    return (leak * h.astype(leak.dtype) + z * n).astype(h.dtype), projected


def _gates(x_z: Array, x_n: Array) -> tuple[Array, Array, Array, Array]:
    """Compute z, 1 - z, g and the slope of g."""
    s = jax.nn.sigmoid(x_n)
    n = jnp.where(x_n >= 0, x_n + 0.5, s)
    slope = jnp.where(x_n >= 0, 1, s * (1 - s))
    return jax.nn.sigmoid(x_z), jax.nn.sigmoid(-x_z), n, slope


def _sources(_, dx: Array, h: Array, gates: tuple[Array, ...]) -> Array:
    dx_z, dx_n = split(dx, 2)
    z, leak, n, slope = _gates(*gates)
    return (n - h.astype(n.dtype)) * z * leak * dx_z + z * slope * dx_n


def _tangent(_, leak, dh, source):
    return (leak * dh.astype(leak.dtype) + source).astype(dh.dtype)


_CELL = Cell(
    gates=2,
    sizes=_sizes,
    check=_check,
    carry_shape=_carry_shape,
    output=lambda h: h,
    blocks=_blocks,
    advance=_advance,
    coefficients=lambda h, gates: jax.nn.sigmoid(-gates[0]),
    sources=_sources,
    tangent=_tangent,
    diagonal=lambda _, leak: leak,
    bound=lambda start, steps: jnp.full_like(start, jnp.inf),
)
register(MinGRUParams, _CELL)
