"""A whole trajectory at once, by Newton's method: parallel in time where `scan` goes step by step.

The trajectory h_1 .. h_T is the root of h_t - F(h_{t-1}, x_t). One Newton step solves a recurrence
that is linear,

    e_t = J_t e_{t-1} + F(h_{t-1}, x_t) - h_t,    h_t <- h_t + e_t,

which an associative scan does in O(log T) dependent operations. The derivative solves one such
recurrence more, with the J_t of the solution; nothing is differentiated through the iterations.

Inside this file a carry is packed into one array of D numbers, and time runs forward.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgru import checks, layers, sequence
from jaxgru.cell import Blocks, Carry, Cell, Params, advance, cell_of, products
from jaxgru.layers import Bidirectional, Stack
from jaxgru.loops import forward

JACOBIANS = ("dense", "diagonal")


class NewtonInfo(NamedTuple):
    """What became of the iteration; of several cells the sum, the largest, all, and each one's."""

    iterations: Array
    """Newton steps taken, an integer; those of the check for sensitivity are not counted."""
    residual: Array
    """max |h_t - F(h_{t-1}, x_t)| / max(1, |h_t|) of the last iterate."""
    converged: Array
    """Whether that iterate is the trajectory; if not, and fallback="scan", the result is scan's."""
    states: Carry
    """The carry after every step, `[T, H]` in place of `[H]`: the next call's guess."""


def newton_scan(
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    length: Any = None,
    reset: Array | None = None,
    reset_carry: Carry | None = None,
    reverse: bool = False,
    jacobian: str = "dense",
    guess: Carry | None = None,
    tol: float | None = None,
    max_iterations: int = 100,
    fallback: str | None = "scan",
) -> tuple[Carry, Array, NewtonInfo]:
    """Run a network over one sequence as `scan` does, in parallel over time.

        e_t = J_t e_{t-1} + F(h_{t-1}, x_t) - h_t,    h_t <- h_t + e_t,    t = 1 .. T

    until the residual F(h_{t-1}, x_t) - h_t is nothing but rounding, all t at once. The layers of a
    Stack are solved one after the other. States are kept within the bounds that the cell sets, and
    what is not finite is replaced by F(h_{t-1}, x_t), so that after k steps at least the first k
    states are right. A MinGRU is linear in its state: one step is exact.

    `converged` says that the residual is at most tol, and that the answer is not at the mercy of
    rounding: a disturbance of size tol**(2/3) in every step, of random sign, moves no state by more
    than tol**(1/3). A chaotic network fails this, however small its residual, since then scan's own
    states are an accident of rounding.

    The derivative is that of the recurrence at the solution, in every mode of JAX. With dense
    Jacobians it is one more associative scan, in reverse for a gradient. With diagonal ones it is
    exact too, and therefore a loop of T dependent steps, as in scan.

    A batch goes through `jax.vmap`; the iteration goes on until all are done. If one of them falls
    back, the batch pays for a scan.

    Args:
        params: GRUParams, LSTMParams, ElmanParams, MinGRUParams, or a Bidirectional or Stack of
            them, in float32 or float64.
        xs: inputs `[T, I]`, of the dtype of params.
        carry: where to start; zeros if None.
        length: how many of the T steps are real, may be traced; as in `scan`.
        reset: bool `[T]`; True at t starts a new segment at t.
        reset_carry: where segments start, a carry; zeros if None.
        reverse: from the last real step to the first.
        jacobian: `"dense"` (few iterations, memory for T matrices) or `"diagonal"` (the diagonal
            of J_t only: more iterations, memory for T states).
        guess: where the iteration starts, as `NewtonInfo.states` has it; `[T, H]` for a GRU. Zeros
            take the longest, the trajectory before the last update of params a few steps. No
            gradient flows into it.
        tol: the largest residual of a converged trajectory, relative where states exceed 1;
            8 units of rounding if None.
        max_iterations: after which a cell's trajectory counts as not converged.
        fallback: `"scan"` (what has not converged is computed by a scan over time, its derivative
            too), or None: the last iterate is returned as it is.

    Returns:
        (carry after the last step processed, outputs `[T, H]`, NewtonInfo).

    Raises:
        TypeError: params, carry, dtype or option of a kind that does not fit.
        ValueError: a shape or value that does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.gru_init(jax.random.key(0), input_size=3, hidden_size=8)
        >>> xs = jax.random.normal(jax.random.key(1), (500, 3), "float32")
        >>> h, hs, info = jaxgru.newton_scan(params, xs)
        >>> bool(info.converged), bool(abs(hs - jaxgru.scan(params, xs)[1]).max() < 1e-5)
        (True, True)
        >>> again = jaxgru.newton_scan(params, xs, guess=info.states)[2]
        >>> bool(again.iterations < info.iterations)
        True

    Source: Lim et al. 2024 (DEER), arXiv:2309.12252; Gonzalez et al. 2024 (diagonal Jacobians,
    trust regions), arXiv:2407.19115.
    """
    sequence.check("newton_scan", params, xs, carry, length, reset, reset_carry, reverse)
    steps, dtype = xs.shape[0], layers.dtype(params)
    if dtype not in (jnp.float32, jnp.float64):
        fix = "Rounding in 16 bits leaves Newton's method nothing to converge to: use scan."
        raise checks.error(
            TypeError, "newton_scan", "params", "float32 or float64", f"{dtype}", fix
        )
    if jacobian not in JACOBIANS:
        expected = " or ".join(map(repr, JACOBIANS))
        raise checks.error(ValueError, "newton_scan", "jacobian", expected, repr(jacobian))
    if fallback not in ("scan", None):
        raise checks.error(ValueError, "newton_scan", "fallback", "'scan' or None", repr(fallback))
    if guess is not None:
        shape = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((steps, *s.shape), s.dtype), layers.carry_shape(params)
        )
        what, fix = "a trajectory of carries", "NewtonInfo.states of an earlier call is one."
        checks.carry("newton_scan", "guess", guess, shape, what, fix)
    if tol is None:
        tol = 8 * float(jnp.finfo(dtype).eps)
    checks.number("newton_scan", "tol", tol)
    if not 0 < tol < 1:
        raise checks.error(ValueError, "newton_scan", "tol", "in (0, 1)", f"{tol}")
    limit = checks.size("newton_scan", "max_iterations", max_iterations)

    carry, reset_carry = sequence.starts(params, carry, reset, reset_carry)
    options = _Options(reverse, jacobian == "dense", float(tol), limit, fallback == "scan")
    return _newton_scan(options, params, xs, carry, length, reset, reset_carry, guess)


