"""A recurrent cell with a linear readout."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import jaxgru

CELLS: dict[str, Callable[[Array, int, int], Any]] = {
    "gru": jaxgru.gru_init,
    "gru-reset-after": partial(jaxgru.gru_init, reset_after=True),
    "lstm": jaxgru.lstm_init,
    "elman": jaxgru.elman_init,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Shapes: w_out `[H, O]`, b_out `[O]`; cell is any params that `jaxgru.scan` takes."""

    cell: Any
    w_out: Array
    b_out: Array


def network_init(
    key: Array, cell: str, input_size: int, hidden_size: int, output_size: int
) -> Network:
    cell_key, out_key = jax.random.split(key)
    w_out = jax.random.normal(out_key, (hidden_size, output_size), jnp.float32)
    return Network(
        cell=CELLS[cell](cell_key, input_size, hidden_size),
        w_out=w_out / hidden_size**0.5,
        b_out=jnp.zeros(output_size, jnp.float32),
    )


def last_output(network: Network, xs: Array) -> Array:
    """What is read out after the last step of one sequence: `[T, I] -> [O]`."""
    _, hs = jaxgru.scan(network.cell, xs)
    return hs[-1] @ network.w_out + network.b_out


def parameter_count(network: Network) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(network))
