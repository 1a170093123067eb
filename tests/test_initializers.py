"""The presets draw what the libraries draw: bounds, spread, kurtosis and orthogonality."""

import functools
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import assert_same, only, slow
from jaxgru.orthonormal import gram_schmidt, orthogonal

INITS = {"gru": jaxgru.gru_init, "lstm": jaxgru.lstm_init, "elman": jaxgru.elman_init}
GATES = {"gru": 3, "lstm": 4, "elman": 1}
PRESETS = ("orthogonal", "torch", "keras", "flax", "haiku")
#: The smallest block has 3200 entries. I differs from H, so that fans cannot be confused.
INPUT, HIDDEN = 50, 64

#: The relative error of a standard deviation that is estimated from n entries is at most
#: 1 / sqrt(2 n). This holds for these distributions, whose tails are lighter than the normal ones.
#: The bound is five sigma for n >= 3200.
SPREAD = 5 / np.sqrt(2 * 3200)
#: The error of the kurtosis E x^4 / (E x^2)^2 is at most sqrt(24 / n) for such tails.
SHAPE = 5 * np.sqrt(24 / 3200)
UNIFORM, TRUNCATED = 1.8, 2.37  # the kurtosis, which is 3 for the normal distribution
#: Orthogonality holds up to the float32 rounding of a QR of 64 columns.
ORTHOGONAL = 2e-5
#: Two methods to decompose the same draws differ by float32 rounding times the condition number of
#: a normal square matrix, which is some hundreds at these sizes.
DRAWS = 1e-4


@functools.cache
def compiled(kind, preset, **options):
    return jax.jit(
        functools.partial(INITS[kind], input_size=INPUT, hidden_size=HIDDEN, init=preset, **options)
    )


@functools.cache
def draw(kind, preset, seed=0, **options):
    return compiled(kind, preset, **options)(jax.random.key(seed))


def draw_many(kind, **options):
    """A hundred networks, which have enough biases."""
    init = functools.partial(INITS[kind], input_size=2, hidden_size=HIDDEN, **options)
    return jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(1), 100))


def blocks(w):
    """The matrix of every gate in float64."""
    w = np.asarray(w, np.float64)
    return [w] if w.ndim == 2 else [w[:, k] for k in range(w.shape[1])]


def kurtosis(x):
    return np.mean(x**4) / np.mean(x**2) ** 2


def assert_uniform(x, bound):
    assert np.max(np.abs(x)) <= bound * (1 + 1e-6)
    assert np.max(np.abs(x)) > 0.98 * bound
    np.testing.assert_allclose(np.std(x), bound / np.sqrt(3), rtol=SPREAD)
    np.testing.assert_allclose(kurtosis(x), UNIFORM, atol=SHAPE, rtol=0)


def assert_truncated_normal(x, std, cut):
    """A normal distribution cut at `cut`, with standard deviation `std` after the cut."""
    assert np.max(np.abs(x)) <= cut * (1 + 1e-6)
    assert np.max(np.abs(x)) > 0.9 * cut
    np.testing.assert_allclose(np.std(x), std, rtol=SPREAD)
    np.testing.assert_allclose(kurtosis(x), TRUNCATED, atol=SHAPE, rtol=0)


def assert_lecun(x, fan_in):
    """The normal distribution is cut at two sigma and rescaled to variance 1 / fan_in."""
    std = 1 / np.sqrt(fan_in)
    assert_truncated_normal(x, std, 2 * std / 0.8796256610342398)


def assert_uncorrected(x, fan_in):
    """`haiku.Linear` cuts at two sigma, and does not rescale."""
    std = 1 / np.sqrt(fan_in)
    assert_truncated_normal(x, 0.8796256610342398 * std, 2 * std)


def assert_orthogonal(w):
    """Either rows or columns, whichever are fewer, are orthonormal."""
    w = w if w.shape[0] <= w.shape[1] else w.T
    np.testing.assert_allclose(w @ w.T, np.eye(len(w)), atol=ORTHOGONAL, rtol=0)


def assert_centred(x):
    """The mean of n entries is zero up to five standard errors."""
    assert abs(np.mean(x)) < 5 * np.std(x) / np.sqrt(x.size)


def each_preset(presets=PRESETS):
    """(kind, preset) of every pair, of which the short run takes those of a cell and some more."""
    more = {("lstm", "flax"), ("lstm", "haiku"), ("elman", "keras")}
    pairs = itertools.product(INITS, presets)
    return [pair if pair[0] == "gru" or pair in more else slow(*pair) for pair in pairs]


