"""Four dtypes: the dtypes of results, and how sums are accumulated."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
from cases import (
    BUILT_IN,
    HIDDEN,
    LAYERS,
    OWN,
    STEPS,
    STREAMABLE,
    draw,
    draw_carry,
    draw_xs,
    only,
    planned,
    slow,
    weigh,
)

DTYPES = ("float16", "bfloat16", "float32", "float64")
LOW = ("float16", "bfloat16")
KEY = jax.random.key(0)
INITS = (jaxgru.gru_init, jaxgru.lstm_init, jaxgru.elman_init, jaxgru.min_gru_init)


@pytest.fixture(autouse=True)
def wide(request):
    """Switch 64-bit types on for float64. Other dtypes use the mode of the environment."""
    if "float64" in request.node.name:
        request.getfixturevalue("narrow_x64")


@pytest.fixture
def narrow_x64():
    with jax.enable_x64(True):
        yield


def dtypes_of(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (kind, dtype) if dtype == "bfloat16" or kind == "gru" else slow(kind, dtype)
        for kind in (*BUILT_IN, *LAYERS)
        for dtype in DTYPES
    ],
)
def test_carry_outputs_and_gradients_have_the_dtype_of_params(kind, dtype):
    params, xs = draw(kind, dtype=dtype), draw_xs(dtype=dtype)
    carry = jaxgru.initial_carry(params)
    assert dtypes_of(carry) == {dtype}
    reset = jnp.asarray(np.arange(STEPS) == 2)

    def run(params, xs, carry):
        return jaxgru.scan(params, xs, carry, length=5, reset=reset)

    assert dtypes_of(jax.eval_shape(run, params, xs, carry)) == {dtype}
    grad = jax.grad(lambda *args: weigh(run(*args)), argnums=(0, 1, 2))
    assert dtypes_of(jax.eval_shape(grad, params, xs, carry)) == {dtype}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*BUILT_IN, "stack"])
def test_step_keeps_the_dtype(kind, dtype):
    params = draw(kind, dtype=dtype)
    out = jax.eval_shape(jaxgru.step, params, jaxgru.initial_carry(params), draw_xs(dtype=dtype)[0])
    assert dtypes_of(out) == {dtype}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init", INITS)
def test_init_draws_the_dtype(init, dtype):
    for given in (dtype, jnp.dtype(dtype)):
        drawn = jax.eval_shape(lambda key, given=given: init(key, 3, 4, dtype=given), KEY)
        assert dtypes_of(drawn) == {dtype}


@pytest.mark.parametrize("init", INITS)
def test_init_draws_float32_unless_told(init):
    assert dtypes_of(jax.eval_shape(lambda key: init(key, 3, 4), KEY)) == {"float32"}


@pytest.mark.parametrize("dtype", [*LOW, "float32"])
@pytest.mark.parametrize("kind", only(("gru", "min_gru", "mixed"), (*BUILT_IN, *LAYERS)))
def test_values_of_the_narrow_dtypes(kind, dtype):
    """Compare with float64 on the same rounded numbers.

    Each step rounds the carry to half an ulp of 1, and the next steps multiply it by less than 2 in
    all. One ulp for each step and layer is generous for 16-bit types. It leaves float32 room for
    its own arithmetic.
    """
    params, xs = draw(kind, dtype=dtype), draw_xs(dtype=dtype)
    carry = draw_carry(params)
    tol = STEPS * float(jnp.finfo(dtype).eps)
    actual = jaxgru.scan(params, xs, carry)
    expected = oracle.scan(params, xs, carry)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=0, atol=tol)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("kind", BUILT_IN)
def test_a_step_rounds_once(kind, dtype):
    """Products and gates are computed in float32, so the result is the exact one, rounded to the
    dtype.

    If gates were computed in 16 bits, it would be off by several ulp. The bound is half an ulp, and
    2% for the error of float32.
    """
    params = draw(kind, dtype=dtype, seed=4)
    carry, x = draw_carry(params), draw_xs(dtype=dtype)[0]
    actual = jax.tree.leaves(jax.jit(jaxgru.step)(params, carry, x))
    expected = jax.tree.leaves(oracle.step(params, carry, x))
    # r * h enters the candidate's product in the dtype of its weights: an ulp more, weighed by z.
    bound = 1.5 if kind == "gru" else 0.52
    for a, e in zip(actual, expected, strict=True):
        ulp = np.asarray(np.spacing(np.abs(e.astype(jnp.dtype(dtype)))), np.float64)
        assert np.all(np.abs(np.asarray(a, np.float64) - e) <= bound * ulp)


@pytest.mark.parametrize("dtype", LOW)
def test_products_accumulate_small_terms(dtype):
    """Each of 1024 small terms vanishes beside 1 in 16 bits. Accumulated, they make 2."""
    tiny = float(jnp.finfo(dtype).eps) / 4
    count = int(1 / tiny)
    column = np.full((count + 1, 1), tiny / 2)
    column[0] = 0.5
    params = jaxgru.ElmanParams(
        w_ih=jnp.asarray(column, dtype), w_hh=jnp.zeros((1, 1), dtype), b=None
    )
    h = jaxgru.elman_step(params, jnp.zeros(1, dtype), jnp.ones(count + 1, dtype))
    # The results would be tanh(1.0) = 0.7616 and tanh(0.5) = 0.4621.
    np.testing.assert_allclose(float(h[0]), np.tanh(1.0), rtol=float(jnp.finfo(dtype).eps), atol=0)


def test_gradients_accumulate_over_a_long_sequence():
    """The gradient of a bias is a sum over 2000 steps of nearly equal terms.

    If it were added up in bfloat16, it would stop growing at 256 terms, one eighth of the sum.
    """
    steps, dtype = 2000, "bfloat16"
    params = jaxgru.ElmanParams(
        w_ih=jnp.full((1, 1), 0.01, dtype),
        w_hh=jnp.zeros((1, 1), dtype),
        b=jnp.full((1,), 0.01, dtype),
    )
    xs = jnp.ones((steps, 1), dtype)
    loss = jax.grad(lambda p: jnp.sum(jaxgru.scan(p, xs)[1].astype(jnp.float32)))
    grads = jax.jit(loss)(params)
    expected = steps * (1 - np.tanh(0.02) ** 2)
    # The gate, the term of one step and the sum are rounded to bfloat16.
    np.testing.assert_allclose(float(grads.b[0]), expected, rtol=0.02, atol=0)
    np.testing.assert_allclose(float(grads.w_ih[0, 0]), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", [*STREAMABLE, *OWN])
def test_float64_of_numpy_counts_as_float32(kind):
    """While 64-bit types are off, `step` converts NumPy's float64 as `scan` does, without warning.

    NumPy makes float64 by default, and JAX warns if a float64 result is asked of it.
    """

    def as_float64(tree):
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)

    params, xs = draw(kind, dtype="float32"), draw_xs(1, dtype="float32")
    carry = jaxgru.initial_carry(params)
    with jax.enable_x64(False):
        got = jaxgru.step(*as_float64((params, carry, xs[0])))
        expected = jaxgru.scan(*as_float64((params, xs, carry)))
        assert dtypes_of(got) == {"float32"}
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other.reshape(one.shape), rtol=0, atol=1e-6)
        own = {"gru": jaxgru.gru_step, "lstm": jaxgru.lstm_step, "elman": jaxgru.elman_step}
        own |= {"min_gru": jaxgru.min_gru_step} | {kind: step for kind, (_, step) in OWN.items()}
        if kind in own:
            got = own[kind](*as_float64((params, carry, xs[0])))
            assert dtypes_of(got) == {"float32"}


def products_in(program, *args):
    """The result dtype of every matrix product that is given to the compiler."""
    text = jax.jit(program).lower(*args).as_text()
    return re.findall(r"stablehlo\.dot_general.* -> tensor<(?:\d+x)*(\w+)>", text)


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_product_is_accumulated_in_float32(kind, dtype):
    """In forward and reverse mode, no product of the program has a 16-bit result."""
    params, xs = draw(kind, dtype=dtype), draw_xs(20, dtype=dtype)

    def run(params, xs):
        return weigh(jaxgru.scan(params, xs))

    programs = (
        run,
        jax.grad(run, argnums=(0, 1)),
        lambda p, x: jax.jvp(run, (p, x), (p, x)),
    )
    for program in programs:
        assert set(products_in(program, params, xs)) == {"f32"}


@pytest.mark.parametrize("kind", BUILT_IN)
def test_the_narrow_dtypes_stay_narrow_in_memory(kind):
    """The outputs of a long sequence are stored in 16 bits, not in float32 until the end."""
    params, xs = draw(kind, dtype="bfloat16"), draw_xs(64, dtype="bfloat16")
    _, ys = jax.eval_shape(jaxgru.scan, params, xs)
    assert ys.dtype == jnp.bfloat16
    assert ys.shape == (64, HIDDEN)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_weights_are_added_up_in_float32(dtype):
    """The gradient is a sum of ones in stretches of eight.

    In bfloat16 it would stop at 2,048 of 4,096, since 2,048 + 8 rounds to 2,048. In float16 it
    would stop at 16,384 of 32,768.
    """
    steps = 4096 if dtype == "bfloat16" else 32_768
    zeros = jaxgru.ElmanParams(
        w_ih=jnp.zeros((1, 2), dtype), w_hh=jnp.zeros((2, 2), dtype), b=jnp.zeros(2, dtype)
    )
    xs = jnp.zeros((steps, 1), dtype)
    with planned(hoisted=0, rows=1, backward=1):
        gradient = jax.grad(lambda p: jnp.sum(jaxgru.scan(p, xs)[1].astype(jnp.float32)))(zeros)
    assert gradient.b.tolist() == [steps, steps]
