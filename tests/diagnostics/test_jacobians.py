"""The Jacobian of a step, against autodiff and against differences of the NumPy oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
from cases import (
    HIDDEN,
    STEPS,
    STREAMABLE,
    VALUE_TOL,
    assert_close,
    draw,
    draw_carry,
    draw_xs,
    slow,
)
from jaxgru.diagnostics import gru_jacobian_terms, state_jacobians

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
FORMS = ("gru", "gru_after")


def flat(carry):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(carry)])


def by_differences(params, xs, carry, eps=1e-6):
    """Central differences of the step of the oracle."""
    leaves, tree = jax.tree.flatten(oracle._float(carry) if isinstance(carry, tuple) else carry)
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def after(state, x):
        carry = jax.tree.unflatten(tree, np.split(state, sizes))
        return flat(oracle.step(params, carry, x)[0])

    state, jacobians = flat(carry), []
    for x in xs:
        moves = eps * np.eye(state.size)
        columns = [after(state + move, x) - after(state - move, x) for move in moves]
        jacobians.append(np.stack(columns, axis=1) / (2 * eps))
        state = after(state, x)
    return np.stack(jacobians)


@pytest.mark.parametrize("kind", STREAMABLE)
def test_it_is_the_derivative_of_the_oracle(kind):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    # The errors are eps^2 times third derivatives, and rounding / eps. Both are about 1e-10.
    expected = by_differences(params, xs, carry)
    assert_close(state_jacobians(params, xs, carry), expected, 1e-8)


@pytest.mark.parametrize(
    ("kind", "hidden", "bias"),
    [
        ("gru", 1, True),
        ("gru", HIDDEN, False),
        ("gru_after", 32, True),
        slow("gru", 32, True),
        slow("gru_after", 1, True),
        slow("gru_after", HIDDEN, False),
    ],
)
def test_the_closed_form_is_that_of_autodiff(kind, hidden, bias):
    params, xs = draw(kind, hidden=hidden, bias=bias), draw_xs()
    h = draw_carry(params)
    found = state_jacobians(params, xs, h)
    terms = gru_jacobian_terms(params, xs, h)
    assert_close(terms.leak + terms.candidate + terms.reset + terms.update, found, TOL)
    before = jnp.concatenate([h[None], jaxgru.scan(params, xs, h)[1][:-1]])
    by_autodiff = jax.jit(jax.vmap(jax.jacrev(jaxgru.gru_step, 1), in_axes=(None, 0, 0)))
    assert_close(found, by_autodiff(params, before, xs), TOL)


@pytest.mark.parametrize("kind", FORMS)
def test_each_term_is_the_derivative_with_the_other_ways_held(kind):
    """The equations with four copies of h. Each term is the derivative with respect to one copy."""
    params, (x,) = draw(kind), draw_xs(1)
    h = draw_carry(params)

    def step(kept, in_candidate, in_reset, in_update):
        r = jax.nn.sigmoid(x @ params.w_ih[:, 0] + in_reset @ params.w_hh[:, 0] + params.b[0])
        z = jax.nn.sigmoid(x @ params.w_ih[:, 1] + in_update @ params.w_hh[:, 1] + params.b[1])
        a_n = x @ params.w_ih[:, 2] + params.b[2]
        if params.reset_after:
            n = jnp.tanh(a_n + r * (in_candidate @ params.w_hh[:, 2] + params.b_hn))
        else:
            n = jnp.tanh(a_n + (r * in_candidate) @ params.w_hh[:, 2])
        return (1 - z) * kept + z * n

    expected = jax.jacrev(step, (0, 1, 2, 3))(h, h, h, h)
    terms = gru_jacobian_terms(params, x[None], h)
    for term, other in zip(terms, expected, strict=True):
        assert_close(term[0], other, TOL)
        assert float(jnp.abs(other).max()) > 1e-2  # a zero term would prove nothing


def test_shares_add_up_and_follow_the_terms():
    params, xs = draw("gru"), draw_xs()
    terms = gru_jacobian_terms(params, xs)
    shares = terms.shares()
    assert shares.shape == (STEPS, 4)
    assert_close(shares.sum(1), np.ones(STEPS), TOL)
    closed = dataclasses.replace(params, b=params.b.at[1].add(-40))
    # z is below 1e-15, so only the leak remains.
    expected = np.tile([1.0, 0, 0, 0], (STEPS, 1))
    assert_close(gru_jacobian_terms(closed, xs).shares(), expected, TOL)


def test_a_stack_is_block_lower_triangular():
    params, xs = draw("stack"), draw_xs()
    found = state_jacobians(params, xs)
    below, above = params.layers
    assert_close(found[:, :HIDDEN, HIDDEN:], np.zeros((STEPS, HIDDEN, HIDDEN + 1)), 0)
    assert_close(found[:, :HIDDEN, :HIDDEN], state_jacobians(below, xs), TOL)
    hs = jaxgru.scan(below, xs)[1]
    assert_close(found[:, HIDDEN:, HIDDEN:], state_jacobians(above, hs), TOL)
    assert float(jnp.abs(found[:, HIDDEN:, :HIDDEN]).max()) > 1e-2


@pytest.mark.parametrize("kind", ["gru", "stack"])
def test_vmap_and_jit(kind):
    params = draw(kind)
    batch = jnp.stack([draw_xs(seed=seed) for seed in range(3)])
    found = jax.jit(jax.vmap(state_jacobians, in_axes=(None, 0)))(params, batch)
    for one, xs in zip(found, batch, strict=True):
        assert_close(one, state_jacobians(params, xs), TOL)


def test_no_steps():
    params = draw("gru")
    assert state_jacobians(params, draw_xs(0)).shape == (0, HIDDEN, HIDDEN)
