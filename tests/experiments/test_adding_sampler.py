"""The sampler of the adding problem, against what NumPy computes from its examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import slow
from experiments.adding_task import task

LAYOUTS = tuple(task.LAYOUTS)


def draw(layout, length, count):
    """Draw (xs, the targets at the last step), and check that the other steps have weight zero."""
    sample = jax.jit(jax.vmap(lambda key: task.LAYOUTS[layout](key, length)))
    xs, targets, weights = map(np.asarray, sample(jax.random.split(jax.random.key(3), count)))
    assert targets.shape == weights.shape == (count, length)
    assert np.array_equal(weights, np.broadcast_to(np.eye(length)[-1], weights.shape))
    return xs, targets[:, -1]


def marked_steps(xs):
    """The two marked steps of each example in order, `[N, 2]`."""
    examples, steps = np.nonzero(xs[:, :, 1])
    assert np.array_equal(np.bincount(examples, minlength=len(xs)), np.full(len(xs), 2))
    return steps.reshape(-1, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("length", [2, slow(3), 101])
def test_examples_are_as_defined(layout, length):
    xs, targets = draw(layout, length, 500)
    assert xs.shape == (500, length, 2)
    assert targets.shape == (500,)
    assert xs.dtype == targets.dtype == np.float32
    values, markers = xs[:, :, 0], xs[:, :, 1]
    assert values.min() >= 0
    assert values.max() < 1
    assert set(np.unique(markers)) <= {0.0, 1.0}
    first, second = marked_steps(xs).T
    assert np.all(first < second)
    if layout == "halves":
        assert np.all(first < length // 2)
        assert np.all(second >= length // 2)
    sums = np.sum(values.astype(np.float64) * markers, axis=1)
    # This is one rounding of a sum below 2.
    np.testing.assert_allclose(targets, sums, rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_allowed_pair_of_steps_is_equally_likely(layout):
    length, count = 7, 21_000
    xs, _ = draw(layout, length, count)
    pairs = [
        (i, j)
        for i in range(length)
        for j in range(i + 1, length)
        if layout == "anywhere" or i < length // 2 <= j
    ]
    first, second = marked_steps(xs).T
    found = np.array([np.sum((first == i) & (second == j)) for i, j in pairs])
    assert found.sum() == count
    p = 1 / len(pairs)
    assert np.all(abs(found - count * p) < 5 * np.sqrt(count * p * (1 - p)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_baseline_is_the_loss_of_answering_the_mean(layout):
    count = 20_000
    xs, targets = draw(layout, 20, count)
    errors = (targets - 1.0) ** 2
    # s - 1 is triangular on [-1, 1]: E (s-1)^2 = 1/6, E (s-1)^4 = 1/15.
    deviation = np.sqrt((1 / 15 - 1 / 36) / count)
    assert abs(errors.mean() - task.BASELINE) < 5 * deviation
    assert abs(targets.mean() - 1) < 5 * np.sqrt(task.BASELINE / count)
    assert abs(xs[:, :, 0].mean() - 0.5) < 5 * np.sqrt(1 / 12 / xs[:, :, 0].size)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_key_decides_the_example(layout):
    sample = partial(task.LAYOUTS[layout], length=10)
    xs = sample(jax.random.key(0)).xs
    assert xs.shape == (10, 2)
    assert jnp.array_equal(xs, jax.jit(sample)(jax.random.key(0)).xs)
    assert not jnp.array_equal(xs, sample(jax.random.key(1)).xs)


def test_the_loss_is_the_squared_error_of_the_last_output():
    example = task.sample_halves(jax.random.key(0), 6)
    outputs = jnp.arange(6, dtype=jnp.float32)[:, None]
    expected = (5 - float(example.targets[-1])) ** 2
    assert float(task.measure(outputs, example)["loss"]) == pytest.approx(expected, rel=1e-6)
