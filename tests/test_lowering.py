"""Arrays with the batch before time are not transposed as a whole, and give the same bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import BUILT_IN, INPUT, assert_same, draw, only, planned, slow
from jaxgru import backends

BATCH, STEPS, HIDDEN = 3, 19, 4
#: Two stretches of eight steps, and a rest.
STRETCHES = {"hoisted": 0, "in_loop": 0, "rows": 24, "backward": 1}


def draw_arrays(*shapes):
    rng = np.random.default_rng(7)
    return [jnp.asarray(rng.standard_normal(shape), "float32") for shape in shapes]


def everything(run, params, xs, dxs, cts):
    """The outputs, their gradients, and their tangent."""

    @jax.jit
    def both(params, xs, dxs, cts):
        out, pullback = jax.vjp(run, params, xs)
        tangent = jax.jvp(lambda xs: run(params, xs), (xs,), (dxs,))[1]
        return out, pullback(cts), tangent

    return both(params, xs, dxs, cts)


def assert_same_bits(*problem):
    """Compare with programs that read arrays with time first."""
    with planned(**STRETCHES):
        found = everything(*problem)
    with planned(**STRETCHES, batch_first=False):
        assert_same(found, everything(*problem))


@pytest.mark.parametrize("reverse", [False, slow(True)])
@pytest.mark.parametrize("kind", only(["gru", "lstm"], BUILT_IN))
def test_the_same_bits(kind, reverse):
    params = draw(kind, INPUT, HIDDEN, "float32")
    arrays = draw_arrays(*[(BATCH, STEPS, INPUT)] * 2, (BATCH, STEPS, HIDDEN))

    def run(params, xs):
        return jax.vmap(lambda xs: jaxgru.scan(params, xs, reverse=reverse)[1])(xs)

    assert_same_bits(run, params, *arrays)


@pytest.mark.parametrize("axes", [(0, 0), slow((0, 1)), slow((1, 0)), slow((1, 1))])
def test_the_same_bits_for_a_population(axes):
    """The networks may come before or after time, and so may their batches."""
    outer, inner = axes
    params = [draw("gru_after", INPUT, HIDDEN, "float32", seed=k) for k in range(2)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    shape = [STEPS]
    shape.insert(inner, BATCH)
    shape.insert(outer, 2)
    arrays = draw_arrays((*shape, INPUT), (*shape, INPUT), (*shape, HIDDEN))

    def run(params, xs):
        def one(params, xs):
            return jax.vmap(lambda xs: jaxgru.scan(params, xs)[1], inner, inner)(xs)

        return jax.vmap(one, (0, outer), outer)(params, xs)

    assert_same_bits(run, params, *arrays)


def test_no_array_is_transposed_as_a_whole():
    """Without the copy, the temporary memory is smaller by about the size of the cotangents."""
    steps, batch, hidden = 600, 32, 128
    params = draw("gru_after", 2, hidden, "float32")
    arrays = [jnp.zeros((batch, steps, size), "float32") for size in (2, hidden)]

    def gradient(params, xs, cts):
        return jax.vjp(jax.vmap(jaxgru.scan, (None, 0)), params, xs)[1](cts)

    def memory():
        compiled = jax.jit(lambda params, xs, cts: gradient(params, xs, (cts[:, -1], cts)))
        analysis = compiled.lower(params, *arrays).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    with planned():
        found = memory()
    with planned(batch_first=False):
        assert found < memory() - 0.9 * arrays[1].nbytes


def test_equal_layers_are_lowered_once(monkeypatch):
    """The first layer differs from the others, since its inputs have the batch before time."""
    params = jaxgru.stack_init(jax.random.key(0), HIDDEN, HIDDEN, num_layers=4)
    xs = jnp.zeros((BATCH, STEPS, HIDDEN), "float32")
    plan, lowered = backends.plan, []
    monkeypatch.setattr(backends, "plan", lambda *of: lowered.append(of) or plan(*of))
    jax.jit(jax.vmap(jaxgru.scan, (None, 0))).lower(params, xs)
    assert len(lowered) == 2
