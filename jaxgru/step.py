"""One time step of any network: streaming and serving."""

from jax import Array

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params, advance, cell_of
from jaxgru.layers import Stack


def step(params: Params, carry: Carry, x: Array) -> Carry:
    """One time step of any network that runs forward in time, `Stack` included.

        carry' = gru_step(params, carry, x)        and so on, by the type of params

    Args:
        params: GRUParams, LSTMParams, ElmanParams, MinGRUParams, or a Stack of them.
        carry: as `initial_carry(params)` makes it.
        x: input `[I]`, of the dtype of params.

    Returns:
        The next carry. The output is its h: of the last layer, for a Stack.

    Raises:
        TypeError: a Bidirectional, which needs the whole sequence; a structure or dtype that does
            not fit.
        ValueError: a shape that does not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxgru
        >>> params = jaxgru.stack_init(jax.random.key(0), 3, 8, num_layers=2)
        >>> carry = jaxgru.initial_carry(params)
        >>> carry = jax.jit(jaxgru.step)(params, carry, jnp.ones(3, "float32"))
        >>> carry[-1].shape
        (8,)
    """
    layers.check("step", params)
    layers.check_forward("step", params, "A backward direction needs the whole sequence: use scan.")
    checks.carry("step", "carry", carry, layers.carry_shape(params))
    checks.inputs("step", "x", x, (layers.sizes(params)[0],), layers.dtype(params))
    return _step(params, carry, x)[0]


def _step(params: Params, carry: Carry, x: Array) -> tuple[Carry, Array]:
    if isinstance(params, Stack):
        carries = []
        for layer, layer_carry in zip(params.layers, carry, strict=True):
            layer_carry, x = _step(layer, layer_carry, x)
            carries.append(layer_carry)
        return tuple(carries), x
    cell = cell_of(params)
    carry, _ = advance(cell, cell.blocks(params), carry, x)
    return carry, cell.output(carry)
