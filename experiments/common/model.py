"""A recurrent network with a linear readout."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import jaxgru
from experiments.common.settings import Settings

CELLS: dict[str, Callable[..., Any]] = {
    "gru": jaxgru.gru_init,
    "gru-reset-after": partial(jaxgru.gru_init, reset_after=True),
    "lstm": jaxgru.lstm_init,
    "elman": jaxgru.elman_init,
    "min-gru": jaxgru.min_gru_init,
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Params: w_out `[H, O]`, b_out `[O]`, and cell, any params that `jaxgru.scan` takes."""

    cell: Any
    w_out: Array
    b_out: Array


def network_init(key: Array, settings: Settings, input_size: int, output_size: int) -> Network:
    cell_key, out_key = jax.random.split(key)
    dtype = jnp.promote_types(settings.dtype, jnp.float32)
    options: dict[str, Any] = {"init": settings.init, "dtype": dtype}
    if settings.chrono:
        options["chrono"] = settings.chrono
    hidden, draw = settings.hidden_size, CELLS[settings.cell]
    if settings.layers > 1:
        draw = partial(jaxgru.stack_init, num_layers=settings.layers, cell=draw)
    return Network(
        cell=draw(cell_key, input_size, hidden, **options),
        w_out=jax.random.normal(out_key, (hidden, output_size), dtype) / hidden**0.5,
        b_out=jnp.zeros(output_size, dtype),
    )


def states(network: Network, xs: Array, dtype: str, checkpoint: int = 0) -> Array:
    """The outputs of the recurrent network, `[T, I] -> [T, H]`, computed in dtype."""
    cell = jax.tree.map(lambda leaf: leaf.astype(dtype), network.cell)
    return jaxgru.scan(cell, xs.astype(dtype), checkpoint=checkpoint or None)[1]


def read_out(network: Network, hs: Array) -> Array:
    """`[T, H] -> [T, O]`, in the dtype of the network."""
    return hs.astype(network.w_out.dtype) @ network.w_out + network.b_out[None]


def parameter_count(network: Network) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(network))
