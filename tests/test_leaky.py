"""The leaky rate network: its nonlinearities, its time constants, and its noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
import recipes
from cases import (
    HIDDEN,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    slow,
)

pytestmark = pytest.mark.usefixtures("x64")
TOL = VALUE_TOL["float64"]
ALPHAS = jnp.linspace(0.1, 1.0, HIDDEN, dtype="float32")


def of(nonlinearity, alpha=None):
    """The network of the shared tests, with another nonlinearity and other time constants."""
    params = dataclasses.replace(draw("leaky_rate_softplus"), nonlinearity=nonlinearity)
    return params if alpha is None else dataclasses.replace(params, alpha=alpha)


@pytest.mark.parametrize("nonlinearity", oracle.RATES)
def test_each_nonlinearity_with_a_time_constant_for_each_unit(nonlinearity, tmp_path):
    params = of(nonlinearity, ALPHAS.astype("float64"))
    xs, carry = draw_xs(), draw_carry(of(nonlinearity))
    assert_close(jax.jit(jaxgru.scan)(params, xs, carry), oracle.scan(params, xs, carry), TOL)
    jaxgru.save(tmp_path / "file", params)
    assert_same(jaxgru.load(tmp_path / "file"), params)


def test_the_output_is_the_rate_and_the_carry_is_the_state():
    params = of("relu")
    h, y = jaxgru.step(params, jnp.full(HIDDEN, -9.0), draw_xs()[0])
    assert np.all(np.asarray(h) < 0)
    assert not np.any(y)


def test_alpha_is_the_share_of_what_is_new():
    """Without input the state decays by 1 - alpha in each step. With alpha = 1 nothing remains."""
    silent = jax.tree.map(jnp.zeros_like, of("tanh", jnp.asarray([0.25, 0.5, 1.0, 0.0])))
    silent = dataclasses.replace(silent, alpha=jnp.asarray([0.25, 0.5, 1.0, 0.0]))
    h, _ = jaxgru.scan(silent, jnp.zeros((3, 3)), jnp.ones(HIDDEN))
    assert_close(h, np.array([0.75**3, 0.5**3, 0.0, 1.0]), TOL)


def test_alpha_of_another_size_is_named():
    with pytest.raises(ValueError, match=r"^scan: LeakyParams.alpha must be .*\[4\], got .*\[3\]"):
        jaxgru.scan(of("relu", jnp.ones(3)), draw_xs())


@pytest.mark.parametrize("options", [slow({}), {"length": 4}])
def test_noise(options):
    """The recipe of docs/recipes/own_steps.md, with draws of JAX and equations in NumPy."""
    noisy, params = (
        jax.jit(recipes.names_of("recipes/own_steps.md")["noisy"]),
        of("relu", ALPHAS.astype("float64")),
    )
    xs, key, sigma = draw_xs(), jax.random.key(5), 0.3
    h, rates = np.zeros(HIDDEN), np.zeros((STEPS, HIDDEN))
    for t in range(options.get("length", STEPS)):
        draws = np.asarray(jax.random.normal(jax.random.fold_in(key, t), (HIDDEN,), "float64"))
        deviation = np.sqrt(2 * np.asarray(params.alpha) * sigma**2)
        h = oracle.leaky_step(params, h, xs[t]) + deviation * draws
        rates[t] = oracle.RATES["relu"](h)
    assert_close(noisy(params, xs, sigma, key, **options), (h, rates), TOL)
    assert_close(noisy(params, xs, 0.0, key, **options), jaxgru.scan(params, xs, **options), TOL)
