"""The adding problem (Hochreiter & Schmidhuber 1997) as a sampler of single examples.

A sequence `[T, 2]` holds a value from U[0, 1] and a marker at every step. Two markers are 1, the
others 0, and the target is the sum of the two marked values.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from experiments.common.model import Network, last_output

INPUT_SIZE = 2
OUTPUT_SIZE = 1
BASELINE = 1 / 6  # the variance of a sum of two U[0, 1]: the loss of always answering 1
SOLVED = 1e-3

Example = tuple[Array, Array]


def sample_halves(key: Array, length: int) -> Example:
    """One marker in each half: `(xs [T, 2], target [])`; the halves are T // 2 and the rest."""
    values_key, first_key, second_key = jax.random.split(key, 3)
    first = jax.random.randint(first_key, (), 0, length // 2, jnp.int32)
    second = jax.random.randint(second_key, (), length // 2, length, jnp.int32)
    return _example(values_key, length, first, second)


def sample_anywhere(key: Array, length: int) -> Example:
    """Markers at any two distinct steps: `(xs [T, 2], target [])`."""
    values_key, first_key, distance_key = jax.random.split(key, 3)
    first = jax.random.randint(first_key, (), 0, length, jnp.int32)
    second = (first + jax.random.randint(distance_key, (), 1, length, jnp.int32)) % length
    return _example(values_key, length, first, second)


def _example(key: Array, length: int, first: Array, second: Array) -> Example:
    values = jax.random.uniform(key, (length,), jnp.float32)
    steps = jnp.arange(length, dtype=jnp.int32)
    markers = ((steps == first) | (steps == second)).astype(jnp.float32)
    return jnp.stack([values, markers], axis=1), values[first] + values[second]


def sampler(layout: str, length: int) -> Callable[[Array], Example]:
    sample = {"halves": sample_halves, "anywhere": sample_anywhere}[layout]
    return partial(sample, length=length)


def squared_error(network: Network, example: Example) -> Array:
    xs, target = example
    return (last_output(network, xs)[0] - target) ** 2
