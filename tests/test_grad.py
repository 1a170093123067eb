"""Reverse mode, against plain `lax.scan` over the step function and finite differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxgru
import plain
from cases import (
    CELLS,
    GRAD_TOL,
    KINDS,
    STEPS,
    assert_close,
    draw,
    draw_carry,
    draw_xs,
    each_way,
    only,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = GRAD_TOL["float64"]
RESET = np.array([False, False, True, False, True, False])


@functools.cache
def compiled(scan, reverse=False, checkpoint=None):
    """Gradients of a weighted sum of all results of `scan`, for all its arguments."""
    options = {} if checkpoint is None else {"checkpoint": checkpoint}

    def loss(params, xs, carry, reset_carry, length, reset):
        return weigh(
            scan(
                params,
                xs,
                carry,
                reset_carry=reset_carry,
                length=length,
                reset=reset,
                reverse=reverse,
                **options,
            )
        )

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_equals_plain_scan(kind, reverse):
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    for length in (STEPS, 4, 1, 0):
        for reset in (RESET, np.zeros(STEPS, bool)):
            arguments = (params, xs, carry, restart, length, reset)
            actual = compiled(jaxgru.scan, reverse)(*arguments)
            assert_close(actual, compiled(plain.scan, reverse)(*arguments), TOL)


SEGMENTS = [("gru", False, 4), ("lstm", False, STEPS + 1), ("elman", True, 1)]


@pytest.mark.parametrize(
    ("kind", "reverse", "checkpoint"),
    [
        case if case in SEGMENTS else slow(*case)
        for case in itertools.product(CELLS, (False, True), (1, 4, STEPS + 1))
    ],
)
def test_equals_plain_scan_with_checkpoint(kind, reverse, checkpoint):
    params, xs = draw(kind), draw_xs()
    arguments = (params, xs, draw_carry(params, 7), draw_carry(params, 8), 5, RESET)
    actual = compiled(jaxgru.scan, reverse, checkpoint)(*arguments)
    assert_close(actual, compiled(plain.scan, reverse)(*arguments), TOL)


@pytest.mark.parametrize(
    ("kind", "bias"),
    [
        *(slow(kind, True) for kind in KINDS),
        ("lstm", False),
        *(slow(kind, False) for kind in ("gru_after", "min_gru", "own_gru")),
    ],
)
def test_equals_plain_scan_without_options(kind, bias):
    """Most calls have no length, no reset and no carry."""
    params, xs = draw(kind, bias=bias), draw_xs()
    actual, expected = (
        jax.jit(jax.grad(lambda p, xs, scan=scan: weigh(scan(p, xs)), argnums=(0, 1)))(params, xs)
        for scan in (jaxgru.scan, plain.scan)
    )
    assert_close(actual, expected, TOL)


@pytest.mark.parametrize("kind", [slow("gru_after"), "lstm", slow("own_gru")])
def test_only_the_carry_or_only_the_outputs(kind):
    """Symbolically zero cotangents are computed in another way than other ones."""
    params, xs = draw(kind), draw_xs()
    for part in (0, 1):
        actual, expected = (
            jax.jit(jax.grad(lambda p, scan=scan, part=part: weigh(scan(p, xs)[part])))(params)
            for scan in (jaxgru.scan, plain.scan)
        )
        assert_close(actual, expected, TOL)


@pytest.mark.parametrize("kind", ["gru", slow("own_gru")])
def test_equals_plain_scan_on_a_long_sequence(kind):
    """The length spans several chunks, and is not a multiple of a power of two."""
    params, xs = draw(kind), draw_xs(77)
    for length in (77, 50):
        actual, expected = (
            jax.jit(jax.grad(lambda p, n, scan=scan: weigh(scan(p, xs, length=n))))(params, length)
            for scan in (jaxgru.scan, plain.scan)
        )
        assert_close(actual, expected, TOL)


@pytest.mark.parametrize("kind", only(["elman"], CELLS))
def test_check_grads_order_2(kind):
    """Finite differences are independent of both implementations.

    The tolerance is that of JAX for float64: up to 1e-5 for central differences with step 1e-6.
    """
    params, xs = draw(kind, 2, 2), draw_xs(3, 2)
    carry = draw_carry(params)
    reset = jnp.asarray([False, False, True])

    def run(params, xs, carry):
        return jaxgru.scan(params, xs, carry, length=jnp.asarray(3), reset=reset)

    check_grads(jax.jit(run), (params, xs, carry), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("kind", ["gru", slow("own_gru")])
def test_checkpoint_keeps_less(kind):
    """Temporary memory of the forward and backward pass together, according to the compiler."""
    params, xs = draw(kind, hidden=32), draw_xs(1024)

    def temporary(checkpoint):
        loss = jax.grad(lambda p: weigh(jaxgru.scan(p, xs, checkpoint=checkpoint)[0]))
        analysis = jax.jit(loss).lower(params).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    # It is 1024 steps of gates and states, or 32 states and 32 steps of gates: a fifth or less.
    assert temporary(32) < temporary(None) / 3


@pytest.mark.parametrize("kind", ["mixed", slow("own_mixed")])
def test_gradients_reach_every_leaf(kind):
    """No derivative may be missing, so all are non-zero for a loss of everything."""
    params, xs = draw(kind), draw_xs()
    for leaf in jax.tree.leaves(jax.jit(jax.grad(lambda p: weigh(jaxgru.scan(p, xs))))(params)):
        assert jnp.all(leaf != 0)


def test_reset_after_is_not_differentiated_but_kept():
    grads = jax.jit(jax.grad(lambda p: weigh(jaxgru.scan(p, draw_xs()))))(draw("gru_after"))
    assert grads.reset_after is True
    assert grads.b_hn.shape == (4,)
