"""flax.linen: weights that are read and written, against its own outputs, and wrong input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close, assert_same, draw
from jaxgru.interop import from_linen, to_linen
from peers import TOL

linen = peers.peer("flax.linen")
pytestmark = pytest.mark.usefixtures("x64", "lenient")

STEPS, INPUT, HIDDEN = 5, 3, 4
KINDS = ("GRUCell", "LSTMCell", "OptimizedLSTMCell", "SimpleCell")


def data():
    return jnp.asarray(np.random.default_rng(1).standard_normal((STEPS, INPUT)))


def make(name):
    """Return (a module that unrolls the cell, the weights of the cell)."""
    rnn = linen.RNN(getattr(linen, name)(HIDDEN, param_dtype=jnp.float64))
    tree = rnn.init(jax.random.key(0), data())["params"]["cell"]
    rng = np.random.default_rng(0)
    return rnn, jax.tree.map(lambda w: jnp.asarray(peers.random(rng, w.shape)), tree)


def outputs(rnn, tree):
    return rnn.apply({"params": {"cell": tree}}, data())


@pytest.mark.parametrize("name", KINDS)
def test_both_ways(name):
    rnn, tree = make(name)
    params = from_linen({"params": tree})
    assert_same(from_linen(tree), params)
    assert_close(jaxgru.scan(params, data())[1], outputs(rnn, tree), TOL)
    back = to_linen(params)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert_same(jax.tree.map(jnp.asarray, back), tree)


@pytest.mark.parametrize(
    ("kind", "name"), [("gru_after", "GRUCell"), ("lstm", "LSTMCell"), ("elman", "SimpleCell")]
)
def test_without_biases(kind, name):
    params = draw(kind, bias=False)
    rnn, tree = make(name)
    zeros = to_linen(params)
    assert jax.tree.structure(zeros) == jax.tree.structure(tree)
    assert_close(outputs(rnn, zeros), jaxgru.scan(params, data())[1], TOL)


def gru(**more):
    return dict(make("GRUCell")[1]) | more


WRONG = {
    "another module": (
        lambda: {"params": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}},
        r"variables must be the weights of a GRUCell, .*, got 'kernel', 'bias'",
    ),
    "a model": (
        lambda: {"params": {"rnn": {"cell": gru()}}},
        r"got 'rnn'\. Pass the part of a model's variables that belongs to the cell",
    ),
    "a missing layer": (
        lambda: {k: v for k, v in gru().items() if k != "hn"},
        r"'hn/kernel' must be given, with shape \[4, 4\]",
    ),
    "a missing bias": (
        lambda: gru(hn={"kernel": gru()["hn"]["kernel"]}),
        r"'hn/bias' must be given, with shape \[4\]",
    ),
    "a transposed matrix": (
        lambda: gru(iz={"kernel": jnp.ones((4, 3)), "bias": jnp.ones(4)}),
        r"'iz/kernel' must be an array of shape \[3, 4\], got float64\[4, 3\]\. It seems to be",
    ),
    "more": (lambda: gru(head={"kernel": jnp.ones((4, 1))}), r"also 'head/kernel'"),
    "no mapping": (lambda: jnp.ones(3), r"variables must be a mapping, the variables of a cell"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_weights(name):
    make_variables, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=f"^from_linen: .*{message}"):
        from_linen(make_variables())


def test_reset_before_has_no_counterpart():
    message = r"^to_linen: GRUParams.reset_after must be True, got False\. .* never fit the other"
    with pytest.raises(ValueError, match=message):
        to_linen(draw("gru"))
