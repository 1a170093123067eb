"""Long sequences: memory with `checkpoint`, and the recipe of docs/recipes/long_sequences.md."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import recipes
from cases import GRAD_TOL, VALUE_TOL, assert_close, assert_same, draw, draw_carry, draw_xs

pytestmark = pytest.mark.usefixtures("x64")

STEPS, STRETCH = 14, 4  # the last stretch is shorter
RESETS = (0, 4, 9)  # these are at the start, on a border and within a stretch


@functools.partial(jax.jit, static_argnums=(0, 4))
def truncated_gradient(*args, **options):
    return recipe()(*args, **options)


def recipe():
    return recipes.names_of("recipes/long_sequences.md")["truncated_gradient"]


def square(hs, targets, real):
    return jnp.sum(jnp.where(real[:, None], hs - jnp.where(real[:, None], targets, 0), 0) ** 2)


@functools.cache
def problem(kind="gru"):
    params = draw(kind)
    reset = jnp.zeros(STEPS, bool).at[jnp.array(RESETS)].set(True)
    return params, draw_xs(STEPS), draw_xs(STEPS, 4, seed=5), draw_carry(params), reset


def whole(params, xs, targets, carry, length, reset):
    last, hs = jaxgru.scan(params, xs, carry, length=length, reset=reset)
    return square(hs, targets, jnp.arange(xs.shape[0]) < length), last


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def slope(params, *rest):
    """Of the whole: ((value, last carry), gradient)."""
    return whole(params, *rest)


def by_stretches(params, xs, targets, carry, length, reset, stretch):
    """Sum over stretches the gradient with a constant carry. Python cuts the stretches.

    The constant carries come from the run up to the border, and not from the stretch before.
    """
    total = jax.tree.map(np.zeros_like, params)
    for start in range(0, length, stretch):
        stop = min(start + stretch, length)
        held = slope(params, xs[:start], targets[:start], carry, start, reset[:start])[0][1]
        part = (xs[start:stop], targets[start:stop], held, stop - start, reset[start:stop])
        total = jax.tree.map(np.add, total, slope(params, *part)[1])
    return total


@pytest.mark.parametrize(("kind", "stretch"), [("gru", STEPS + 3), ("lstm", STEPS)])
def test_one_stretch_is_the_exact_gradient(kind, stretch):
    params, xs, targets, carry, reset = problem(kind)
    (value, last), gradient = slope(params, xs, targets, carry, STEPS, reset)
    found = truncated_gradient(
        square, params, xs, targets, stretch, carry, length=STEPS, reset=reset
    )
    assert_close(found, (value, gradient, last), GRAD_TOL["float64"])


def test_stretches_run_forward_as_the_whole_and_cut_the_gradient():
    """Lengths end in a stretch, on a border, at the end or at 0. Resets are anywhere."""
    params, xs, targets, carry, reset = problem()
    for length in (STEPS, 6, 8, 0):
        value, last = slope(params, xs, targets, carry, length, reset)[0]
        found = truncated_gradient(
            square, params, xs, targets, STRETCH, carry, length=length, reset=reset
        )
        # The loss is a sum, so its tolerance is larger.
        assert_close((found[0], found[2]), (value, last), 10 * VALUE_TOL["float64"])
        cut = by_stretches(params, xs, targets, carry, length, reset, STRETCH)
        assert_close(found[1], cut, GRAD_TOL["float64"])


def test_the_cut_is_one():
    """Without resets on the borders, the truncated gradient differs from the exact one."""
    params, xs, targets, carry, reset = problem()
    none = jnp.zeros_like(reset)
    args = (square, params, xs, targets)
    exact = truncated_gradient(*args, STEPS, carry, length=STEPS, reset=none)[1]
    cut = truncated_gradient(*args, STRETCH, carry, length=STEPS, reset=none)[1]
    assert float(jnp.max(jnp.abs(exact.w_hh - cut.w_hh))) > 1e-2
    # If every border is a reset, the gradient is exact.
    borders = jnp.arange(STEPS) % STRETCH == 0
    exact = truncated_gradient(*args, STEPS, carry, length=STEPS, reset=borders)[1]
    cut = truncated_gradient(*args, STRETCH, carry, length=STEPS, reset=borders)[1]
    assert_close(cut, exact, GRAD_TOL["float64"])


def test_nan_in_the_padding_reaches_nothing():
    params, xs, targets, carry, reset = problem()
    length = 6
    clean = truncated_gradient(
        square, params, xs, targets, STRETCH, carry, length=length, reset=reset
    )
    xs, targets = (a.at[length:].set(jnp.nan) for a in (xs, targets))
    dirty = truncated_gradient(
        square, params, xs, targets, STRETCH, carry, length=length, reset=reset
    )
    assert_same(dirty, clean)


def temporary(gradient, steps, *args):
    xs = jax.ShapeDtypeStruct((steps, 1), "float32")
    params = draw("gru", 1, 32, "float32")
    compiled = jax.jit(gradient, static_argnums=range(2, 2 + len(args))).lower(params, xs, *args)
    return compiled.compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_as_the_square_root():
    """16 times the steps need 15/16 T more states, but 2 sqrt(T) with checkpoint = sqrt(T)."""

    def gradient(params, xs, k):
        return jax.grad(lambda p: jnp.sum(jaxgru.scan(p, xs, checkpoint=k)[0] ** 2))(params)

    short, long = 2**10, 2**14

    def growth(*ks):
        one, other = (temporary(gradient, t, k) for t, k in zip((short, long), ks, strict=True))
        return other - one

    state, copies = 4 * 32, 4 * (long - short)  # in bytes. Copies are those of the inputs.
    assert growth(None, None) > 0.9 * state * (long - short)
    # There are states at the borders and within a segment. Linearizing a step of a segment keeps at
    # most 10 states. Linear growth would be fifteen times this bound.
    assert growth(32, 128) - copies < 10 * state * (128 - 32)


def test_memory_of_the_recipe_does_not_grow():
    def gradient(params, xs):
        zeros = jnp.zeros((xs.shape[0], 1), "float32")
        carry = jaxgru.initial_carry(params)
        reset = jnp.zeros(xs.shape[0], bool)
        return recipe()(square, params, xs, zeros, 64, carry, length=xs.shape[0], reset=reset)[1]

    # Targets, resets and inputs take at most 16 bytes for each step. A state takes 128.
    short, long = (temporary(gradient, steps) for steps in (2**10, 2**13))
    assert long - short < 16 * (2**13 - 2**10)


MILLION = """
import resource, sys
import jax, jax.numpy as jnp, jaxgru

params = jaxgru.gru_init(jax.random.key(0), 4, 32)
xs = jax.random.normal(jax.random.key(1), (1_000_000, 4), "float32")
loss = lambda params: jnp.mean(jaxgru.scan(params, xs, checkpoint=1000)[1] ** 2)
gradient = jax.jit(jax.grad(loss))(params)
assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))
assert float(jnp.abs(gradient.w_hh).max()) > 0
if sys.platform == "linux":  # ru_maxrss is there at least that of the process which started this
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(1024 * int(status["VmHWM"].split()[0]))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_million_steps_stay_below_two_gibibytes():
    done = subprocess.run(
        [sys.executable, "-c", MILLION], check=True, stdout=subprocess.PIPE, text=True
    )
    assert int(done.stdout) < 2 * 2**30
