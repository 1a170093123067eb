"""The minimal gated unit: the meaning of its gate, and its initial weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import VALUE_TOL, assert_close, draw, draw_carry, draw_xs

pytestmark = pytest.mark.usefixtures("x64")
TOL = VALUE_TOL["float64"]


def test_f_weighs_the_new_content():
    """With a gate of 0 the state stays. With a gate of 1 the unit is a plain RNN."""
    params = draw("mgu")
    h, x = draw_carry(params), draw_xs()[0]
    elman = jaxgru.ElmanParams(w_ih=params.w_ih[:, 1], w_hh=params.w_hh[:, 1], b=params.b[1])
    for shift, expected in ((-1e3, h), (1e3, jaxgru.elman_step(elman, h, x))):
        shifted = dataclasses.replace(params, b=params.b.at[0].add(shift))
        assert_close(jax.jit(jaxgru.mgu_step)(shifted, h, x), expected, TOL)


def test_chrono():
    """f weighs the new content, so a memory of u steps means f = 1 / (1 + u) and b_f = -log(u)."""
    names = ("chrono", "dtype")
    init = jax.jit(jaxgru.mgu_init, static_argnums=(1, 2), static_argnames=names)
    params = init(jax.random.key(0), 3, 64, chrono=100, dtype="float64")
    assert not np.any(params.b[1])
    memory = np.exp(-np.asarray(params.b[0]))
    assert memory.min() >= 1
    assert memory.max() <= 99
    assert memory.std() > 10
    plain = init(jax.random.key(0), 3, 64, dtype="float64")
    assert jnp.array_equal(params.w_hh, plain.w_hh)


def test_torch_biases_are_the_sum_of_two():
    b = np.abs(jaxgru.mgu_init(jax.random.key(0), 3, 64, init="torch").b)
    assert b.max() <= 2 / 8
    assert b.max() > 1 / 8
