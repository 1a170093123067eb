"""Forward mode against plain `lax.scan` over the step function."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import jaxgru
import plain
from cases import (
    CELLS,
    GRAD_TOL,
    KINDS,
    assert_close,
    draw,
    draw_carry,
    draw_like,
    draw_xs,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = GRAD_TOL["float64"]
RESET = np.array([False, False, True, False, True, False])


def arguments(kind):
    params = draw(kind)
    return params, draw_xs(), draw_carry(params, 7), draw_carry(params, 8)


@functools.cache
def function(scan, reverse):
    def run(params, xs, carry, reset_carry):
        return scan(
            params, xs, carry, length=5, reset=RESET, reset_carry=reset_carry, reverse=reverse
        )

    return run


@functools.cache
def pushforward(scan, reverse):
    return jax.jit(lambda args, tangents: jax.jvp(function(scan, reverse), args, tangents))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_plain_scan(kind, reverse):
    args = arguments(kind)
    tangents = draw_like(args, 11)
    actual = pushforward(jaxgru.scan, reverse)(args, tangents)
    assert_close(actual, pushforward(plain.scan, reverse)(args, tangents), TOL)


@pytest.mark.parametrize("argument", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["gru", "gru_after"])
def test_one_argument_at_a_time(kind, argument):
    """The other tangents are symbolic zeros, a path of their own in a custom rule."""
    args = arguments(kind)
    tangent = draw_like(args[argument], 11)
    out = []
    for scan in (jaxgru.scan, plain.scan):

        def run(value, scan=scan):
            moved = (*args[:argument], value, *args[argument + 1 :])
            return function(scan, False)(*moved)

        out.append(jax.jit(lambda v, t, run=run: jax.jvp(run, (v,), (t,)))(args[argument], tangent))
    assert_close(*out, TOL)


@pytest.mark.parametrize("kind", CELLS)
def test_one_weight_at_a_time(kind):
    """So that each stands alone in the sums that leave out what is zero."""
    params, *rest = arguments(kind)
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if not isinstance(value, jax.Array):
            continue
        tangent = draw_like(value, 11)
        out = []
        for scan in (jaxgru.scan, plain.scan):

            def run(value, scan=scan, name=field.name):
                return function(scan, False)(dataclasses.replace(params, **{name: value}), *rest)

            out.append(jax.jit(lambda v, t, run=run: jax.jvp(run, (v,), (t,)))(value, tangent))
        assert_close(*out, TOL)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_and_reverse_agree(kind):
    """<w, J v> = <J' w, v>, with J' from reverse mode and the weights w of `weigh`."""
    args = arguments(kind)
    tangents = draw_like(args, 11)
    _, pushed = pushforward(jaxgru.scan, False)(args, tangents)
    loss = jax.jit(jax.grad(lambda args: weigh(function(jaxgru.scan, False)(*args))))
    assert_close(weigh(pushed), _dot(loss(args), tangents), TOL)


def _dot(a, b):
    products = jax.tree.map(lambda x, y: (x * y).sum(), a, b)
    return sum(jax.tree.leaves(products))


@pytest.mark.parametrize("kind", ["gru", "gru_after"])
def test_linearize(kind):
    args = arguments(kind)
    tangents = draw_like(args, 11)
    _, expected = pushforward(jaxgru.scan, True)(args, tangents)
    _, linear = jax.linearize(function(jaxgru.scan, True), *args)
    assert_close(linear(*tangents), expected, TOL)


@pytest.mark.parametrize("checkpoint", [1, 4])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_with_checkpoint(kind, checkpoint):
    params, xs = draw(kind), draw_xs()
    tangents = draw_like((params, xs), 11)

    def push(checkpoint):
        def run(p, xs):
            return jaxgru.scan(p, xs, checkpoint=checkpoint)

        return jax.jit(lambda args, tangents: jax.jvp(run, args, tangents))((params, xs), tangents)

    assert_close(push(checkpoint), push(None), TOL)
