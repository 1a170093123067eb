"""Gradients at earlier states, against explicit products of Jacobians."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxgru
import own_memory
from cases import (
    GRAD_TOL,
    HIDDEN,
    INPUT,
    STEPS,
    STREAMABLE,
    VALUE_TOL,
    assert_close,
    draw,
    draw_carry,
    draw_like,
    draw_xs,
    only,
    slow,
)
from jaxgru.diagnostics import gradient_norms, memory_gradient, state_jacobians

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]


def products(params, xs, carry):
    """Multiply the Jacobians one by one: ds_T/ds_{T-lag} for every lag."""
    jacobians = np.asarray(state_jacobians(params, xs, carry))
    out = [np.eye(jacobians.shape[1])]
    for jacobian in jacobians[::-1]:
        out.append(out[-1] @ jacobian)
    return np.stack(out)


def output_rows(params):
    """The place of the output in the state."""
    carry = jaxgru.initial_carry(params)
    sizes = [leaf.size for leaf in jax.tree.leaves(carry)]
    if isinstance(params, jaxgru.Stack):
        return slice(sum(sizes[:-1]), sum(sizes))
    return slice(0, sizes[0])


@pytest.mark.parametrize("kind", only(["lstm"], STREAMABLE))
def test_gradient_norms_are_those_of_the_backward_recurrence(kind):
    """Backpropagation in NumPy: lambda_t = (direct dL/dh_t) + J_{t+1}^T lambda_{t+1}."""
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    weights = np.asarray(draw_like(jaxgru.scan(params, xs)[1]))
    found = gradient_norms(lambda hs: (jnp.sin(hs) * weights).sum(), params, xs, carry)

    jacobians = np.asarray(state_jacobians(params, xs, carry))
    direct = weights * np.cos(jaxgru.scan(params, xs, carry)[1])
    gradient, rows = np.zeros(jacobians.shape[1]), output_rows(params)
    expected = np.zeros(STEPS + 1)
    for t in range(STEPS, 0, -1):
        gradient[rows] += direct[t - 1]
        expected[t] = np.linalg.norm(gradient)
        gradient = jacobians[t - 1].T @ gradient
    expected[0] = np.linalg.norm(gradient)
    assert_close(found, expected, TOL)
    assert expected.min() > 1e-2


def pushed_loss(params, xs, push, equations):
    """The gradient of an explicit loop, in which push[t + 1] is added to the carry after step t."""
    states, unravel = ravel_pytree(jaxgru.initial_carry(params))
    state, hs = states + push[0], []
    for x, move in zip(xs, push[1:], strict=True):
        carry = unravel(ravel_pytree(equations[0](params, unravel(state), x))[0] + move)
        state = ravel_pytree(carry)[0]
        hs.append(equations[1](params, carry, x))
    return jnp.sin(jnp.stack(hs)).sum()


#: (params, its new carry, its output as a function of that).
OUTPUTS = {
    "a function of carry and input": (
        lambda: own_memory.draw(INPUT, HIDDEN),
        lambda params, carry, x: own_memory.equations(jnp, params, carry, x),
        lambda params, carry, x: own_memory.output(jnp, carry, x),
    ),
    "a function of the carry": (
        lambda: draw("leaky_rate_softplus"),
        lambda params, carry, x: jaxgru.step(params, carry, x)[0],
        lambda params, carry, x: jax.nn.softplus(carry),
    ),
    "of two layers": (
        lambda: jaxgru.Stack((draw("own_gru"), draw("leaky_rate_softplus", HIDDEN))),
        lambda params, carry, x: jaxgru.step(params, carry, x)[0],
        lambda params, carry, x: jax.nn.softplus(carry[1]),
    ),
}


@pytest.mark.parametrize("name", only([*OUTPUTS][:1], OUTPUTS))
def test_gradient_norms_of_registered_cells(name):
    draw_params, *equations = OUTPUTS[name]
    params, xs = draw_params(), draw_xs()
    size = ravel_pytree(jaxgru.initial_carry(params))[0].size
    push = jnp.zeros((STEPS + 1, size))
    grads = jax.jit(jax.grad(lambda push: pushed_loss(params, xs, push, equations)))(push)
    found = gradient_norms(lambda hs: jnp.sin(hs).sum(), params, xs)
    assert_close(found, np.linalg.norm(grads, axis=1), TOL)
    assert found.min() > 1e-2


@pytest.mark.parametrize(
    "wrap", [jax.jit, *map(slow, (jax.checkpoint, lambda step: jax.jit(jax.jit(step))))]
)
def test_gradient_norms_of_a_step_that_is_wrapped(wrap):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Wrapped(own_memory.MemoryParams):
        pass

    jaxgru.register(
        Wrapped,
        step=wrap(own_memory.step),
        initial_carry=own_memory.initial_carry,
        sizes=lambda params: params.w.shape,
    )
    params, xs = own_memory.draw(INPUT, HIDDEN), draw_xs()
    found = gradient_norms(jnp.sum, Wrapped(params.w, params.start), xs)
    assert_close(found, gradient_norms(jnp.sum, params, xs), TOL)


@pytest.mark.parametrize("kind", only(["stack"], STREAMABLE))
def test_at_the_start_it_is_the_gradient_of_scan(kind):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    grads = jax.grad(lambda carry: jaxgru.scan(params, xs, carry)[1][-1].sum())(carry)
    expected = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    found = gradient_norms(lambda hs: hs[-1].sum(), params, xs, carry)
    assert_close(found[0], expected, GRAD_TOL["float64"])


@pytest.mark.parametrize("kind", only(("min_gru", "stack"), STREAMABLE))
def test_memory_gradient_is_that_of_the_product(kind):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    found = memory_gradient(params, xs, carry, singular_values=True)
    expected = products(params, xs, carry)
    size = expected.shape[1]
    gain = np.linalg.norm(expected, axis=(1, 2)) / size**0.5
    assert_close(jnp.exp(found.log_gain), gain, TOL)
    values = np.linalg.svd(expected, compute_uv=False)
    # Rounding is relative to the largest singular value, which is of order one.
    assert_close(jnp.exp(found.log_singular_values), values, TOL)
    assert memory_gradient(params, xs, carry).log_singular_values is None


def test_probes_estimate_the_gain():
    params, xs = draw("gru", hidden=6), draw_xs()
    exact = np.exp(2 * memory_gradient(params, xs).log_gain)
    probes, keys = 8, jax.random.split(jax.random.key(0), 200)

    def estimate(key):
        return jnp.exp(2 * memory_gradient(params, xs, probes=probes, key=key).log_gain)

    found = np.asarray(jax.vmap(estimate)(keys))
    assert_close(found[:, 0], np.ones(200), TOL)
    assert np.all(found.std(0) <= exact * np.sqrt(2 / probes))  # the docstring promises this
    # There are 200 independent estimates. The bound is five standard errors.
    wrong = np.abs(found.mean(0) - exact) / (found.std(0) / 200**0.5 + TOL)
    assert wrong.max() < 5
    assert found[:, -1].std() > 0.01 * exact[-1]  # the estimates do differ


def test_a_gradient_far_below_the_smallest_float_keeps_its_logarithm():
    """At rest a plain RNN is linear, h' = h W. With W = Q / 2, Q orthogonal, gain is 2^-lag."""
    params = draw("elman", hidden=4, dtype="float32")
    orthogonal = np.linalg.qr(np.asarray(params.w_hh, np.float64))[0]
    w_hh = jnp.asarray(orthogonal / 2, jnp.float32)
    params = dataclasses.replace(params, w_hh=w_hh, b=None)
    found = memory_gradient(params, jnp.zeros((1000, 3), jnp.float32), singular_values=True)
    expected = -np.arange(1001) * np.log(2)
    # These are 1,000 roundings of numbers of up to 693 to 24 bits.
    assert_close(found.log_gain, expected, 2e-2)
    assert_close(found.log_singular_values, np.tile(expected[:, None], 4), 2e-2)


