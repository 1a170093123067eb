"""The state of a network as one vector, and one time step as a map between such vectors.

S is the size of that vector. It is H for a GRU or a plain RNN, and 2 H for an LSTM, whose vector is
[h, c]. The vector of another cell has all numbers of the carry, in the order of `jax.tree.leaves`.
The vector of a Stack has those of all layers, the lowest layer first.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params
from jaxgru.diagnostics.outputs import output_of
from jaxgru.layers import initial_carry
from jaxgru.mesh import alike
from jaxgru.step import step


class States(NamedTuple):
    """Conversions between a carry and its vector, and one time step."""

    size: int
    """S."""
    flat: Callable[[Carry], Array]
    """carry -> `[S]`."""
    carry: Callable[[Array], Carry]
    """`[S]` -> carry."""
    advance: Callable[[Array, Array], Array]
    """(state `[S]`, x `[I]`) -> the next state `[S]`: one time step."""
    output: Callable[[Array, Array, Array], Array]
    """(state `[S]`, x `[I]`, next state `[S]`) -> the output `[H]` of a step that ends in this next
    state."""


def states_of(params: Params) -> States:
    """Make the States of params, which `check_params` has checked."""
    zeros, unravel = ravel_pytree(initial_carry(params))

    def advance(state: Array, x: Array) -> Array:
        return ravel_pytree(step(params, unravel(state), x)[0])[0]

    def output(state: Array, x: Array, after: Array) -> Array:
        return output_of(step, unravel(after), params, unravel(state), x)

    return States(
        size=zeros.size,
        flat=lambda carry: ravel_pytree(carry)[0],
        carry=unravel,
        advance=advance,
        output=output,
    )


def before(states: States, carry: Carry, xs: Array) -> Array:
    """The state from which every step starts, `[T, S]`."""

    def body(state: Array, x: Array) -> tuple[Array, Array]:
        return states.advance(state, x), state

    return lax.scan(body, states.flat(carry), xs)[1]


def pushed(states: States, state: Array, x: Array, columns: Array) -> tuple[Array, Array]:
    """(the next state, J @ columns `[S, k]`), with J = d next state / d state."""

    def along(column: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda state: states.advance(state, x), (state,), (column,))

    return jax.vmap(along, in_axes=1, out_axes=(None, 1))(columns)


def pulled(states: States, state: Array, x: Array, rows: Array) -> Array:
    """rows @ J, `[k, S]`."""
    _, pull = jax.vjp(lambda state: states.advance(state, x), state)
    return jax.vmap(lambda row: pull(row)[0])(rows)


def check(caller: str, params: Params, xs: Array, carry: Carry | None) -> Carry:
    """Check the arguments, and return the carry to start from, by default the initial one."""
    check_params(caller, params)
    checks.inputs(caller, "xs", xs, ("T", layers.sizes(params)[0]), layers.dtype(params))
    if carry is not None:
        checks.carry(caller, "carry", carry, layers.carry_shape(params))
    carry = initial_carry(params) if carry is None else carry
    return alike((params, xs, carry))[2]


def check_params(caller: str, params: Params) -> None:
    """Check that params run forward in time, in a dtype with enough precision for derivatives."""
    layers.check(caller, params)
    fix = "Pass its two directions, .forward and .backward, one by one."
    layers.check_forward(caller, params, fix)
    dtype = layers.dtype(params)
    if jnp.finfo(dtype).bits < 32:
        fix = "Cast them with jax.tree.map. In 16 bits the result would consist of rounding errors."
        raise checks.error(
            TypeError, caller, "params", "float32 or float64", jnp.dtype(dtype).name, fix
        )
    layers.check_state(caller, params)
