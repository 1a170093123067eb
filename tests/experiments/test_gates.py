"""The share of memory that a step replaces, against steps in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxgru
from cases import only, slow
from experiments.common.gates import draw_gates, renewal

INITS = {
    "gru": jaxgru.gru_init,
    "gru-reset-after": lambda *a, **k: jaxgru.gru_init(*a, reset_after=True, **k),
    "lstm": jaxgru.lstm_init,
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", only(("gru", "lstm"), INITS))
def test_it_is_the_gate_of_the_step(name):
    init = jax.jit(lambda key: INITS[name](key, 3, 5, init="torch"))
    params = init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (7, 3), jnp.float32)
    _, hs = jaxgru.scan(params, xs)
    hs = np.concatenate([np.zeros((1, 5)), hs], dtype=np.float64)
    w_ih, w_hh, b = (
        np.asarray(a, np.float64)[..., 1, :] for a in (params.w_ih, params.w_hh, params.b)
    )
    gate = sigmoid(np.asarray(xs, np.float64) @ w_ih + hs[:-1] @ w_hh + b)
    expected = 1 - gate if name == "lstm" else gate
    # The tolerance is the float32 rounding of numbers below 1.
    np.testing.assert_allclose(renewal(params, xs), expected, atol=1e-6)


def test_of_a_stack_it_is_the_top_layer():
    stack = jax.jit(lambda key: jaxgru.stack_init(key, 3, 5, 2))(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (7, 3), jnp.float32)
    below, top = stack.layers
    np.testing.assert_array_equal(renewal(stack, xs), renewal(top, jaxgru.scan(below, xs)[1]))


def test_of_a_minimal_gru_it_does_not_see_the_state():
    params = jaxgru.min_gru_init(jax.random.key(0), 3, 5, init="torch")
    xs = jax.random.normal(jax.random.key(1), (7, 3), jnp.float32)
    w, b = np.asarray(params.w_ih[:, 0], np.float64), np.asarray(params.b[0], np.float64)
    expected = sigmoid(np.asarray(xs, np.float64) @ w + b)
    # The tolerance is the float32 rounding of numbers below 1.
    np.testing.assert_allclose(renewal(params, xs), expected, atol=1e-6)


@pytest.mark.parametrize("steps", [slow(4), 500])
def test_the_picture_sorts_units_by_their_mean(steps):
    params = jax.jit(lambda key: jaxgru.gru_init(key, 3, 5, chrono=50))(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (2, steps, 3), jnp.float32)
    figure = Figure()
    assert draw_gates(figure, params, xs, "title")
    axes = [each for each in figure.axes if each.images]
    assert len(axes) == (1 if steps == 4 else 3)
    drawn = np.asarray(axes[steps > 4].images[0].get_array())
    assert drawn.shape == (5, steps)
    means = drawn.mean(1)
    assert np.array_equal(means, np.sort(means))
    expected = np.mean([renewal(params, x) for x in xs], axis=0).mean(0)
    np.testing.assert_allclose(means, np.sort(expected), rtol=1e-5)


def test_a_plain_rnn_has_no_gates_to_draw():
    params = jaxgru.elman_init(jax.random.key(0), 3, 5)
    assert not draw_gates(Figure(), params, jnp.ones((2, 4, 3), jnp.float32), "title")
