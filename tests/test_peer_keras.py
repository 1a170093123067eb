"""Differential tests with Keras on its JAX back end: both GRU forms, masks, directions, layers.

The tests use float32, since on this back end Keras computes parts of a float64 layer in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import GRAD_TOL, VALUE_TOL, assert_close
from peers import f64

keras = peers.peer("keras")
pytestmark = [
    pytest.mark.usefixtures("lenient"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*"),
]

TOL, GRAD_TOL = VALUE_TOL["float32"], GRAD_TOL["float32"]
BATCH, STEPS, INPUT, HIDDEN = 3, 5, 3, 4
LENGTHS = np.array([2, 5, 0])
MASK = np.arange(STEPS) < LENGTHS[:, None]


def data():
    rng = np.random.default_rng(1)
    xs, h = rng.standard_normal((BATCH, STEPS, INPUT)), rng.standard_normal((BATCH, HIDDEN))
    return xs.astype(np.float32), h.astype(np.float32)


def from_keras_gru_before(kernel, recurrent, bias):
    """The columns are z, r, h. z weighs the old state."""
    order = (1, 0, 2)
    return peers.gru(
        peers.split(kernel, 3, order, flip=(1,)),
        peers.split(recurrent, 3, order, flip=(1,)),
        peers.split(bias, 3, order, flip=(1,)),
        None,
        reset_after=False,
    )


def from_keras_gru_after(kernel, recurrent, bias):
    """There are two rows of biases. Only the recurrent bias of the candidate acts separately."""
    order = (1, 0, 2)
    b = f64(bias).sum(axis=0)
    b[2 * HIDDEN :] = f64(bias)[0, 2 * HIDDEN :]
    return peers.gru(
        peers.split(kernel, 3, order, flip=(1,)),
        peers.split(recurrent, 3, order, flip=(1,)),
        peers.split(b, 3, order, flip=(1,)),
        f64(bias)[1, 2 * HIDDEN :],
        reset_after=True,
    )


def from_keras_lstm(kernel, recurrent, bias):
    order = (0, 1, 2, 3)
    return peers.lstm(*(peers.split(w, 4, order) for w in (kernel, recurrent, bias)))


def from_keras_simple(kernel, recurrent, bias):
    return peers.elman(f64(kernel), f64(recurrent), f64(bias))


LAYERS = {
    "gru_after": ("GRU", {"reset_after": True}, from_keras_gru_after),
    "gru_before": ("GRU", {"reset_after": False}, from_keras_gru_before),
    "lstm": ("LSTM", {}, from_keras_lstm),
    "simple": ("SimpleRNN", {}, from_keras_simple),
}


def make(name, inputs=INPUT, seed=0, **more):
    kind, options, convert = LAYERS[name]
    layer = getattr(keras.layers, kind)(
        HIDDEN, return_sequences=True, return_state=True, dtype="float32", **options, **more
    )
    layer.build((BATCH, STEPS, inputs))
    rng = np.random.default_rng(seed)
    layer.set_weights([peers.random(rng, w.shape) for w in layer.weights])
    return layer, narrow(convert(*layer.get_weights()))


def narrow(params):
    return jax.tree.map(lambda w: w.astype(jnp.float32), params)


def starts(name, h):
    if name == "lstm":
        return [h, 0.5 * h], jaxgru.LSTMCarry(jnp.asarray(h), jnp.asarray(0.5 * h))
    return h, jnp.asarray(h)


def scan(params, xs, carry, **options):
    def run(xs, carry, length):
        return jaxgru.scan(params, xs, carry, length=length, **options)

    return jax.jit(jax.vmap(run))(jnp.asarray(xs), carry, LENGTHS)


def real(ys):
    """Set the outputs to zero where Keras repeats the last one."""
    return np.where(MASK[..., None], f64(ys), 0)


@pytest.mark.parametrize("name", LAYERS)
def test_values_with_lengths(name):
    """With a mask of only False, which is length 0, Keras returns the initial state, as we do."""
    layer, params = make(name)
    xs, h = data()
    theirs, ours = starts(name, h)
    ys, *state = layer(xs, mask=MASK, initial_state=theirs)
    carry, outputs = scan(params, xs, ours)
    assert_close(outputs, real(ys), TOL)
    assert_close(jax.tree.leaves(carry), [f64(part) for part in state], TOL)


@pytest.mark.parametrize("name", LAYERS)
def test_go_backwards_without_lengths(name):
    """Keras returns the outputs in the order in which it computed them, so they are flipped."""
    layer, params = make(name, go_backwards=True)
    xs, h = data()
    theirs, ours = starts(name, h)
    ys, *state = layer(xs, initial_state=theirs)
    run = jax.jit(jax.vmap(lambda x, c: jaxgru.scan(params, x, c, reverse=True)))
    carry, outputs = run(jnp.asarray(xs), ours)
    assert_close(outputs, f64(ys)[:, ::-1], TOL)
    assert_close(jax.tree.leaves(carry), [f64(part) for part in state], TOL)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    layer, params = make(name)
    xs, _ = data()
    weights = np.random.default_rng(2).standard_normal((BATCH, STEPS, HIDDEN)).astype(np.float32)
    others = [w.value for w in layer.non_trainable_variables]

    def theirs(variables, xs):
        (ys, *_), _ = layer.stateless_call(variables, others, xs)
        return jnp.sum(weights * ys)

    def ours(params, xs):
        return jnp.sum(weights * jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1])

    values = [w.value for w in layer.trainable_variables]
    expected, expected_dxs = jax.jit(jax.grad(theirs, argnums=(0, 1)))(values, jnp.asarray(xs))
    grads, dxs = jax.jit(jax.grad(ours, argnums=(0, 1)))(params, jnp.asarray(xs))
    assert_close(dxs, expected_dxs, GRAD_TOL)
    kernel, recurrent, bias = expected
    if name == "gru_after":
        # The two biases of a gate have the same gradient, so their sum would count it twice.
        bias = bias.at[1, : 2 * HIDDEN].set(0.0)
    assert_close(grads, LAYERS[name][2](kernel, recurrent, bias), GRAD_TOL)


def test_two_bidirectional_layers():
    xs, _ = data()
    ys, layers = xs, []
    for k, inputs in enumerate((INPUT, 2 * HIDDEN)):
        sides, params = zip(
            *(
                make("gru_after", inputs, seed=2 * k + back, go_backwards=bool(back))
                for back in (0, 1)
            ),
            strict=True,
        )
        ahead, back = (f64(side(ys)[0]) for side in sides)
        ys = np.concatenate([ahead, back[:, ::-1]], axis=-1).astype(np.float32)
        layers.append(jaxgru.Bidirectional(*params))
    _, outputs = jax.vmap(jaxgru.scan, in_axes=(None, 0))(
        jaxgru.Stack(tuple(layers)), jnp.asarray(xs)
    )
    assert_close(outputs, ys, TOL)
