"""Differential tests with Equinox. It has only cells, which `lax.scan` unrolls as its docs say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close
from peers import GRAD_TOL, TOL, f64

eqx = peers.peer("equinox")
pytestmark = pytest.mark.usefixtures("x64", "lenient")

STEPS, INPUT, HIDDEN = 5, 3, 4


def data():
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.standard_normal((STEPS, INPUT))), jnp.asarray(
        rng.standard_normal(HIDDEN)
    )


def from_equinox_gru(cell):
    """The layout is that of torch, with added biases except b_hn. z weighs the old state."""
    return peers.gru(
        peers.split(f64(cell.weight_ih).T, 3, (0, 1, 2), flip=(1,)),
        peers.split(f64(cell.weight_hh).T, 3, (0, 1, 2), flip=(1,)),
        peers.split(cell.bias, 3, (0, 1, 2), flip=(1,)),
        f64(cell.bias_n),
        reset_after=True,
    )


def from_equinox_lstm(cell):
    return peers.lstm(
        peers.split(f64(cell.weight_ih).T, 4, (0, 1, 2, 3)),
        peers.split(f64(cell.weight_hh).T, 4, (0, 1, 2, 3)),
        peers.split(cell.bias, 4, (0, 1, 2, 3)),
    )


CELLS = {"GRUCell": from_equinox_gru, "LSTMCell": from_equinox_lstm}


def make(name):
    cell = getattr(eqx.nn, name)(INPUT, HIDDEN, key=jax.random.key(0), dtype=jnp.float64)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: jnp.asarray(peers.random(rng, w.shape)) if eqx.is_array(w) else w, cell
    )


def starts(name, h):
    return ((h, 0.5 * h), jaxgru.LSTMCarry(h, 0.5 * h)) if name == "LSTMCell" else (h, h)


def unroll(cell, xs, state):
    def step(state, x):
        state = cell(x, state)
        return state, state[0] if isinstance(state, tuple) else state

    return jax.lax.scan(step, state, xs)


@pytest.mark.parametrize("name", CELLS)
def test_values(name):
    cell = make(name)
    xs, h = data()
    theirs, ours = starts(name, h)
    expected = unroll(cell, xs, theirs)
    carry, ys = jaxgru.scan(CELLS[name](cell), xs, ours)
    assert_close((jax.tree.leaves(carry), ys), (jax.tree.leaves(expected[0]), expected[1]), TOL)


@pytest.mark.parametrize("name", CELLS)
def test_gradients(name):
    cell = make(name)
    xs, h = data()
    theirs_start, ours_start = starts(name, h)
    weights = jnp.asarray(np.random.default_rng(2).standard_normal((STEPS, HIDDEN)))
    leaves, static = eqx.partition(cell, eqx.is_array)

    def theirs(leaves, xs):
        return jnp.sum(weights * unroll(eqx.combine(leaves, static), xs, theirs_start)[1])

    def ours(params, xs):
        return jnp.sum(weights * jaxgru.scan(params, xs, ours_start)[1])

    expected, expected_dxs = jax.jit(jax.grad(theirs, argnums=(0, 1)))(leaves, xs)
    grads, dxs = jax.jit(jax.grad(ours, argnums=(0, 1)))(CELLS[name](cell), xs)
    assert_close(dxs, expected_dxs, GRAD_TOL)
    assert_close(grads, CELLS[name](expected), GRAD_TOL)
