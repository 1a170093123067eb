"""The adding problem (Hochreiter & Schmidhuber 1997) as a sampler of single examples.

A sequence `[T, 2]` holds a value from U[0, 1] and a marker at every step. Two markers are 1, and
the others are 0. The target at the last step is the sum of the two marked values.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from experiments.adding_task.picture import predictions
from experiments.adding_task.settings import AddingSettings
from experiments.common.task import Example, Mark, Task, lengths

INPUT_SIZE = 2
OUTPUT_SIZE = 1
BASELINE = 1 / 6  # the variance of a sum of two U[0, 1]: the loss of always answering 1
FIRST_LENGTH = 10  # the first length of a curriculum


def sample_halves(key: Array, length: int) -> Example:
    """Put one marker into each half. The halves are T // 2 steps and the rest."""
    values_key, first_key, second_key = jax.random.split(key, 3)
    first = jax.random.randint(first_key, (), 0, length // 2, jnp.int32)
    second = jax.random.randint(second_key, (), length // 2, length, jnp.int32)
    return _example(values_key, length, first, second)


def sample_anywhere(key: Array, length: int) -> Example:
    """Put markers at any two distinct steps."""
    values_key, first_key, distance_key = jax.random.split(key, 3)
    first = jax.random.randint(first_key, (), 0, length, jnp.int32)
    second = (first + jax.random.randint(distance_key, (), 1, length, jnp.int32)) % length
    return _example(values_key, length, first, second)


def _example(key: Array, length: int, first: Array, second: Array) -> Example:
    values = jax.random.uniform(key, (length,), jnp.float32)
    steps = jnp.arange(length, dtype=jnp.int32)
    markers = ((steps == first) | (steps == second)).astype(jnp.float32)
    last = (steps == length - 1).astype(jnp.float32)
    total = values[first] + values[second]
    return Example(jnp.stack([values, markers], axis=1), total * last, last)


LAYOUTS: dict[str, Callable[[Array, int], Example]] = {
    "halves": sample_halves,
    "anywhere": sample_anywhere,
}


def measure(outputs: Array, example: Example) -> dict[str, Array]:
    """The squared error of the last output `[T, 1]`."""
    errors = (outputs[:, 0] - example.targets.astype(outputs.dtype)) ** 2
    return {"loss": (errors * example.weights.astype(outputs.dtype)).sum()}


def make_task(settings: AddingSettings) -> Task:
    sample = LAYOUTS[settings.layout]

    def sampler(length: int) -> Callable[[Array, Array], Example]:
        return lambda key, level: sample(key, length)

    return Task(
        name="adding_task",
        title=f"Adding problem, T={settings.length:,}, {settings.layout}, {settings.network()}",
        input_size=INPUT_SIZE,
        output_size=OUTPUT_SIZE,
        stages=lengths(FIRST_LENGTH, settings.length, settings.curriculum),
        sampler=sampler,
        measures=("loss",),
        measure=measure,
        passed=lambda stage: Mark("loss", settings.pass_loss),
        solved=(Mark("loss", settings.solved),) if settings.solved else (),
        marks=(Mark("loss", 1e-2), Mark("loss", 1e-3), Mark("loss", 5e-5)),
        baseline=BASELINE,
        picture=predictions,
    )
