"""Haiku: weights that are read and written, against its own outputs, and wrong input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close, assert_same, draw
from jaxgru.interop import from_haiku, to_haiku
from peers import TOL

hk = peers.peer("haiku")
pytestmark = pytest.mark.usefixtures("x64", "lenient")

STEPS, INPUT, HIDDEN = 5, 3, 4


def unroll(core):
    def run(xs):
        cell = core(HIDDEN)
        return hk.dynamic_unroll(cell, xs, cell.initial_state(None))[0]

    return hk.without_apply_rng(hk.transform(run))


def data():
    return jnp.asarray(np.random.default_rng(1).standard_normal((STEPS, INPUT)))


def weights_of(net):
    rng = np.random.default_rng(0)
    tree = net.init(jax.random.key(0), data())
    return jax.tree.map(lambda w: jnp.asarray(peers.random(rng, w.shape)), tree)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_both_ways(name):
    net = unroll(getattr(hk, name))
    weights = weights_of(net)
    params = from_haiku(weights)
    assert_close(jaxgru.scan(params, data())[1], net.apply(weights, data()), TOL)

    back = to_haiku(params)
    assert back.keys() == weights.keys()
    assert_close(net.apply(back, data()), net.apply(weights, data()), TOL)
    # Adding and subtracting 1 may change the last bit of the forget bias.
    assert_close(from_haiku(back), params, 1e-15 if name == "LSTM" else 0)


def test_without_biases():
    params = draw("gru", bias=False)
    ys = unroll(hk.GRU).apply(to_haiku(params), data())
    assert_close(ys, jaxgru.scan(params, data())[1], TOL)


def test_one_of_several_modules():
    params = draw("lstm")
    several = to_haiku(params, "net/lstm/linear") | {"head": {"w": jnp.ones((4, 1))}}
    assert_close(from_haiku(several, "net/lstm/linear"), params, 1e-15)
    assert_same(to_haiku(params, "a")["a"], to_haiku(params)["lstm/linear"])


def gru(**more):
    return {"gru": dict(to_haiku(draw("gru"))["gru"]) | more}


WRONG = {
    "relu": (lambda: weights_of(unroll(hk.VanillaRNN)), r"got VanillaRNN\. .*relu"),
    "several": (lambda: gru() | {"head": {}}, r"be those of one module, got 'gru', 'head'"),
    "a transposed matrix": (
        lambda: gru(w_i=jnp.ones((12, 3))),
        r"'w_i' must be an array of shape \[I, 12\], got float64\[12, 3\]\. It seems to be",
    ),
    "missing": (
        lambda: {"gru": {"w_h": jnp.ones((4, 12)), "b": jnp.ones(12)}},
        r"'w_i' must be given, with shape \[I, 12\], got only 'w_h', 'b'",
    ),
    "another module": (lambda: {"linear": {"scale": jnp.ones(3)}}, r"'b' must be given"),
    "more": (lambda: gru(scale=jnp.ones(3)), r"also 'scale'"),
    "no mapping": (lambda: jnp.ones(3), r"params must be a mapping of module names"),
    "an LSTM without inputs": (
        lambda: {"lstm": {"w": jnp.ones((4, 16)), "b": jnp.ones(16)}},
        r"'w' must be an array with more than 4 rows, I \+ H, got 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights(name):
    make, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=f"^from_haiku: .*{message}"):
        from_haiku(make())


def test_wrong_name():
    with pytest.raises(
        ValueError, match=r"^from_haiku: name must be the name of a module \('gru'\), got 'rnn'"
    ):
        from_haiku(gru(), "rnn")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gru_after", r"GRUParams.reset_after must be False, got True"),
        ("elman", r"params must be GRUParams or LSTMParams, got ElmanParams\. .*relu"),
        ("stack", r"params must be GRUParams or LSTMParams, got Stack"),
    ],
)
def test_params_without_a_counterpart(kind, message):
    with pytest.raises((TypeError, ValueError), match=f"^to_haiku: .*{message}"):
        to_haiku(draw(kind))
