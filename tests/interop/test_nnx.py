"""flax.nnx: weights that are read and written, against its own outputs, and wrong input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close, assert_same, draw
from jaxgru.interop import from_nnx, to_nnx
from peers import TOL

nnx = peers.peer("flax.nnx")
pytestmark = pytest.mark.usefixtures("x64", "lenient")

STEPS, INPUT, HIDDEN = 5, 3, 4
KINDS = ("GRUCell", "LSTMCell", "OptimizedLSTMCell", "SimpleCell")


def data():
    return jnp.asarray(np.random.default_rng(1).standard_normal((1, STEPS, INPUT)))


def make(name, **options):
    options |= {"dtype": jnp.float64, "param_dtype": jnp.float64}
    cell = getattr(nnx, name)(INPUT, HIDDEN, rngs=nnx.Rngs(0), **options)
    rng = np.random.default_rng(0)
    weights = nnx.state(cell, nnx.Param)
    nnx.update(cell, jax.tree.map(lambda w: jnp.asarray(peers.random(rng, w.shape)), weights))
    return cell


@pytest.mark.parametrize("name", KINDS)
def test_both_ways(name):
    cell = make(name)
    params = from_nnx(cell)
    assert_close(jaxgru.scan(params, data()[0])[1], nnx.RNN(cell)(data())[0], TOL)
    back = to_nnx(params)
    assert_close(nnx.RNN(back)(data()), nnx.RNN(cell)(data()), TOL)
    assert_same(from_nnx(back), params)


def test_without_biases():
    params = draw("lstm", bias=False)
    assert_close(nnx.RNN(to_nnx(params))(data())[0], jaxgru.scan(params, data()[0])[1], TOL)


def test_the_missing_bias():
    """An nnx.GRUCell has no b_hn, so only zeros can be written."""
    params = draw("gru_after")
    message = r"^to_nnx: GRUParams.b_hn must be zero or None, .*, got other values\. jaxgru.interop"
    with pytest.raises(ValueError, match=message):
        to_nnx(params)
    for b_hn in (None, jnp.zeros_like(params.b_hn)):
        bare = dataclasses.replace(params, b_hn=b_hn)
        assert_close(nnx.RNN(to_nnx(bare))(data())[0], jaxgru.scan(bare, data()[0])[1], TOL)


WRONG = {
    "kind": (lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0)), r"cell must be an nnx GRUCell, .* Linear"),
    "a layer": (lambda: nnx.RNN(make("GRUCell")), r"cell must be an nnx GRUCell, .* got RNN"),
    "gate": (
        lambda: make("GRUCell", gate_fn=jax.nn.hard_sigmoid),
        r"gate_fn must be .*sigmoid, got hard_sigmoid",
    ),
    "activation": (
        lambda: make("LSTMCell", activation_fn=jax.nn.relu),
        r"activation_fn must be .*tanh, got relu",
    ),
    "residual": (lambda: make("SimpleCell", residual=True), r"residual must be False, got True"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_modules(name):
    make_cell, message = WRONG[name]
    with pytest.raises((TypeError, ValueError), match=f"^from_nnx: .*{message}"):
        from_nnx(make_cell())


def test_a_transposed_matrix():
    cell = make("OptimizedLSTMCell")
    cell.dense_i.kernel = nnx.Param(cell.dense_i.kernel[...].T)
    message = (
        r"^from_nnx: 'dense_i/kernel' must be an array of shape \[3, 16\], got float64\[16, 3\]"
    )
    with pytest.raises(ValueError, match=message):
        from_nnx(cell)


def test_reset_before_has_no_counterpart():
    with pytest.raises(ValueError, match=r"^to_nnx: GRUParams.reset_after must be True, got False"):
        to_nnx(draw("gru"))
