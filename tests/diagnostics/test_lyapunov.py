"""Known Lyapunov exponents, and others against explicit products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import CELLS, STREAMABLE, assert_close, draw, draw_carry, draw_xs, only, slow
from jaxgru.diagnostics import lyapunov_spectrum, state_jacobians

pytestmark = pytest.mark.usefixtures("x64")

EIGENVALUES = np.array([0.95, -0.7, 0.5, 0.2])


def linear():
    """At the state 0 a plain RNN is linear, h' = h W. Here W is not normal."""
    basis = np.random.default_rng(0).standard_normal((4, 4))
    w_hh = basis @ np.diag(EIGENVALUES) @ np.linalg.inv(basis)
    return dataclasses.replace(draw("elman"), w_hh=jnp.asarray(w_hh), b=None)


@pytest.mark.parametrize(("k", "every"), [(None, 1), slow(None, 5), slow(2, 1), (1, 7)])
def test_a_linear_map_has_the_logarithms_of_its_eigenvalues(k, every):
    xs = jnp.zeros((1000, 3))
    found = lyapunov_spectrum(linear(), xs, k=k, warm_up=300, every=every)
    # After 300 steps the frame has turned up to (0.7 / 0.95)^300 = 1e-40. The rest is rounding.
    assert_close(found.exponents, np.log(np.abs(EIGENVALUES))[:k], 1e-10)
    assert float(found.errors.max()) < 1e-10


def test_without_recurrent_weights_a_gru_forgets_by_its_gate():
    """With z = 1/2 a state decays by 1 - z in each step."""
    params = jax.tree.map(jnp.zeros_like, draw("gru_after"))
    found = lyapunov_spectrum(params, draw_xs(50))
    # This is the rounding of 50 steps.
    np.testing.assert_allclose(found.exponents, np.log(0.5), rtol=1e-12)


def test_contracting_weights_have_negative_exponents():
    params = draw("elman")
    left, values, right = np.linalg.svd(params.w_hh)
    w_hh = left @ np.diag(0.9 * values / values.max()) @ right
    params = dataclasses.replace(params, w_hh=jnp.asarray(w_hh))
    found = lyapunov_spectrum(params, draw_xs(500))
    assert float(found.exponents.max()) <= np.log(0.9)  # |J| <= |D(1 - h^2)| |W| <= 0.9
    assert np.all(np.diff(found.exponents) < 0)


@pytest.mark.parametrize("kind", only(("lstm", "stack"), STREAMABLE))
def test_all_together_are_the_mean_log_determinant(kind):
    """The frame does not matter, since a determinant is the product of the diagonal of R."""
    params, xs = draw(kind), draw_xs(50)
    carry = draw_carry(params)
    found = lyapunov_spectrum(params, xs, carry, warm_up=8, every=3)
    jacobians = state_jacobians(params, xs, carry)
    expected = np.linalg.slogdet(np.asarray(jacobians[8:]))[1].mean()
    assert_close(found.exponents.sum(), expected, 1e-9)  # the smallest exponents are about -10


@pytest.mark.parametrize("kind", only(["gru"], (*CELLS[:4], "stack")))
def test_they_are_the_log_singular_values_of_the_product(kind):
    """The estimate depends on the frame at the start only by a known factor.

    Let Q be the frame, and V the right singular vectors of the product P. If s_{k+1} << s_k, a
    volume grows by s_1 .. s_k |det(V_k^T Q_k)|. The product of the minimal GRU is diagonal, and its
    singular values are not so far apart.
    """
    params, xs = draw(kind), draw_xs(40)
    jacobians = np.asarray(state_jacobians(params, xs))
    size, product = jacobians.shape[1], np.eye(jacobians.shape[1])
    for jacobian in jacobians:
        product = jacobian @ product
    _, values, v = np.linalg.svd(product)
    drawn = jax.random.normal(jax.random.key(0), (size, size), jnp.float64)
    frame = np.linalg.qr(drawn)[0]
    found = np.asarray(lyapunov_spectrum(params, xs, warm_up=0).exponents) * 40
    apart = 0
    for k in range(1, size):
        if values[k] / values[k - 1] > 1e-5 or values[k - 1] < 1e-10 * values[0]:
            continue
        apart += 1
        start = np.linalg.slogdet(v[:k] @ frame[:, :k])[1]
        # The neglected part is of the order of the square of the quotient.
        assert_close(found[:k].sum(), np.log(values[:k]).sum() + start, 1e-5)
    assert apart
    # Without the frame the estimate is within its logarithm, divided by T.
    first = np.log(values[0]) / 40
    assert abs(found[0] / 40 - first) < 0.1


