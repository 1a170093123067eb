"""A batch by `vmap` equals a loop over the batch: of sequences, networks, lengths and resets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import plain
from cases import (
    BUILT_IN,
    CELLS,
    GRAD_TOL,
    HIDDEN,
    INPUT,
    KINDS,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    each_way,
    only,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
BATCH = 3
LENGTHS = np.array([0, 1, STEPS], np.int32)
RESETS = np.zeros((BATCH, STEPS), bool)
RESETS[1, 3] = RESETS[2, [0, 4]] = True


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def pick(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def batch_of_xs(steps=STEPS, inputs=INPUT):
    return np.stack([draw_xs(steps, inputs, seed=20 + i) for i in range(BATCH)])


def population(kind):
    return stack([draw(kind, seed=30 + i) for i in range(BATCH)])


def loop(run, count=BATCH):
    return stack([run(i) for i in range(count)])


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_sequences_carries_lengths_and_resets(kind, reverse):
    params, xs = draw(kind), batch_of_xs()
    carries = stack([draw_carry(params, 40 + i) for i in range(BATCH)])

    def run(xs, carry, length, reset):
        return jaxgru.scan(params, xs, carry, length=length, reset=reset, reverse=reverse)

    actual = jax.jit(jax.vmap(run))(xs, carries, LENGTHS, RESETS)
    single = jax.jit(run)
    expected = loop(lambda i: single(xs[i], pick(carries, i), LENGTHS[i], RESETS[i]))
    assert_close(actual, expected, TOL)


single_scan = jax.jit(jaxgru.scan)


@pytest.mark.parametrize("kind", only(("gru", "lstm", "mixed"), KINDS))
def test_population(kind):
    """Many networks run at once. Static metadata survive, and every network sees the same data."""
    params, xs = population(kind), draw_xs()
    actual = jax.jit(jax.vmap(jaxgru.scan, in_axes=(0, None)))(params, xs)
    assert_close(actual, loop(lambda i: single_scan(pick(params, i), xs)), TOL)


@pytest.mark.parametrize("kind", ["lstm", *map(slow, ("gru", "own_gru"))])
def test_population_each_with_its_data(kind):
    params, xs = population(kind), batch_of_xs()
    actual = jax.jit(jax.vmap(jaxgru.scan))(params, xs)
    assert_close(actual, loop(lambda i: single_scan(pick(params, i), xs[i])), TOL)


@pytest.mark.parametrize("kind", ["gru", slow("own_gru")])
def test_population_of_batches(kind):
    params, xs = population(kind), batch_of_xs()
    nested = jax.vmap(jax.vmap(jaxgru.scan, in_axes=(None, 0)), in_axes=(0, None))
    expected = loop(lambda i: loop(lambda j: single_scan(pick(params, i), xs[j])))
    assert_close(jax.jit(nested)(params, xs), expected, TOL)


ORDERS = (("data", "weights", "data"), ("weights", "data", "weights"), ("both", "one weight"))
#: In the short run, one cell tests each order.
CHOSEN = {"gru": 0, "elman": 1, "gru_after": 2}


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        (kind, order) if CHOSEN.get(kind) == place else slow(kind, order)
        for place, order in enumerate(ORDERS)
        for kind in CELLS
    ],
)
def test_nested(kind, order):
    """Batches of sequences, networks and single weights, in any nesting: values and gradients."""
    params, xs = draw(kind), draw_xs()
    count, batches = 2, {"data": (None, 0), "weights": (0, None), "both": (0, 0)}
    name = "w_ih" if kind == "min_gru" else "w_hh"
    only_one = dataclasses.replace(jax.tree.map(lambda w: None, params), **{name: 0})
    batches["one weight"] = (only_one, None)

    def loss(scan, params, xs):
        return weigh(scan(params, xs, length=4, reset=jnp.arange(STEPS) == 2))

    def nest(scan):
        run = functools.partial(loss, scan)
        for level in order:
            run = jax.vmap(run, in_axes=batches[level])
        return jax.jit(jax.value_and_grad(lambda *args: jnp.sum(run(*args)), argnums=(0, 1)))

    def spread(leaf, where):
        if where is None:
            return leaf
        return np.stack([np.asarray(leaf) * (1 + k / 10) for k in range(count)])

    for level in order:
        weights, data = batches[level]
        if level == "one weight":
            params = dataclasses.replace(params, **{name: spread(getattr(params, name), 0)})
        else:
            params = jax.tree.map(lambda leaf, where=weights: spread(leaf, where), params)
        xs = spread(xs, data)
    assert_close(nest(jaxgru.scan)(params, xs), nest(plain.scan)(params, xs), GRAD_TOL["float64"])


def test_time_major_is_an_axis_of_vmap():
    params, xs = draw("gru"), batch_of_xs()
    carry, ys = jax.vmap(jaxgru.scan, in_axes=(None, 1), out_axes=(0, 1))(
        params, jnp.swapaxes(xs, 0, 1)
    )
    expected_carry, expected = jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)
    assert ys.shape == (STEPS, BATCH, HIDDEN)
    assert_close((carry, jnp.swapaxes(ys, 0, 1)), (expected_carry, expected), TOL)


@pytest.mark.parametrize("kind", ["stack", slow("own_stack")])
def test_step_and_initial_carry_batch_too(kind):
    params, xs = population(kind), batch_of_xs()[:, 0]
    carry = jax.vmap(jaxgru.initial_carry)(params)
    actual = jax.vmap(jaxgru.step)(params, carry, xs)
    expected = loop(
        lambda i: jaxgru.step(pick(params, i), jaxgru.initial_carry(pick(params, i)), xs[i])
    )
    assert_close(actual, expected, TOL)


@pytest.mark.slow
def test_init_batches_over_keys():
    """`vmap` of an init function draws a population with the same numbers as one by one."""
    keys = jax.random.split(jax.random.key(0), BATCH)
    init = functools.partial(jaxgru.gru_init, input_size=INPUT, hidden_size=HIDDEN, init="torch")
    assert_same(jax.vmap(init)(keys), loop(lambda i: init(keys[i])))


@pytest.mark.parametrize("kind", only(["mixed"], (*CELLS, "mixed")))
def test_vmap_of_grad(kind):
    """Gradients of each network on each sequence, with lengths."""
    params, xs = population(kind), batch_of_xs()

    def grad(params, xs, length):
        return jax.grad(lambda p, x: weigh(jaxgru.scan(p, x, length=length)), argnums=(0, 1))(
            params, xs
        )

    single = jax.jit(grad)
    expected = loop(lambda i: single(pick(params, i), xs[i], LENGTHS[i]))
    assert_close(jax.jit(jax.vmap(grad))(params, xs, LENGTHS), expected, GRAD_TOL["float64"])


@pytest.mark.parametrize("kind", only(["lstm"], (*CELLS, "mixed")))
def test_grad_of_vmap(kind):
    """The gradient of a batch's loss is the sum of the gradients of its examples."""
    params, xs = draw(kind), batch_of_xs()

    def loss(params, xs, length, reset):
        return weigh(jaxgru.scan(params, xs, length=length, reset=reset))

    def batched(params):
        return jnp.sum(jax.vmap(loss, in_axes=(None, 0, 0, 0))(params, xs, LENGTHS, RESETS))

    single = jax.jit(jax.grad(loss))
    each = loop(lambda i: single(params, xs[i], LENGTHS[i], jnp.asarray(RESETS[i])))
    expected = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)
    assert_close(jax.jit(jax.grad(batched))(params), expected, GRAD_TOL["float64"])


