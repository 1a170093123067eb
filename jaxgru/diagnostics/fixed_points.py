"""Where a network comes to rest when its input stays the same."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgru import checks, layers
from jaxgru.cell import Params
from jaxgru.diagnostics.states import check_params, states_of
from jaxgru.programs import by_type

PATIENCE = 20  # a search ends after this many rejected steps in a row, with 4^20 times the damping
ROUNDING = 20  # a fixed point has |F(s) - s| of at most so many eps sqrt(S)


class RestingPoints(NamedTuple):
    """P points of one kind as NumPy arrays, the slowest point first."""

    points: np.ndarray
    """`[P, S]`."""
    speed: np.ndarray
    """`[P]`: q = |F(s) - s|^2 / 2."""
    eigenvalues: np.ndarray
    """`[P, S]`, complex: the eigenvalues of dF/ds, the largest modulus first."""
    stable: np.ndarray
    """`[P]`, bool: whether all moduli are below 1."""
    time_constants: np.ndarray
    """`[P, S]`: -1 / log |eigenvalue|, the number of steps in which a small distance along that
    direction falls by a factor of e. It is negative where the distance grows."""
    found: np.ndarray
    """`[P]`: the number of searches that ended here."""


class FixedPoints(NamedTuple):
    """The result of `fixed_points`."""

    fixed: RestingPoints
    """Points where F(s) = s up to rounding."""
    slow: RestingPoints
    """Minima of q that are not fixed points. The network leaves these places slowly."""
    lost: int
    """The number of searches that ended at neither."""


def fixed_points(
    params: Params,
    x: Array,
    key: Array,
    states: Array | None = None,
    *,
    starts: int = 256,
    spread: float = 0.1,
    iterations: int = 200,
    slow: float = 1e-4,
    apart: float = 1e-3,
) -> FixedPoints:
    """Find the fixed and slow points of a network under a constant input.

        F(s) = step(params, s, x)[0],    q(s) = |F(s) - s|^2 / 2
        (A^T A + d 1) ds = -A^T (F(s) - s),    A = dF/ds - 1

    Each search goes downhill in q by damped Newton steps (Levenberg-Marquardt). The damping d falls
    after a step that lowers q. A step that does not lower q is undone, and d rises. All searches
    run in one compiled program, which needs memory for `[starts, S, S]` numbers. The rest, which
    separates the points and computes their eigenvalues, runs in NumPy, since the number of points
    is not known beforehand. So the function does not work inside `jax.jit` or `jax.vmap`. In
    float32 a direction with a time constant of more than about 1,000 steps looks like a direction
    in which the state is at rest. Use float64 for such networks.

    Args:
        params: the params of any cell whose carry consists of floats of the dtype of params, or a
            Stack of such cells. The dtype is float32 or float64.
        x: the input `[I]`, of the dtype of params.
        key: a `jax.random.key` for the starts.
        states: `[N, S]`, the states where the searches begin, used in turn. States that the
            network visits are best. None draws them uniformly from the box [-1, 1]^S. A state is
            all arrays of a carry, concatenated in the order of `jax.tree.leaves`: h for a GRU,
            [h, c] for an LSTM, and the states of all layers for a Stack.
        starts: the number of searches.
        spread: the standard deviation of the noise that is added to states. 0 adds no noise.
        iterations: the largest number of steps of a search.
        slow: the largest q of a slow point.
        apart: the Euclidean distance below which two points count as one.

    Returns:
        FixedPoints(fixed, slow, lost). A point is fixed if |F(s) - s| is at most 20 eps sqrt(S). It
        is slow if q has a minimum there that is larger. A search says nothing about points that no
        start reached.

    Raises:
        TypeError, ValueError: an argument does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> x, key = jnp.zeros(3, "float32"), jax.random.key(1)
        >>> result = jaxgru.diagnostics.fixed_points(params, x, key, starts=32)
        >>> result.fixed.points.shape, bool(result.fixed.stable[0])
        ((1, 8), True)

    Source: Sussillo & Barak 2013, "Opening the black box"; Golub & Sussillo 2018.
    """
    caller = "fixed_points"
    check_params(caller, params)
    checks.inputs(caller, "x", x, layers.sizes(params)[:1], layers.dtype(params))
    checks.key(caller, key)
    size = states_of(params).size
    if states is not None:
        fix = "Each row is a state, the arrays of a carry concatenated: [h, c] for an LSTM."
        checks.array(caller, "states", states, ("N", size), fix)
        checks.same_dtype(caller, "states", states, layers.dtype(params))
        if states.shape[0] == 0:
            got = checks.describe(states)
            raise checks.error(ValueError, caller, "states", "an array with at least one row", got)
    starts = checks.size(caller, "starts", starts)
    iterations = checks.size(caller, "iterations", iterations)
    for name, value in (("spread", spread), ("slow", slow), ("apart", apart)):
        checks.number(caller, name, value)
        if value < 0:
            raise checks.error(ValueError, caller, name, "at least 0", f"{value}")

    x = jnp.asarray(x)  # float64 of NumPy becomes float32 if 64-bit types are off
    begin = _starts(key, size, states, starts, spread, x.dtype)
    found = jax.tree.map(np.asarray, _search(iterations, params, x, begin))
    limit = (ROUNDING * float(jnp.finfo(x.dtype).eps)) ** 2 * size / 2
    is_fixed = found.speed <= limit
    is_slow = ~is_fixed & found.rests & (found.speed <= slow)
    fixed, lingering = _told_apart(found, is_fixed, apart), _told_apart(found, is_slow, apart)
    return FixedPoints(fixed, lingering, int(starts - is_fixed.sum() - is_slow.sum()))


class _Ends(NamedTuple):
    """The ends of all searches: states `[starts, S]`, q, whether q is a minimum, and dF/ds."""

    points: Array
    speed: Array
    rests: Array
    jacobians: Array


def _starts(
    key: Array, size: int, states: Array | None, starts: int, spread: float, dtype: jnp.dtype
) -> Array:
    if states is None:
        return jax.random.uniform(key, (starts, size), dtype, -1, 1)
    noise = jax.random.normal(key, (starts, size), dtype)
    return jnp.asarray(states, dtype)[np.arange(starts) % states.shape[0]] + spread * noise


@by_type(static=1)
def _search(iterations: int, params: Params, x: Array, begin: Array) -> _Ends:
    return jax.vmap(lambda start: _descend(params, x, start, iterations))(begin)


def _descend(params: Params, x: Array, start: Array, iterations: int) -> _Ends:
    advance, unit = states_of(params).advance, jnp.eye(start.size, dtype=start.dtype)
    eps = jnp.finfo(start.dtype).eps

    def away(state: Array) -> Array:
        return advance(state, x) - state

    def speed(state: Array) -> Array:
        difference = away(state)
        return difference @ difference / 2

    def unfinished(search: tuple[Array, Array, Array, Array, Array]) -> Array:
        _, q, _, rejected, count = search
        return (count < iterations) & (rejected < PATIENCE) & (q > 0)

    def improve(search: tuple[Array, Array, Array, Array, Array]):
        state, q, damping, rejected, count = search
        a = jax.jacfwd(away)(state)
        step = jnp.linalg.solve(a.T @ a + damping * unit, a.T @ -away(state))
        tried = state + step
        tried_q = speed(tried)
        better = tried_q < q  # False for NaN
        state, q = jnp.where(better, tried, state), jnp.where(better, tried_q, q)
        damping = jnp.where(better, jnp.maximum(damping / 4, eps * eps), damping * 4)
        return state, q, damping, jnp.where(better, 0, rejected + 1), count + 1

    zero = jnp.zeros((), jnp.int32)
    search = (start, speed(start), jnp.ones((), start.dtype), zero, zero)
    state, q, *_ = lax.while_loop(unfinished, improve, search)
    jacobian = jax.jacfwd(lambda state: advance(state, x))(state)
    # A^T (F - s) is the gradient of q. The bound exceeds what rounding adds to it.
    rests = jnp.linalg.norm((jacobian - unit).T @ away(state)) <= eps**0.5 * jnp.sqrt(2 * q)
    return _Ends(state, q, rests, jacobian)


def _told_apart(found: _Ends, chosen: np.ndarray, apart: float) -> RestingPoints:
    """Remove repetitions from the chosen ends. The slowest of several close points remains."""
    order = np.flatnonzero(chosen)
    order = order[np.argsort(found.speed[order], kind="stable")]
    points = np.asarray(found.points)[order]
    kept: list[int] = []
    counts: list[int] = []
    for k, point in enumerate(points):
        distances = np.linalg.norm(points[kept] - point, axis=1)
        if kept and distances.min() <= apart:
            counts[int(distances.argmin())] += 1
        else:
            kept.append(k)
            counts.append(1)
    eigenvalues = np.linalg.eigvals(np.asarray(found.jacobians)[order[kept]]).astype(complex)
    largest_first = np.argsort(-np.abs(eigenvalues), axis=1, kind="stable")
    eigenvalues = np.take_along_axis(eigenvalues, largest_first, axis=1)
    modulus = np.abs(eigenvalues)
    with np.errstate(divide="ignore"):  # it is infinite at modulus 1, and 0 at modulus 0
        time_constants = -1 / np.log(modulus)
    return RestingPoints(
        points=points[kept],
        speed=np.asarray(found.speed)[order[kept]],
        eigenvalues=eigenvalues,
        stable=np.asarray((modulus < 1).all(axis=1)),
        time_constants=time_constants,
        found=np.array(counts, int),
    )
