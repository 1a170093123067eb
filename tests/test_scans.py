"""The scan with several steps in an iteration, against `lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cases import assert_same
from jaxgru.backends.scans import scan_unrolled


def body(carry, x):
    """The results depend on the order of the steps, and on the input of each step.

    If the inputs are integers, all results are exact, so the order of rounding does not matter.
    """
    number, flag = x
    total = 0.5 * carry["total"] + number
    return {"total": total, "count": carry["count"] + flag.astype("int32")}, (
        total,
        {"flag": ~flag},
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("steps", "turn"), [(12, 4), (13, 5), (7, 7), (9, 8), (5, 1)])
def test_it_computes_what_scan_computes(steps, turn, reverse):
    numbers = jnp.asarray(np.random.default_rng(0).integers(-8, 8, (steps, 3)), "float32")
    flags = jnp.arange(steps) % 3 == 0
    start = {"total": jnp.ones(3, "float32"), "count": jnp.int32(0)}
    expected = lax.scan(body, start, (numbers, flags), reverse=reverse)
    found = jax.jit(scan_unrolled, static_argnums=(0, 3, 4))(
        body, start, (numbers, flags), turn, reverse
    )
    assert_same(found, expected)


@pytest.mark.parametrize("steps", [32, 35])
def test_all_steps_share_one_program(steps):
    """There is one copy of the step, and its number does not appear in it as a constant."""
    run = jax.jit(lambda carry, xs: scan_unrolled(body, carry, xs, 8, reverse=False))
    start = {"total": jnp.ones(3, "float32"), "count": jnp.int32(0)}
    text = run.lower(start, (jnp.ones((steps, 3), "float32"), jnp.ones(steps, bool))).as_text()
    assert text.count("stablehlo.not") == 1
    assert text.count("call @body") == 8 + steps % 8
    (barrier,) = [line for line in text.splitlines() if "optimization_barrier" in line]
    assert len(barrier.split(" : ")[0].split(",")) == 8
