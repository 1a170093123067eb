"""`length`: the padding has no effect, whatever it holds."""

import functools

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
    KINDS,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    each_way,
    only,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
LENGTHS = (0, 1, 3, STEPS)


@functools.cache
def compiled(kind, reverse):
    return jax.jit(lambda p, xs, c, length: jaxgru.scan(p, xs, c, length=length, reverse=reverse))


@functools.cache
def compiled_grad(kind, reverse, checkpoint=None):
    def loss(p, xs, c, length):
        return weigh(jaxgru.scan(p, xs, c, length=length, reverse=reverse, checkpoint=checkpoint))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def pad(xs, length, filling):
    return np.where(np.arange(xs.shape[0])[:, None] < length, xs, filling)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_equals_slicing_first(kind, reverse):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    for length in LENGTHS:
        last, ys = jax.device_get(compiled(kind, reverse)(params, xs, carry, length))
        real = np.asarray(xs)[:length]
        expected_last, expected = oracle.scan(params, real, carry, reverse=reverse)
        assert_close(last, expected_last, TOL)
        assert_close(ys[:length], expected, TOL)
        assert_same(ys[length:], np.zeros_like(ys[length:]))


@pytest.mark.parametrize("kind", only(["mixed"], KINDS))
@pytest.mark.parametrize("length", [0, 1, STEPS])
def test_a_concrete_length_is_a_traced_one(kind, length):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    traced = compiled(kind, False)(params, xs, carry, length)
    for concrete in (length, np.int32(length), jnp.asarray(length, jnp.int32)):
        assert_close(jaxgru.scan(params, xs, carry, length=concrete), traced, TOL)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_length_zero_returns_the_initial_carry(kind, reverse):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    last, ys = compiled(kind, reverse)(params, xs, carry, 0)
    assert_same(last, carry)
    assert_same(ys, jnp.zeros_like(ys))
    last, _ = jaxgru.scan(params, xs, length=0)
    assert_same(last, jaxgru.initial_carry(params))


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_nan_and_inf_in_padding_change_nothing(kind, reverse):
    """Values and gradients are bit-equal, and the gradient of the padding is exactly zero."""
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    for length in LENGTHS:
        expected = compiled(kind, reverse)(params, pad(xs, length, 0.0), carry, length)
        expected_grads = compiled_grad(kind, reverse)(params, pad(xs, length, 0.0), carry, length)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(expected_grads))
        for filling in (jnp.nan, jnp.inf, -jnp.inf, 1e300):
            dirty = pad(xs, length, filling)
            assert_same(compiled(kind, reverse)(params, dirty, carry, length), expected)
            grads = compiled_grad(kind, reverse)(params, dirty, carry, length)
            assert_same(grads, expected_grads)
            dxs = np.asarray(grads[1][1])
            assert_same(dxs[length:], np.zeros_like(dxs[length:]))
            if length:
                assert np.all(np.any(dxs[:length] != 0, axis=1))


@pytest.mark.parametrize("kind", only(["bidirectional"], (*CELLS, "bidirectional")))
def test_padding_with_checkpoint(kind):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    for length in LENGTHS:
        expected = compiled_grad(kind, False, 4)(params, pad(xs, length, 0.0), carry, length)
        dirty = compiled_grad(kind, False, 4)(params, pad(xs, length, jnp.nan), carry, length)
        assert_same(dirty, expected)
        assert not np.any(np.asarray(dirty[1][1])[length:])


@pytest.mark.parametrize("kind", only(["lstm"], CELLS))
def test_padding_in_forward_mode(kind):
    """The tangent of the padding may be NaN, since it belongs to no real step."""
    params, xs = draw(kind), draw_xs()
    length = 3

    @jax.jit
    def run(xs, tangent):
        return jax.jvp(lambda xs: jaxgru.scan(params, xs, length=length), (xs,), (tangent,))

    def push(filling):
        dirty, tangent = pad(xs, length, filling), pad(draw_xs(seed=9), length, filling)
        return run(dirty, tangent)

    assert_same(push(jnp.nan), push(0.0))


@pytest.mark.parametrize("kind", ["gru", "own_gru"])
def test_nan_in_a_real_step_is_not_hidden(kind):
    """Masks must not hide errors in the real data."""
    params, xs = draw(kind), draw_xs()
    last, ys = compiled(kind, False)(params, xs.at[1].set(jnp.nan), draw_carry(params), 3)
    assert jnp.all(jnp.isnan(last))
    assert jnp.all(jnp.isfinite(ys[0]))
    assert jnp.all(jnp.isnan(ys[1:3]))
    assert_same(ys[3:], jnp.zeros_like(ys[3:]))


@pytest.mark.parametrize(("given", "acts_as"), [(-3, 0), (STEPS + 9, STEPS)])
def test_a_traced_length_out_of_range_is_clipped(given, acts_as):
    params, xs = draw("gru"), draw_xs()
    carry = draw_carry(params)
    run = compiled("gru", False)
    assert_same(run(params, xs, carry, given), run(params, xs, carry, acts_as))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64"])
def test_any_integer_dtype(dtype):
    params, xs = draw("gru"), draw_xs()
    length = np.asarray(3, dtype)
    expected = oracle.scan(params, xs, length=3)
    assert_close(jaxgru.scan(params, xs, length=length), expected, TOL)
    assert_close(compiled("gru", False)(params, xs, jnp.zeros(4), length), expected, TOL)


def test_a_long_sequence_with_a_short_integer_length():
    """200 steps exceed int8, so a comparison in the dtype of length would wrap around."""
    params, xs = draw("gru"), draw_xs(200)
    length = np.int8(100)
    run = compiled("gru", False)
    expected = run(params, xs, jnp.zeros(4), 100)
    assert_same(run(params, xs, jnp.zeros(4), length), expected)
    assert_close(jaxgru.scan(params, xs, length=length), expected, TOL)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
@settings(max_examples=8)
@given(length=st.integers(0, STEPS), filling=st.sampled_from([0.0, 1e30, np.nan, np.inf]))
def test_any_length(kind, length, reverse, filling):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    actual = compiled(kind, reverse)(params, pad(xs, length, filling), carry, length)
    expected = oracle.scan(params, xs, carry, length=length, reverse=reverse)
    assert_close(actual, expected, TOL)