@pytest.mark.parametrize(("kind", "preset"), each_preset())
def test_shapes_and_centre(kind, preset):
    params = draw(kind, preset)
    gates = () if kind == "elman" else (GATES[kind],)
    assert params.w_ih.shape == (INPUT, *gates, HIDDEN)
    assert params.w_hh.shape == (HIDDEN, *gates, HIDDEN)
    assert params.b.shape == (*gates, HIDDEN)
    for block in (*blocks(params.w_ih), *blocks(params.w_hh)):
        assert_centred(block)


@pytest.mark.parametrize(("kind", "preset"), each_preset(["orthogonal", "flax"]))
def test_orthogonal_and_flax(kind, preset):
    """flax.linen draws LeCun normal input kernels, and an orthogonal recurrent kernel per gate."""
    params = draw(kind, preset)
    for block in blocks(params.w_ih):
        assert_lecun(block, INPUT)
    for block in blocks(params.w_hh):
        assert_orthogonal(block)


@pytest.mark.parametrize(
    ("kind", "preset"),
    [("gru", "orthogonal"), ("lstm", "flax"), slow("gru", "flax"), slow("lstm", "orthogonal")],
)
def test_gate_blocks_are_drawn_apart(kind, preset):
    """No two gates share their weights."""
    params = draw(kind, preset)
    for w in (params.w_ih, params.w_hh):
        parts = blocks(w)
        for i, a in enumerate(parts):
            for b in parts[i + 1 :]:
                # Independent entries: the correlation of n pairs stays below five / sqrt(n).
                assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


@pytest.mark.parametrize("kind", only(["gru"], INITS))
def test_torch(kind):
    """Everything is U(-1/sqrt(H), 1/sqrt(H)). The sum of two active biases is triangular."""
    params = draw(kind, "torch")
    bound = 1 / np.sqrt(HIDDEN)
    for block in (*blocks(params.w_ih), *blocks(params.w_hh)):
        assert_uniform(block, bound)


def torch_biases(kind, **options):
    return draw_many(kind, init="torch", **options), 1 / np.sqrt(HIDDEN)


def assert_triangular(x, bound):
    """The sum of two independent U(-bound, bound) has twice the variance, and kurtosis 2.4."""
    assert np.max(np.abs(x)) <= 2 * bound * (1 + 1e-6)
    assert np.max(np.abs(x)) > 1.8 * bound
    np.testing.assert_allclose(np.std(x), bound * np.sqrt(2 / 3), rtol=SPREAD)
    np.testing.assert_allclose(kurtosis(x), 2.4, atol=SHAPE, rtol=0)


def test_torch_biases_of_reset_after():
    """b_in and b_hn stay separate, as in PyTorch. The two biases of a gate are added up."""
    many, bound = torch_biases("gru", reset_after=True)
    b = np.asarray(many.b, np.float64)
    assert_triangular(b[:, 0], bound)
    assert_triangular(b[:, 1], bound)
    assert_uniform(b[:, 2], bound)
    assert_uniform(np.asarray(many.b_hn, np.float64), bound)


@pytest.mark.parametrize("kind", ["lstm", "elman"])
def test_torch_biases_of_lstm_and_elman(kind):
    many, bound = torch_biases(kind)
    b = np.asarray(many.b, np.float64)
    for k in range(GATES[kind]):
        assert_triangular(b if kind == "elman" else b[:, k], bound)


@pytest.mark.parametrize("kind", only(("gru", "elman"), INITS))
def test_keras(kind):
    """The packed kernel is Glorot uniform. The packed recurrent kernel has orthonormal rows."""
    params = draw(kind, "keras")
    bound = np.sqrt(6 / (INPUT + GATES[kind] * HIDDEN))
    for block in blocks(params.w_ih):
        assert_uniform(block, bound)
    packed = np.asarray(params.w_hh, np.float64).reshape(HIDDEN, -1)
    assert_orthogonal(packed)
    if GATES[kind] > 1:
        block = blocks(params.w_hh)[0]
        assert np.max(np.abs(block @ block.T - np.eye(HIDDEN))) > 0.1


def test_haiku_gru():
    """VarianceScaling rescales after the cut."""
    params = draw("gru", "haiku")
    for block in blocks(params.w_ih):
        assert_lecun(block, INPUT)
    for block in blocks(params.w_hh):
        assert_lecun(block, HIDDEN)


