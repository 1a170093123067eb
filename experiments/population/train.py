"""Training of many networks in one program, divided among the devices."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from experiments.adding_task.task import make_task
from experiments.common.model import Network
from experiments.common.programs import REPLICAS
from experiments.common.training import TrainState, make_evaluate, make_train_chunk, train_init
from experiments.population.settings import PopulationSettings


class Members(NamedTuple):
    """The values that differ from network to network, with leaves `[N, ...]`."""

    network: Network
    opt_state: optax.OptState
    learning_rate: Array


class Population(NamedTuple):
    init: Callable[[ArrayLike, ArrayLike], Members]
    """`(learning rates [N], update biases [N]) ->` fresh networks."""
    advance: Callable[[Members, ArrayLike, ArrayLike], tuple[Members, Array]]
    """`(members, updates done, updates to do) ->` members, their mean training losses `[N]`.
    The members that are passed in are donated."""
    evaluate: Callable[[Network], Array]
    """Test losses `[N]`."""


def grid(settings: PopulationSettings) -> tuple[np.ndarray, np.ndarray]:
    """(learning rates, biases) of the axes."""
    rates = np.geomspace(*settings.rate_range, settings.rates)
    return rates, np.linspace(*settings.bias_range, settings.biases)


def make_population(settings: PopulationSettings, mesh: Mesh) -> Population:
    """Three programs for networks that are divided over a mesh and never communicate.

    A device takes a few networks at a time through all updates of a call, so that the values saved
    for the gradient stay in its cache. Shared values, above all the examples, are computed once for
    these networks.
    """
    how = settings.adding()
    task = make_task(how)
    train_chunk = make_train_chunk(task, how, settings.length)
    test = make_evaluate(task, how, task.stages[-1])
    seed = np.uint32(settings.seed)

    def init(rates: Array, biases: Array) -> Members:
        drawn = train_init(task, how, jnp.asarray(seed), jnp.float32(0))

        def one(rate: Array, bias: Array) -> Members:
            return Members(with_bias(drawn.network, bias), drawn.opt_state, rate)

        return jax.vmap(one)(rates, biases)

    def advance(members: Members, done: Array, count: Array) -> tuple[Members, Array]:
        def one(member: Members) -> tuple[Members, Array]:
            network, opt_state, rate = member
            state = TrainState(network, opt_state, jnp.asarray(seed), rate, done, done)
            state, chunk = train_chunk(state, count, jnp.int32(0), jnp.int32(1))
            return Members(state.network, state.opt_state, rate), chunk.means["loss"]

        return lax.map(one, members, batch_size=settings.together)

    def evaluate(networks: Network) -> Array:
        return lax.map(lambda n: test(n)["loss"], networks, batch_size=settings.together)

    return Population(
        init=jax.jit(_divided(init, mesh, P(REPLICAS), P(REPLICAS))),
        advance=jax.jit(_divided(advance, mesh, P(REPLICAS), P(), P()), donate_argnums=0),
        evaluate=jax.jit(_divided(evaluate, mesh, P(REPLICAS))),
    )


def with_bias(network: Network, bias: Array) -> Network:
    """The network with this bias in every update gate."""
    cell = network.cell
    cell = dataclasses.replace(cell, b=cell.b.at[1].set(bias.astype(cell.b.dtype)))
    return dataclasses.replace(network, cell=cell)


def _divided(function: Callable[..., Any], mesh: Mesh, *specs: P) -> Callable[..., Any]:
    return jax.shard_map(function, mesh=mesh, in_specs=cast(Any, specs), out_specs=P(REPLICAS))
