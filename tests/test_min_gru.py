"""The minimal GRU: its equations, its log-space form, its initial weights, its forgetting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
from cases import HIDDEN, INPUT, VALUE_TOL, assert_close, draw, draw_carry, draw_xs

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]


def log_space(params, xs, start):
    """Evaluate the recurrence in NumPy as the paper does, from a positive state.

    log h_t = a*_t + log(h_0 + sum_{s <= t} exp(log z_s + log n_s - a*_s)), a*_t = sum log(1 - z_s)
    """
    w, b = oracle.f64(params.w_ih), oracle.f64(params.b)
    k, a = (oracle.f64(xs) @ w[:, gate] + b[gate] for gate in (0, 1))
    log_z, log_leak = -np.logaddexp(0, -k), -np.logaddexp(0, k)
    log_n = np.where(a >= 0, np.log(np.maximum(a, 0) + 0.5), -np.logaddexp(0, -a))
    so_far = np.cumsum(log_leak, axis=0)
    terms = np.concatenate([np.log(start)[None], log_z + log_n - so_far])
    return np.exp(so_far + np.logaddexp.accumulate(terms, axis=0)[1:])


def test_scan_is_the_log_space_form():
    params, xs = draw("min_gru"), draw_xs(200)
    start = jnp.abs(draw_carry(params)) + 0.1
    _, hs = jaxgru.scan(params, xs, start)
    # The form of the paper adds up 200 logarithms, and loses as many units of rounding.
    assert_close(hs, log_space(params, xs, start), 100 * TOL)


def test_a_long_sequence_against_the_loop():
    params, xs = draw("min_gru"), draw_xs(5000)
    assert_close(jaxgru.scan(params, xs), oracle.scan(params, xs), TOL)


@pytest.mark.parametrize("a", [-2.0, -1e-9, 0.0, 1e-9, 3.0])
def test_both_sides_of_the_candidate_and_its_slope(a):
    """With z = 1 the state is g. Its two parts meet at 1/2, with slopes 1/4 and 1."""
    params = jaxgru.MinGRUParams(
        w_ih=jnp.asarray([[[0.0], [1.0]]]), b=jnp.asarray([[1000.0], [0.0]])
    )
    x = jnp.asarray([[a]])
    value, slope = jax.value_and_grad(lambda x: jaxgru.scan(params, x)[0][0])(x)
    s = oracle.sigmoid(a)
    assert_close(value, a + 0.5 if a >= 0 else s, TOL)
    assert_close(slope[0, 0], 1.0 if a >= 0 else s * (1 - s), TOL)


def test_a_shut_gate_forgets_no_digit():
    """1 - z is computed directly.

    With z = 1e-9 a float32 state decays at this rate. It neither stays, nor follows the float32
    number next to 1 - z.
    """
    bias = float(np.log(1e-9))
    params = jaxgru.MinGRUParams(
        w_ih=jnp.zeros((1, 2, 1), "float32"), b=jnp.asarray([[-bias], [0.0]], "float32")
    )
    h = jaxgru.min_gru_step(params, jnp.ones(1, "float32"), jnp.zeros(1, "float32"))
    # With z = 1 - 1e-9, the rest of h = 1 is 1e-9 beside n = 1/2. n = 0 makes it visible.
    assert float(h[0]) == 0.5
    empty = jaxgru.MinGRUParams(w_ih=params.w_ih, b=params.b.at[1].set(-200.0))
    h = jaxgru.min_gru_step(empty, jnp.ones(1, "float32"), jnp.zeros(1, "float32"))
    # The float32 number log(1e-9) is off by 1e-6, so the relative error is 1e-6 too.
    np.testing.assert_allclose(float(h[0]), 1e-9, rtol=2e-6)


def test_init():
    names = ("bias", "init", "chrono", "dtype")
    init = jax.jit(jaxgru.min_gru_init, static_argnums=(1, 2), static_argnames=names)
    params = init(jax.random.key(0), 50, 64, chrono=100, dtype="float64")
    assert params.w_ih.shape == (50, 2, 64)
    # LeCun normal means variance 1 / I. There are 3200 entries, and the bound is 5 standard errors.
    spread = np.std(np.asarray(params.w_ih), axis=(0, 2)) * np.sqrt(50)
    np.testing.assert_allclose(spread, 1, atol=5 / np.sqrt(2 * 3200))
    assert np.all(np.asarray(params.b[1]) == 0)
    memory = np.exp(-np.asarray(params.b[0]))
    assert memory.min() >= 1
    assert memory.max() <= 99
    assert memory.std() > 10
    assert init(jax.random.key(0), 3, 4, bias=False).b is None
    torch = init(jax.random.key(0), 3, 4, init="torch")
    assert np.all(np.abs(np.asarray(torch.b)) <= 0.5)
    assert np.all(np.asarray(torch.b) != 0)


def test_wrong_params_are_named():
    params = draw("min_gru")
    swapped = jaxgru.MinGRUParams(w_ih=draw("lstm").w_ih, b=None)
    with pytest.raises(ValueError, match=r"scan: MinGRUParams.w_ih must be .*\[I, 2, 4\], got"):
        jaxgru.scan(swapped, draw_xs())
    flat = jaxgru.MinGRUParams(w_ih=params.w_ih.reshape(INPUT, 2 * HIDDEN), b=params.b)
    with pytest.raises(ValueError, match=r"MinGRUParams.w_ih must be .*\[I, 2, H\], got"):
        jaxgru.scan(flat, draw_xs())
    wide = jaxgru.MinGRUParams(w_ih=params.w_ih, b=jnp.zeros((2, HIDDEN + 1)))
    with pytest.raises(ValueError, match=r"MinGRUParams.b must be .*\[2, 4\], got"):
        jaxgru.scan(wide, draw_xs())
    with pytest.raises(TypeError, match=r"min_gru_step: params must be MinGRUParams"):
        jaxgru.min_gru_step(draw("gru"), jnp.zeros(HIDDEN), jnp.zeros(INPUT))
    with pytest.raises(ValueError, match=r"min_gru_init: bias must be True with chrono"):
        jaxgru.min_gru_init(jax.random.key(0), 3, 4, bias=False, chrono=10)
