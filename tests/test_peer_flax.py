"""Differential tests with Flax, linen and nnx: values, gradients, directions and lengths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close
from peers import GRAD_TOL, TOL, f64

linen = peers.peer("flax.linen")
nnx = peers.peer("flax.nnx")
pytestmark = pytest.mark.usefixtures("x64", "lenient")

BATCH, STEPS, INPUT, HIDDEN = 3, 5, 3, 4
LENGTHS = np.array([2, 5, 1])


def data():
    rng = np.random.default_rng(1)
    return (
        jnp.asarray(rng.standard_normal((BATCH, STEPS, INPUT))),
        jnp.asarray(rng.standard_normal((BATCH, HIDDEN))),
    )


def gates(tree, names, part):
    return np.stack([f64(tree[name][part]) for name in names], axis=-2)


def from_linen_gru(tree):
    """Each gate has its own Dense. z weighs the old state. The Dense of the input and hn have
    biases.
    """
    w_ih = gates(tree, ("ir", "iz", "in"), "kernel")
    w_hh = gates(tree, ("hr", "hz", "hn"), "kernel")
    b = gates(tree, ("ir", "iz", "in"), "bias")
    for w in (w_ih, w_hh, b):
        w[..., 1, :] *= -1
    return peers.gru(w_ih, w_hh, b, f64(tree["hn"]["bias"]), reset_after=True)


def from_linen_lstm(tree):
    """The recurrent Dense layers have the biases."""
    return peers.lstm(
        gates(tree, ("ii", "if", "ig", "io"), "kernel"),
        gates(tree, ("hi", "hf", "hg", "ho"), "kernel"),
        gates(tree, ("hi", "hf", "hg", "ho"), "bias"),
    )


def from_linen_simple(tree):
    return peers.elman(f64(tree["i"]["kernel"]), f64(tree["h"]["kernel"]), f64(tree["i"]["bias"]))


LINEN = {
    "GRUCell": from_linen_gru,
    "LSTMCell": from_linen_lstm,
    "OptimizedLSTMCell": from_linen_lstm,
    "SimpleCell": from_linen_simple,
}


def linen_rnn(name, seed=0, **options):
    """Return (module, its variables with random weights)."""
    cell = getattr(linen, name)(HIDDEN, param_dtype=jnp.float64)
    rnn = linen.RNN(cell, return_carry=True, **options)
    variables = rnn.init(jax.random.key(0), data()[0])
    rng = np.random.default_rng(seed)
    return rnn, jax.tree.map(lambda w: jnp.asarray(peers.random(rng, w.shape)), variables)


def starts(name, h):
    """Return their carry, which is (c, h) for an LSTM, and ours."""
    if "LSTM" in name:
        return (0.5 * h, h), jaxgru.LSTMCarry(h, 0.5 * h)
    return h, h


def in_our_order(name, carry):
    return (carry[1], carry[0]) if "LSTM" in name else (carry,)


def scan_batch(params, xs, carry, length, **options):
    def run(xs, carry, length):
        return jaxgru.scan(params, xs, carry, length=length, **options)

    return jax.jit(jax.vmap(run))(xs, carry, length)


def real(ys, lengths=LENGTHS):
    """Set the outputs to zero in the padding, where Flax returns what its cell computes."""
    return jnp.where(np.arange(STEPS)[:, None] < lengths[:, None, None], ys, 0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", LINEN)
def test_linen_values_with_lengths(name, reverse):
    rnn, variables = linen_rnn(name)
    xs, h = data()
    theirs, ours = starts(name, h)
    run = functools.partial(rnn.apply, seq_lengths=LENGTHS, reverse=reverse, keep_order=True)
    carry, ys = jax.jit(run)(variables, xs, initial_carry=theirs)
    params = LINEN[name](variables["params"]["cell"])
    actual, outputs = scan_batch(params, xs, ours, LENGTHS, reverse=reverse)
    assert_close(outputs, real(ys), TOL)
    assert_close(jax.tree.leaves(actual), in_our_order(name, carry), TOL)


@pytest.mark.parametrize("name", LINEN)
def test_linen_gradients(name):
    rnn, variables = linen_rnn(name)
    xs, _ = data()
    weights = jnp.asarray(np.random.default_rng(2).standard_normal((BATCH, STEPS, HIDDEN)))

    def theirs(variables, xs):
        return jnp.sum(weights * rnn.apply(variables, xs)[1])

    def ours(params, xs):
        return jnp.sum(weights * jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1])

    theirs_grads = jax.jit(jax.grad(theirs, argnums=(0, 1)))(variables, xs)
    params = LINEN[name](variables["params"]["cell"])
    grads, dxs = jax.jit(jax.grad(ours, argnums=(0, 1)))(params, xs)
    assert_close(dxs, theirs_grads[1], GRAD_TOL)
    # The layout is linear, so it converts gradients as it converts weights.
    assert_close(grads, LINEN[name](theirs_grads[0]["params"]["cell"]), GRAD_TOL)


def test_linen_bidirectional_layers_with_lengths():
    params, ys = [], data()[0]
    for layer in range(2):
        rnns = [
            linen.RNN(linen.GRUCell(HIDDEN, param_dtype=jnp.float64))
            for _ in ("forward", "backward")
        ]
        module = linen.Bidirectional(*rnns)
        variables = module.init(jax.random.key(0), ys)
        rng = np.random.default_rng(layer)
        variables = jax.tree.map(
            lambda w, rng=rng: jnp.asarray(peers.random(rng, w.shape)), variables
        )
        ys = module.apply(variables, ys, seq_lengths=LENGTHS)
        trees = variables["params"]
        sides = [trees["forward_rnn"]["cell"], trees["backward_rnn"]["cell"]]
        params.append(jaxgru.Bidirectional(*(from_linen_gru(tree) for tree in sides)))
    stack = jaxgru.Stack(tuple(params))

    def run(xs, length):
        return jaxgru.scan(stack, xs, length=length)[1]

    assert_close(jax.jit(jax.vmap(run))(data()[0], LENGTHS), real(ys), TOL)


def from_nnx_gru(cell):
    """r, z and n are packed. z weighs the old state. There is no b_hn."""
    return peers.gru(
        peers.split(cell.dense_i.kernel[...], 3, (0, 1, 2), flip=(1,)),
        peers.split(cell.dense_h.kernel[...], 3, (0, 1, 2), flip=(1,)),
        peers.split(cell.dense_i.bias[...], 3, (0, 1, 2), flip=(1,)),
        None,
        reset_after=True,
    )


def from_nnx_lstm(cell):
    return peers.lstm(
        peers.split(cell.dense_i.kernel[...], 4, (0, 1, 2, 3)),
        peers.split(cell.dense_h.kernel[...], 4, (0, 1, 2, 3)),
        peers.split(cell.dense_h.bias[...], 4, (0, 1, 2, 3)),
    )


def from_nnx_simple(cell):
    return peers.elman(
        f64(cell.dense_i.kernel[...]), f64(cell.dense_h.kernel[...]), f64(cell.dense_i.bias[...])
    )


NNX = {
    "GRUCell": from_nnx_gru,
    "OptimizedLSTMCell": from_nnx_lstm,
    "SimpleCell": from_nnx_simple,
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", NNX)
def test_nnx_values_with_lengths(name, reverse):
    cell = getattr(nnx, name)(
        INPUT, HIDDEN, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64
    )
    rng = np.random.default_rng(0)
    nnx.update(
        cell,
        jax.tree.map(lambda w: jnp.asarray(peers.random(rng, w.shape)), nnx.state(cell, nnx.Param)),
    )
    rnn = nnx.RNN(cell, return_carry=True)
    xs, h = data()
    theirs, ours = starts(name, h)
    carry, ys = rnn(xs, initial_carry=theirs, seq_lengths=LENGTHS, reverse=reverse, keep_order=True)
    actual, outputs = scan_batch(NNX[name](cell), xs, ours, LENGTHS, reverse=reverse)
    assert_close(outputs, real(ys), TOL)
    assert_close(jax.tree.leaves(actual), in_our_order(name, carry), TOL)
