"""The kernel for TPUs, interpreted on a CPU.

Pallas has two interpreters. The one for all platforms is fast, and runs inside compiled programs.
The one for TPUs copies blocks as a TPU does, and fills unwritten memory with NaN.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import jaxgru
import oracle
from cases import GRAD_TOL, VALUE_TOL, assert_close, draw, only, planned, slow, weigh
from jaxgru.backends import TPU_KERNEL, loop, tpu
from jaxgru.cell import cell_of
from kernels import HIDDEN, INPUT, KINDS, assert_equals_the_loop, both, problem

PALLAS_CALL = pl.pallas_call

#: These are relative to the largest number. Exact float32 products differ from those of the loop
#: only by their order. bfloat16 products differ by 2**-9 for each term. With 16-bit params the loop
#: rounds every state by as much. After six steps states differ by 0.02, and gradients by 0.04.
TOL = {("float32", True): 1e-6, ("float32", False): 5e-2, ("bfloat16", False): 5e-2}


def plan(exact=True, launches=None):
    """Run with the kernel, and count its results."""

    def kernel(*arguments):
        if launches is not None:
            launches.append(arguments)
        return tpu.scan(*arguments, exact=exact)

    return TPU_KERNEL._replace(kernel=lambda: kernel)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(tpu.pl, "pallas_call", partial(pl.pallas_call, interpret=True))


@pytest.mark.parametrize(
    ("dtype", "exact"),
    [("float32", False), slow("float32", True), slow("bfloat16", False)],
)
@pytest.mark.parametrize("marked", only([True], [False, True]))
@pytest.mark.parametrize("reverse", only([True], [False, True]))
@pytest.mark.parametrize("kind", only(["gru_after"], KINDS))
def test_equals_the_loop(kind, reverse, marked, dtype, exact):
    primals, cts = problem(kind, dtype, marked)
    launches = []
    actual = both(plan(exact, launches), reverse, primals, cts)
    assert len(launches) == 2
    assert_equals_the_loop(actual, reverse, primals, cts, TOL[dtype, exact])


@pytest.mark.parametrize("reverse", only([True], [False, True]))
def test_blocks_of_examples_and_of_time_with_a_rest(reverse, monkeypatch):
    """20 examples are divided into 16 and 4, and 7 steps into 3, 3 and 1."""
    monkeypatch.setattr(tpu, "VMEM", 800_000)
    monkeypatch.setattr(tpu, "STEPS", 3)
    found = []

    def block(sizes, *shape):
        found.append(original(sizes, *shape))
        return found[-1]

    original = tpu.Sizes.block
    monkeypatch.setattr(tpu.Sizes, "block", block)
    monkeypatch.setattr(tpu.pl, "pallas_call", PALLAS_CALL)
    primals, cts = problem("gru_after", "float32", marked=True, steps=7, batch=20)
    with pltpu.force_tpu_interpret_mode():
        actual = both(plan(), reverse, primals, cts)
    assert found == [(20, 3, 1), (16, 3, 1)]
    assert_equals_the_loop(actual, reverse, primals, cts, TOL["float32", True])


STEPS, LENGTHS = 6, [0, 1, 4, 6]


@pytest.mark.parametrize("reverse", only([False], [False, True]))
@pytest.mark.parametrize("kind", only(["gru_after"], [kind for kind in KINDS if kind != "own"]))
def test_equals_the_oracle_whatever_is_in_the_padding(kind, reverse, x64):
    """Values against NumPy, and gradients against the loop, both in float64."""
    rng = np.random.default_rng(1)
    resets = jnp.asarray(rng.random((len(LENGTHS), STEPS)) < 0.3)
    padded = np.arange(STEPS) >= np.asarray(LENGTHS)[:, None]
    xs = rng.standard_normal((len(LENGTHS), STEPS, INPUT))
    xs = jnp.asarray(np.where(padded[..., None], np.nan, xs))
    params = draw(kind, INPUT, HIDDEN, "float64")

    def outputs(params, xs):
        def one(xs, length, reset):
            return jaxgru.scan(params, xs, length=length, reset=reset, reverse=reverse)

        return jax.vmap(one)(xs, jnp.asarray(LENGTHS), resets)

    def run(params, xs):
        loss = lambda *arguments: weigh(outputs(*arguments))  # noqa: E731
        return outputs(params, xs), jax.grad(loss, argnums=(0, 1))(params, xs)

    launches = []
    with planned("cpu", **plan(launches=launches)._asdict()):
        narrow = jax.tree.map(lambda a: a.astype("float32"), (params, xs))
        values, grads = jax.jit(run)(*narrow)
    assert len(launches) == 3  # one for the values, and two for the gradient
    for k, length in enumerate(LENGTHS):
        options = {"length": length, "reset": resets[k], "reverse": reverse}
        expected = oracle.scan(params, xs[k], **options)
        assert_close(jax.tree.map(lambda a, k=k: a[k], values), expected, VALUE_TOL["float32"])
    assert_close(grads, run(params, xs)[1], GRAD_TOL["float32"])


def test_what_fits_into_vmem():
    """The sizes of a GRU with reset_after=True, in the forward and backward pass."""
    for size, batch, bytes_each in [(256, 64, 2), (512, 64, 2), (1024, 32, 2), (512, 64, 4)]:
        for moving, fixed in [(4, 4), (9, 2)]:
            sizes = tpu.Sizes(size, 3 * size * size * bytes_each, fixed, moving, 2)
            block = sizes.block(batch, 1000)
            assert block is not None
            examples, steps, unrolled = block
            assert examples <= batch
            assert steps % unrolled == 1000 % unrolled == 0
    assert tpu.Sizes(2048, 3 * 2048 * 2048 * 2, 4, 4, 2).block(8, 1000) is None


def test_a_long_sequence_of_a_prime_length_runs_step_by_step():
    assert tpu.Sizes(128, 100_000, 4, 4, 0).block(8, 997) == (8, tpu.STEPS, 1)


@pytest.mark.parametrize("exact", [True, False])
def test_products_are_as_precise_as_is_asked(exact):
    """A CPU computes all float32 products exactly, so the test looks at the program."""
    primals, _ = problem("gru_after", "float32", marked=False)
    cell = cell_of(primals[0])

    def run(primals):
        return loop.forward(plan(exact), cell, 0, False, primals)

    text = str(jax.make_jaxpr(run)(primals))
    assert ("Precision.HIGHEST" in text) == exact
    assert ("bf16" in text) != exact
