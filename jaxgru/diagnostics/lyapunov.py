"""How fast nearby states separate or approach each other, on average over a long run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgru import checks
from jaxgru.cell import Carry, Params
from jaxgru.diagnostics.states import check, pushed, states_of
from jaxgru.mesh import alike
from jaxgru.orthonormal import gram_schmidt
from jaxgru.programs import by_type

BLOCKS = 20


class LyapunovSpectrum(NamedTuple):
    """The rates at which small differences of the state grow, the fastest first."""

    exponents: Array
    """`[k]`, in nats per step. They are positive if neighbouring states separate, and negative if
    they approach each other."""
    errors: Array
    """`[k]`, the standard error of each exponent, from the scatter over up to 20 stretches of the
    run. It is correct if a stretch is longer than the memory of the network. It is NaN with fewer
    than two stretches."""


def lyapunov_spectrum(
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    k: int | None = None,
    *,
    warm_up: int | None = None,
    every: int = 1,
) -> LyapunovSpectrum:
    """Compute the first k Lyapunov exponents of a network that is driven by inputs.

        Q_t R_t = J_t Q_{t-1},    exponent_i = mean over t of log (R_t)_ii

    Here J_t = ds_t/ds_{t-1}, and Q `[S, k]` is orthonormal. The state s consists of all arrays of
    the carry, concatenated, and S is its size. Q starts from a random frame that is the same for
    every call. Memory does not grow with T, since the loop carries only the state and Q. A
    step costs k forward derivatives, which is about 2 k times the products of the step, and an
    orthonormalization, S k^2.

    Args:
        params: the params of any cell whose carry consists of floats of the dtype of params, or a
            Stack of such cells. The dtype is float32 or float64.
        xs: inputs `[T, I]`, of the dtype of params.
        carry: where to start. None stands for `initial_carry(params)`.
        k: the number of exponents, the largest first. None stands for all S.
        warm_up: the number of first steps that do not count. In these steps the state forgets where
            it started, and Q aligns with the directions that grow. None stands for T // 10.
        every: the number of steps between two orthonormalizations. A larger number is cheaper,
            and is correct as long as the k directions stay apart. If the first and the last
            exponent differ by d, d * every must be well below log(1 / eps), which is 16 in float32.
            The warm-up is extended by up to every - 1 steps, so that the number of other steps is a
            multiple of every.

    Returns:
        LyapunovSpectrum(exponents `[k]`, errors `[k]`), in nats per step.

    Raises:
        TypeError, ValueError: an argument does not fit, k is above S, or no step remains after the
            warm-up.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> xs = jax.random.normal(jax.random.key(1), (500, 3), "float32")
        >>> spectrum = jaxgru.diagnostics.lyapunov_spectrum(params, xs, k=2)
        >>> spectrum.exponents.shape, bool((spectrum.exponents < 0).all())
        ((2,), True)

    Source: Benettin et al. 1980; Vogt et al. 2020, arXiv:2006.14123.
    """
    caller = "lyapunov_spectrum"
    carry = check(caller, params, xs, carry)
    size, steps = states_of(params).size, xs.shape[0]
    k = size if k is None else checks.size(caller, "k", k)
    if k > size:
        raise checks.error(ValueError, caller, "k", f"at most S = {size}", f"{k}")
    every = checks.size(caller, "every", every)
    warm_up = steps // 10 if warm_up is None else checks.size(caller, "warm_up", warm_up, least=0)
    if steps < warm_up + every:
        expected = f"at least warm_up + every = {warm_up + every} steps long"
        raise checks.error(ValueError, caller, "xs", expected, checks.describe(xs))
    return _spectrum(k, warm_up, every, params, xs, carry)


@by_type(static=3)
def _spectrum(
    k: int, warm_up: int, every: int, params: Params, xs: Array, carry: Carry
) -> LyapunovSpectrum:
    states, steps = states_of(params), xs.shape[0]
    stretches, counted = steps // every, (steps - warm_up) // every
    skipped, blocks = stretches - counted, min(BLOCKS, counted)

    def step(moving: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], None]:
        return pushed(states, moving[0], x, moving[1]), None

    def stretch(index: Array, moving: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """Run `every` steps. Slicing xs here avoids a reshaped copy of it."""
        state, frame, sums = moving
        inputs = lax.dynamic_slice_in_dim(xs, steps % every + index * every, every)
        (state, frame), _ = lax.scan(step, (state, frame), inputs)
        frame, lengths = gram_schmidt(frame)
        block = jnp.maximum(index - skipped, 0) * blocks // counted
        return state, frame, sums.at[block].add(jnp.where(index >= skipped, jnp.log(lengths), 0))

    # Every k takes the first columns of one frame, so fewer exponents are the first of more.
    frame = jax.random.normal(jax.random.key(0), (states.size, states.size), xs.dtype)[:, :k]
    state, frame, sums = alike((states.flat(carry), frame, jnp.zeros((blocks, k), xs.dtype)))
    moving = state, gram_schmidt(frame)[0]
    (state, frame), _ = lax.scan(step, moving, xs[: steps % every])
    moving = state, gram_schmidt(frame)[0], sums
    *_, sums = lax.fori_loop(0, stretches, stretch, moving)

    ends = np.array([-(-b * counted // blocks) for b in range(blocks + 1)])
    rates = sums / jnp.asarray(np.diff(ends)[:, None] * every, xs.dtype)
    exponents = sums.sum(0) / (counted * every)
    if blocks == 1:
        return LyapunovSpectrum(exponents, jnp.full_like(exponents, jnp.nan))
    return LyapunovSpectrum(exponents, rates.std(0, ddof=1) / blocks**0.5)
