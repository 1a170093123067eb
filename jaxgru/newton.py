"""Newton's method for a whole trajectory at once: it is parallel in time, where `scan` is not.

The trajectory h_1 .. h_T is the root of h_t - F(h_{t-1}, x_t). One Newton step solves a linear
recurrence:

    e_t = J_t e_{t-1} + F(h_{t-1}, x_t) - h_t,    h_t <- h_t + e_t

An associative scan solves it in O(log T) dependent operations. The derivative takes the solution of
one more such recurrence, with the J_t of the solution. It does not differentiate through the
iterations.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.export import is_symbolic_dim

from jaxgru import checks, layers, own, sequence
from jaxgru.cell import Carry, Params, StepCell, cell_of
from jaxgru.dynamics import Flags, Inputs, dynamics_of, pack, unpack
from jaxgru.layers import Bidirectional, Stack
from jaxgru.loop import first_real
from jaxgru.mesh import alike
from jaxgru.programs import by_type
from jaxgru.trajectory import Method, NewtonInfo, solve, states_before

JACOBIANS = ("dense", "diagonal")


def newton_scan(
    params: Params,
    xs: Array,
    carry: Carry | None = None,
    *,
    length: Any = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reset_carry: Carry | None = None,
    reverse: bool = False,
    jacobian: str = "dense",
    guess: Carry | None = None,
    tol: float | None = None,
    max_iterations: int = 100,
    damping: float = 0.0,
    fallback: str | None = "scan",
) -> tuple[Carry, Array, NewtonInfo]:
    """Run a network over one sequence as `scan` does, in parallel over time.

        e_t = (1 - damping) J_t e_{t-1} + F(h_{t-1}, x_t) - h_t,    h_t <- h_t + e_t,    t = 1 .. T

    The iteration updates all t at once, until the residual F(h_{t-1}, x_t) - h_t is only rounding
    error. It solves the layers of a Stack one after the other. It keeps the states within the
    bounds that the cell sets, and replaces states that are not finite by F(h_{t-1}, x_t). So after
    k iterations at least the first k states are right. A MinGRU is linear in its state, so one
    iteration is exact. For a cell made by `register` no bounds are known. If it was registered
    without weights, J_t comes from D forward derivatives of its step, where D is the size of the
    carry.

    `converged` means that the residual is at most tol, and that the result is not sensitive to
    rounding: a perturbation of size tol**(2/3) and random sign in every step moves no state by more
    than tol**(1/3). A chaotic network fails this test, however small its residual. There, rounding
    errors determine the states of `scan` too.

    The derivative is that of the recurrence at the solution, in every mode of JAX. With dense
    Jacobians it is one more associative scan, which runs in reverse for a gradient. With diagonal
    Jacobians the derivative is exact too. It then takes a loop of T dependent steps, as in `scan`.

    `jax.vmap` runs a batch. The iteration continues until all examples are done. If one of them
    falls back, the whole batch takes the time of a scan.

    Args:
        params: the params of any cell whose carry consists of floats of the dtype of params, or a
            Bidirectional or Stack of such cells. The dtype is float32 or float64.
        xs: inputs `[T, I]`, of the dtype of params.
        carry: where to start. None stands for `initial_carry(params)`.
        length: how many of the T steps are real, as in `scan`. It may be traced.
        mask: bool `[T]`. False at t makes a hole of step t, as in `scan`.
        reset: bool `[T]`. True at t starts a new segment at t, as in `scan`.
        reset_carry: the carry from which segments start. None stands for `initial_carry(params)`.
        reverse: whether to run from the last real step to the first.
        jacobian: `"dense"` takes few iterations and memory for T matrices. `"diagonal"` uses only
            the diagonal of J_t. It takes more iterations, and memory for T states. For a cell that
            was registered without weights it computes the diagonal one unit at a time, which saves
            memory but not time.
        guess: where the iteration starts, in the form of `NewtonInfo.states`: `[T, H]` for a GRU.
            Zeros take the most iterations. The trajectory before the last update of params takes
            only a few. No gradient flows into the guess.
        tol: the largest residual of a converged trajectory. The residual is relative where states
            exceed 1. None stands for 8 units of rounding.
        max_iterations: the number of iterations after which the trajectory of a cell counts as not
            converged.
        damping: a number in [0, 1] that reduces how much of an error is passed on through time. 0
            is Newton's method, and 1 sets h_t to F(h_{t-1}, x_t). Damping changes the iterates, but
            neither the solution nor its derivative. A MinGRU needs none.
        fallback: `"scan"` computes a trajectory that has not converged by a scan over time, and its
            derivative too. None returns the last iterate as it is.

    Returns:
        (carry after the last step processed, outputs `[T, H]`, NewtonInfo).

    Raises:
        TypeError: params, a carry, a dtype or an option has the wrong type.
        ValueError: a shape or value does not fit.

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
    sequence.check("newton_scan", params, xs, carry, length, reset, reset_carry, reverse, mask)
    layers.check_state("newton_scan", params)
    steps, dtype = xs.shape[0], layers.dtype(params)
    if dtype not in (jnp.float32, jnp.float64):
        fix = "In 16 bits, rounding errors prevent convergence: use scan."
        raise checks.error(
            TypeError, "newton_scan", "params", "float32 or float64", f"{dtype}", fix
        )
    if is_symbolic_dim(steps):
        fix = "An associative scan needs a known length: export scan, or a program for each length."
        raise checks.error(ValueError, "newton_scan", "xs", "of a known length", f"{steps}", fix)
    if not (isinstance(jacobian, str) and jacobian in JACOBIANS):
        expected = " or ".join(map(repr, JACOBIANS))
        raise checks.error(ValueError, "newton_scan", "jacobian", expected, checks.shown(jacobian))
    if not (fallback is None or (isinstance(fallback, str) and fallback == "scan")):
        raise checks.error(
            ValueError, "newton_scan", "fallback", "'scan' or None", checks.shown(fallback)
        )
    if guess is not None:
        shape = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((steps, *s.shape), s.dtype), layers.carry_shape(params)
        )
        what, fix = "a trajectory of carries", "Pass NewtonInfo.states of an earlier call."
        checks.carry("newton_scan", "guess", guess, shape, what, fix)
    if tol is None:
        tol = 8 * float(jnp.finfo(dtype).eps)
    checks.number("newton_scan", "tol", tol)
    if not 0 < tol < 1:
        raise checks.error(ValueError, "newton_scan", "tol", "in (0, 1)", f"{tol}")
    limit = checks.size("newton_scan", "max_iterations", max_iterations, most=checks.INT32_MAX)
    checks.number("newton_scan", "damping", damping)
    if not 0 <= damping <= 1:
        raise checks.error(ValueError, "newton_scan", "damping", "in [0, 1]", f"{damping}")

    carry, reset_carry = sequence.starts(params, carry, reset, reset_carry)
    method = Method(jacobian == "dense", float(tol), limit, float(damping), fallback == "scan")
    return _newton_scan(method, reverse, params, xs, carry, length, mask, reset, reset_carry, guess)


