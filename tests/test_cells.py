"""One time step of every cell, against the equations in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
import own_gru
from cases import (
    CELLS,
    HIDDEN,
    INPUT,
    STREAMABLE,
    VALUE_TOL,
    assert_close,
    draw,
    draw_carry,
    only,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
STEPS = {
    "gru": (jaxgru.gru_step, oracle.gru_step),
    "gru_after": (jaxgru.gru_step, oracle.gru_step),
    "lstm": (jaxgru.lstm_step, oracle.lstm_step),
    "elman": (jaxgru.elman_step, oracle.elman_step),
    "min_gru": (jaxgru.min_gru_step, oracle.min_gru_step),
    "own_gru": (lambda *arguments: own_gru.step(*arguments)[0], oracle.gru_step),
    "named_gru": (lambda *arguments: jaxgru.step(*arguments)[0], oracle.gru_step),
}


def draw_x(inputs=INPUT):
    return jnp.asarray(np.random.default_rng(5).standard_normal(inputs))


@pytest.mark.parametrize(
    ("hidden", "bias"), [(HIDDEN, True), (1, False), slow(1, True), slow(HIDDEN, False)]
)
@pytest.mark.parametrize("kind", CELLS)
def test_step_is_the_equations(kind, hidden, bias):
    params = draw(kind, hidden=hidden, bias=bias)
    carry, x = draw_carry(params), draw_x()
    step, expected = STEPS[kind]
    assert_close(step(params, carry, x), expected(params, carry, x), TOL)


@pytest.mark.parametrize(("b", "b_hn"), [(True, False), (False, True)])
def test_each_bias_of_reset_after_is_optional(b, b_hn):
    full = draw("gru_after")
    params = jaxgru.GRUParams(
        w_ih=full.w_ih,
        w_hh=full.w_hh,
        b=full.b if b else None,
        b_hn=full.b_hn if b_hn else None,
        reset_after=True,
    )
    h, x = draw_carry(params), draw_x()
    assert_close(jaxgru.gru_step(params, h, x), oracle.gru_step(params, h, x), TOL)


def test_z_weighs_the_new_content():
    """With an update gate of 1 the state becomes the candidate. With one of 0 it stays."""
    params = draw("gru")
    h, x = draw_carry(params), draw_x()
    for shift, expected in ((-1e3, h), (1e3, None)):
        shifted = jaxgru.GRUParams(
            w_ih=params.w_ih,
            w_hh=params.w_hh,
            b=params.b.at[1].add(shift),
            b_hn=None,
            reset_after=False,
        )
        out = jaxgru.gru_step(shifted, h, x)
        if expected is None:
            r = jax.nn.sigmoid(x @ params.w_ih[:, 0] + h @ params.w_hh[:, 0] + params.b[0])
            expected = jnp.tanh(x @ params.w_ih[:, 2] + (r * h) @ params.w_hh[:, 2] + params.b[2])
        assert_close(out, expected, TOL)


def test_the_two_forms_are_different_functions():
    before = draw("gru")
    after = jaxgru.GRUParams(
        w_ih=before.w_ih, w_hh=before.w_hh, b=before.b, b_hn=None, reset_after=True
    )
    h, x = draw_carry(before), draw_x()
    apart = jnp.abs(jaxgru.gru_step(before, h, x) - jaxgru.gru_step(after, h, x))
    assert jnp.max(apart) > 1e-3


@pytest.mark.parametrize("kind", STREAMABLE)
def test_step_dispatches_on_the_params(kind):
    params = draw(kind)
    carry, x = draw_carry(params), draw_x()
    out = jaxgru.step(params, carry, x)
    assert jax.tree.structure(out[0]) == jax.tree.structure(carry)
    assert_close(out, oracle.step(params, carry, x), TOL)


@pytest.mark.parametrize(
    "kind", only(("gru", "lstm", "min_gru", "own_gru", "stack"), (*STREAMABLE, "own_stack"))
)
def test_step_is_a_scan_over_one_step(kind):
    """This holds with every option, for values and gradients, and under tracing."""
    params = draw(kind)
    carry, x, start = draw_carry(params), draw_x(), draw_carry(params, seed=5)

    def one(params, carry, x, start, reset):
        return jaxgru.step(params, carry, x, reset=reset, reset_carry=start)

    def whole(params, carry, x, start, reset):
        options = {"reset": reset[None], "reset_carry": start}
        carry, ys = jaxgru.scan(params, x[None], carry, **options)
        return carry, ys[0]

    @functools.partial(jax.jit, static_argnums=0)
    def both(run, *arguments):
        loss = lambda *arguments: weigh(run(*arguments))  # noqa: E731
        return run(*arguments), jax.grad(loss, argnums=(0, 1, 2, 3))(*arguments)

    for reset in (np.array(False), np.array(True)):
        arguments = (params, carry, x, start, reset)
        assert_close(both(one, *arguments), both(whole, *arguments), TOL)
    assert_close(one(*arguments), whole(*arguments), TOL)
    expected = jaxgru.step(params, jaxgru.initial_carry(params), x)
    assert_close(jaxgru.step(params, carry, x, reset=True), expected, 0)
    assert_close(jaxgru.step(params, carry, x, reset=False), jaxgru.step(params, carry, x), 0)


@pytest.mark.parametrize("kind", [*STREAMABLE, "bidirectional", "mixed"])
def test_initial_carry_is_zeros(kind):
    params = draw(kind)
    carry = jaxgru.initial_carry(params)
    expected = oracle.initial_carry(params)
    assert_close(carry, expected, 0)
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(carry))
    many = jaxgru.initial_carry(params, (7, 2))
    expected = jax.tree.map(lambda a: np.zeros((7, 2, *a.shape)), expected)
    assert_close(many, expected, 0)
    assert jax.tree.structure(many) == jax.tree.structure(carry)


def test_carry_structures():
    assert isinstance(jaxgru.initial_carry(draw("lstm")), jaxgru.LSTMCarry)
    ahead, back = jaxgru.initial_carry(draw("bidirectional"))
    assert ahead.shape == (HIDDEN,)
    assert isinstance(back, jaxgru.LSTMCarry)
    first, second, third = jaxgru.initial_carry(draw("mixed"))
    assert isinstance(first, jaxgru.LSTMCarry)
    assert isinstance(second, tuple)
    assert third.shape == (HIDDEN,)


def test_steps_streamed_are_the_scan():
    params = draw("stack")
    xs = jnp.asarray(np.random.default_rng(6).standard_normal((5, INPUT)))
    carry = jaxgru.initial_carry(params)
    outputs = []
    for x in xs:
        carry, y = jaxgru.step(params, carry, x)
        outputs.append(y)
    last, ys = jaxgru.scan(params, xs)
    assert_close(carry, last, TOL)
    assert_close(jnp.stack(outputs), ys, TOL)
