"""`Stack` and `Bidirectional` compute what their parts compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
import recipes
from cases import (
    GRAD_TOL,
    HIDDEN,
    INPUT,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_like,
    draw_xs,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]


@pytest.mark.parametrize("kind", ["gru", slow("own_gru")])
def test_bidirectional_is_two_scans_side_by_side(kind):
    params, xs = jaxgru.Bidirectional(draw(kind), draw("lstm", INPUT, HIDDEN + 1)), draw_xs()
    carry = draw_carry(params)
    last, ys = jaxgru.scan(params, xs, carry, length=4)
    ahead, hs = jaxgru.scan(params.forward, xs, carry[0], length=4)
    back, gs = jaxgru.scan(params.backward, xs, carry[1], length=4, reverse=True)
    assert_close(last, (ahead, back), TOL)
    assert_close(ys, jnp.concatenate([hs, gs], axis=1), TOL)
    assert isinstance(last, tuple)


@pytest.mark.parametrize("kind", ["mixed", "own_mixed"])
def test_stack_feeds_each_layer_by_the_one_below(kind):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    last, ys = jaxgru.scan(params, xs, carry, length=4)
    expected, below = [], xs
    for layer, start in zip(params.layers, carry, strict=True):
        end, below = jaxgru.scan(layer, below, start, length=4)
        expected.append(end)
    assert_close(last, tuple(expected), TOL)
    assert_close(ys, below, TOL)


@pytest.mark.parametrize("kind", ["gru", "own_gru"])
def test_a_stack_of_one_is_its_layer(kind):
    cell, xs = draw(kind), draw_xs()
    (last,), ys = jaxgru.scan(jaxgru.Stack((cell,)), xs)
    assert_close((last, ys), jaxgru.scan(cell, xs), TOL)


def test_stack_init_sizes():
    key = jax.random.key(0)
    params = jax.eval_shape(lambda key: jaxgru.stack_init(key, INPUT, HIDDEN, 3), key)
    assert isinstance(params, jaxgru.Stack)
    assert [layer.w_ih.shape for layer in params.layers] == [
        (INPUT, 3, HIDDEN),
        (HIDDEN, 3, HIDDEN),
        (HIDDEN, 3, HIDDEN),
    ]
    assert all(isinstance(layer, jaxgru.GRUParams) for layer in params.layers)


def test_stack_init_bidirectional_sizes():
    def init(key):
        return jaxgru.stack_init(key, INPUT, HIDDEN, 2, cell=jaxgru.lstm_init, bidirectional=True)

    params = jax.eval_shape(init, jax.random.key(0))
    first, second = params.layers
    for layer, inputs in ((first, INPUT), (second, 2 * HIDDEN)):
        assert isinstance(layer, jaxgru.Bidirectional)
        for cell in (layer.forward, layer.backward):
            assert isinstance(cell, jaxgru.LSTMParams)
            assert cell.w_ih.shape == (inputs, 4, HIDDEN)
    xs = draw_xs(dtype=first.forward.w_ih.dtype)
    _, ys = jax.eval_shape(jaxgru.scan, params, xs)
    assert ys.shape[1] == 2 * HIDDEN


def test_stack_init_always_returns_a_stack():
    key = jax.random.key(0)
    params = jax.eval_shape(lambda key: jaxgru.stack_init(key, INPUT, HIDDEN, 1), key)
    assert isinstance(params, jaxgru.Stack)
    assert len(params.layers) == 1


def test_stack_init_hands_options_to_the_cell():
    params = jaxgru.stack_init(
        jax.random.key(0),
        INPUT,
        HIDDEN,
        2,
        reset_after=True,
        bias=False,
        init="torch",
        dtype=jnp.bfloat16,
    )
    for layer in params.layers:
        assert layer.reset_after is True
        assert layer.b is None
        assert layer.b_hn is None
        assert layer.w_ih.dtype == jnp.bfloat16


def test_stack_init_draws_every_cell_afresh():
    key = jax.random.key(3)
    options = {"bidirectional": True, "init": "torch"}
    init = jax.jit(lambda key: jaxgru.stack_init(key, HIDDEN, HIDDEN, 2, **options))
    params = init(key)
    weights = [cell.w_hh for layer in params.layers for cell in (layer.forward, layer.backward)]
    for i, a in enumerate(weights):
        for b in weights[i + 1 :]:
            assert jnp.max(jnp.abs(a - b)) > 1e-2
    assert_same(init(key), params)


@functools.cache
def recipe():
    """The loop over layers of docs/recipes/layers.md, with scales that are not all one."""
    names = recipes.run("recipes/layers.md")
    params = jax.eval_shape(lambda key: names["init"](key, HIDDEN, 3), jax.random.key(1))
    params = jax.tree.map(lambda leaf: leaf.astype("float64"), draw_like(params))
    return names, params, draw_xs(STEPS, HIDDEN), draw_carry(params["stack"])


def test_the_recipe_is_the_equations():
    """Compare with the oracle layer by layer, and with the norm in NumPy."""
    names, params, xs, carry = recipe()
    carries, hidden = jax.jit(names["deep"])(params, xs, carry, length=4)
    below = np.asarray(xs)
    for k, layer in enumerate(params["stack"].layers):
        size = np.sqrt(np.mean(below**2, axis=-1, keepdims=True) + 1e-6)
        normed = np.asarray(params["scales"][k]) * below / size
        last, ys = oracle.scan(layer, normed, carry[k], length=4)
        below = below + ys
        assert_close((carries[k], hidden[k]), (last, below), VALUE_TOL["float64"])


def test_the_recipe_streams_what_it_learns():
    names, params, xs, carry = recipe()
    expected_carry, hidden = names["deep"](params, xs, carry)
    step = jax.jit(names["deep_step"])
    for x, expected in zip(xs, hidden[-1], strict=True):
        carry, y = step(params, carry, x)
        assert_close(y, expected, VALUE_TOL["float64"])
    assert_close(carry, expected_carry, VALUE_TOL["float64"])


def test_what_the_recipe_says_of_nan_in_the_padding():
    names, params, xs, carry = recipe()
    real = jnp.arange(STEPS) < 4
    dirty = xs.at[4:].set(jnp.nan)

    def loss(params, xs):
        hidden = names["deep"](params, xs, carry, length=4)[1]
        return weigh(jnp.where(real[:, None], hidden[-1], 0))

    slope = jax.jit(jax.value_and_grad(loss))
    assert not all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(slope(params, dirty)))
    cleared = jnp.where(real[:, None], dirty, 0)
    assert_close(slope(params, cleared), slope(params, xs), GRAD_TOL["float64"])