def test_a_part_is_the_beginning_of_the_whole():
    params, xs = draw("lstm"), draw_xs(60)
    whole, some = lyapunov_spectrum(params, xs), lyapunov_spectrum(params, xs, k=3)
    assert whole.exponents.shape == (8,)
    # The difference is rounding, since columns of a frame do not depend on later ones.
    assert_close(some, jax.tree.map(lambda leaf: leaf[:3], whole), 1e-10)


def test_the_error_is_the_scatter_between_runs():
    params = draw("gru")
    keys = jax.random.split(jax.random.key(0), 40)

    def one(key):
        return lyapunov_spectrum(params, jax.random.normal(key, (400, 3), jnp.float64), k=2)

    found = jax.vmap(one)(keys)
    scatter, claimed = found.exponents.std(0, ddof=1), found.errors.mean(0)
    # The scatter of 40 runs is known to 1 / sqrt(80) = 11%. The bound is three times that.
    assert float(jnp.abs(claimed / scatter - 1).max()) < 0.35


def test_one_stretch_has_no_error():
    found = lyapunov_spectrum(draw("gru"), draw_xs(5), warm_up=0, every=5)
    assert np.all(np.isnan(found.errors))
    assert np.all(np.isfinite(found.exponents))


def test_a_lost_direction_is_not_nan():
    params = dataclasses.replace(draw("elman"), w_hh=jnp.zeros((4, 4)).at[0, 0].set(0.5), b=None)
    found = lyapunov_spectrum(params, jnp.zeros((50, 3)), warm_up=10)
    assert_close(found.exponents[0], np.log(0.5), 1e-12)
    assert np.all(found.exponents[1:] < -30)  # it is minus infinity or rounding


@pytest.mark.slow
def test_memory_does_not_grow_with_the_sequence():
    params = draw("gru", dtype="float32")

    def needed(steps, every):
        xs = jax.ShapeDtypeStruct((steps, 3), jnp.float32)
        look = jax.jit(lambda xs: lyapunov_spectrum(params, xs, every=every))
        return look.lower(xs).compile().memory_analysis().temp_size_in_bytes

    for every in (1, 7):  # 100,000 is not a multiple of 7
        # The compiler adds some bytes. A copy of xs, or a state for each step, would be a megabyte.
        assert abs(needed(100_000, every) - needed(1000, every)) < 1000


def test_a_hundred_thousand_steps():
    # With two units and one exponent, one step is 100 times as fast.
    params = draw("gru", hidden=2, dtype="float32")
    xs = jax.random.normal(jax.random.key(0), (100_000, 3), jnp.float32)
    long = lyapunov_spectrum(params, xs, k=1)
    short = lyapunov_spectrum(params, xs[:10_000], k=1)
    assert float(long.errors[0]) < 0.6 * float(short.errors[0])  # sqrt(1/10) = 0.32
    apart = abs(float(long.exponents[0] - short.exponents[0]))
    assert apart < 4 * float(short.errors[0])


def test_two_batches_in_one_program():
    """Batched QR decompositions may block each other on a CPU. This computation must end."""
    params, other = draw("gru"), draw("elman")
    batch = jnp.stack([draw_xs(30, seed=seed) for seed in range(5)])

    @jax.jit
    def both(batch):
        look = jax.vmap(lyapunov_spectrum, in_axes=(None, 0))
        return look(params, batch), look(other, batch)

    found = both(batch)
    for k, xs in enumerate(batch):
        assert_close(found[0].exponents[k], lyapunov_spectrum(params, xs).exponents, 1e-9)
        assert_close(found[1].exponents[k], lyapunov_spectrum(other, xs).exponents, 1e-9)


@pytest.mark.slow
def test_a_network_that_is_chaotic():
    """With random weights of gain 3, neighbours separate (Sompolinsky, Crisanti & Sommers 1988)."""
    params = jaxgru.elman_init(jax.random.key(0), 1, 64, dtype=jnp.float64)
    w_hh = 3 * jax.random.normal(jax.random.key(1), (64, 64), jnp.float64) / 8
    params = dataclasses.replace(params, w_hh=w_hh)
    h = jax.random.normal(jax.random.key(2), (64,), jnp.float64)
    found = lyapunov_spectrum(params, jnp.zeros((600, 1)), h, k=2)
    assert float(found.exponents[0]) > 5 * float(found.errors[0]) > 0
