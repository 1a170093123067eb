"""The trajectory of one cell as the root of one equation: Newton's iteration and its derivative.

Each carry is packed into one array of D numbers. Time runs forward.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgru import exportable
from jaxgru.cell import Carry
from jaxgru.dynamics import Dynamics, Flags, Inputs
from jaxgru.linear import recur, recur_in_order, rescue, shift, times


@exportable.named_tuple
class NewtonInfo(NamedTuple):
    """The outcome of the iteration of `newton_scan`.

    For params with several cells, iterations is the sum over cells, residual is the largest of
    them, converged tells whether all cells have converged, and states holds those of each cell.
    """

    iterations: Array
    """The number of Newton steps, an integer, without those of the sensitivity check."""
    residual: Array
    """max |h_t - F(h_{t-1}, x_t)| / max(1, |h_t|) of the last iterate."""
    converged: Array
    """Whether that iterate is the trajectory. If not, fallback="scan" gives the result of scan."""
    states: Carry
    """The carry after every step, `[T, H]` instead of `[H]`. It is a guess for the next call."""


class Method(NamedTuple):
    """The options of the solver. They are part of the program, and not data."""

    dense: bool
    tol: float
    max_iterations: int
    damping: float
    fallback: bool


def step_all(
    dynamics: Dynamics, inputs: Inputs, flags: Flags, states: Array, offset: Any = None
) -> tuple[Array, Array, Any]:
    """(F of all steps at once plus an offset, the states before them, the values that J needs)."""
    before = states_before(inputs, flags, states)
    after, kept = dynamics.advance(inputs, flags, before)
    after = after if offset is None else after + offset
    if flags.keep is not None:
        after = jnp.where(flags.keep[:, None], after, before)
    return after, before, kept


def states_before(inputs: Inputs, flags: Flags, states: Array) -> Array:
    """The state before every step, given the states after every step, `[T, D]`."""
    before = jnp.concatenate([inputs.start[None], states[:-1]])
    if flags.fresh is not None:
        before = jnp.where(flags.fresh[:, None], inputs.restart[None], before)
    return before


def jacobian_of(
    dynamics: Dynamics, dense: bool, inputs: Inputs, flags: Flags, before: Array, kept: Any
) -> Array:
    """J of every step, `[T, D, D]`, or its diagonal, `[T, D]`."""
    size, keep, fresh = before.shape[-1], flags.keep, flags.fresh
    if dense and not dynamics.is_diagonal(inputs.params):
        jacobian = dynamics.dense(inputs, flags, before, kept)
        eye = jnp.eye(size, dtype=before.dtype)
    else:
        jacobian = dynamics.diagonal(inputs, flags, before, kept)
        eye = jnp.ones(size, before.dtype)
    if keep is not None:
        jacobian = jnp.where(_like(keep, jacobian), jacobian, eye[None])
    if fresh is not None:  # this comes last, since a segment may start at a hole
        jacobian = jnp.where(_like(fresh, jacobian), 0, jacobian)
    return jacobian


def _like(flags: Array, values: Array) -> Array:
    return flags.reshape(-1, *(1,) * (values.ndim - 1))


# The iteration.


class _Iterate(NamedTuple):
    done: Array
    """The number of Newton steps so far."""
    states: Array
    ahead: tuple[Array, Array, Any]
    """The results of `step_all` for the states."""
    residual: Array


def solve(
    dynamics: Dynamics, method: Method, inputs: Inputs, flags: Flags, guess: Array | None
) -> tuple[Array, NewtonInfo]:
    """The packed trajectory `[T, D]`, a function of inputs, and the outcome of the iteration."""
    states, info = _iterate(dynamics, method, *lax.stop_gradient((inputs, flags, guess)))
    whole = method.dense or dynamics.is_diagonal(inputs.params)
    return _differentiable(dynamics, whole, states, inputs, flags, info.converged), info


def _iterate(dynamics, method, inputs, flags, guess):
    start, restart = inputs.start, inputs.restart
    steps = jax.tree.leaves(inputs.xs)[0].shape[0]
    tol, limit = method.tol, method.max_iterations
    largest = jnp.abs(start) if restart is None else jnp.maximum(jnp.abs(start), jnp.abs(restart))
    bound = dynamics.bound(inputs.params, largest, steps)[None]

    def observe(done, states, offset):
        ahead = step_all(dynamics, inputs, flags, states, offset)
        return _Iterate(done, states, ahead, _distance(ahead[0], states))

    def newton(iterate, offset):
        after, before, kept = iterate.ahead
        jacobian = jacobian_of(dynamics, method.dense, inputs, flags, before, kept)
        if method.damping:
            jacobian *= 1 - method.damping
        states = iterate.states + recur(jacobian, after - iterate.states)
        states = jnp.where(jnp.isfinite(states), jnp.clip(states, -bound, bound), after)
        return observe(iterate.done + 1, states, offset)

    # `vmap` over an explicit axis of a mesh cannot carry a constant through the loop.
    none = jnp.zeros_like(start[0], jnp.int32)
    first = jnp.broadcast_to(start, (steps, *start.shape))
    if guess is not None:
        first = jnp.where(jnp.isfinite(guess), jnp.clip(guess, -bound, bound), first)
    found = lax.while_loop(
        lambda i: (i.done < limit) & ~(i.residual <= tol),
        lambda i: newton(i, None),
        observe(none, first, None),
    )
    converged = found.residual <= tol
    if not dynamics.is_diagonal(inputs.params):  # diagonal cells are contractions
        size = tol ** (2 / 3)
        offset = size * _signs(first.shape).astype(start.dtype)
        moved = lax.while_loop(
            lambda i: (i.done < limit) & ~(i.residual <= 0.1 * size),
            lambda i: newton(i, offset),
            observe(jnp.where(converged, 0, limit).astype(jnp.int32), found.states, offset),
        )
        still = _distance(moved.states, found.states) <= tol ** (1 / 3)
        converged &= (moved.residual <= 0.1 * size) & still

    def scanned():
        return dynamics.in_order(inputs, flags)

    states = rescue(converged, found.states, scanned) if method.fallback else found.states
    return states, NewtonInfo(found.done, found.residual, converged, states)


def _distance(a: Array, b: Array) -> Array:
    return jnp.max(jnp.abs(a - b) / jnp.maximum(1, jnp.abs(b)))


def _signs(shape: tuple[int, ...]) -> Array:
    """Pseudorandom signs, 1 and -1, from a multiplicative hash of the index."""
    count = lax.iota(jnp.uint32, math.prod(shape))
    mixed = count * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x85EBCA77)
    return 1 - 2 * (mixed >> 31).astype(jnp.int32).reshape(shape)


# The derivative, by the implicit function theorem.


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _differentiable(dynamics, whole, states, inputs, flags, converged):
    """The states, as a differentiable function of inputs. whole: whether to compute all of J."""
    del dynamics, whole, inputs, flags, converged
    return states


@_differentiable.defjvp
def _differentiable_jvp(dynamics, whole, primals, tangents):
    _, inputs, flags, converged = primals
    states = _differentiable(dynamics, whole, *primals)

    def ahead(inputs):
        return step_all(dynamics, inputs, flags, states)[0]

    _, sources = jax.jvp(ahead, (inputs,), (tangents[1],))
    _, before, kept = step_all(dynamics, inputs, flags, states)
    if not whole:
        return states, _tangent_in_order(dynamics, inputs, flags, before, kept, sources)
    jacobian = jacobian_of(dynamics, whole, inputs, flags, before, kept)

    def solve(_, b):
        run = partial(recur_in_order, jacobian, b)
        return rescue(converged, recur(jacobian, b), run)

    def solve_transposed(_, b):
        later = jnp.roll(jacobian, -1, axis=0)  # no tangent reaches the row from the end
        later = later if later.ndim == 2 else later.swapaxes(-1, -2)
        run = partial(recur_in_order, later, b, reverse=True)
        return rescue(converged, recur(later, b, reverse=True), run)

    def apply(x):
        return x - times(jacobian, shift(x))

    return states, lax.custom_linear_solve(apply, sources, solve, solve_transposed)


def _tangent_in_order(dynamics, inputs, flags, before, kept, sources):
    """The linear recurrence, step by step, by products of J with a vector."""
    linear, push = dynamics.push(inputs, flags, before, kept)

    def step(e, stretch):
        linear, source, fresh, keep = stretch
        e = e if fresh is None else jnp.where(fresh, 0, e)
        new = push(linear, e)
        new = new if keep is None else jnp.where(keep, new, e)
        new = new + source
        return new, new

    stretches = (linear, sources, flags.fresh, flags.keep)
    return lax.scan(step, jnp.zeros_like(sources[0]), stretches)[1]
