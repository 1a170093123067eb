"""One sequence, whoever runs over it: its arguments, where it starts, which of its steps count."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params


class Marks(NamedTuple):
    """Which steps are real and where segments start, `[T]` each; None means all, and nowhere."""

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
) -> None:
    """The arguments of a run over a sequence fit together."""
    layers.check(caller, params)
    shape = layers.carry_shape(params)
    checks.inputs(caller, "xs", xs, ("T", layers.sizes(params)[0]), layers.dtype(params))
    steps = xs.shape[0]
    if carry is not None:
        checks.carry(caller, "carry", carry, shape)
    if length is not None:
        checks.length(caller, length, steps)
    if reset is not None:
        checks.reset(caller, reset, steps)
    if reset_carry is not None:
        checks.reset_given(caller, reset)
        checks.carry(caller, "reset_carry", reset_carry, shape)
    checks.flag(caller, "reverse", reverse)


def starts(
    params: Params, carry: Carry | None, reset: Array | None, reset_carry: Carry | None
) -> tuple[Carry, Carry | None]:
    """(carry, reset_carry), zeros where none is given; None where nothing is reset."""
    carry = layers.initial_carry(params) if carry is None else carry
    if reset is not None and reset_carry is None:
        reset_carry = layers.initial_carry(params)
    return carry, reset_carry


def marks(length: Any, reset: Array | None, steps: int) -> Marks:
    """Of a sequence whose first `length` steps, an integer of any width, are real."""
    if length is None:
        return Marks(None, reset)
    length = jnp.asarray(length)
    if length.dtype.itemsize < 4:  # T itself may not fit
        length = length.astype(jnp.int32)
    length = jnp.clip(length, 0, steps).astype(jnp.int32)
    return Marks(jnp.arange(steps, dtype=jnp.int32) < length, reset)


def entered(marks: Marks, reverse: bool) -> Array | None:
    """`[T]`: True at the real steps where a segment is entered, in this direction; or None."""
    valid, fresh = marks
    if fresh is None:
        return None
    fresh = fresh if valid is None else fresh & valid
    if reverse:  # a segment that starts at t + 1 ends at t, where this direction enters
        fresh = jnp.concatenate([fresh[1:], jnp.zeros_like(fresh[:1])])
    return fresh


def mask(marks: Marks, values: Array) -> Array:
    """Zero in the padding. A select, so that NaN there reaches neither values nor gradients."""
    return values if marks.valid is None else jnp.where(marks.valid[:, None], values, 0)
