"""Keras: weights that are read and written, against its own outputs, and wrong input.

The tests use float32, since on this back end Keras computes parts of a float64 layer in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close, assert_same, draw
from jaxgru.interop import from_keras, to_keras

keras = peers.peer("keras")
pytestmark = [
    pytest.mark.usefixtures("lenient"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*"),
]


@pytest.fixture(autouse=True)
def narrow():
    """Without biases, Keras lets float64 into its loop if 64-bit types are on."""
    with jax.enable_x64(False):
        yield


#: For two float32 evaluations of five steps. Errors stay below 20 ulp of numbers of order one.
TOL = 2e-6
BATCH, STEPS, INPUT, HIDDEN = 3, 5, 3, 4
KINDS = {
    "gru": ("GRU", {}),
    "gru before": ("GRU", {"reset_after": False}),
    "lstm": ("LSTM", {}),
    "simple": ("SimpleRNN", {}),
}


def make(name, seed=0, **more):
    kind, options = KINDS[name]
    layer = getattr(keras.layers, kind)(HIDDEN, return_sequences=True, **options, **more)
    return fill(layer, seed)


def fill(layer, seed=0):
    layer.build((BATCH, STEPS, INPUT))
    rng = np.random.default_rng(seed)
    layer.set_weights([peers.random(rng, w.shape) for w in layer.weights])
    return layer


def data():
    return np.random.default_rng(1).standard_normal((BATCH, STEPS, INPUT)).astype(np.float32)


def outputs(params):
    return jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, jnp.asarray(data()))[1]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("use_bias", [True, False])
def test_both_ways(name, use_bias):
    layer = make(name, use_bias=use_bias)
    params = from_keras(layer)
    assert_close(outputs(params), layer(data()), TOL)
    assert_same(from_keras(layer.cell), params)

    other = make(name, seed=1, use_bias=use_bias)
    to_keras(params, other)
    assert_close(other(data()), layer(data()), TOL)
    assert_same(from_keras(other), params)


@pytest.mark.parametrize("name", KINDS)
def test_bidirectional(name):
    def both(seed):
        kind, options = KINDS[name]
        layer = getattr(keras.layers, kind)(HIDDEN, return_sequences=True, **options)
        return fill(keras.layers.Bidirectional(layer), seed)

    layer, other = both(0), both(1)
    params = from_keras(layer)
    assert isinstance(params, jaxgru.Bidirectional)
    assert_close(outputs(params), layer(data()), TOL)
    to_keras(params, other)
    assert_same(from_keras(other), params)


def test_params_without_biases_write_zeros():
    layer = make("lstm")
    bare = draw("lstm", dtype="float32", bias=False)
    to_keras(bare, layer)
    assert_close(outputs(bare), layer(data()), TOL)


WRONG_LAYERS = {
    "kind": (lambda: keras.layers.Dense(3), r"layer must be a keras GRU, .* got Dense"),
    "no layer": (lambda: [1, 2], r"layer must be a keras GRU, .* got list"),
    "not built": (lambda: keras.layers.GRU(4), r"layer must be built, got a layer without weights"),
    "activation": (lambda: make("gru", activation="relu"), r"activation must be 'tanh', got"),
    "gate": (
        lambda: make("lstm", recurrent_activation="hard_sigmoid"),
        r"recurrent_activation must be 'sigmoid', got 'hard_sigmoid'",
    ),
    "direction": (lambda: make("gru", go_backwards=True), r"go_backwards must be False, got True"),
    "merge": (
        lambda: fill(keras.layers.Bidirectional(keras.layers.GRU(4), merge_mode="sum")),
        r"merge_mode must be 'concat', got 'sum'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_wrong_layers(name):
    make_layer, message = WRONG_LAYERS[name]
    with pytest.raises((TypeError, ValueError), match=f"^from_keras: .*{message}"):
        from_keras(make_layer())


def drawn(kind, *sizes):
    return draw(kind, *sizes, dtype="float32")


WRONG_TARGETS = {
    "reset after": (
        lambda: (drawn("gru_after"), make("gru before")),
        r"GRUParams.reset_after must be False, got True\. .* never fit the other",
    ),
    "reset before": (
        lambda: (drawn("gru"), make("gru")),
        r"GRUParams.reset_after must be True, got False",
    ),
    "kind": (
        lambda: (drawn("lstm"), make("gru")),
        r"params must be GRUParams, as for layer, got LSTMParams",
    ),
    "input size": (
        lambda: (drawn("lstm", 5, 4), make("lstm")),
        r"'kernel' must be of shape \[5, 16\], as in params, got \[3, 16\]",
    ),
    "hidden size": (
        lambda: (drawn("elman", 3, 5), make("simple")),
        r"'kernel' must be of shape \[3, 5\], as in params, got \[3, 4\]",
    ),
    "biases": (
        lambda: (drawn("elman"), make("simple", use_bias=False)),
        r"layer must be made with use_bias=True, got use_bias=False",
    ),
    "one direction": (
        lambda: (drawn("gru"), fill(keras.layers.Bidirectional(keras.layers.GRU(4)))),
        r"params must be a Bidirectional, since layer is one, got GRUParams",
    ),
    "two directions": (
        lambda: (jaxgru.Bidirectional(drawn("gru"), drawn("gru")), make("gru before")),
        r"params must be .*GRUParams.*, got Bidirectional",
    ),
}


@pytest.mark.parametrize("name", WRONG_TARGETS)
def test_wrong_targets(name):
    make_both, message = WRONG_TARGETS[name]
    params, layer = make_both()
    before = layer.get_weights()
    with pytest.raises((TypeError, ValueError), match=f"^to_keras: .*{message}"):
        to_keras(params, layer)
    for now, then in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
