"""The derivative that `derived` makes of a cell, against `jax.jvp` of its step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import GRAD_TOL, HIDDEN, assert_close, draw, draw_carry, draw_like, draw_xs
from jaxgru import cell as cells
from jaxgru.cell import Blocks, cell_of
from jaxgru.derivative import derived
from jaxgru.elman import _CELL as ELMAN

pytestmark = pytest.mark.usefixtures("x64")
TOL = GRAD_TOL["float64"]
#: The size of the sources of a step in units of H. There is one source for each pre-activation.
SOURCES = {"gru": 3, "gru_after": 4, "lstm": 4, "elman": 1}


def tangent_of(cell, blocks, dblocks, x, dx, carry, dcarry):
    """Compute the tangent of a step from its gates, as the loops do."""
    _, gates = cells.advance(cell, blocks, carry, x)
    dx = cells.total(dx @ blocks.w_ih, (x, dblocks.w_ih), dblocks.b)
    sources = cell.sources(dblocks, dx, carry, gates)
    coefficients = cell.coefficients(carry, gates)
    return cell.tangent(cells.products(blocks.w_hh), coefficients, dcarry, sources), sources


@pytest.mark.parametrize("kind", SOURCES)
def test_one_step(kind):
    params, xs = draw(kind), draw_xs()
    cell, carry = cell_of(params), draw_carry(params)
    x, dx = xs[:1], xs[1:2]
    carry = jax.tree.map(lambda part: part[None], carry)
    dparams, dcarry = draw_like(params, 5), draw_like(carry, 6)

    def step(params, x, carry):
        return cells.advance(cell, cell.blocks(params), carry, x)[0]

    _, expected = jax.jvp(step, (params, x, carry), (dparams, dx, dcarry))
    blocks, dblocks = cell.blocks(params), cell.blocks(dparams)
    found, sources = tangent_of(cell, blocks, dblocks, x, dx, carry, dcarry)
    assert_close(found, expected, TOL)
    assert sum(leaf.shape[-1] for leaf in jax.tree.leaves(sources)) == SOURCES[kind] * HIDDEN


def odd_advance(products, blocks, h, projected):
    """A step with many features.

    It has compiled functions, a kink, a maximum, a constant array, inputs to which no product is
    added, and two products, the second of which depends on everything.
    """
    x_a, x_b, x_c = projected
    a, b = products[0](h)
    gate = jax.nn.sigmoid(x_a + a)
    rise = jax.nn.relu(b)
    kept = jnp.where(gate > 0.5, gate * rise, h)
    (c,) = products[1](kept * h)
    squashed, other = jnp.tanh(x_b + c), jnp.cos(x_c)
    slow = jnp.maximum(squashed, h)
    rates = np.broadcast_to(np.linspace(0.5, 1, HIDDEN), h.shape)
    return rates * slow + other * h**3, (gate, b, squashed, x_c, other)


def test_other_equations():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(0.6 * rng.standard_normal(shape))

    def blocks():
        w_hh = (normal(HIDDEN, 2 * HIDDEN), normal(HIDDEN, HIDDEN))
        return Blocks(normal(3, 3 * HIDDEN), w_hh, normal(3 * HIDDEN))

    fields = {**ELMAN._asdict(), "gates": 3, "advance": odd_advance}
    for name in ("coefficients", "sources", "tangent", "diagonal"):
        del fields[name]
    cell = derived(counts=lambda _: (2, 1), **fields)
    weights, dweights = blocks(), blocks()
    h, dh, x, dx = normal(5, HIDDEN), normal(5, HIDDEN), normal(5, 3), normal(5, 3)

    def step(weights, x, h):
        return cells.advance(cell, weights, h, x)[0]

    _, expected = jax.jvp(step, (weights, x, h), (dweights, dx, dh))
    found, _ = tangent_of(cell, weights, dweights, x, dx, h, dh)
    assert_close(found, expected, TOL)
    jacobians = jax.vmap(lambda x, h: jax.jacfwd(functools.partial(step, weights, x))(h))(x, h)
    _, gates = cells.advance(cell, weights, h, x)
    diagonal = cell.diagonal(weights, cell.coefficients(h, gates))
    assert_close(diagonal, jnp.diagonal(jacobians, axis1=1, axis2=2), TOL)

    fields["advance"] = lambda *arguments: (odd_advance(*arguments)[0], ())
    short = derived(counts=lambda _: (2, 1), **fields)
    with pytest.raises(ValueError, match="needs more of a step than its carry and gates"):
        short.coefficients(h, ())
