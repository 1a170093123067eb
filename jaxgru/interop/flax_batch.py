"""Sequences and steps with any number of batch axes, as the modules of Flax take them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params
from jaxgru.scan import scan
from jaxgru.step import step


def run(
    caller: str,
    params: Params,
    inputs: Array,
    *,
    initial_carry: Carry | None,
    seq_lengths: Array | None,
    mask: Array | None,
    reset: Any,
    reset_carry: Carry | None,
    key: Array | None,
    time_major: bool,
    options: dict[str, Any],
) -> tuple[Carry, Array]:
    """Run `jaxgru.scan` over a batch. Every sequence gets its own key, split from the given one."""
    shape = checks.shape_of(inputs)
    if len(shape) < 2:
        expected = f"an array of shape {'[T, ..., I]' if time_major else '[..., T, I]'}"
        raise checks.error(ValueError, caller, "inputs", expected, checks.describe(inputs))
    batch = shape[1:-1] if time_major else shape[:-2]
    if seq_lengths is not None:
        checks.array(caller, "seq_lengths", seq_lengths, batch)
    if mask is not None:
        checks.flags(caller, "mask", mask, shape[:-1])
    reset = _flags(caller, reset, shape[:-1])
    _check_carry(caller, "initial_carry", params, initial_carry, batch)
    _check_carry(caller, "reset_carry", params, reset_carry, batch)
    keys = None if key is None else jax.random.split(key, batch)

    def one(inputs, mask, reset, carry, length, reset_carry, key):
        return scan(
            params,
            inputs,
            carry,
            length=length,
            mask=mask,
            reset=reset,
            reset_carry=reset_carry,
            key=key,
            **options,
        )

    axis = 1 if time_major else 0
    for _ in batch:
        one = jax.vmap(one, (axis, axis, axis, 0, 0, 0, 0), (0, axis))
    return one(inputs, mask, reset, initial_carry, seq_lengths, reset_carry, keys)


def run_step(
    caller: str,
    params: Params,
    carry: Carry,
    x: Array,
    *,
    reset: Any,
    reset_carry: Carry | None,
    options: dict[str, Any],
) -> tuple[Carry, Array]:
    """Run `jaxgru.step` over a batch, with the options of a module that runs sequences."""
    if options["reverse"]:
        fix = "A single step can only run forward in time."
        raise checks.error(ValueError, caller, "reverse", "False", "True", fix)
    shape = checks.shape_of(x)
    if not shape:
        raise checks.error(
            ValueError, caller, "x", "an array of shape [..., I]", checks.describe(x)
        )
    batch = shape[:-1]
    reset = _flags(caller, reset, batch)
    _check_carry(caller, "carry", params, carry, batch)
    _check_carry(caller, "reset_carry", params, reset_carry, batch)
    compute_dtype = options["compute_dtype"]

    def one(carry, x, reset, reset_carry):
        return step(
            params, carry, x, reset=reset, reset_carry=reset_carry, compute_dtype=compute_dtype
        )

    for _ in batch:
        one = jax.vmap(one)
    return one(carry, x, reset, reset_carry)


def _flags(caller: str, reset: Any, shape: tuple[int, ...]) -> Array | None:
    """Convert flags to bool. Environments may give numbers, and all but zero count as True."""
    if reset is None:
        return None
    if isinstance(reset, bool | int | float):
        reset = jnp.asarray(reset)
    checks.array(caller, "reset", reset, shape)
    dtype = checks.dtype_of(reset)
    if dtype == jnp.bool_:
        return reset
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)):
        fix = "A value that is not zero marks the first step of a segment."
        expected = "of bools, integers or floats"
        raise checks.error(TypeError, caller, "reset", expected, checks.describe(reset), fix)
    return jnp.asarray(reset) != 0


def _check_carry(
    caller: str, name: str, params: Params, carry: Carry | None, batch: tuple[int, ...]
) -> None:
    """Check that the carry has the batch axes in front."""
    if carry is None and name != "carry":
        return
    shape = layers.carry_shape(params)
    carries = jax.tree.map(lambda s: jax.ShapeDtypeStruct((*batch, *s.shape), s.dtype), shape)
    fix = f"The module's initialize_carry({batch}) makes one."
    checks.carry(caller, name, carry, carries, fix=fix)
