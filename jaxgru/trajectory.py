"""The trajectory of one cell as the root of one equation: Newton's iteration, and its derivative.

A carry is packed into one array of D numbers, and time runs forward.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgru import backends, exportable
from jaxgru.backends.loop import forward
from jaxgru.cell import Blocks, Carry, Cell, Params, advance, products
from jaxgru.linear import recur, recur_in_order, rescue, shift, times


@exportable.named_tuple
class NewtonInfo(NamedTuple):
    """The outcome of the iteration of `newton_scan`.

    For params with several cells, iterations are their sum, residual is the largest, converged
    tells whether all have converged, and states has those of each cell.
    """

    iterations: Array
    """The number of Newton steps, an integer, without those of the check for sensitivity."""
    residual: Array
    """max |h_t - F(h_{t-1}, x_t)| / max(1, |h_t|) of the last iterate."""
    converged: Array
    """Whether that iterate is the trajectory. If not, fallback="scan" gives the result of scan."""
    states: Carry
    """The carry after every step, `[T, H]` instead of `[H]`. It is a guess for the next call."""


class Method(NamedTuple):
    """How to solve; part of the program, not data."""

    dense: bool
    tol: float
    max_iterations: int
    damping: float
    fallback: bool


class Inputs(NamedTuple):
    """What the trajectory of one cell depends on, smoothly."""

    params: Params
    xs: Array
    start: Array
    """`[D]`"""
    restart: Any
    """`[D]`, or None where nothing is reset."""


class Flags(NamedTuple):
    """The steps that start from restart, and those that count, `[T]`; None: no step, and every."""

    fresh: Array | None
    keep: Array | None


def pack(carry: Carry) -> Array:
    """Carries, `[..., H]` each, as one array `[..., D]`."""
    return jnp.concatenate(jax.tree.leaves(carry), axis=-1)


def unpack(cell: Cell, params: Params, packed: Array) -> Carry:
    """`[..., D]` -> a carry of `[..., H]` each."""
    tree = jax.tree.structure(cell.carry_shape(params))
    return jax.tree.unflatten(tree, jnp.split(packed, tree.num_leaves, axis=-1))


def _advance(cell: Cell, inputs: Inputs, flags: Flags, states: Array, offset: Any = None) -> Any:
    """(F of all steps at once, plus an offset; the states before them; their gates)."""
    params, xs, start, restart = inputs
    fresh, keep = flags
    before = jnp.concatenate([start[None], states[:-1]])
    if fresh is not None:
        before = jnp.where(fresh[:, None], restart[None], before)
    after, gates = advance(cell, cell.blocks(params), unpack(cell, params, before), xs)
    after = pack(after) if offset is None else pack(after) + offset
    if keep is not None:
        after = jnp.where(keep[:, None], after, before)
    return after, before, gates


def _coefficients(cell: Cell, inputs: Inputs, before: Array, gates: Any) -> tuple[Any, Any]:
    """The coefficients and, all zero, the sources of `Cell.tangent` at these states."""
    blocks = cell.blocks(inputs.params)
    still = Blocks(None, (None,) * len(blocks.w_hh), None)
    dx = jnp.zeros((before.shape[0], cell.gates * cell.sizes(inputs.params)[1]), before.dtype)
    states = unpack(cell, inputs.params, before)
    return cell.coefficients(states, gates), cell.sources(still, dx, states, gates)


def jacobian_of(
    cell: Cell, dense: bool, inputs: Inputs, flags: Flags, before: Array, gates: Any
) -> Array:
    """J of every step, `[T, D, D]`, or its diagonal, `[T, D]`."""
    params, (fresh, keep) = inputs.params, flags
    blocks = cell.blocks(params)
    linear = _coefficients(cell, inputs, before, gates)
    size = before.shape[-1]
    if dense and blocks.w_hh:
        weights = products(blocks.w_hh)
        eye = jnp.eye(size, dtype=before.dtype)

        def column(coefficients, sources, e):
            de = unpack(cell, params, e)
            return pack(cell.tangent(weights, coefficients, de, sources))

        columns = jax.vmap(column, in_axes=(None, None, 0), out_axes=1)
        jacobian = jax.vmap(columns, in_axes=(0, 0, None))(*linear, eye)
    else:
        jacobian, eye = pack(cell.diagonal(blocks, linear[0])), jnp.ones(size, before.dtype)
    if keep is not None:
        jacobian = jnp.where(_like(keep, jacobian), jacobian, eye[None])
    if fresh is not None:  # last, for a segment may start at a hole
        jacobian = jnp.where(_like(fresh, jacobian), 0, jacobian)
    return jacobian


def _like(flags: Array, values: Array) -> Array:
    return flags.reshape(-1, *(1,) * (values.ndim - 1))


# The iteration.


class _Iterate(NamedTuple):
    done: Array
    """Newton steps so far."""
    states: Array
    ahead: tuple[Array, Array, Any]
    """F of the states, the states before each step, gates."""
    residual: Array


def solve(
    cell: Cell, method: Method, inputs: Inputs, flags: Flags, guess: Array | None
) -> tuple[Array, NewtonInfo]:
    """The packed trajectory `[T, D]`, a function of inputs, and what became of the iteration."""
    states, info = _iterate(cell, method, *lax.stop_gradient((inputs, flags, guess)))
    # A cell whose gates do not see the carry has no more than the diagonal.
    whole = method.dense or not cell.blocks(inputs.params).w_hh
    return _differentiable(cell, whole, states, inputs, flags, info.converged), info


def _iterate(cell, method, inputs, flags, guess):
    params, xs, start, restart = inputs
    steps = xs.shape[0]
    tol, limit = method.tol, method.max_iterations
    largest = jnp.abs(start) if restart is None else jnp.maximum(jnp.abs(start), jnp.abs(restart))
    bound = pack(cell.bound(unpack(cell, params, largest), steps))[None]

    def observe(done, states, offset):
        ahead = _advance(cell, inputs, flags, states, offset)
        return _Iterate(done, states, ahead, _distance(ahead[0], states))

    def newton(iterate, offset):
        after, before, gates = iterate.ahead
        jacobian = jacobian_of(cell, method.dense, inputs, flags, before, gates)
        if method.damping:
            jacobian *= 1 - method.damping
        states = iterate.states + recur(jacobian, after - iterate.states)
        states = jnp.where(jnp.isfinite(states), jnp.clip(states, -bound, bound), after)
        return observe(iterate.done + 1, states, offset)

    # Not a constant, which `vmap` over an explicit axis of a mesh cannot carry through the loop.
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
    if cell.blocks(params).w_hh:  # others are contractions: nothing grows
        size = tol ** (2 / 3)
        offset = size * _signs(first.shape).astype(xs.dtype)
        moved = lax.while_loop(
            lambda i: (i.done < limit) & ~(i.residual <= 0.1 * size),
            lambda i: newton(i, offset),
            observe(jnp.where(converged, 0, limit).astype(jnp.int32), found.states, offset),
        )
        still = _distance(moved.states, found.states) <= tol ** (1 / 3)
        converged &= (moved.residual <= 0.1 * size) & still

    def scanned():
        both = (start, start if restart is None else restart)
        arguments = (params, xs, *(unpack(cell, params, packed) for packed in both), *flags)
        plan = backends.portable()
        _, (carries, _) = forward(plan, cell, 0, False, arguments, differentiated=False)
        return pack(carries)

    states = rescue(converged, found.states, scanned) if method.fallback else found.states
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
def _differentiable(cell, whole, states, inputs, flags, converged):
    """The states, as the function of inputs that they are; whole: J can be had as a whole."""
    del cell, whole, inputs, flags, converged
    return states


@_differentiable.defjvp
def _differentiable_jvp(cell, whole, primals, tangents):
    _, inputs, flags, converged = primals
    states = _differentiable(cell, whole, *primals)

    def ahead(inputs):
        return _advance(cell, inputs, flags, states)[0]

    _, sources = jax.jvp(ahead, (inputs,), (tangents[1],))
    _, before, gates = _advance(cell, inputs, flags, states)
    if not whole:
        return states, _tangent_in_order(cell, inputs, flags, before, gates, sources)
    jacobian = jacobian_of(cell, whole, inputs, flags, before, gates)

    def solve(_, b):
        run = partial(recur_in_order, jacobian, b)
        return rescue(converged, recur(jacobian, b), run)

    def solve_transposed(_, b):
        later = jnp.roll(jacobian, -1, axis=0)  # what comes from the end meets no tangent
        later = later if later.ndim == 2 else later.swapaxes(-1, -2)
        run = partial(recur_in_order, later, b, reverse=True)
        return rescue(converged, recur(later, b, reverse=True), run)

    def apply(x):
        return x - times(jacobian, shift(x))

    return states, lax.custom_linear_solve(apply, sources, solve, solve_transposed)


def _tangent_in_order(cell, inputs, flags, before, gates, sources):
    """The linear recurrence by J times a vector, as the loop of `scan` has it."""
    weights = products(cell.blocks(inputs.params).w_hh)

    def step(e, stretch):
        linear, source, fresh, keep = stretch
        e = e if fresh is None else jnp.where(fresh, 0, e)
        new = cell.tangent(weights, linear[0], unpack(cell, inputs.params, e), linear[1])
        new = pack(new) if keep is None else jnp.where(keep, pack(new), e)
        new = new + source
        return new, new

    linear = _coefficients(cell, inputs, before, gates)
    stretches = (linear, sources, *flags)
    return lax.scan(step, jnp.zeros_like(sources[0]), stretches)[1]
