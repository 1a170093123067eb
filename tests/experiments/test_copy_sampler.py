"""The samplers of the copy task, against the published layouts as NumPy reads them."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import slow
from experiments.copy_task import task
from experiments.copy_task.settings import CopySettings

measure = jax.jit(task.measure)
LENGTHS = (1, slow(2), 23)


@cache
def sampler(layout, length):
    sample = partial(task.LAYOUTS[layout].sample, length=length)
    return jax.jit(jax.vmap(lambda key, symbols: sample(key, symbols=symbols), in_axes=(0, None)))


def draw(layout, length, count=300, symbols=10):
    keys = jax.random.split(jax.random.key(4), count)
    return [np.asarray(leaf) for leaf in sampler(layout, length)(keys, jnp.int32(symbols))]


def ids_of(xs):
    """The sequence of numbers 0 to 9 that the inputs encode."""
    if xs.shape[-1] == 1:
        return xs[..., 0].astype(int)
    assert xs.shape[-1] == 10
    assert np.array_equal(xs.sum(-1), np.ones(xs.shape[:-1]))
    return xs.argmax(-1)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("layout", ["urnn", "tcn", "hippo"])
def test_the_sequence_is_as_published(layout, length):
    xs, targets, weights = draw(layout, length)
    assert xs.dtype == weights.dtype == np.float32
    assert targets.dtype == np.int32
    symbols = ids_of(xs)[:, :10]
    assert np.all((symbols >= 1) & (symbols <= 8))
    blanks = {"urnn": [0] * (length - 1) + [9] + [0] * 10,
              "tcn": [0] * (length - 1) + [9] * 11,
              "hippo": [0] * length + [9] * 10}[layout]  # fmt: skip
    expected = np.concatenate([symbols, np.broadcast_to(blanks, (len(xs), length + 10))], axis=1)
    assert np.array_equal(ids_of(xs), expected)
    assert np.array_equal(targets[:, : length + 10], np.zeros((len(xs), length + 10)))
    assert np.array_equal(targets[:, length + 10 :], symbols)
    per_step = np.full(length + 20, 1 / (length + 20))
    if layout == "hippo":
        per_step = np.repeat([0.0, 0.1], [length + 10, 10])
    np.testing.assert_allclose(weights, np.broadcast_to(per_step, weights.shape), rtol=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_selective_scatters_the_symbols(length):
    xs, targets, _ = draw("selective", length)
    ids = ids_of(xs)
    assert np.array_equal(ids[:, -10:], np.full((len(xs), 10), 9))
    scattered = ids[:, : length + 10]
    assert np.array_equal((scattered > 0).sum(1), np.full(len(xs), 10))
    found = scattered[scattered > 0].reshape(-1, 10)
    assert np.array_equal(found, targets[:, -10:])
    if length == 23:
        share = (scattered > 0).mean(0)  # all places are equally likely
        p = 10 / 33
        assert np.all(abs(share - p) < 5 * np.sqrt(p * (1 - p) / len(xs)))


def test_variable_draws_the_gap():
    xs, targets, weights = draw("variable", 23)
    ids = ids_of(xs)
    gaps = ids.argmax(1) - 9  # the cue 9 is the largest number, and stands at gap + 9
    assert gaps.min() == 1
    assert gaps.max() == 23
    for row, target, gap in zip(ids, targets, gaps, strict=True):
        symbols = row[:10]
        assert np.array_equal(row[10:], [0] * (gap - 1) + [9] + [0] * (33 - gap))
        assert np.array_equal(target, [0] * (gap + 10) + [*symbols] + [0] * (23 - gap))
    np.testing.assert_allclose(weights, 1 / 43, rtol=1e-6)


@pytest.mark.parametrize("layout", task.LAYOUTS)
def test_fewer_symbols_leave_the_rest_blank(layout):
    _, whole, _ = draw(layout, 5)
    _, targets, weights = draw(layout, 5, symbols=3)
    assert np.array_equal((targets > 0).sum(1), np.full(len(targets), 3))
    assert np.all(targets[targets > 0].reshape(-1, 3) == whole[whole > 0].reshape(-1, 10)[:, :3])
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)


def test_symbols_are_drawn_evenly():
    _, targets, _ = draw("urnn", 1, count=4000)
    counts = np.bincount(targets[:, -10:].ravel(), minlength=9)[1:]
    n, p = counts.sum(), 1 / 8
    assert np.all(abs(counts - n * p) < 5 * np.sqrt(n * p * (1 - p)))


@pytest.mark.parametrize("layout", task.LAYOUTS)
def test_the_baseline_is_the_loss_of_guessing_at_the_right_time(layout):
    """Outputs that are sure of every blank, and undecided between the 8 symbols at recall."""
    length = 23
    xs, targets, weights = draw(layout, length, count=3)
    classes = task.LAYOUTS[layout].output_size
    sure = np.where(np.arange(classes) == 0, 0.0, -100.0)
    guess = np.where((np.arange(classes) >= 1) & (np.arange(classes) <= 8), 0.0, -100.0)
    for x, target, weight in zip(xs, targets, weights, strict=True):
        logits = np.where(target[:, None] > 0, guess, sure).astype(np.float32)
        measures = measure(logits, task.Example(x, target, weight))
        assert float(measures["loss"]) == pytest.approx(task.baseline(layout, length), rel=1e-5)


def test_published_baselines():
    for length, value in ((200, 0.0945), (500, 0.03999), (1000, 0.02039), (2000, 0.01029)):
        assert task.baseline("urnn", length) == pytest.approx(value, abs=5e-5)
    assert task.baseline("hippo", 1000) == pytest.approx(math.log(8))


def test_recall_counts_the_symbols_alone():
    _, targets, weights = (leaf[0] for leaf in draw("urnn", 5, count=1))
    answers = targets.copy()
    answers[-3:] = 0  # the outputs forget three symbols
    answers[2] = 4  # one blank is wrong, which recall does not measure
    logits = 50 * jnp.eye(9, dtype=jnp.float32)[answers]
    measures = task.measure(logits, task.Example(None, jnp.asarray(targets), jnp.asarray(weights)))
    assert float(measures["recall"]) == pytest.approx(0.7)
    assert float(measures["loss"]) == pytest.approx(4 * 50 / 25, rel=1e-5)


def test_the_curriculum_adds_symbols_then_length():
    stages = task.stages(CopySettings(length=200, curriculum=3, first_symbols=8))
    found = [(stage.length, stage.level, stage.decay) for stage in stages]
    few = [(10, 8, False), (10, 9, False)]
    assert found == [*few, *((length, 10, True) for length in (10, 30, 90, 200))]
    assert [s.length for s in task.stages(CopySettings(length=200, curriculum=0))] == [200]