@by_type(static=2)
def _newton_scan(method, reverse, params, xs, carry, length, mask, reset, reset_carry, guess):
    if xs.shape[0] == 0:
        states = jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), carry)
        info = NewtonInfo(jnp.int32(0), jnp.zeros((), xs.dtype), jnp.asarray(True), states)
        return carry, jnp.zeros((0, layers.sizes(params)[1]), xs.dtype), info
    marks = sequence.marks(length, reset, xs.shape[0], mask)
    xs = sequence.mask(marks, xs)
    return _run(method, reverse, params, xs, carry, marks, reset_carry, guess)


def _run(method, reverse, params, xs, carry, marks, reset_carry, guess):
    if isinstance(params, Stack):
        return _run_stack(method, reverse, params, xs, carry, marks, reset_carry, guess)
    if isinstance(params, Bidirectional):
        return _run_bidirectional(method, reverse, params, xs, carry, marks, reset_carry, guess)
    return _run_cell(method, reverse, params, xs, carry, marks, reset_carry, guess)


def _run_stack(method, reverse, params, xs, carry, marks, reset_carry, guess):
    none = (None,) * len(params.layers)
    each = (params.layers, carry, reset_carry or none, guess or none)
    lasts, infos = [], []
    for layer, start, restart, known in zip(*each, strict=True):
        last, xs, info = _run(method, reverse, layer, xs, start, marks, restart, known)
        lasts.append(last)
        infos.append(info)
    return tuple(lasts), xs, _joined(*infos)


def _run_bidirectional(method, reverse, params, xs, carry, marks, reset_carry, guess):
    starts, guesses = reset_carry or (None, None), guess or (None, None)
    ahead = (params.forward, xs, carry[0], marks, starts[0], guesses[0])
    back = (params.backward, xs, carry[1], marks, starts[1], guesses[1])
    one, ys, info = _run(method, reverse, *ahead)
    other, zs, back_info = _run(method, not reverse, *back)
    return (one, other), jnp.concatenate([ys, zs], axis=-1), _joined(info, back_info)


def _joined(*infos: NewtonInfo) -> NewtonInfo:
    iterations, residuals, converged, states = zip(*infos, strict=True)
    return NewtonInfo(
        jnp.stack(iterations).sum(dtype=jnp.int32),
        jnp.stack(residuals).max(),
        jnp.stack(converged).all(),
        states,
    )


def _run_cell(method, reverse, params, xs, carry, marks, reset_carry, guess):
    cell, dynamics = cell_of(params), dynamics_of(params)
    if isinstance(cell, StepCell):
        xs = own.inputs("newton_scan", params, xs)
    elif cell.formed is not None:
        xs = sequence.filled(marks, xs, reverse)
    turn = partial(jax.tree.map, (lambda a: jnp.flip(a, 0)) if reverse else (lambda a: a))
    fresh, keep = turn((sequence.entered(marks, reverse), marks.valid))
    restart = None if reset_carry is None else pack(reset_carry)
    inputs, flags = Inputs(params, turn(xs), pack(carry), restart), Flags(fresh, keep)
    guess = None if guess is None else turn(pack(guess, 1))
    inputs, flags, guess = alike((inputs, flags, guess))
    if isinstance(cell, StepCell) and keep is not None:
        inputs, flags = _with_defined_padding(inputs, flags)
    states, info = solve(dynamics, method, inputs, flags, guess)
    trajectory = unpack(cell, params, turn(states))
    before = states_before(inputs, flags, states)
    ys = sequence.mask(marks, turn(dynamics.outputs(inputs, flags, before, states)))
    info = info._replace(states=lax.stop_gradient(trajectory))
    return unpack(cell, params, states[-1]), ys, info


def _with_defined_padding(inputs: Inputs, flags: Any) -> tuple[Inputs, Flags]:
    """As in `loop`, steps that are not real run on the arguments of the first real step."""
    begins = (inputs.start, inputs.start if inputs.restart is None else inputs.restart)
    state, x = first_real(False, *begins, inputs.xs, flags.fresh, flags.keep)

    def defined(all_of_them: Array, first: Array) -> Array:
        return jnp.where(flags.keep.reshape(-1, *(1,) * first.ndim), all_of_them, first)

    xs = jax.tree.map(defined, inputs.xs, x)
    return inputs._replace(xs=xs), flags._replace(spare=state)
