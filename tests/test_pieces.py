"""Feeding a sequence in pieces equals feeding it whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import (
    GRAD_TOL,
    STEPS,
    VALUE_TOL,
    assert_close,
    draw,
    draw_carry,
    draw_xs,
    only,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
# A Bidirectional needs the end of the sequence first, so it cannot run in pieces.
SHORT = ("lstm", "min_gru", "own_gru", "stack")
KINDS = ("gru", "gru_after", "lstm", "elman", "min_gru", "own_gru", "stack")


@pytest.mark.parametrize(
    ("kind", "cut"),
    [
        *((kind, 4) if kind in SHORT else slow(kind, 4) for kind in KINDS),
        *(("lstm", cut) for cut in (0, 1, STEPS)),
        *(slow(kind, cut) for kind in KINDS if kind != "lstm" for cut in (0, 1, STEPS)),
    ],
)
def test_two_pieces(kind, cut):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    reset = jnp.asarray(np.arange(STEPS) == 4)
    middle, first = jaxgru.scan(params, xs[:cut], carry, reset=reset[:cut])
    last, second = jaxgru.scan(params, xs[cut:], middle, reset=reset[cut:])
    expected = jaxgru.scan(params, xs, carry, reset=reset)
    assert_close((last, jnp.concatenate([first, second])), expected, TOL)


@pytest.mark.parametrize("kind", only(SHORT, KINDS))
def test_two_pieces_backwards(kind):
    params, xs = draw(kind), draw_xs()
    middle, second = jaxgru.scan(params, xs[4:], reverse=True)
    last, first = jaxgru.scan(params, xs[:4], middle, reverse=True)
    expected = jaxgru.scan(params, xs, reverse=True)
    assert_close((last, jnp.concatenate([first, second])), expected, TOL)


@pytest.mark.parametrize("kind", only(["stack"], KINDS))
def test_the_second_piece_may_be_all_padding(kind):
    params, xs = draw(kind), draw_xs()
    middle, _ = jaxgru.scan(params, xs[:4])
    last, _ = jaxgru.scan(params, xs[4:], middle, length=0)
    assert_close(last, jaxgru.scan(params, xs, length=4)[0], TOL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", only(["stack"], ("gru", "lstm", "own_gru", "stack")))
def test_gradients_flow_through_the_carry(kind):
    params, xs = draw(kind), draw_xs()

    def pieces(params):
        middle, first = jaxgru.scan(params, xs[:2])
        last, second = jaxgru.scan(params, xs[2:], middle)
        return weigh((last, jnp.concatenate([first, second])))

    def whole(params):
        return weigh(jaxgru.scan(params, xs))

    assert_close(
        jax.jit(jax.grad(pieces))(params), jax.jit(jax.grad(whole))(params), GRAD_TOL["float64"]
    )