def test_haiku_lstm():
    """One Linear over [x, h] has the fan I + H, and does not rescale after the cut."""
    params = draw("lstm", "haiku")
    for block in (*blocks(params.w_ih), *blocks(params.w_hh)):
        assert_uncorrected(block, INPUT + HIDDEN)


def test_haiku_elman():
    """A VanillaRNN has two Linears."""
    params = draw("elman", "haiku")
    assert_uncorrected(np.asarray(params.w_ih, np.float64), INPUT)
    assert_uncorrected(np.asarray(params.w_hh, np.float64), HIDDEN)


@pytest.mark.parametrize(("kind", "preset"), each_preset(["orthogonal", "keras", "flax", "haiku"]))
def test_biases(kind, preset):
    """Biases are zero, except 1 for the forget gate of an LSTM in Keras, Haiku and here."""
    expected = np.zeros((GATES[kind], HIDDEN))
    if kind == "lstm" and preset != "flax":
        expected[1] = 1
    b = np.asarray(draw(kind, preset).b).reshape(GATES[kind], HIDDEN)
    np.testing.assert_array_equal(b, expected)
    if kind == "gru":
        after = draw(kind, preset, reset_after=True)
        np.testing.assert_array_equal(after.b, np.zeros((3, HIDDEN)))
        np.testing.assert_array_equal(after.b_hn, np.zeros(HIDDEN))


@pytest.mark.parametrize("preset", ["torch", slow("haiku")])
@pytest.mark.parametrize("kind", only(["gru"], INITS))
def test_bias_off(kind, preset):
    params = draw(kind, preset, bias=False)
    assert params.b is None
    assert_same(params.w_ih, draw(kind, preset).w_ih)
    if kind == "gru":
        assert params.b_hn is None
        assert draw(kind, preset, bias=False, reset_after=True).b_hn is None


def test_b_hn_only_with_reset_after():
    assert draw("gru", "torch").b_hn is None
    assert draw("gru", "torch").reset_after is False
    after = draw("gru", "torch", reset_after=True)
    assert after.b_hn.shape == (HIDDEN,)
    assert after.reset_after is True


def test_chrono_gru():
    """z weighs the new content, so a memory of u steps means z = 1 / (1 + u) and b_z = -log(u)."""
    t_max = 200.0
    b = np.asarray(draw_many("gru", init="haiku", chrono=t_max).b, np.float64)
    np.testing.assert_array_equal(b[:, [0, 2]], 0)
    assert_chrono(np.exp(-b[:, 1]), t_max)


def test_chrono_lstm():
    t_max = 200.0
    b = np.asarray(draw_many("lstm", init="haiku", chrono=t_max).b, np.float64)
    np.testing.assert_array_equal(b[:, [2, 3]], 0)
    np.testing.assert_array_equal(b[:, 0], -b[:, 1])
    assert_chrono(np.exp(b[:, 1]), t_max)


def assert_chrono(u, t_max):
    """u ~ U[1, T_max - 1]. exp of a float32 logarithm has a relative error of a few 1e-7."""
    assert np.min(u) >= 1 - 1e-5
    assert np.max(u) <= (t_max - 1) * (1 + 1e-5)
    assert np.min(u) < 1 + 0.02 * t_max
    assert np.max(u) > 0.98 * (t_max - 1)
    np.testing.assert_allclose(np.mean(u), t_max / 2, rtol=SPREAD)
    np.testing.assert_allclose(np.std(u), (t_max - 2) / np.sqrt(12), rtol=SPREAD)


def test_chrono_replaces_only_biases():
    plain, timed = draw("lstm", "haiku"), draw("lstm", "haiku", chrono=50)
    assert_same((timed.w_ih, timed.w_hh), (plain.w_ih, plain.w_hh))


def test_chrono_of_the_shortest_range():
    """With T_max = 2, u is 1 and every chrono bias is zero."""
    np.testing.assert_array_equal(draw("gru", "haiku", chrono=2).b, 0)


@pytest.mark.parametrize(("kind", "preset"), each_preset())
def test_the_key_decides(kind, preset):
    assert_same(compiled(kind, preset)(jax.random.key(0)), draw(kind, preset))
    other = draw(kind, preset, seed=1)
    assert jnp.max(jnp.abs(draw(kind, preset).w_hh - other.w_hh)) > 1e-2


@pytest.mark.parametrize("kind", only(["gru"], INITS))
def test_orthogonal_is_the_default(kind):
    default = jax.jit(functools.partial(INITS[kind], input_size=INPUT, hidden_size=HIDDEN))
    assert_same(default(jax.random.key(0)), draw(kind, "orthogonal"))