@pytest.mark.parametrize("kind", ["gru", slow("own_gru")])
def test_nan_in_the_padding_of_a_batch(kind):
    """One gradient over a ragged batch does not depend on the contents of the padding."""
    params, xs = draw(kind), batch_of_xs()
    real = (np.arange(STEPS) < np.asarray(LENGTHS)[:, None])[:, :, None]

    @jax.jit
    @jax.value_and_grad
    def loss(params, xs):
        run = jax.vmap(lambda x, length: jaxgru.scan(params, x, length=length))
        return weigh(run(xs, LENGTHS))

    clean = loss(params, jnp.where(real, xs, 0.0))
    assert_same(loss(params, jnp.where(real, xs, jnp.nan)), clean)


@pytest.mark.parametrize("kind", ["gru", slow("own_gru")])
def test_jvp_and_hessian_under_vmap(kind):
    params, xs = draw(kind, 2, 2), batch_of_xs(3, 2)

    def hessian(xs):
        return jax.hessian(lambda x: weigh(jaxgru.scan(params, x)))(xs)

    single = jax.jit(hessian)
    actual = jax.jit(jax.vmap(hessian))(xs)
    assert_close(actual, loop(lambda i: single(xs[i])), GRAD_TOL["float64"])


def shapes_in(jaxpr):
    """The shapes of all results in a program, including inner programs."""
    for eqn in jaxpr.eqns:
        yield from (tuple(var.aval.shape) for var in eqn.outvars)
        for value in jax.tree.leaves(
            eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_no_weight_gradient_per_example(kind):
    """The gradient of the mean over a batch sums over examples inside the products.

    So no array of the program has the batch axis beside both axes of a weight.
    """
    # The sizes differ, and 13 steps cannot be cut into any of them.
    batch, inputs, hidden = 17, 19, 23
    params = draw(kind, inputs, hidden)
    xs = jnp.zeros((batch, 13, inputs))

    def loss(params):
        return jnp.mean(jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1])

    shapes = list(shapes_in(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert any(batch in shape and hidden in shape for shape in shapes)
    for shape in shapes:
        per_input = {batch, inputs, hidden} <= set(shape)
        per_state = batch in shape and shape.count(hidden) > 1
        assert not per_input
        assert not per_state
