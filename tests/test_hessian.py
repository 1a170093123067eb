"""Second derivatives and whole Jacobians, against plain `lax.scan` over the step function."""

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

import jaxgru
import plain
from cases import (
    CELLS,
    GRAD_TOL,
    assert_close,
    draw,
    draw_carry,
    draw_like,
    draw_xs,
    only,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = GRAD_TOL["float64"]
RESET = jnp.array([False, False, True, False])
# The sizes are small, since a Hessian has one row for each parameter.
SIZE = {"inputs": 2, "hidden": 2}


def flat(kind, scan, **options):
    """Return (a function of one vector, the vector), for params, inputs and carry."""
    params, xs = draw(kind, **SIZE), draw_xs(4, 2)
    vector, unravel = ravel_pytree((params, xs, draw_carry(params)))

    def run(vector):
        params, xs, carry = unravel(vector)
        out = scan(params, xs, carry, length=jnp.asarray(3), reset=RESET, **options)
        return ravel_pytree(out)[0]

    return run, vector


def both(kind, transform, **options):
    """The results of a transformation for the library and for plain `lax.scan`."""
    out = []
    for scan in (jaxgru.scan, plain.scan):
        run, vector = flat(kind, scan, **options)
        out.append(jax.jit(transform(run))(vector))
    return out


@pytest.mark.parametrize("kind", only(["lstm"], CELLS))
def test_hessian(kind):
    assert_close(*both(kind, lambda f: jax.hessian(lambda v: weigh(f(v)))), TOL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru_after", slow("own_gru"), slow("bidirectional")])
def test_hessian_backwards(kind):
    assert_close(*both(kind, lambda f: jax.hessian(lambda v: weigh(f(v))), reverse=True), TOL)


@pytest.mark.parametrize("kind", only(["elman"], (*CELLS, "bidirectional")))
def test_jacobians(kind):
    forward = both(kind, jax.jacfwd)
    assert_close(*forward, TOL)
    backward = both(kind, jax.jacrev)
    assert_close(*backward, TOL)
    assert_close(forward[0], backward[0], TOL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru", *map(slow, CELLS[1:])])
def test_hessian_vector_products(kind):
    """Forward over reverse, reverse over forward and reverse over reverse agree."""

    def loss_of(f):
        return lambda v: weigh(f(v))

    def products(f):
        def all_three(v):
            loss, direction = loss_of(f), draw_like(v, 13)
            over_reverse = jax.jvp(jax.grad(loss), (v,), (direction,))[1]
            over_forward = jax.grad(lambda v: jax.jvp(loss, (v,), (direction,))[1])(v)
            twice = jax.grad(lambda v: jnp.vdot(jax.grad(loss)(v), direction))(v)
            return over_reverse, over_forward, twice

        return all_three

    actual, expected = both(kind, products)
    assert_close(actual, expected, TOL)
    assert_close(actual[0], actual[1], TOL)
    assert_close(actual[0], actual[2], TOL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["elman", slow("gru"), slow("own_gru")])
def test_third_derivative(kind):
    """Derivatives along one line, all in forward mode or all in reverse mode."""

    def along(f):
        def third(v):
            direction = draw_like(v, 13)

            def loss(s):
                return weigh(f(v + s * direction))

            ahead, back = loss, loss
            for _ in range(3):
                ahead, back = jax.jacfwd(ahead), jax.grad(back)
            return ahead(0.0), back(0.0)

        return third

    actual, expected = both(kind, along)
    # The third derivative is of order 100. Relative to it the bound is the same as for the others.
    scale = float(jnp.maximum(1.0, jnp.abs(expected[0])))
    assert_close(actual, expected, TOL * scale)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru", slow("own_gru")])
def test_hessian_with_checkpoint(kind):
    hessians = []
    for options in ({}, {"checkpoint": 2}):
        run, vector = flat(kind, jaxgru.scan, **options)
        hessians.append(jax.jit(jax.hessian(lambda v, run=run: weigh(run(v))))(vector))
    assert_close(*hessians, TOL)
