"""The choice of the program by the platform for which it is compiled."""

import re

import jax
import jax.numpy as jnp
import pytest

import jaxgru
from cases import assert_same, draw, planned
from jaxgru import backends
from jaxgru.backends import CPU, GPU, HOPPER, hopper, loop, tpu
from jaxgru.backends.plan import Declined
from jaxgru.cell import cell_of

STEPS = 40
PARAMS = draw("gru_after", dtype="float32")
XS = jnp.ones((3, STEPS, 3), "float32")


def outputs(params, xs):
    return jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1]


def gradient(params, xs):
    return jax.grad(lambda params: jnp.sum(outputs(params, xs) ** 2))(params)


def candidates(run, *platforms):
    """Count the computations of the candidate in the text of a program.

    There is one for every step of an iteration of a loop. A function counts wherever it is called.
    """
    lowered = jax.jit(run).trace(PARAMS, XS).lower(lowering_platforms=platforms)
    functions = re.split(r"func\.func \w+ @", lowered.as_text())[1:]
    bodies = {re.match(r"\w+", function)[0]: function for function in functions}

    def count(name):
        called = re.findall(r"call @(\w+)", bodies[name])
        return bodies[name].count("stablehlo.tanh") + sum(map(count, called))

    return count("main")


def test_a_turn_of_the_loop_has_the_steps_of_the_platform():
    assert candidates(outputs, "cpu") == CPU.unroll
    assert candidates(outputs, "cuda") == candidates(outputs, "rocm") == GPU.unroll
    assert candidates(outputs, "tpu") == CPU.unroll


@pytest.mark.parametrize("run", [outputs, gradient])
def test_one_artifact_has_the_program_of_each_platform(run):
    both = candidates(run, "cpu", "cuda")
    assert both == candidates(run, "cpu") + candidates(run, "cuda")


def sizes(hidden, backward, gates=3, carries=1):
    """The sizes of the kernel for a GRU with reset_after=True, with lengths and resets."""
    products = ((1, gates),) if backward else ((gates, 1),)
    streams = carries + gates + 2 if backward else gates
    return hopper.Sizes(hidden, products, streams, 2, gates + 1 if backward else 1)


@pytest.mark.parametrize("hidden", [64, 128, 192, 256])
@pytest.mark.parametrize("backward", [False, True])
def test_what_fits_into_shared_memory(hidden, backward):
    assert sizes(hidden, backward).ahead() >= 2


def test_what_does_not():
    assert sizes(384, True).ahead() == 0
    assert sizes(1024, False).ahead() == 0  # it needs more CTAs than a cluster has


def test_a_batch_too_large_for_the_kernel():
    weights, x = (jnp.ones((1, 1, 256, 256)),), jnp.zeros((4, 1100, 256))
    with pytest.raises(Declined):
        hopper.scan(lambda _, __, carry, x: (carry, x), weights, (), x[0], x, False)


def test_the_loop_where_a_kernel_cannot_run():
    """There is neither a Hopper GPU nor a TPU here, and no kernel supports float64."""
    for kernel in (backends.hopper_kernel, backends.tpu_kernel):
        with pytest.raises(Declined):
            kernel()
    with jax.enable_x64(True):
        weights = (jnp.ones((1, 1, 3, 3), "float64"),)
        for scan in (hopper.scan, tpu.scan):
            with pytest.raises(Declined):
                scan(lambda *_: None, weights, (), XS[:, 0], XS, False)


@pytest.mark.parametrize("run", [outputs, gradient])
def test_what_a_kernel_declines_is_computed_by_the_plan_of_the_loop(run):
    def declined():
        raise Declined

    expected = jax.jit(run)(PARAMS, XS)
    with planned("cpu", **HOPPER._replace(kernel=declined, loop=CPU)._asdict()):
        assert_same(jax.jit(run)(PARAMS, XS), expected)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_an_artifact_has_no_kernel(platform, monkeypatch):
    """An exported program may run on another device than that of the machine that made it."""

    def kernel():
        raise AssertionError

    monkeypatch.setitem(backends.PLANS, platform, GPU._replace(kernel=kernel, loop=GPU))
    jax.export.export(jax.jit(gradient), platforms=[platform])(PARAMS, XS)


def test_several_devices_sum_gradients_once():
    """The backward pass is one stretch for any length of the sequence."""
    plan = backends.portable()._replace(hoisted=0)
    xs = jax.ShapeDtypeStruct((10**6, 10**3, 4), jnp.float32)
    assert loop.backward_stretch(plan, cell_of(PARAMS), PARAMS, xs) == 10**6
    assert loop.backward_stretch(CPU, cell_of(PARAMS), PARAMS, xs) < 10**3