class _Options(NamedTuple):
    """What is part of the program, not data."""

    reverse: bool
    dense: bool
    tol: float
    max_iterations: int
    fallback: bool


class _Inputs(NamedTuple):
    """What the trajectory of one cell depends on, smoothly."""

    params: Params
    xs: Array
    start: Array
    """`[D]`"""
    restart: Any
    """`[D]`, or None where nothing is reset."""


class _Flags(NamedTuple):
    """The steps that start from restart, and those that count, `[T]`; None: no step, and every."""

    fresh: Array | None
    keep: Array | None


@partial(jax.jit, static_argnums=0)
def _newton_scan(options, params, xs, carry, length, reset, reset_carry, guess):
    if xs.shape[0] == 0:
        states = jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), carry)
        info = NewtonInfo(jnp.int32(0), jnp.zeros((), xs.dtype), jnp.asarray(True), states)
        return carry, jnp.zeros((0, layers.sizes(params)[1]), xs.dtype), info
    marks = sequence.marks(length, reset, xs.shape[0])
    xs = sequence.mask(marks, xs)
    return _run(options, params, xs, carry, marks, reset_carry, guess)


def _run(options, params, xs, carry, marks, reset_carry, guess):
    if isinstance(params, Stack):
        parts = []
        none = (None,) * len(params.layers)
        each = (params.layers, carry, reset_carry or none, guess or none)
        for layer, start, restart, known in zip(*each, strict=True):
            last, xs, info = _run(options, layer, xs, start, marks, restart, known)
            parts.append((last, info))
        lasts, infos = zip(*parts, strict=True)
        return lasts, xs, _joined(infos)
    if isinstance(params, Bidirectional):
        parts = []
        back = options._replace(reverse=not options.reverse)
        each = ((params.forward, params.backward), carry, reset_carry or (None, None))
        known = guess or (None, None)
        for way, part, start, restart, first in zip((options, back), *each, known, strict=True):
            parts.append(_run(way, part, xs, start, marks, restart, first))
        lasts, ys, infos = zip(*parts, strict=True)
        return lasts, jnp.concatenate(ys, axis=-1), _joined(infos)
    return _run_cell(options, params, xs, carry, marks, reset_carry, guess)


