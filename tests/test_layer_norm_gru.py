"""The GRU with layer norms: the effect of the norms in each form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import HIDDEN, VALUE_TOL, assert_close, draw, draw_xs, weigh

pytestmark = pytest.mark.usefixtures("x64")
TOL = VALUE_TOL["float64"]


def scaled(params, inputs, states):
    return dataclasses.replace(params, w_ih=inputs * params.w_ih, w_hh=states * params.w_hh)


def test_what_the_norms_cancel():
    """The norms cancel the size of all weights in one form, and that of each side in the other.

    The factors are so large that eps is below rounding beside their squares.
    """
    together, apart, xs = draw("layer_norm_gru"), draw("layer_norm_gru_separate"), draw_xs()
    run = jax.jit(jaxgru.scan)
    large = run(scaled(together, 1e7, 1e7), xs)
    assert_close(run(scaled(together, 1e8, 1e8), xs), large, TOL)
    assert np.max(np.abs(run(scaled(together, 1e8, 1e7), xs)[1] - large[1])) > 1e-2
    # The first step has the state zero, so this starts from a state of ones.
    start = jnp.ones_like(jaxgru.initial_carry(apart))
    large = run(scaled(apart, 1e7, 1e7), xs, start)
    assert_close(run(scaled(apart, 1e8, 1e7), xs, start), large, TOL)
    assert_close(run(scaled(apart, 1e7, 1e8), xs, start), large, TOL)


@pytest.mark.parametrize("separate", [False, True])
def test_where_there_is_nothing_to_normalize(separate):
    """At zero state and input the variance is zero, where its root has no derivative."""
    params = draw("layer_norm_gru_separate" if separate else "layer_norm_gru", bias=False)
    loss = lambda *arguments: weigh(jaxgru.scan(*arguments))  # noqa: E731
    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, jnp.zeros((5, 3)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_fresh_cell_keeps_more_than_it_takes_in():
    """On average z is sigmoid(-1) in the form of DreamerV2, and 1/2 in the other form."""
    for separate, expected in ((False, 1 / (1 + np.e)), (True, 0.5)):
        params = draw("layer_norm_gru_separate" if separate else "layer_norm_gru", bias=False)
        # Without gains all pre-activations and the candidate are zero, so h' = (1 - z) h.
        zero = dataclasses.replace(params, gain=jnp.zeros_like(params.gain))
        h = jax.jit(jaxgru.layer_norm_gru_step)(zero, jnp.ones(HIDDEN), draw_xs()[0])
        assert_close(h, np.full(HIDDEN, 1 - expected), TOL)
