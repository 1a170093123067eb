"""The arguments of a run over one sequence, the carries it starts from, and its real steps."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params


class Marks(NamedTuple):
    """Which steps are real and where segments start, `[T]` each. None means all, and nowhere.

    A segment may start at a hole, which is a step inside the sequence that is not real. The carry
    that passes through is replaced there. No segment starts in the padding.
    """

    valid: Array | None
    reset: Array | None


def check(
    caller: str,
    params: Params,
    xs: Any,
    carry: Any,
    length: Any,
    reset: Any,
    reset_carry: Any,
    reverse: Any,
    mask: Any,
) -> None:
    """Check that the arguments of a run over a sequence fit together."""
    layers.check(caller, params)
    shape = layers.carry_shape(params)
    checks.inputs(caller, "xs", xs, ("T", layers.sizes(params)[0]), layers.dtype(params))
    steps = xs.shape[0]
    if carry is not None:
        checks.carry(caller, "carry", carry, shape)
    if length is not None:
        checks.length(caller, length, steps)
    if mask is not None:
        checks.flags(caller, "mask", mask, (steps,))
    if reset is not None:
        checks.flags(caller, "reset", reset, (steps,))
    if reset_carry is not None:
        checks.reset_given(caller, reset)
        checks.carry(caller, "reset_carry", reset_carry, shape)
    checks.flag(caller, "reverse", reverse)


def starts(
    params: Params, carry: Carry | None, reset: Array | None, reset_carry: Carry | None
) -> tuple[Carry, Carry | None]:
    """(carry, reset_carry). The default is the initial carry; None if nothing is reset."""
    carry = layers.start(params) if carry is None else carry
    if reset is not None and reset_carry is None:
        reset_carry = layers.start(params)
    return carry, reset_carry


def marks(length: Any, reset: Array | None, steps: int, mask: Array | None) -> Marks:
    """The marks of a sequence. Real steps lie before `length`, and the mask is True there."""
    if length is None:
        return Marks(mask, reset)
    before_end = _before(length, steps)
    return Marks(
        before_end if mask is None else before_end & mask,
        None if reset is None else reset & before_end,
    )


def _before(length: Any, steps: int) -> Array:
    """`[T]`: True at the first `length` steps. length is an integer of any width."""
    length = jnp.asarray(length)
    if length.dtype.itemsize < 4:  # T may not fit into this dtype
        length = length.astype(jnp.int32)
    length = jnp.clip(length, 0, steps).astype(jnp.int32)
    return jnp.arange(steps, dtype=jnp.int32) < length


def entered(marks: Marks, reverse: bool) -> Array | None:
    """`[T]`: True at the steps where this direction enters a segment. None stays None."""
    fresh = marks.reset
    if fresh is not None and reverse:
        # A segment that starts at t + 1 ends at t, where this direction enters it.
        fresh = jnp.concatenate([fresh[1:], jnp.zeros_like(fresh[:1])])
    return fresh


def filled(marks: Marks, values: Array, reverse: bool) -> Array:
    """Set values to those of the next real step in this direction where a step is not real.

    A step of a user may have no derivative at zero. At a hole the carry passes through, so with the
    next real input the step is the next real one. After the last real step, the last input is
    repeated. If no step is real, all values are 0.5. The gradient of these copies is not needed.
    """
    if marks.valid is None:
        return values
    steps = marks.valid.shape[0]
    times = jnp.arange(steps, dtype=jnp.int32)
    after = jnp.where(marks.valid, times, -1 if reverse else steps)
    after = lax.cummax(after) if reverse else lax.cummin(after, reverse=True)
    last = jnp.argmax(marks.valid) if reverse else steps - 1 - jnp.argmax(marks.valid[::-1])
    at = jnp.where((after < 0) | (after == steps), last.astype(jnp.int32), after)
    near = jnp.where(jnp.any(marks.valid), lax.stop_gradient(values)[at], 0.5)
    return jnp.where(marks.valid[:, None], values, near)


def mask(marks: Marks, values: Array) -> Array:
    """Set values to zero where a step is not real.

    It is a select, so NaN in these steps affects neither values nor gradients.
    """
    return values if marks.valid is None else jnp.where(marks.valid[:, None], values, 0)