def _joined(infos: tuple[NewtonInfo, ...]) -> NewtonInfo:
    iterations, residuals, converged, states = zip(*infos, strict=True)
    return NewtonInfo(
        jnp.stack(iterations).sum(dtype=jnp.int32),
        jnp.stack(residuals).max(),
        jnp.stack(converged).all(),
        states,
    )


def _run_cell(options, params, xs, carry, marks, reset_carry, guess):
    cell = cell_of(params)
    turn = (lambda a: jnp.flip(a, 0)) if options.reverse else (lambda a: a)
    flags = _Flags(*jax.tree.map(turn, (sequence.entered(marks, options.reverse), marks.valid)))
    restart = None if reset_carry is None else _pack(reset_carry)
    inputs = _Inputs(params, turn(xs), _pack(carry), restart)
    guess = None if guess is None else turn(_pack(guess))
    # A cell whose gates do not see the carry has no more than the diagonal.
    exact = options.dense or not cell.blocks(params).w_hh
    states, info = _solve(cell, options, *lax.stop_gradient((inputs, flags, guess)))
    states = _differentiable(cell, exact, states, inputs, flags, info.converged)
    trajectory = _unpack(cell, params, turn(states))
    ys = sequence.mask(marks, cell.output(trajectory))
    info = info._replace(states=lax.stop_gradient(trajectory))
    return _unpack(cell, params, states[-1]), ys, info


def _pack(carry: Carry) -> Array:
    """Carries, `[..., H]` each, as one array `[..., D]`."""
    return jnp.concatenate(jax.tree.leaves(carry), axis=-1)


def _unpack(cell: Cell, params: Params, packed: Array) -> Carry:
    tree = jax.tree.structure(cell.carry_shape(params))
    return jax.tree.unflatten(tree, jnp.split(packed, tree.num_leaves, axis=-1))


def _advance(cell: Cell, inputs: _Inputs, flags: _Flags, states: Array, offset: Any = None) -> Any:
    """(F of all steps at once, plus an offset; the states before them; their gates)."""
    params, xs, start, restart = inputs
    fresh, keep = flags
    before = jnp.concatenate([start[None], states[:-1]])
    if fresh is not None:
        before = jnp.where(fresh[:, None], restart[None], before)
    after, gates = advance(cell, cell.blocks(params), _unpack(cell, params, before), xs)
    after = _pack(after) if offset is None else _pack(after) + offset
    if keep is not None:
        after = jnp.where(keep[:, None], after, before)
    return after, before, gates


# The linear recurrence. J is `[T, D, D]`, or `[T, D]` for diagonal matrices.


def _coefficients(cell: Cell, inputs: _Inputs, before: Array, gates: Any) -> tuple[Any, Any]:
    """The coefficients and, all zero, the sources of `Cell.tangent` at these states."""
    blocks = cell.blocks(inputs.params)
    still = Blocks(None, (None,) * len(blocks.w_hh), None)
    dx = jnp.zeros((before.shape[0], cell.gates * cell.sizes(inputs.params)[1]), before.dtype)
    return cell.linearize(still, dx, _unpack(cell, inputs.params, before), gates)


