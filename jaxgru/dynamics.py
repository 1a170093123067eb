"""A cell's step as a map F between vectors, evaluated at many steps at once for Newton's method.

Each carry is packed into one vector of D numbers. Time runs forward.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgru import backends, own
from jaxgru.backends.loop import forward
from jaxgru.cell import Blocks, Carry, Cell, Params, StepCell, advance, cell_of, products
from jaxgru.mesh import alike


class Inputs(NamedTuple):
    """The differentiable inputs of the trajectory of one cell."""

    params: Params
    xs: Any
    """`[T, I]`. For a cell defined by its step, what `project` returns for them."""
    start: Array
    """`[D]`"""
    restart: Any
    """`[D]`, or None where nothing is reset."""


class Flags(NamedTuple):
    """Which steps start from restart, and which are real, `[T]`. None means none, and all."""

    fresh: Array | None
    keep: Array | None
    spare: Any = None
    """`[D]`: the state on which steps that are not real are computed, for a cell whose step may not
    be defined everywhere."""


def pack(carry: Carry, axes: int = 0) -> Array:
    """Pack carries with this number of leading axes into one array `[..., D]`."""
    leaves = jax.tree.leaves(carry)
    return jnp.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in leaves], axis=-1)


def unpack(cell: Cell | StepCell, params: Params, packed: Array) -> Carry:
    """The inverse of `pack`: `[..., D]` -> carries."""
    likes, tree = jax.tree.flatten(cell.carry_shape(params))
    ends = np.cumsum([like.size for like in likes])[:-1]
    parts = zip(jnp.split(packed, ends, axis=-1), likes, strict=True)
    return tree.unflatten([part.reshape(*packed.shape[:-1], *like.shape) for part, like in parts])


class Known(NamedTuple):
    """The dynamics of a cell whose derivative is given explicitly."""

    cell: Cell

    def is_diagonal(self, params: Params) -> bool:
        """Whether each unit's state depends on no other unit's. Then no perturbation grows."""
        one = len(jax.tree.leaves(self.cell.carry_shape(params))) == 1
        return one and not self.cell.blocks(params).w_hh

    def bound(self, params: Params, largest: Array, steps: int) -> Array:
        """`[D]` -> `[D]`: a bound on the states after steps from states of these magnitudes."""
        return pack(self.cell.bound(unpack(self.cell, params, largest), steps))

    def advance(self, inputs: Inputs, flags: Flags, before: Array) -> tuple[Array, Any]:
        """F at the states before each step, `[T, D]`, and the values that its derivative needs."""
        del flags
        carries = unpack(self.cell, inputs.params, before)
        after, gates = advance(self.cell, self.cell.blocks(inputs.params), carries, inputs.xs)
        return pack(after, 1), gates

    def outputs(self, inputs: Inputs, flags: Flags, before: Array, states: Array) -> Array:
        """The outputs `[T, H]`, computed from the states before and after each step."""
        del flags, before
        return self.cell.output(unpack(self.cell, inputs.params, states))

    def dense(self, inputs: Inputs, flags: Flags, before: Array, gates: Any) -> Array:
        """J, the Jacobian of F, `[T, D, D]`."""
        linear, push = self.push(inputs, flags, before, gates)
        eye = jnp.eye(before.shape[-1], dtype=before.dtype)
        columns = jax.vmap(push, in_axes=(None, 0), out_axes=1)
        return jax.vmap(columns, in_axes=(0, None))(linear, eye)

    def diagonal(self, inputs: Inputs, flags: Flags, before: Array, gates: Any) -> Array:
        """The diagonal of J, `[T, D]`."""
        del flags
        coefficients, _ = self._linear(inputs, before, gates)
        return pack(self.cell.diagonal(self.cell.blocks(inputs.params), coefficients), 1)

    def push(self, inputs: Inputs, flags: Flags, before: Array, gates: Any) -> tuple[Any, Any]:
        """J times a vector: (a tree of `[T, ...]`, a function of its part at t and a `[D]`)."""
        del flags
        params = inputs.params
        weights = products(self.cell.blocks(params).w_hh)

        def along(linear: Any, e: Array) -> Array:
            return pack(
                self.cell.tangent(weights, linear[0], unpack(self.cell, params, e), linear[1])
            )

        return self._linear(inputs, before, gates), along

    def _linear(self, inputs: Inputs, before: Array, gates: Any) -> tuple[Any, Any]:
        """The coefficients of `Cell.tangent` at these states, and its sources, which are zero."""
        cell, blocks = self.cell, self.cell.blocks(inputs.params)
        still = Blocks(None, (None,) * len(blocks.w_hh), None)
        dx = jnp.zeros((before.shape[0], cell.gates * cell.sizes(inputs.params)[1]), before.dtype)
        states = unpack(cell, inputs.params, before)
        return cell.coefficients(states, gates), cell.sources(still, dx, states, gates)

    def in_order(self, inputs: Inputs, flags: Flags) -> Array:
        """The trajectory `[T, D]`, computed one step after the other."""
        params, xs, start, restart = inputs
        both = (start, start if restart is None else restart)
        begins = (unpack(self.cell, params, packed) for packed in both)
        arguments = (params, xs, *begins, flags.fresh, flags.keep)
        plan = backends.portable()
        _, (carries, _) = forward(plan, self.cell, 0, False, arguments)
        return pack(carries, 1)


class ByStep(NamedTuple):
    """The dynamics of a cell defined by its step alone, by forward derivatives of the step."""

    cell: StepCell

    def is_diagonal(self, params: Params) -> bool:
        """False: J may be any matrix."""
        del params
        return False

    def bound(self, params: Params, largest: Array, steps: int) -> Array:
        """No bound is known."""
        del params, steps
        return jnp.full_like(largest, jnp.inf)

    def advance(self, inputs: Inputs, flags: Flags, before: Array) -> tuple[Array, Any]:
        """As for `Known`. The derivative needs no values of this step."""
        return self._steps(inputs, flags, before)[0], None

    def outputs(self, inputs: Inputs, flags: Flags, before: Array, states: Array) -> Array:
        """As for `Known`. The step runs again, since an output need not be a part of the state."""
        del states
        return self._steps(inputs, flags, before)[1]

    def dense(self, inputs: Inputs, flags: Flags, before: Array, gates: Any) -> Array:
        """J, computed by D forward derivatives."""
        points, push = self.push(inputs, flags, before, gates)
        eye, _ = alike((jnp.eye(before.shape[-1], dtype=before.dtype), before))
        columns = jax.vmap(push, in_axes=(None, 0), out_axes=1)
        return jax.vmap(columns, in_axes=(0, None))(points, eye)

    def diagonal(self, inputs: Inputs, flags: Flags, before: Array, gates: Any) -> Array:
        """Its diagonal, by D derivatives in turn: `[T, D, D]` may take too much memory."""
        del gates
        _, push = jax.linearize(lambda before: self._steps(inputs, flags, before)[0], before)

        def entry(place: Array) -> Array:
            along = (jnp.arange(before.shape[-1]) == place).astype(before.dtype)
            along, _ = alike((along, before))
            return push(jnp.broadcast_to(along, before.shape))[:, place]

        return lax.map(entry, jnp.arange(before.shape[-1])).T

    def push(self, inputs: Inputs, flags: Flags, before: Array, gates: Any) -> tuple[Any, Any]:
        """As for `Known`."""
        del gates

        def along(point: tuple[Array, Any], e: Array) -> Array:
            before, x = point

            def step(before: Array) -> Array:
                return self._step(inputs.params, before, x)[0]

            return jax.jvp(step, (before,), (e,))[1]

        return (_defined(flags, before), inputs.xs), along

    def in_order(self, inputs: Inputs, flags: Flags) -> Array:
        """As for `Known`."""

        def body(before: Array, now: Any) -> tuple[Array, Array]:
            x, fresh, keep = now
            before = before if fresh is None else jnp.where(fresh, inputs.restart, before)
            at = before if keep is None else jnp.where(keep, before, flags.spare)
            after, _ = self._step(inputs.params, at, x)
            after = after if keep is None else jnp.where(keep, after, before)
            return after, after

        return lax.scan(body, inputs.start, (inputs.xs, flags.fresh, flags.keep))[1]

    def _steps(self, inputs: Inputs, flags: Flags, before: Array) -> tuple[Array, Array]:
        step = partial(self._step, inputs.params)
        return jax.vmap(step)(_defined(flags, before), inputs.xs)

    def _step(self, params: Params, before: Array, x: Any) -> tuple[Array, Array]:
        """Run one step: (the next state `[D]`, output `[H]`)."""
        carry = unpack(self.cell, params, before)
        after, y = own.advance("newton_scan", params, carry, x)
        return pack(after), y


Dynamics = Known | ByStep


def dynamics_of(params: Params) -> Dynamics:
    """The dynamics for this type of params."""
    cell = cell_of(params)
    return ByStep(cell) if isinstance(cell, StepCell) else Known(cell)


def _defined(flags: Flags, before: Array) -> Array:
    """States at which the step has a derivative, also where the step is not real."""
    return before if flags.keep is None else jnp.where(flags.keep[:, None], before, flags.spare)
