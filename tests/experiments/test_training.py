"""The compiled part of training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import slow
from experiments.common import model, optimizers, training
from experiments.copy_task.settings import CopySettings
from experiments.copy_task.task import make_task

pytestmark = pytest.mark.usefixtures("optax_promotes")

SETTINGS = CopySettings(
    cell="elman", length=3, hidden_size=6, batch_size=4, test_examples=30, chrono=0, curriculum=0
)
TASK = make_task(SETTINGS)


def make_init(settings, task):
    return jax.jit(lambda seed, rate: training.train_init(task, settings, seed, rate))


INIT = make_init(SETTINGS, TASK)


def start(seed, init=INIT):
    return init(jnp.uint32(seed), jnp.float32(1e-2))


@pytest.fixture(scope="module")
def chunk(optax_promotes):
    train = jax.jit(training.make_train_chunk(TASK, SETTINGS, SETTINGS.length))
    return lambda state, updates: train(state, jnp.int32(updates), jnp.int32(10), jnp.int32(1))


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_chunks_of_any_size_compute_the_same(chunk):
    whole, _ = chunk(start(0), 10)
    part, _ = chunk(start(0), 7)
    pieces, _ = chunk(part, 3)
    assert int(whole.update) == 10
    assert_equal(whole, pieces)


def test_measures_are_means_over_examples(chunk):
    state, happened = chunk(start(0), 1)
    data_key = jax.random.fold_in(jax.random.key(0), training.DATA)
    keys = jax.random.split(jax.random.fold_in(data_key, 0), SETTINGS.batch_size)
    evaluate = jax.jit(training.make_evaluate(TASK, SETTINGS, TASK.stages[0]))

    @jax.jit
    def measure(network, key):
        example = TASK.sampler(SETTINGS.length)(key, jnp.int32(10))
        hs = model.states(network, example.xs, "float32")
        return TASK.measure(model.read_out(network, hs), example)

    for means, network, examples in (
        (happened.means, start(0).network, keys),
        (evaluate(state.network), state.network, training.test_keys(30)),
    ):
        found = [measure(network, key) for key in examples]
        for name in TASK.measures:
            np.testing.assert_allclose(means[name], np.mean([f[name] for f in found]), rtol=1e-5)


def test_a_seed_decides_what_is_computed(chunk):
    assert_equal(chunk(start(1), 5)[0], chunk(start(1), 5)[0])
    assert chunk(start(1), 5)[1].means["loss"] != chunk(start(2), 5)[1].means["loss"]


def test_the_first_update_that_is_not_finite_is_told(chunk):
    state, _ = chunk(start(0), 3)
    _, fine = chunk(state, 4)
    assert int(fine.broken) == 0
    w_out = state.network.w_out.at[0, 0].set(jnp.nan)
    network = dataclasses.replace(state.network, w_out=w_out)
    _, broken = chunk(state._replace(network=network), 4)
    assert int(broken.broken) == 4  # this one comes after the three


@pytest.mark.slow
def test_seeds_in_one_program_equal_seeds_apart(chunk):
    states = jax.vmap(lambda s: training.train_init(TASK, SETTINGS, s, jnp.float32(1e-2)))(
        jnp.arange(2, dtype=jnp.uint32)
    )
    train = training.make_train_chunk(TASK, SETTINGS, SETTINGS.length)
    many = jax.jit(jax.vmap(train, in_axes=(0, None, None, None)))
    states, happened = many(states, jnp.int32(5), jnp.int32(10), jnp.int32(1))
    for seed in range(2):
        alone, means = chunk(start(seed), 5)
        np.testing.assert_allclose(happened.means["loss"][seed], means.means["loss"], rtol=1e-4)
        pairs = zip(jax.tree.leaves(states.network), jax.tree.leaves(alone.network), strict=True)
        for x, y in pairs:  # these are float32 sums in another order, and then five steps of Adam
            np.testing.assert_allclose(x[seed], y, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "layers"),
    [("bfloat16", 2), slow("float32", 1), slow("float32", 2), slow("bfloat16", 1)],
)
@pytest.mark.parametrize("cell", model.CELLS)
def test_every_network_can_be_trained(cell, dtype, layers):
    settings = dataclasses.replace(SETTINGS, cell=cell, dtype=dtype, layers=layers, checkpoint=2)
    train = training.make_train_chunk(TASK, settings, settings.length)
    ones = (jax.ShapeDtypeStruct((), jnp.int32),) * 3

    def init():
        return training.train_init(TASK, settings, jnp.uint32(0), jnp.float32(1e-2))

    before = jax.eval_shape(init)
    after, happened = jax.eval_shape(train, before, *ones)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(before.network)} == {jnp.dtype("float32")}
    assert happened.means["loss"].dtype == jnp.float32


@pytest.mark.parametrize("cell", ["gru", *map(slow, ("lstm", "elman", "min-gru"))])
def test_thresholds_are_spread_over_the_symbols(cell):
    settings = dataclasses.replace(SETTINGS, cell=cell, layout="tcn", slope=2, hidden_size=50)
    task = make_task(settings)
    params = start(0, make_init(settings, task)).network.cell
    at = {"elman": (), "min-gru": (1,)}.get(cell, (2,))
    slopes = np.asarray(params.w_ih[(0, *at)])
    assert np.array_equal(abs(slopes), np.full(50, 2.0))
    thresholds = -np.asarray(params.b[at]) / slopes
    assert thresholds.min() >= 0
    assert thresholds.max() <= 9
    assert thresholds.std() > 1


def test_schedules_and_rules():
    settings = dataclasses.replace(SETTINGS, half_life=10, floor=0.2, updates=100)

    def rate(schedule, count):
        return float(
            optimizers.learning_rate(
                dataclasses.replace(settings, schedule=schedule), jnp.float32(0.5), jnp.int32(count)
            )
        )

    assert rate("constant", 99) == 0.5
    assert rate("exponential", 10) == pytest.approx(0.25)
    assert rate("exponential", 1000) == pytest.approx(0.1)
    assert rate("cosine", 50) == pytest.approx(0.25)
    assert rate("cosine", 100) == pytest.approx(0, abs=1e-7)
    params = {"w": jnp.ones(3, jnp.float32)}
    grads = {"w": jnp.array([3e3, 0, 4e3], jnp.float32)}
    for name in optimizers.RULES:
        rule = optimizers.make_optimizer(dataclasses.replace(settings, optimizer=name))
        step, _ = rule.update(grads, rule.init(params), params)
        assert np.all(np.isfinite(step["w"]))
    np.testing.assert_allclose(step["w"], [0.6, 0, 0.8], rtol=1e-6)  # the last is sgd, clipped to 1


def test_states_are_those_of_scan():
    network = start(0).network
    xs = jax.random.normal(jax.random.key(1), (7, 10), jnp.float32)
    np.testing.assert_array_equal(
        model.states(network, xs, "float32"), jaxgru.scan(network.cell, xs)[1]
    )