def _jacobian(
    cell: Cell, dense: bool, inputs: _Inputs, flags: _Flags, before: Array, gates: Any
) -> Array:
    params, (fresh, keep) = inputs.params, flags
    blocks = cell.blocks(params)
    linear = _coefficients(cell, inputs, before, gates)
    size = before.shape[-1]
    if dense and blocks.w_hh:
        weights = products(blocks.w_hh)
        eye = jnp.eye(size, dtype=before.dtype)

        def column(coefficients, sources, e):
            de = _unpack(cell, params, e)
            return _pack(cell.tangent(weights, coefficients, de, sources))

        columns = jax.vmap(column, in_axes=(None, None, 0), out_axes=1)
        jacobian = jax.vmap(columns, in_axes=(0, 0, None))(*linear, eye)
    else:
        jacobian, eye = _pack(cell.diagonal(blocks, linear[0])), jnp.ones(size, before.dtype)
    if fresh is not None:
        jacobian = jnp.where(_like(fresh, jacobian), 0, jacobian)
    if keep is not None:
        jacobian = jnp.where(_like(keep, jacobian), jacobian, eye[None])
    return jacobian


def _like(flags: Array, values: Array) -> Array:
    return flags.reshape(-1, *(1,) * (values.ndim - 1))


def _times(a: Array, b: Array) -> Array:
    """The product of a J with a J, or with vectors `[T, D]`."""
    if a.ndim == 2:
        return a * b
    return a @ b if b.ndim == 3 else (a @ b[..., None])[..., 0]


def _recur(jacobian: Array, sources: Array, reverse: bool = False) -> Array:
    """e_t = J_t e_{t-1} + s_t, from e = 0, by an associative scan."""

    def both(earlier, later):
        (j, s), (k, u) = earlier, later
        return _times(k, j), _times(k, s) + u

    return lax.associative_scan(both, (jacobian, sources), reverse=reverse)[1]


def _recur_in_order(jacobian: Array, sources: Array, reverse: bool = False) -> Array:
    """The same, one step after the other: what does not overflow on the way, does not at all."""

    def step(e, inputs):
        j, s = inputs
        e = _times(j[None], e[None])[0] + s
        return e, e

    start = jnp.zeros_like(sources[0])
    return lax.scan(step, start, (jacobian, sources), reverse=reverse)[1]


def _shift(states: Array) -> Array:
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def _rescue(fine: Array, value: Array, run: Any) -> Array:
    """value, or run() where it is not fine.

    As a loop of one turn or none: a `lax.cond` runs both ways under `vmap`, a loop that no example
    needs is not entered.
    """
    again = (jnp.logical_not(fine), value)
    return lax.while_loop(lambda s: s[0], lambda s: (jnp.zeros_like(s[0]), run()), again)[1]


# The iteration.


class _Iterate(NamedTuple):
    done: Array
    """Newton steps"""
    states: Array
    ahead: tuple[Array, Array, Any]
    """F of the states, the states before each step, gates."""
    residual: Array


