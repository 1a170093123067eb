"""`scan` against the NumPy loop, for every kind of params and every option."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxgru
import oracle
from cases import (
    CELLS,
    HIDDEN,
    INPUT,
    KINDS,
    SHORT,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    each_way,
    only,
    slow,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
RESET = np.array([False, True, False, False, True, False])


@pytest.mark.parametrize("kind", KINDS)
def test_values(kind):
    params, xs = draw(kind), draw_xs()
    assert_close(jaxgru.scan(params, xs), oracle.scan(params, xs), TOL)


@pytest.mark.parametrize("kind", only(CELLS, KINDS))
def test_values_without_biases(kind):
    params, xs = draw(kind, bias=False), draw_xs()
    assert_close(jaxgru.scan(params, xs), oracle.scan(params, xs), TOL)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS, SHORT))
def test_values_with_every_option_at_once(kind, reverse):
    params, xs = draw(kind), draw_xs()
    carry, reset_carry = draw_carry(params, 7), draw_carry(params, 8)
    options = {"length": 5, "reset": RESET, "reset_carry": reset_carry, "reverse": reverse}
    actual = jaxgru.scan(params, xs, carry, **options, checkpoint=2)
    assert_close(actual, oracle.scan(params, xs, carry, **options), TOL)


@pytest.mark.parametrize("kind", only(("lstm", "mixed"), KINDS))
def test_a_carry_of_zeros_is_no_carry(kind):
    params, xs = draw(kind), draw_xs()
    zeros = jaxgru.initial_carry(params)
    assert_same(jaxgru.scan(params, xs, zeros), jaxgru.scan(params, xs))
    reset = jnp.asarray(RESET)
    assert_same(
        jaxgru.scan(params, xs, reset=reset, reset_carry=zeros),
        jaxgru.scan(params, xs, reset=reset),
    )


@pytest.mark.parametrize("kind", only(("gru_after", "elman", "min_gru", "mixed"), KINDS))
def test_reverse_is_flip_scan_flip(kind):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    last, ys = jaxgru.scan(params, jnp.flip(xs, 0), carry)
    assert_close(jaxgru.scan(params, xs, carry, reverse=True), (last, jnp.flip(ys, 0)), TOL)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_no_steps(kind, reverse):
    """With T = 0 the carry is returned, and there are no outputs. Gradients are the identity."""
    params, xs = draw(kind), draw_xs(0)
    carry = draw_carry(params)
    last, ys = jaxgru.scan(params, xs, carry, length=0, reset=jnp.zeros(0, bool), reverse=reverse)
    assert_same(last, carry)
    assert ys.shape == (0, oracle.output_size(params))
    assert ys.dtype == xs.dtype
    total = jax.grad(lambda p, c: weigh_ones(jaxgru.scan(p, xs, c)[0]), argnums=(0, 1))
    grads = jax.jit(total)(params, carry)
    assert_same(grads, (jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.ones_like, carry)))


def weigh_ones(tree):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", only(CELLS, KINDS))
def test_one_step_one_unit_one_input(kind):
    params, xs = draw(kind, inputs=1, hidden=1), draw_xs(1, 1)
    carry = draw_carry(params)
    assert_close(jaxgru.scan(params, xs, carry), oracle.scan(params, xs, carry), TOL)


@pytest.mark.parametrize(
    ("kind", "k"),
    [
        *(("gru", k) for k in (1, 4, STEPS)),
        *(("lstm", k) for k in (2, STEPS - 1, STEPS + 5)),
        *(slow("gru", k) for k in (2, 3, STEPS - 1, STEPS + 5)),
        *(slow("lstm", k) for k in (1, 3, 4, STEPS)),
    ],
)
def test_checkpoint_changes_no_value(kind, k):
    params, xs = draw(kind), draw_xs()
    options = {"length": 5, "reset": jnp.asarray(RESET)}
    actual = jaxgru.scan(params, xs, checkpoint=k, **options)
    assert_close(actual, jaxgru.scan(params, xs, **options), TOL)


def test_outputs_of_an_lstm_are_its_h():
    params, xs = draw("lstm"), draw_xs()
    carry, ys = jaxgru.scan(params, xs)
    assert isinstance(carry, jaxgru.LSTMCarry)
    assert_same(ys[-1], carry.h)


def test_numpy_arrays_are_taken_as_they_are():
    params, xs = draw("gru"), draw_xs()
    as_numpy = jax.tree.map(np.asarray, params)
    assert_close(jaxgru.scan(as_numpy, np.asarray(xs)), jaxgru.scan(params, xs), TOL)


def test_a_single_step_is_step():
    params, xs = draw("stack"), draw_xs(1)
    carry = draw_carry(params)
    assert_close(jaxgru.scan(params, xs, carry)[0], jaxgru.step(params, carry, xs[0])[0], TOL)


# Every new shape compiles, so there are few examples. Those of `test_length.py` and
# `test_reset.py` keep the shape and trace the rest.
@settings(max_examples=8)
@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(0, 5),
    inputs=st.integers(1, 4),
    hidden=st.integers(1, 4),
    reverse=st.booleans(),
    data=st.data(),
)
def test_values_of_any_shape(kind, steps, inputs, hidden, reverse, data):
    params, xs = draw(kind, inputs, hidden), draw_xs(steps, inputs)
    carry = draw_carry(params)
    options = {
        "length": data.draw(st.integers(0, steps), "length"),
        "reset": np.array(
            data.draw(st.lists(st.booleans(), min_size=steps, max_size=steps), "reset"), bool
        ),
        "reverse": reverse,
    }
    actual = jaxgru.scan(params, xs, carry, **options)
    assert_close(actual, oracle.scan(params, xs, carry, **options), TOL)


def test_shapes_come_back_as_documented():
    params, xs = draw("mixed"), draw_xs()
    _, ys = jaxgru.scan(params, xs)
    assert ys.shape == (STEPS, HIDDEN)
    assert xs.shape == (STEPS, INPUT)