def test_a_small_gradient_is_not_lost_in_its_square():
    """The smallest float32 is 1e-38, so the square of 1e-25 is zero."""
    params, xs = draw("gru", dtype="float32"), draw_xs(dtype="float32")
    whole = gradient_norms(lambda hs: hs[-1].sum(), params, xs)
    found = gradient_norms(lambda hs: 1e-25 * hs[-1].sum(), params, xs)
    np.testing.assert_allclose(found * 1e25, whole, rtol=1e-5)  # about 100 ulp
    assert float(whole.min()) > 1e-3


def test_what_is_forgotten_at_once_is_minus_infinity():
    params = dataclasses.replace(draw("elman"), w_hh=jnp.zeros((4, 4)))
    found = memory_gradient(params, draw_xs(), singular_values=True)
    assert found.log_gain[0] == 0
    assert np.all(np.isneginf(found.log_gain[1:]))
    assert np.all(np.isneginf(found.log_singular_values[1:]))


@pytest.mark.parametrize("kind", ["lstm", slow("gru")])
def test_vmap_and_jit(kind):
    params = draw(kind)
    batch = jnp.stack([draw_xs(seed=seed) for seed in range(3)])

    def look(xs):
        memory = memory_gradient(params, xs, singular_values=True)
        return memory, gradient_norms(lambda hs: hs[-1].sum(), params, xs)

    found = jax.jit(jax.vmap(look))(batch)
    for k, xs in enumerate(batch):
        # Rounding is relative to the largest singular value, so small ones are inexact.
        assert_close(jax.tree.map(lambda leaf: leaf[k], found), look(xs), 1e-6)  # noqa: B023


def test_no_steps():
    params, xs = draw("gru"), draw_xs(0)
    assert memory_gradient(params, xs).log_gain.shape == (1,)
    assert gradient_norms(lambda hs: hs.sum(), params, xs).shape == (1,)
