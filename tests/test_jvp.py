"""Forward mode, against plain `lax.scan` over the step function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
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
    each_way,
    only,
    slow,
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


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS))
def test_equals_plain_scan(kind, reverse):
    args = arguments(kind)
    tangents = draw_like(args, 11)
    actual = pushforward(jaxgru.scan, reverse)(args, tangents)
    assert_close(actual, pushforward(plain.scan, reverse)(args, tangents), TOL)


def check_one(args, value, into, reverse=False):
    """The derivative along one tangent only.

    Only `value` has a tangent. It is an entry of `args` or of the params in it, and `into` replaces
    it. The other tangents are symbolic zeros, which a custom rule treats separately. For plain
    `scan` they are arrays of zeros, so that one program is enough.
    """
    tangent = draw_like(value, 11)

    def run(value):
        return function(jaxgru.scan, reverse)(*into(args, value))

    actual = jax.jit(lambda v, t: jax.jvp(run, (v,), (t,)))(value, tangent)
    tangents = into(jax.tree.map(jnp.zeros_like, args), tangent)
    assert_close(actual, pushforward(plain.scan, reverse)(args, tangents), TOL)


@pytest.mark.parametrize("argument", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [slow("gru"), slow("own_gru"), "gru_after"])
def test_one_argument_at_a_time(kind, argument):
    args = arguments(kind)

    def into(args, value):
        return (*args[:argument], value, *args[argument + 1 :])

    check_one(args, args[argument], into, reverse=kind == "gru_after")


@pytest.mark.parametrize(("kind", "reverse"), each_way(CELLS, {("lstm", True), ("own_gru", False)}))
def test_one_weight_at_a_time(kind, reverse):
    """Each part alone has a tangent, since the sums leave out what is zero."""
    args = arguments(kind)
    for field in dataclasses.fields(args[0]):
        value = getattr(args[0], field.name)
        if not isinstance(value, jax.Array):
            continue

        def into(args, value, name=field.name):
            return (dataclasses.replace(args[0], **{name: value}), *args[1:])

        check_one(args, value, into, reverse)


@pytest.mark.slow
@pytest.mark.parametrize("kind", only(["mixed"], KINDS))
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


@pytest.mark.parametrize("kind", [slow("gru"), slow("own_gru"), "gru_after"])
def test_linearize(kind):
    args = arguments(kind)
    tangents = draw_like(args, 11)
    _, expected = pushforward(jaxgru.scan, True)(args, tangents)
    _, linear = jax.linearize(function(jaxgru.scan, True), *args)
    assert_close(linear(*tangents), expected, TOL)


@pytest.mark.parametrize(
    ("kind", "checkpoint"),
    [("gru", 4), slow("gru", 1), slow("lstm", 4), ("lstm", 1), slow("own_gru", 4)],
)
def test_with_checkpoint(kind, checkpoint):
    params, xs = draw(kind), draw_xs()
    tangents = draw_like((params, xs), 11)

    def push(checkpoint):
        def run(p, xs):
            return jaxgru.scan(p, xs, checkpoint=checkpoint)

        return jax.jit(lambda args, tangents: jax.jvp(run, args, tangents))((params, xs), tangents)

    assert_close(push(checkpoint), push(None), TOL)
