"""Differential tests with Haiku, the one peer whose z weighs the new content, as ours does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close
from peers import GRAD_TOL, TOL, f64

hk = peers.peer("haiku")
pytestmark = pytest.mark.usefixtures("x64", "lenient")

BATCH, STEPS, INPUT, HIDDEN = 3, 5, 3, 4


def data():
    rng = np.random.default_rng(1)
    return (
        jnp.asarray(rng.standard_normal((STEPS, BATCH, INPUT))),
        jnp.asarray(rng.standard_normal((BATCH, HIDDEN))),
    )


def from_haiku_gru(tree):
    """The columns are z, r, a. The reset gate acts before the product."""
    (tree,) = tree.values()
    order = (1, 0, 2)
    return peers.gru(
        peers.split(tree["w_i"], 3, order),
        peers.split(tree["w_h"], 3, order),
        peers.split(tree["b"], 3, order),
        None,
        reset_after=False,
    )


def from_haiku_lstm(tree, forget=1.0):
    """One Linear over [x, h] has the columns i, g, f, o. The cell adds 1 to the forget gate."""
    (tree,) = tree.values()
    w = peers.split(tree["w"], 4, (0, 2, 1, 3))
    b = peers.split(tree["b"], 4, (0, 2, 1, 3))
    b[1] += forget
    return peers.lstm(w[:INPUT], w[INPUT:], b)


def unroll(core, reverse=False):
    def run(xs, state):
        return hk.dynamic_unroll(core(HIDDEN), xs, state, reverse=reverse)

    return hk.without_apply_rng(hk.transform(run))


def random_weights(net, *arguments):
    rng = np.random.default_rng(0)
    tree = net.init(jax.random.key(0), *arguments)
    return jax.tree.map(lambda w: jnp.asarray(peers.random(rng, w.shape)), tree)


def scan(params, xs, carry, **options):
    def run(xs, carry):
        return jaxgru.scan(params, xs, carry, **options)

    return jax.vmap(run, in_axes=(1, 0), out_axes=(0, 1))(xs, carry)


@pytest.mark.parametrize("reverse", [False, True])
def test_gru_values(reverse):
    xs, h = data()
    net = unroll(hk.GRU, reverse)
    weights = random_weights(net, xs, h)
    ys, last = net.apply(weights, xs, h)
    actual = scan(from_haiku_gru(weights), xs, h, reverse=reverse)
    assert_close(actual, (last, ys), TOL)


@pytest.mark.parametrize("reverse", [False, True])
def test_lstm_values(reverse):
    xs, h = data()
    net = unroll(hk.LSTM, reverse)
    state = hk.LSTMState(hidden=h, cell=0.5 * h)
    weights = random_weights(net, xs, state)
    ys, last = net.apply(weights, xs, state)
    carry, outputs = scan(
        from_haiku_lstm(weights), xs, jaxgru.LSTMCarry(h, 0.5 * h), reverse=reverse
    )
    assert_close(outputs, ys, TOL)
    assert_close((carry.h, carry.c), (last.hidden, last.cell), TOL)


def test_plain_rnn_is_another_function():
    """The VanillaRNN of Haiku uses relu and ours uses tanh, so it is no oracle."""
    xs, h = data()
    net = unroll(hk.VanillaRNN)
    weights = random_weights(net, xs, h)
    ys, _ = net.apply(weights, xs, h)
    assert jnp.min(ys) == 0
    assert jnp.max(ys) > 1


@pytest.mark.parametrize(
    ("core", "convert"),
    [(hk.GRU, from_haiku_gru), (hk.LSTM, lambda tree: from_haiku_lstm(tree, forget=0.0))],
    ids=["gru", "lstm"],
)
def test_gradients(core, convert):
    xs, h = data()
    lstm = core is hk.LSTM
    state = hk.LSTMState(hidden=h, cell=h) if lstm else h
    ours_state = jaxgru.LSTMCarry(h, h) if lstm else h
    net = unroll(core)
    weights = random_weights(net, xs, state)
    factor = jnp.asarray(np.random.default_rng(2).standard_normal((STEPS, BATCH, HIDDEN)))
    params = from_haiku_lstm(weights) if lstm else convert(weights)

    def theirs(weights, xs):
        return jnp.sum(factor * net.apply(weights, xs, state)[0])

    def ours(params, xs):
        return jnp.sum(factor * scan(params, xs, ours_state)[1])

    expected, expected_dxs = jax.jit(jax.grad(theirs, argnums=(0, 1)))(weights, xs)
    grads, dxs = jax.jit(jax.grad(ours, argnums=(0, 1)))(params, xs)
    assert_close(dxs, expected_dxs, GRAD_TOL)
    # The layout is linear except for the constant 1, which has no gradient.
    assert_close(grads, convert(jax.tree.map(f64, expected)), GRAD_TOL)


def test_reset_core():
    """Resets are in the middle of a sequence, at different steps in each example of a batch."""
    xs, h = data()
    flags = np.zeros((STEPS, BATCH), bool)
    flags[2, 0] = flags[0, 1] = flags[4, 1] = True

    def run(xs, flags, state):
        return hk.dynamic_unroll(hk.ResetCore(hk.GRU(HIDDEN)), (xs, flags), state)

    net = hk.without_apply_rng(hk.transform(run))
    weights = random_weights(net, xs, flags, h)
    ys, last = net.apply(weights, xs, flags, h)
    params = from_haiku_gru(weights)

    def ours(xs, carry, reset):
        return jaxgru.scan(params, xs, carry, reset=reset)

    actual = jax.vmap(ours, in_axes=(1, 0, 1), out_axes=(0, 1))(xs, h, jnp.asarray(flags))
    assert_close(actual, (last, ys), TOL)
