"""The leaky rate network of neuroscience: continuous time, discretized by the Euler method."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, initializers
from jaxgru.cell import matmul, total
from jaxgru.register import register

NONLINEARITIES: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeakyParams:
    """The weights of a leaky rate network, a pytree. All leaves have one dtype.

    Args:
        w_ih: input weights `[I, H]`.
        w_hh: recurrent weights `[H, H]`, from the unit of the row to that of the column.
        b: bias `[H]`, or None.
        alpha: dt / tau, the time step divided by the time constant, `[]` for all units or `[H]`. It
            is a leaf, so gradients reach it. To hold it fixed, use `jax.lax.stop_gradient` in the
            loss.
        nonlinearity: `"relu"`, `"tanh"`, `"softplus"` or `"sigmoid"`. It is static.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.leaky_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> params.w_hh.shape, params.nonlinearity
        ((64, 64), 'relu')
    """

    w_ih: Array
    w_hh: Array
    b: Array | None
    alpha: Array
    nonlinearity: str = dataclasses.field(metadata={"static": True})


def leaky_init(
    key: Array,
    input_size: int,
    hidden_size: int,
    *,
    nonlinearity: str = "relu",
    alpha: float = 0.1,
    bias: bool = True,
    init: str = "orthogonal",
    dtype: Any = jnp.float32,
) -> LeakyParams:
    """Draw the weights of a leaky rate network.

    Args:
        key: a `jax.random.key`.
        input_size: I, the number of input features.
        hidden_size: H, the number of units.
        nonlinearity: f, which converts states to rates: `"relu"`, `"tanh"`, `"softplus"` or
            `"sigmoid"`.
        alpha: dt / tau of all units, above 0 and at most 1. With dt = 10 ms and tau = 100 ms it is
            0.1. For a value for each unit, use `dataclasses.replace(params, alpha=...)` with an
            array `[H]`.
        bias: whether there is a bias.
        init: the initial weights. `"orthogonal"` draws LeCun-normal input weights, orthogonal
            recurrent weights, and a zero bias. `"torch"`, `"keras"`, `"flax"` and `"haiku"` draw
            what those libraries draw for a plain RNN.
        dtype: float16, bfloat16, float32 or float64.

    Returns:
        LeakyParams with w_ih `[I, H]`, w_hh `[H, H]`, b `[H]`, alpha `[]`.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Example:
        >>> import jax, jaxgru
        >>> params = jaxgru.leaky_init(jax.random.key(0), 8, 64, nonlinearity="tanh", alpha=0.25)
        >>> params.alpha.item()
        0.25
    """
    _check_nonlinearity("leaky_init", "nonlinearity", nonlinearity)
    checks.number("leaky_init", "alpha", alpha)
    if not 0 < alpha <= 1:
        raise checks.error(ValueError, "leaky_init", "alpha", "above 0 and at most 1", f"{alpha}")
    checks.flag("leaky_init", "bias", bias)
    checks.key("leaky_init", key)
    drawn = initializers.draw("leaky_init", key, input_size, hidden_size, 1, init, dtype)
    return LeakyParams(
        w_ih=drawn.w_ih[:, 0],
        w_hh=drawn.w_hh[:, 0],
        b=(drawn.b_ih + drawn.b_hh)[0] if bias else None,
        alpha=jnp.asarray(alpha, dtype),
        nonlinearity=nonlinearity,
    )


def leaky_step(params: LeakyParams, h: Array, x: Array) -> Array:
    """One time step of a leaky rate network.

        h' = (1 - alpha) * h + alpha * (x W_in + f(h) W_rec + b)

    W_in is w_ih, and W_rec is w_hh. The state h holds the currents that the units have summed up.
    The rates f(h) are what the units send. `scan` and `step` carry the state and return the rates
    f(h') as outputs, for a readout. Products accumulate in at least float32. A network whose state
    is the rate itself, r' = (1 - alpha) * r + alpha * f(x W_in + r W_rec + b), is another function.

    The published networks add noise to the state at every step. The cell has no noise.
    `jaxgru.loop` gives each step a key, so you can add the noise there in one line after this
    function: see docs/recipes/own_steps.md.

    Args:
        params: LeakyParams.
        h: state `[H]`, of the dtype of params.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next state `[H]`.

    Raises:
        TypeError, ValueError: a structure, shape or dtype does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.leaky_init(jax.random.key(0), input_size=8, hidden_size=64)
        >>> jaxgru.leaky_step(params, jnp.zeros(64, "float32"), jnp.ones(8, "float32")).shape
        (64,)

    Source: `Basic` in github.com/murraylab/PsychRNN, whose matrices are transposed (Ehrlich et al.
    2021); Song, Yang & Wang 2016, "Training excitatory-inhibitory recurrent neural networks for
    cognitive tasks".
    """
    params, h, x = checks.step("leaky_step", LeakyParams, params, h, x)
    return _step(params, h, _project(params, x))[0]


def _project(params: LeakyParams, xs: Array) -> Array:
    return total(matmul(params.w_ih, xs), params.b)


def _step(params: LeakyParams, h: Array, projected: Array) -> tuple[Array, Array]:
    f = NONLINEARITIES[params.nonlinearity]
    wide, alpha = h.astype(projected.dtype), params.alpha.astype(projected.dtype)
    drive = projected + matmul(params.w_hh, f(wide).astype(h.dtype))
    wide = (1 - alpha) * wide + alpha * drive
    return wide.astype(h.dtype), f(wide).astype(h.dtype)


def _check_nonlinearity(caller: str, name: str, nonlinearity: Any) -> None:
    if not (isinstance(nonlinearity, str) and nonlinearity in NONLINEARITIES):
        expected = f"one of {', '.join(NONLINEARITIES)}"
        raise checks.error(ValueError, caller, name, expected, checks.shown(nonlinearity))


def _check(caller: str, params: LeakyParams) -> None:
    _check_nonlinearity(caller, "LeakyParams.nonlinearity", params.nonlinearity)
    size = checks.hidden_size(params.w_hh, 2)
    alpha = (size,) if checks.shape_of(params.alpha) else ()
    checks.weights(caller, params, w_hh=(size, size), w_ih=("I", size), b=(size,), alpha=alpha)


register(
    LeakyParams,
    step=_step,
    project=_project,
    initial_carry=lambda params: jnp.zeros_like(params.w_hh[0]),
    sizes=lambda params: params.w_ih.shape,
    check=_check,
    forms={f"leaky_rate_{name}": {"nonlinearity": name} for name in NONLINEARITIES},
)