def _solve(
    cell: Cell, options: _Options, inputs: _Inputs, flags: _Flags, guess: Array | None
) -> tuple[Array, NewtonInfo]:
    """The packed trajectory and what became of the iteration."""
    params, xs, start, restart = inputs
    steps = xs.shape[0]
    tol, limit = options.tol, options.max_iterations
    largest = jnp.abs(start) if restart is None else jnp.maximum(jnp.abs(start), jnp.abs(restart))
    bound = _pack(cell.bound(_unpack(cell, params, largest), steps))[None]

    def observe(done, states, offset):
        ahead = _advance(cell, inputs, flags, states, offset)
        return _Iterate(done, states, ahead, _distance(ahead[0], states))

    def newton(iterate, offset):
        after, before, gates = iterate.ahead
        jacobian = _jacobian(cell, options.dense, inputs, flags, before, gates)
        states = iterate.states + _recur(jacobian, after - iterate.states)
        states = jnp.where(jnp.isfinite(states), jnp.clip(states, -bound, bound), after)
        return observe(iterate.done + 1, states, offset)

    first = jnp.broadcast_to(start, (steps, *start.shape))
    if guess is not None:
        first = jnp.where(jnp.isfinite(guess), jnp.clip(guess, -bound, bound), first)
    found = lax.while_loop(
        lambda i: (i.done < limit) & ~(i.residual <= tol),
        lambda i: newton(i, None),
        observe(jnp.int32(0), first, None),
    )
    converged = found.residual <= tol
    if cell.blocks(params).w_hh:  # others are contractions: nothing grows
        size = tol ** (2 / 3)
        offset = size * _signs(first.shape).astype(xs.dtype)
        moved = lax.while_loop(
            lambda i: (i.done < limit) & ~(i.residual <= 0.1 * size),
            lambda i: newton(i, offset),
            observe(jnp.where(converged, jnp.int32(0), limit), found.states, offset),
        )
        still = _distance(moved.states, found.states) <= tol ** (1 / 3)
        converged &= (moved.residual <= 0.1 * size) & still

    def scanned():
        both = (start, start if restart is None else restart)
        carries = [_unpack(cell, params, packed[None]) for packed in both]
        xs_, *marks = jax.tree.map(lambda a: a[:, None], (xs, *flags))
        _, (carries, _) = forward(cell, 0, False, (params, xs_, *carries, *marks), save=False)
        return _pack(carries)[:, 0]

    states = _rescue(converged, found.states, scanned) if options.fallback else found.states
    return states, NewtonInfo(found.done, found.residual, converged, states)


def _distance(a: Array, b: Array) -> Array:
    return jnp.max(jnp.abs(a - b) / jnp.maximum(1, jnp.abs(b)))


def _signs(shape: tuple[int, ...]) -> Array:
    """1 and -1, without order: a multiplicative hash of the index."""
    count = lax.iota(jnp.uint32, math.prod(shape))
    mixed = count * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
    return 1 - 2 * (mixed >> 31).astype(jnp.int32).reshape(shape)


# The derivative, by the implicit function theorem.


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiable(cell, exact, states, inputs, flags, converged):
    """The states, as the function of inputs that they are; exact: J can be had as a whole."""
    del cell, exact, inputs, flags, converged
    return states


@_differentiable.defjvp
def _differentiable_jvp(cell, exact, primals, tangents):
    _, inputs, flags, converged = primals
    states = _differentiable(cell, exact, *primals)

    def ahead(inputs):
        return _advance(cell, inputs, flags, states)[0]

    _, sources = jax.jvp(ahead, (inputs,), (tangents[1],))
    _, before, gates = _advance(cell, inputs, flags, states)
    if not exact:
        return states, _tangent_in_order(cell, inputs, flags, before, gates, sources)
    jacobian = _jacobian(cell, exact, inputs, flags, before, gates)

    def solve(_, b):
        run = partial(_recur_in_order, jacobian, b)
        return _rescue(converged, _recur(jacobian, b), run)

    def solve_transposed(_, b):
        later = jnp.roll(jacobian, -1, axis=0)  # what comes from the end meets no tangent
        later = later if later.ndim == 2 else later.swapaxes(-1, -2)
        run = partial(_recur_in_order, later, b, reverse=True)
        return _rescue(converged, _recur(later, b, reverse=True), run)

    def apply(x):
        return x - _times(jacobian, _shift(x))

    return states, lax.custom_linear_solve(apply, sources, solve, solve_transposed)


def _tangent_in_order(cell, inputs, flags, before, gates, sources):
    """The linear recurrence by J times a vector, as the loop of `scan` has it."""
    weights = products(cell.blocks(inputs.params).w_hh)

    def step(e, stretch):
        linear, source, fresh, keep = stretch
        e = e if fresh is None else jnp.where(fresh, 0, e)
        new = cell.tangent(weights, linear[0], _unpack(cell, inputs.params, e), linear[1])
        new = _pack(new) if keep is None else jnp.where(keep, _pack(new), e)
        new = new + source
        return new, new

    linear = _coefficients(cell, inputs, before, gates)
    stretches = (linear, sources, *flags)
    return lax.scan(step, jnp.zeros_like(sources[0]), stretches)[1]
