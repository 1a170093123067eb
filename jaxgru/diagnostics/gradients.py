"""How much of a gradient reaches earlier states."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params
from jaxgru.diagnostics.states import before, check, pulled, states_of
from jaxgru.mesh import alike
from jaxgru.orthonormal import norm
from jaxgru.programs import by_type


class MemoryGradient(NamedTuple):
    """How the last state depends on earlier ones. The first axis is the lag, 0 .. T.

    The values are natural logarithms, since a vanishing gradient is soon below the smallest float.
    """

    log_gain: Array
    """`[T + 1]`: the logarithm of |P|_F / sqrt(S), the root mean square factor by which
    P = ds_T/ds_{T-lag} stretches a random direction. It is 0 at lag 0."""
    log_singular_values: Array | None
    """`[T + 1, S]`: the logarithms of the singular values of P, the largest first. The first is
    the logarithm of the spectral norm. Values below eps times the first are rounding errors. None
    if singular_values is False."""


def gradient_norms(
    loss: Callable[[Array], Array], params: Params, xs: Array, carry: Carry | None = None
) -> Array:
    """Compute the size of the gradient of a loss at every state.

        g_t = |dL/ds_t|,    L = loss(hs),    t = 0 .. T

    dL/ds_t measures how a small change of s_t changes the loss through everything that follows.
    This includes output t if the step computes it from s_t. A step that you passed to `register`
    does so if it computes y from the arrays that it returns as the carry. The computation takes one
    forward and one backward pass, and memory for T states.

    Args:
        loss: a function from the outputs hs `[T, H]` of `scan` to a scalar. It is compiled once for
            each function object, so pass the same object again.
        params: the params of any cell whose carry consists of floats of the dtype of params, or a
            Stack of such cells. The dtype is float32 or float64.
        xs: inputs `[T, I]`, of the dtype of params.
        carry: where to start. None stands for `initial_carry(params)`.

    Returns:
        `[T + 1]`, the Euclidean norm over the whole state, which is h, or [h, c] for an LSTM, or
        all arrays of another carry. For a Stack it covers all layers.

    Raises:
        TypeError, ValueError: an argument does not fit, or the loss is not a scalar.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> last = lambda hs: hs[-1].sum()
        >>> norms = jaxgru.diagnostics.gradient_norms(last, params, jnp.ones((20, 3), "float32"))
        >>> norms.shape, bool(norms[0] < norms[-1])
        ((21,), True)

    Source: Bengio, Simard & Frasconi 1994.
    """
    carry = check("gradient_norms", params, xs, carry)
    _check_loss(loss, jax.ShapeDtypeStruct((xs.shape[0], layers.sizes(params)[1]), xs.dtype))
    return _gradient_norms(loss, params, xs, carry)


@by_type(static=1)
def _gradient_norms(
    loss: Callable[[Array], Array], params: Params, xs: Array, carry: Carry
) -> Array:
    states = states_of(params)
    start = states.flat(carry)

    def pushed_loss(push: Array) -> Array:
        """The loss of a run in which push_t is added to every state t. Its gradient at 0 is g."""

        def body(state: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            x, push = inputs
            after = states.advance(state, x) + push
            return after, states.output(state, x, after)

        return loss(lax.scan(body, start + push[0], (xs, push[1:]))[1])

    push = jnp.zeros((xs.shape[0] + 1, states.size), start.dtype)
    push, _ = alike((push, start))  # otherwise `jax.shard_map` would sum its gradient over devices
    return jax.vmap(norm)(jax.grad(pushed_loss)(push))


def memory_gradient(
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    probes: int | None = None,
    key: Array | None = None,
    singular_values: bool = False,
) -> MemoryGradient:
    """Compute how much the last state still depends on the state `lag` steps before it.

        P_lag = ds_T/ds_{T-lag} = J_T J_{T-1} ... J_{T-lag+1},    P_0 = 1

    The product is computed from the left, row by row, as in backpropagation. No Jacobian is formed.
    The S rows cost S backward passes, which take 2 S times the products of a forward pass. They
    need memory for T states and one matrix `[S, S]`. With probes=k there are k random rows, and
    gain^2 has a relative standard error of at most sqrt(2 / k). Singular values need T
    decompositions of `[S, S]`.

    Args:
        params: the params of any cell whose carry consists of floats of the dtype of params, or a
            Stack of such cells. The dtype is float32 or float64.
        xs: inputs `[T, I]`, of the dtype of params.
        carry: where to start. None stands for `initial_carry(params)`.
        probes: the number of random directions from which to estimate the gain. None computes the
            exact gain.
        key: a `jax.random.key` for the probes.
        singular_values: whether to return the singular values of every product, which needs all
            rows.

    Returns:
        MemoryGradient(log_gain `[T + 1]`, log_singular_values `[T + 1, S]` or None).

    Raises:
        TypeError, ValueError: an argument does not fit, or probes are given without key or with
            singular_values.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> memory = jaxgru.diagnostics.memory_gradient(params, jnp.ones((20, 3), "float32"))
        >>> gain = jnp.exp(memory.log_gain)
        >>> gain.shape, float(gain[0]), bool(gain[-1] < 0.1)
        ((21,), 1.0, True)

    Source: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.
    """
    carry = check("memory_gradient", params, xs, carry)
    checks.flag("memory_gradient", "singular_values", singular_values)
    if probes is not None:
        probes = checks.size("memory_gradient", "probes", probes)
    _check_probes(probes, key, singular_values)
    return _memory_gradient(probes, singular_values, params, xs, carry, key)


@by_type(static=2)
def _memory_gradient(
    probes: int | None,
    singular_values: bool,
    params: Params,
    xs: Array,
    carry: Carry,
    key: Array | None,
) -> MemoryGradient:
    states = states_of(params)
    # `vmap` over an explicit axis of a mesh cannot carry constants through a loop.
    zero = jnp.zeros_like(xs.sum())
    rows = zero + _rows(states.size, xs.dtype, probes, key)
    rows, zero, _ = alike((rows, zero, carry))

    def logs(rows: Array, log_scale: Array) -> MemoryGradient:
        gain = jnp.log(jnp.linalg.norm(rows)) + log_scale
        if not singular_values:
            return MemoryGradient(gain, None)
        values = jnp.linalg.svd(rows, compute_uv=False) * states.size**0.5
        return MemoryGradient(gain, jnp.log(values) + log_scale)

    def body(carry: tuple[Array, Array], inputs: tuple[Array, Array]):
        rows, log_scale = carry
        rows = pulled(states, *inputs, rows)
        size = jnp.abs(rows).max()
        size = jnp.where(size > 0, size, 1)  # so the logarithm of zero rows is -inf, not NaN
        carry = rows / size, log_scale + jnp.log(size)
        return carry, logs(*carry)

    inputs = before(states, carry, xs), xs
    _, after = lax.scan(body, (rows, zero), inputs, reverse=True)
    first = logs(rows, zero)
    return jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest[::-1]]), first, after)


def _rows(size: int, dtype: jnp.dtype, probes: int | None, key: Array | None) -> Array:
    """The left factor of P: `[k, S]` with Frobenius norm 1 and rows of equal norm.

    The expectation of |rows P|^2 is |P|_F^2 / S.
    """
    if probes is None or key is None:
        return jnp.eye(size, dtype=dtype) / size**0.5
    drawn = jax.random.normal(key, (probes, size), dtype)
    return drawn / (jnp.linalg.norm(drawn, axis=1, keepdims=True) * probes**0.5)


def _check_probes(probes: int | None, key: Array | None, singular_values: bool) -> None:
    caller = "memory_gradient"
    if probes is None and key is not None:
        fix = "Only probes are random."
        raise checks.error(ValueError, caller, "key", "None without probes", "a key", fix)
    if probes is not None and key is None:
        fix = "Pass key=jax.random.key(seed)."
        raise checks.error(ValueError, caller, "key", "given with probes", "None", fix)
    if probes is not None:
        checks.key(caller, key)
    if probes is not None and singular_values:
        fix = "Singular values need every row of the product."
        raise checks.error(
            ValueError, caller, "probes", "None with singular_values=True", f"{probes}", fix
        )


def _check_loss(loss: Callable[[Array], Array], hs: jax.ShapeDtypeStruct) -> None:
    expected = "a function of the outputs [T, H] to a scalar"
    if not callable(loss):
        got = checks.describe(loss)
        raise checks.error(TypeError, "gradient_norms", "loss", expected, got)
    value = jax.eval_shape(loss, hs)
    if getattr(value, "shape", None) != ():
        got = f"a function to {checks.describe(value)}"
        raise checks.error(ValueError, "gradient_norms", "loss", expected, got)
