"""The compiled part of training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.adding_task import task
from experiments.adding_task.__main__ import init, make_optimizer
from experiments.adding_task.config import Config
from experiments.common import model, training

pytestmark = pytest.mark.usefixtures("optax_promotes")

CONFIG = Config(cell="elman", length=8, hidden_size=6, batch_size=4)


@pytest.fixture(scope="module")
def study(optax_promotes):
    """(train_chunk, a function from seed to state, test set), not compiled."""
    sample = task.sampler(CONFIG.layout, CONFIG.length)
    chunk = training.make_train_chunk(
        sample, task.squared_error, make_optimizer(CONFIG), CONFIG.batch_size
    )
    test_set = training.draw_batch(sample, jax.random.key(9), 30)
    start = jax.jit(lambda seed: init(CONFIG, seed))
    return chunk, lambda seed: start(jnp.uint32(seed)), test_set


@pytest.fixture(scope="module")
def compiled(study):
    chunk, start, test_set = study
    chunk = jax.jit(chunk)
    return lambda state, updates: chunk(state, jnp.int32(updates), test_set), start


def leaves(state):
    return jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))


def assert_equal(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_chunks_of_any_size_compute_the_same(compiled):
    chunk, start = compiled
    whole, _ = chunk(start(0), 10)
    part, _ = chunk(start(0), 7)
    pieces, _ = chunk(part, 3)
    assert int(whole.update) == 10
    assert_equal(whole, pieces)


def test_losses_are_means_over_examples(compiled, study):
    chunk, start = compiled
    _, _, test_set = study
    state, losses = chunk(start(0), 1)
    batch = training.draw_batch(
        task.sampler(CONFIG.layout, CONFIG.length),
        jax.random.fold_in(start(0).key, 0),
        CONFIG.batch_size,
    )
    for loss, params, examples in (
        (losses.train, start(0).params, batch),
        (losses.test, state.params, test_set),
    ):
        errors = [
            (model.last_output(params, xs)[0] - target) ** 2
            for xs, target in zip(*examples, strict=True)
        ]
        np.testing.assert_allclose(loss, np.mean(errors), rtol=1e-5)


def test_a_seed_decides_what_is_computed(compiled):
    chunk, start = compiled
    assert_equal(chunk(start(1), 5)[0], chunk(start(1), 5)[0])
    _, losses = chunk(start(1), 5)
    _, others = chunk(start(2), 5)
    assert losses.train != others.train
    assert losses.test != others.test


@pytest.mark.slow
def test_seeds_in_one_program_equal_seeds_apart(compiled, study):
    chunk, start = compiled
    many_chunk, _, test_set = study
    states = jax.vmap(start)(jnp.arange(2, dtype=jnp.uint32))
    many = jax.jit(jax.vmap(many_chunk, in_axes=(0, None, None)))
    states, losses = many(states, jnp.int32(5), test_set)
    for seed in range(2):
        alone, loss = chunk(start(seed), 5)
        np.testing.assert_allclose(losses.test[seed], loss.test, rtol=1e-4)
        for x, y in zip(jax.tree.leaves(states.params), jax.tree.leaves(alone.params), strict=True):
            np.testing.assert_allclose(x[seed], y, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cell", model.CELLS)
def test_every_cell_fits_the_task(cell):
    config = dataclasses.replace(CONFIG, cell=cell)
    state = jax.eval_shape(lambda: init(config, jnp.uint32(0)))
    example = jax.eval_shape(lambda: task.sample_anywhere(jax.random.key(0), 8))
    loss, grads = jax.eval_shape(jax.value_and_grad(task.squared_error), state.params, example)
    assert loss.shape == ()
    assert loss.dtype == jnp.float32
    assert grads == state.params
