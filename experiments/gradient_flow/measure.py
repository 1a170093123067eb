"""The measurements, on networks of several seeds at once: leaves `[seeds, ...]`."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import jaxgru
from experiments.common.model import Network, read_out
from experiments.common.task import Example, Task
from experiments.gradient_flow.settings import FIRST_LAG
from jaxgru import diagnostics


class Flow(NamedTuple):
    """The gradient flow of one cell. Means over examples are geometric: means of logarithms."""

    log_gain: np.ndarray  # [seeds, T + 1], the last state to the one `lag` steps before
    log_norms: np.ndarray  # [seeds, T + 1], the loss to the state at t
    exponents: np.ndarray  # [seeds, S], Lyapunov
    errors: np.ndarray  # [seeds, S]


class Sweep(NamedTuple):
    """The measurements of a GRU for several update biases."""

    log_gain: np.ndarray  # [seeds, biases, T + 1]
    shares: np.ndarray  # [seeds, biases, 4], of the terms of the Jacobian, mean over steps


def flow(task: Task, networks: Network, examples: Example) -> Flow:
    """Measure networks on examples, leaves `[N, ...]`, concatenated in time for the exponents."""

    def one(network: Network) -> tuple[Array, ...]:
        def loss(example: Example, hs: Array) -> Array:
            return task.measure(read_out(network, hs), example)["loss"]

        def norms(example: Example) -> Array:
            of_loss = partial(loss, example)
            return jnp.log(diagnostics.gradient_norms(of_loss, network.cell, example.xs))

        end_to_end = examples.xs.reshape(-1, examples.xs.shape[-1])
        spectrum = diagnostics.lyapunov_spectrum(network.cell, end_to_end)
        return log_gain(network.cell, examples.xs), jax.vmap(norms)(examples).mean(0), *spectrum

    return Flow(*_each(one, networks))


def sweep(networks: Network, xs: Array, biases: tuple[float, ...]) -> Sweep:
    """Measure GRUs on xs `[N, T, I]`, with all update biases set to each of biases in turn."""

    def one(network: Network) -> tuple[Array, Array]:
        def at(bias: Array) -> tuple[Array, Array]:
            cell = dataclasses.replace(network.cell, b=network.cell.b.at[1].set(bias))
            return log_gain(cell, xs), term_shares(cell, xs)

        return lax.map(at, jnp.asarray(biases, xs.dtype))

    return Sweep(*_each(one, networks))


def log_gain(cell: Any, xs: Array) -> Array:
    """The log gain `[T + 1]`, a mean over examples `[N, T, I]`."""
    return jax.vmap(lambda xs: diagnostics.memory_gradient(cell, xs).log_gain)(xs).mean(0)


def term_shares(cell: jaxgru.GRUParams, xs: Array) -> Array:
    """The shares `[4]`, means over examples `[N, T, I]` and steps."""

    def one(xs: Array) -> Array:
        return diagnostics.gru_jacobian_terms(cell, xs).shares().mean(0)

    return lax.map(one, xs).mean(0)


def rates(log_gains: np.ndarray) -> np.ndarray:
    """`[..., T + 1] -> [...]`: the factor per step, from a straight line fit to the log gain."""
    lags = np.arange(FIRST_LAG, log_gains.shape[-1])
    lines = log_gains[..., FIRST_LAG:].reshape(-1, len(lags))
    slopes = np.polyfit(lags, lines.T, 1)[0]
    return np.exp(slopes).reshape(log_gains.shape[:-1])


def _each(one: Any, networks: Network) -> Any:
    """Call `one` for each seed in turn, so that no program has two batched decompositions."""
    found = jax.jit(lambda networks: lax.map(one, networks))(networks)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found)
