"""Products in a narrow dtype, with states in a wide one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
from cases import (
    BUILT_IN,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    only,
    planned,
    weigh,
)

#: The relative error of a product of two numbers rounded to 8 bits is at most 2**-8. Each of a few
#: gates and steps adds up about three products of size one.
TOL = 3e-2
NARROW = "bfloat16"


def rounded(x):
    return np.asarray(jnp.asarray(x, "float32").astype(NARROW), np.float64)


def products_of_rounded_operands(params, xs, carry):
    """The GRU with reset_after=True in float64, except for the operands of products."""
    w_ih, w_hh = (rounded(w) for w in (params.w_ih, params.w_hh))
    h, hs = np.asarray(carry, np.float64), []
    for x in xs:
        a = [rounded(x) @ w_ih[:, k] + np.asarray(params.b[k], np.float64) for k in range(3)]
        u = [rounded(h) @ w_hh[:, k] for k in range(3)]
        r, z = (1 / (1 + np.exp(-a[k] - u[k])) for k in range(2))
        n = np.tanh(a[2] + r * (u[2] + np.asarray(params.b_hn, np.float64)))
        h = np.asarray((1 - z) * h + z * n, np.float32).astype(np.float64)
        hs.append(h)
    return h, np.stack(hs)


def test_operands_are_rounded_and_nothing_else():
    """The states are float32, and only the operands are rounded.

    A state between two numbers of 8 bits may be rounded either way. This hardly happens for 24
    bits. All other arithmetic is float32.
    """
    params, xs = draw("gru_after", dtype="float32"), draw_xs(dtype="float32")
    carry = draw_carry(params)
    actual = jaxgru.scan(params, xs, carry, compute_dtype=NARROW)
    assert_close(actual, products_of_rounded_operands(params, xs, carry), 1e-5)
    apart = jnp.abs(actual[1] - jaxgru.scan(params, xs, carry)[1]).max()
    assert 1e-4 < apart < TOL


@pytest.mark.parametrize("kind", only(["lstm"], (*BUILT_IN, "mixed")))
def test_values_and_gradients_are_near_the_exact_ones(kind):
    """Gradients also have the dtype of params."""
    params, xs = draw(kind, dtype="float32"), draw_xs(dtype="float32")
    carry = draw_carry(params)

    def run(params, xs, carry, **options):
        return jaxgru.scan(params, xs, carry, reverse=True, length=5, **options)

    def gradient(**options):
        loss = lambda *arguments: weigh(run(*arguments, **options))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, xs, carry)

    values = run(params, xs, carry, compute_dtype=NARROW)
    assert {a.dtype for a in jax.tree.leaves(values)} == {jnp.dtype("float32")}
    expected = oracle.scan(params, xs, carry, reverse=True, length=5)
    assert_close(values, expected, TOL)
    narrow, wide = gradient(compute_dtype=NARROW), gradient()
    largest = max(float(jnp.abs(a).max()) for a in jax.tree.leaves(wide))
    assert_close(narrow, wide, 2 * TOL * largest)
    apart = jax.tree.map(lambda a, b: bool((a != b).any()), narrow, wide)
    assert any(jax.tree.leaves(apart))


def slope():
    params, xs = draw("gru", dtype="float32"), draw_xs(dtype="float32")
    loss = lambda params: weigh(jaxgru.scan(params, xs, compute_dtype=NARROW))  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def expected():
    return slope()


@pytest.mark.parametrize(
    "changes",
    [{"wide": 1, "wide_batch": 1}, {"wide_tangent": 1}, {"hoisted": 0}, {"platform": "cuda"}],
    ids=str,
)
def test_every_way_of_the_loop(changes, expected):
    """Sums have another order, after which a state may be rounded to the next number of 8 bits."""
    with planned(**changes):
        assert_close(slope(), expected, TOL)


@pytest.mark.parametrize("kind", [*BUILT_IN, "stack"])
def test_step_rounds_as_scan_does(kind):
    params, xs = draw(kind, dtype="float32"), draw_xs(dtype="float32")
    carry = draw_carry(params)
    last, ys = jax.jit(lambda: jaxgru.scan(params, xs[:1], carry, compute_dtype=NARROW))()
    step = jax.jit(lambda: jaxgru.step(params, carry, xs[0], compute_dtype=NARROW))
    assert_close(step(), (last, ys[0]), 1e-5)


def test_a_state_keeps_what_16_bits_would_lose():
    """With an update gate of 2**-12, a bfloat16 state would not change."""
    size, steps = 4, 2000
    rng = np.random.default_rng(0)
    params = jaxgru.GRUParams(
        w_ih=jnp.asarray(rng.standard_normal((3, 3, size)) * 0.1, "float32"),
        w_hh=jnp.asarray(rng.standard_normal((size, 3, size)) * 0.1, "float32"),
        b=jnp.zeros((3, size), "float32").at[1].set(-float(np.log(2.0**12))),
        b_hn=None,
        reset_after=False,
    )
    xs = jnp.ones((steps, 3), "float32")
    expected = oracle.scan(params, xs)[0]
    narrow = jax.tree.map(lambda a: a.astype(NARROW), params)
    assert_close(jaxgru.scan(params, xs, compute_dtype=NARROW)[0], expected, 2e-3)
    lost = np.asarray(jaxgru.scan(narrow, xs.astype(NARROW))[0], np.float64)
    assert np.abs(lost - expected).max() > 2e-2


def test_the_dtype_of_params_changes_nothing():
    params, xs = draw("gru", dtype="float32"), draw_xs(dtype="float32")
    assert_same(jaxgru.scan(params, xs, compute_dtype="float32"), jaxgru.scan(params, xs))