@pytest.mark.parametrize("kind", INITS)
def test_input_and_recurrent_weights_are_independent(kind):
    """For I = H the shapes are equal. One key for both would make them equal up to scale."""
    params = INITS[kind](jax.random.key(0), HIDDEN, HIDDEN, init="torch")
    x, h = np.asarray(params.w_ih).ravel(), np.asarray(params.w_hh).ravel()
    assert abs(np.corrcoef(x, h)[0, 1]) < 5 / np.sqrt(x.size)


@pytest.mark.parametrize(
    ("preset", "dtype"),
    [("orthogonal", "bfloat16"), ("torch", "bfloat16"), ("keras", "float16")],
)
def test_narrow_dtypes_draw_the_same_numbers(preset, dtype):
    """The weights are drawn in float32 and rounded. QR and logarithms in 16 bits would differ."""
    wide, narrow = draw("gru", preset), draw("gru", preset, dtype=dtype)
    assert_same(narrow.w_ih, wide.w_ih.astype(dtype))
    assert_same(narrow.w_hh, wide.w_hh.astype(dtype))
    # The two biases of torch may be rounded before they are added: an ulp of a number below 0.25.
    ulp = 0.25 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(narrow.b.astype(jnp.float32), wide.b, rtol=0, atol=ulp)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cores", "optimized"), [(2, False), *((cores, True) for cores in (1, 2, 3, 4, 8))]
)
def test_populations_are_drawn_without_a_deadlock(cores, optimized):
    """Batched decompositions must not block each other.

    NPROC sets the number of threads in the pool of XLA. With two threads, a pair of batched
    decompositions waited for each other in all of a dozen tries. It did so in all of four tries
    without optimized machine code, which compiles much faster but draws more slowly.
    """
    flags, draws, names = os.environ["XLA_FLAGS"], 5, ["stack", "beside_another"]
    if optimized:
        flags, draws, names = "", 50, [*names, "three_cells"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "populations.py"), str(draws), *names],
        env={**os.environ, "NPROC": str(cores), "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,  # the draws take ten seconds on an idle machine
        check=True,
    )
    assert done.stdout == "drawn\n"


def test_a_draw_calls_no_library():
    """As LAPACK's decompositions are, whose threads wait for each other in a batch."""
    init = functools.partial(jaxgru.gru_init, input_size=3, hidden_size=4)
    keys = jax.random.split(jax.random.key(0), 3)
    assert "custom_call" not in jax.jit(jax.vmap(init)).lower(keys).as_text()


@pytest.mark.parametrize("preset", ["orthogonal", slow("keras")])
def test_a_population_has_the_draws_of_its_members(preset):
    """This also holds in nested batches."""
    init = functools.partial(jaxgru.gru_init, input_size=3, hidden_size=HIDDEN, init=preset)
    keys = jax.random.split(jax.random.key(2), (2, 3))
    population = jax.jit(jax.vmap(jax.vmap(init)))(keys)
    for place in np.ndindex(keys.shape):
        member = jax.tree.map(lambda a, p=place: a[p], population)
        alone = jax.jit(init)(keys[place])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=DRAWS), member, alone
        )


@pytest.mark.parametrize(
    "shape", [*map(slow, [(1, 1), (5, 5), (31, 70), (33, 33)]), (70, 31), (96, 96)]
)
def test_orthogonal_matrices_are_those_of_jax(shape):
    """`jax.nn.initializers.orthogonal` decomposes the same normal draws with LAPACK."""
    for seed in range(3):
        key = jax.random.key(seed)
        ours = jax.jit(orthogonal, static_argnums=(1, 2))(key, shape, "float32")
        theirs = jax.nn.initializers.orthogonal()(key, shape, "float32")
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=DRAWS)
        gram = np.asarray(ours, np.float64)
        gram = gram @ gram.T if shape[0] < shape[1] else gram.T @ gram
        # There are a hundred terms of unit vectors, each with a rounding error of 6e-8.
        np.testing.assert_allclose(gram, np.eye(len(gram)), rtol=0, atol=5e-6)


def test_a_dependent_column_is_zero():
    frame = jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 3.0]], "float32")
    q, lengths = gram_schmidt(frame)
    np.testing.assert_array_equal(lengths, [1, 0, 3])
    np.testing.assert_array_equal(q, [[1, 0, 0], [0, 0, 0], [0, 0, 1]])
