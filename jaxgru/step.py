"""One time step of any network, for streaming, acting and serving."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgru import checks, layers, own
from jaxgru.cell import Carry, Params, StepCell, advance, cell_of, operands
from jaxgru.layers import Stack


def step(
    params: Params,
    carry: Carry,
    x: Array,
    *,
    reset: Any = None,
    reset_carry: Carry | None = None,
    compute_dtype: Any = None,
) -> tuple[Carry, Array]:
    """Run one time step of `scan`, for any network that runs forward in time, `Stack` included.

        start = reset_carry if reset else carry
        carry' = gru_step(params, start, x),    y = carry'

    The second line is that of a GRU. The type of params determines the cell.

    `jax.vmap` runs many streams at once. It maps over the carry and x, and may map over reset or
    params too.

    Args:
        params: the params of any cell, or a Stack of them.
        carry: the carry before this step. `initial_carry(params)` makes the first one.
        x: input `[I]`, of the dtype of params.
        reset: a bool, which may be traced. True starts a new segment with this step.
        reset_carry: the carry from which a segment starts. None stands for `initial_carry(params)`.
        compute_dtype: the dtype to which the operands of products with weights are rounded, as in
            `scan`. None stands for the dtype of params.

    Returns:
        (the next carry, output `[H]`). They are those of `scan` over this one step, without the
        axis of time.

    Raises:
        TypeError: params contain a Bidirectional, which needs the whole sequence; or a structure or
            dtype does not fit.
        ValueError: a shape does not fit, or reset_carry is given without reset.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.stack_init(jax.random.key(0), 3, 8, num_layers=2)
        >>> carry = jaxgru.initial_carry(params)
        >>> carry, y = jax.jit(jaxgru.step)(params, carry, jnp.ones(3, "float32"))
        >>> y.shape, bool((y == carry[-1]).all())
        ((8,), True)
    """
    layers.check("step", params)
    layers.check_forward("step", params, "A backward direction needs the whole sequence: use scan.")
    shape = layers.carry_shape(params)
    checks.carry("step", "carry", carry, shape)
    checks.inputs("step", "x", x, (layers.sizes(params)[0],), layers.dtype(params))
    if reset is not None:
        checks.flags("step", "reset", reset, ())
    if reset_carry is not None:
        checks.reset_given("step", reset)
        checks.carry("step", "reset_carry", reset_carry, shape)
    if reset is not None:
        begin = layers.start(params) if reset_carry is None else reset_carry
        carry = jax.tree.map(lambda a, b: jnp.where(reset, a, b), begin, carry)
    compute = checks.compute_dtype("step", compute_dtype, layers.dtype(params))
    if compute is not None:
        layers.check_weights_named("step", params, ", which compute_dtype needs")
    params, carry, x = jax.tree.map(jnp.asarray, (params, carry, x))
    return _step(params, carry, x, compute)


def _step(params: Params, carry: Carry, x: Array, compute_dtype: Any) -> tuple[Carry, Array]:
    if isinstance(params, Stack):
        carries = []
        for layer, layer_carry in zip(params.layers, carry, strict=True):
            layer_carry, x = _step(layer, layer_carry, x, compute_dtype)
            carries.append(layer_carry)
        return tuple(carries), x
    cell = cell_of(params)
    if isinstance(cell, StepCell):
        inputs = jax.tree.map(lambda a: a[0], own.inputs("step", params, x[None]))
        return own.advance("step", params, carry, inputs)
    cell = cell._replace(compute_dtype=compute_dtype)
    carry, _ = advance(cell, operands(cell, cell.blocks(params)), carry, x)
    return carry, cell.output(carry)
