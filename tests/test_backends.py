"""Which program runs where: chosen by the platform that a program is made for."""

import re

import jax
import jax.numpy as jnp
import pytest

import jaxgru
from cases import draw
from jaxgru.backends import CPU, GPU

STEPS = 40
PARAMS = draw("gru_after", dtype="float32")
XS = jnp.ones((3, STEPS, 3), "float32")


def outputs(params, xs):
    return jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1]


def gradient(params, xs):
    return jax.grad(lambda params: jnp.sum(outputs(params, xs) ** 2))(params)


def candidates(run, *platforms):
    """How often a candidate is computed in the text of a program, once for every step of a turn of
    a loop. What a function computes counts wherever it is called."""
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
