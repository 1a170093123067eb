"""Equinox: weights that are read and written, against its own outputs, and wrong input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
import recipes
from cases import assert_close, assert_same, draw
from jaxgru.interop import from_equinox, to_equinox
from peers import TOL

eqx = peers.peer("equinox")
pytestmark = pytest.mark.usefixtures("x64", "lenient")

INPUT, HIDDEN = 3, 4


def make(name, use_bias=True):
    cell = getattr(eqx.nn, name)(INPUT, HIDDEN, use_bias, key=jax.random.key(0), dtype=jnp.float64)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: jnp.asarray(peers.random(rng, w.shape)) if eqx.is_array(w) else w, cell
    )


def compare(cell, params):
    rng = np.random.default_rng(1)
    x, h = jnp.asarray(rng.standard_normal(INPUT)), jnp.asarray(rng.standard_normal(HIDDEN))
    lstm = isinstance(params, jaxgru.LSTMParams)
    expected = cell(x, (h, 0.5 * h) if lstm else h)
    ours, _ = jaxgru.step(params, jaxgru.LSTMCarry(h, 0.5 * h) if lstm else h, x)
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(expected), TOL)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell"])
def test_both_ways(name, use_bias):
    cell = make(name, use_bias)
    params = from_equinox(cell)
    compare(cell, params)
    back = to_equinox(params)
    compare(back, params)
    assert back.use_bias == use_bias
    assert_same(jax.tree.leaves(back), jax.tree.leaves(cell))


def test_wrong_modules():
    expected = r"^from_equinox: cell must be an equinox GRUCell or LSTMCell, got Linear"
    with pytest.raises(TypeError, match=expected):
        from_equinox(eqx.nn.Linear(3, 4, key=jax.random.key(0)))
    turned = eqx.tree_at(lambda cell: cell.weight_ih, make("GRUCell"), replace_fn=jnp.transpose)
    expected = r"^from_equinox: 'weight_ih' must be .* \[12, 3\], got float64\[3, 12\]\. It seems"
    with pytest.raises(ValueError, match=expected):
        from_equinox(turned)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gru", r"GRUParams.reset_after must be True, got False"),
        (
            "elman",
            r"params must be GRUParams or LSTMParams, got ElmanParams\. Equinox has no plain",
        ),
    ],
)
def test_params_without_a_counterpart(kind, message):
    with pytest.raises((TypeError, ValueError), match=f"^to_equinox: .*{message}"):
        to_equinox(draw(kind))


@pytest.fixture
def x32():
    """64-bit types are off, as for users who switch nothing on."""
    with jax.enable_x64(False):
        yield


def test_the_model_of_the_page(tmp_path, x32):
    """docs/migrate/equinox.md: Equinox differentiates and saves a model with params in it."""
    (block,) = (b for b in recipes.blocks("migrate/equinox.md") if "class Tagger" in b)
    names = {"folder": tmp_path}
    exec(compile(block, "migrate/equinox.md", "exec"), names)
    model, grads = names["model"], names["grads"]
    drawn = names["Tagger"](jax.random.key(0))
    assert jax.tree.structure(grads) == jax.tree.structure(drawn)
    assert all(abs(g).max() > 0 for g in jax.tree.leaves(eqx.filter(grads.rnn, eqx.is_array)))
    cleared = jnp.zeros_like(drawn.rnn.layers[0].b)
    assert_same(model, eqx.tree_at(lambda m: m.rnn.layers[0].b, drawn, cleared))

    def mean(rnn):
        ys = jax.vmap(lambda xs, length: jaxgru.scan(rnn, xs, length=length)[1])(
            jnp.ones((5, 20, 3)), jnp.arange(5)
        )
        return jnp.mean(jax.vmap(jax.vmap(drawn.head))(ys) ** 2)

    # These are float32 sums of numbers below one.
    assert_close(names["value"], mean(drawn.rnn), 1e-6)
    assert_close(grads.rnn, jax.grad(mean)(drawn.rnn), 1e-5)


def test_the_form_of_a_cell_is_static():
    """A filter that takes arrays apart must keep the form. Another form is another program."""
    params = draw("gru_after")
    arrays, static = eqx.partition(params, eqx.is_array)
    assert static.reset_after
    assert_same(eqx.combine(arrays, static), params)
    run = eqx.filter_jit(jaxgru.scan)
    for kind in ("gru", "gru_after"):
        params, xs = draw(kind, bias=False), jnp.ones((5, INPUT))
        assert_close(run(params, xs), jaxgru.scan(params, xs), TOL)
