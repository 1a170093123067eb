"""`reset`: one packed sequence equals its segments run one by one, in both directions."""

import functools
import itertools

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
    GRAD_TOL,
    KINDS,
    LAYERS,
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
NONE = np.zeros(STEPS, bool)


def at(*steps):
    reset = NONE.copy()
    reset[list(steps)] = True
    return reset


@functools.cache
def compiled(kind, reverse):
    return jax.jit(
        lambda p, xs, c, reset, rc, length: jaxgru.scan(
            p, xs, c, reset=reset, reset_carry=rc, length=length, reverse=reverse
        )
    )


@pytest.mark.parametrize(("kind", "reverse"), each_way(CELLS))
def test_equals_separate_segments(kind, reverse):
    """The expectation uses the `scan` of the library for each segment, and not the oracle."""
    params, xs = draw(kind), draw_xs()
    cuts = [0, 2, 5, STEPS]
    last, ys = jaxgru.scan(params, xs, reset=jnp.asarray(at(2, 5)), reverse=reverse)
    parts = [jaxgru.scan(params, xs[a:b], reverse=reverse) for a, b in itertools.pairwise(cuts)]
    assert_close(ys, jnp.concatenate([part[1] for part in parts]), TOL)
    assert_close(last, parts[0 if reverse else -1][0], TOL)


@pytest.mark.parametrize("kind", only(["mixed"], (*LAYERS, "own_mixed")))
def test_layers_equal_separate_segments(kind):
    params, xs = draw(kind), draw_xs()
    _, ys = jaxgru.scan(params, xs, reset=jnp.asarray(at(2, 5)))
    parts = [jaxgru.scan(params, xs[a:b])[1] for a, b in ((0, 2), (2, 5), (5, STEPS))]
    assert_close(ys, jnp.concatenate(parts), TOL)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_reset_at_the_edges(kind, reverse):
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    for reset in (NONE, at(0), at(STEPS - 1), at(0, STEPS - 1), ~NONE):
        for length in (STEPS, 3, 1, 0):
            actual = compiled(kind, reverse)(params, xs, carry, reset, restart, length)
            expected = oracle.scan(
                params,
                xs,
                carry,
                reset=reset,
                reset_carry=restart,
                length=length,
                reverse=reverse,
            )
            assert_close(actual, expected, TOL)


@pytest.mark.parametrize("kind", only(("own_gru", "mixed"), KINDS))
def test_no_reset_is_reset_never(kind):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    never = jaxgru.scan(params, xs, carry, reset=jnp.asarray(NONE))
    assert_close(never, jaxgru.scan(params, xs, carry), TOL)


@pytest.mark.parametrize("kind", ["gru", "lstm", "own_gru"])
def test_reset_at_zero_drops_the_carry(kind):
    params, xs = draw(kind), draw_xs()
    restart = draw_carry(params, 8)
    first = jnp.asarray(at(0))
    actual = jaxgru.scan(params, xs, draw_carry(params, 7), reset=first, reset_carry=restart)
    assert_close(actual, jaxgru.scan(params, xs, restart), TOL)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_resets_in_the_padding_are_ignored(kind, reverse):
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    run = compiled(kind, reverse)
    expected = run(params, xs, carry, at(1), restart, 3)
    assert_same(run(params, xs, carry, at(1, 3, 4, 5), restart, 3), expected)


@pytest.mark.parametrize(("kind", "reverse"), each_way((*CELLS, "bidirectional")))
def test_segments_share_no_gradient(kind, reverse):
    """The output of a segment never depends on inputs of others. The derivative is exactly zero."""
    params, xs = draw(kind), draw_xs()
    reset = jnp.asarray(at(2))

    def output(xs, t):
        return weigh(jaxgru.scan(params, xs, reset=reset, reverse=reverse)[1][t])

    slope = jax.jit(jax.grad(output))
    for t, other in ((0, slice(2, None)), (1, slice(2, None)), (2, slice(0, 2)), (5, slice(0, 2))):
        grad = np.asarray(slope(xs, t))
        assert_same(grad[other], np.zeros_like(grad[other]))
        assert np.any(grad[t] != 0)


@pytest.mark.parametrize(("kind", "reverse"), each_way(CELLS))
def test_nan_does_not_cross_a_reset(kind, reverse):
    """A sequence that diverges must not change its neighbour, in values or in gradients."""
    params, xs = draw(kind), draw_xs()
    reset = jnp.asarray(at(3))
    spoilt, healthy = (slice(3, 6), slice(0, 3)) if reverse else (slice(0, 3), slice(3, 6))

    def loss(xs):
        ys = jaxgru.scan(params, xs, reset=reset, reverse=reverse)[1]
        return weigh(ys[healthy]), ys

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, expected), expected_grad = jax.device_get(run(xs))
    (_, ys), grad = jax.device_get(run(xs.at[spoilt].set(jnp.nan)))
    assert_same(ys[healthy], expected[healthy])
    assert_same(grad[healthy], expected_grad[healthy])


@pytest.mark.parametrize(("kind", "reverse"), each_way(("gru", "own_gru", "bidirectional")))
def test_gradient_of_the_reset_carry(kind, reverse):
    """The restart state may be learned. Its gradient is the sum over the segments."""
    params, xs = draw(kind), draw_xs()
    restart = draw_carry(params, 8)
    reset = jnp.asarray(at(2, 4))

    def loss(restart):
        return weigh(jaxgru.scan(params, xs, reset=reset, reset_carry=restart, reverse=reverse)[1])

    grad = jax.jit(jax.grad(loss))(restart)
    leaves, tree = jax.tree.flatten(restart)
    # Central differences have the error h^2 = 1e-10 and the rounding error 1e-16 / h = 1e-11.
    for index, leaf in enumerate(leaves):
        for entry in range(leaf.shape[0]):
            bumped = []
            for sign in (1.0, -1.0):
                moved = list(leaves)
                moved[index] = leaf.at[entry].add(sign * 1e-5)
                bumped.append(loss_of(params, xs, at(2, 4), tree.unflatten(moved), reverse))
            numeric = (bumped[0] - bumped[1]) / 2e-5
            actual = jax.tree.leaves(grad)[index][entry]
            np.testing.assert_allclose(actual, numeric, rtol=0, atol=1e-8)


def loss_of(params, xs, reset, restart, reverse):
    _, ys = oracle.scan(params, xs, reset=reset, reset_carry=restart, reverse=reverse)
    return float(weigh(jnp.asarray(ys)))


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
@settings(max_examples=10)
@given(reset=st.lists(st.booleans(), min_size=STEPS, max_size=STEPS), length=st.integers(0, STEPS))
def test_any_resets_and_length(kind, reset, length, reverse):
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    reset = np.array(reset)
    actual = compiled(kind, reverse)(params, xs, carry, reset, restart, length)
    expected = oracle.scan(
        params, xs, carry, reset=reset, reset_carry=restart, length=length, reverse=reverse
    )
    assert_close(actual, expected, TOL)


def test_gradients_equal_those_of_the_segments():
    params, xs = draw("gru"), draw_xs()

    def packed(params):
        return weigh(jaxgru.scan(params, xs, reset=jnp.asarray(at(2)))[1])

    def apart(params):
        parts = [jaxgru.scan(params, part)[1] for part in (xs[:2], xs[2:])]
        return weigh(jnp.concatenate(parts))

    assert_close(
        jax.jit(jax.grad(packed))(params), jax.jit(jax.grad(apart))(params), GRAD_TOL["float64"]
    )
