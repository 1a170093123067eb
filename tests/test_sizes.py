"""The sizes at which `scan` changes its method do not change the numbers.

Short sequences are projected all at once. In longer ones, small inputs are projected step by step,
and others by stretches of time, of which the last may be shorter. The gradient reads saved gates or
computes them again. Many units of 32 examples are kept as columns. On a GPU an iteration of the
loop has several steps, and gates are saved after it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import plain
from cases import (
    GRAD_TOL,
    VALUE_TOL,
    assert_close,
    draw,
    draw_carry,
    only,
    planned,
    slow,
    weigh,
)
from jaxgru.backends import CPU, loop

pytestmark = pytest.mark.usefixtures("x64")

# T, B, I, H
SIZES = {
    "inputs in the loop, stretches and a rest": (13, 70, 3, 5),
    "inputs in stretches, gates saved": (13, 70, 20, 66),
    "one sequence, two stretches": (131, 1, 20, 3),
    "one sequence, three stretches without a rest": (225, 1, 20, 3),
    "wide tangent": (9, 64, 18, 515),
    "wide, inputs in stretches": (9, 64, 18, 770),
    "wide, inputs in the loop": (5, 32, 2, 770),
    "wide, states in rows": (5, 3, 2, 770),
}


#: These sequences are short, but count as long ones here.
LONG = {"hoisted": 0, "in_loop": 16, "backward": 0}


def test_the_sizes_are_on_both_sides():
    steps, batches, inputs, hidden = (
        np.array(column) for column in zip(*SIZES.values(), strict=True)
    )
    for values, border in (
        (inputs, LONG["in_loop"] + 1),
        (hidden, loop.SAVED),
        (batches * hidden, loop.SAVED_ROWS),
        (hidden, CPU.wide_tangent),
        (hidden, CPU.wide),
    ):
        assert (values < border).any()
        assert (values >= border).any()
    columns = batches[hidden >= CPU.wide] % CPU.wide_batch == 0
    assert columns.any()
    assert not columns.all()
    sizes = [
        loop.chunk_size(jnp.zeros(shape), CPU.rows)
        for shape in zip(steps, batches, inputs, strict=True)
    ]
    assert (steps > sizes).any()
    assert (steps % sizes > 0).any()


CELLS = {"gru": False, "gru_after": True, "lstm": False, "elman": True}
#: The cell for each size in the short run. The choice of methods does not depend on it. The sizes
#: without a cell combine the methods of others.
CHOSEN = ("gru", "lstm", "gru_after", None, "elman", "gru_after", None, None)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name) if kind == chosen else slow(kind, name)
        for name, chosen in zip(SIZES, CHOSEN, strict=True)
        for kind in CELLS
    ],
)
def test_values_and_gradients(kind, name):
    with planned(**LONG):
        check(kind, CELLS[kind], SIZES[name])


@pytest.mark.parametrize("saved", only([True], [False, True]))
@pytest.mark.parametrize("kind", only(("gru_after",), CELLS))
def test_as_on_a_gpu(kind, saved):
    """Two stretches of 13 steps, in iterations of eight and five."""
    with planned("cuda", saved, rows=39, forward=0, backward=0):
        check(kind, CELLS[kind], (26, 3, 20, 5))


@pytest.mark.parametrize("kind", only(("gru_after",), CELLS))
def test_tangents_and_populations_as_on_a_gpu(kind):
    """Two networks run side by side. Their tangents, and the gradient of these, do not change."""
    two = (draw(kind, 3, 5, seed=seed) for seed in (0, 1))
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *two)
    rng = np.random.default_rng(5)
    xs, dxs = rng.standard_normal((2, 2, 3, 13, 3))

    def outputs(params, xs):
        return jax.vmap(jax.vmap(jaxgru.scan, (None, 0)))(params, xs)[1]

    def tangent(params, xs):
        directions = jax.tree.map(jnp.ones_like, params), jnp.asarray(dxs)
        return jax.jvp(outputs, (params, xs), directions)[1]

    def everything():
        slope = jax.grad(lambda xs: jnp.sum(tangent(params, xs) ** 2))
        return tangent(params, xs), jax.jit(slope)(jnp.asarray(xs))

    expected = everything()
    with planned("cuda", rows=39, forward=0, backward=0):
        assert_close(everything(), expected, GRAD_TOL["float64"])


@pytest.mark.parametrize(("kind", "arrays"), [("gru_after", 5), ("lstm", 7), ("elman", 1)])
def test_what_is_saved_for_the_gradient(kind, arrays):
    """The carries of all steps, and the gates. The gates of the plain RNN are its states."""
    params = draw(kind, 3, loop.SAVED)
    _, pullback = jax.vjp(lambda xs: jaxgru.scan(params, xs)[1], jnp.ones((9, 3)))
    assert [leaf.shape for leaf in jax.tree.leaves(pullback)].count((9, loop.SAVED)) == arrays


@pytest.mark.parametrize(
    ("steps", "batch", "hidden", "saved"),
    [
        (100, 8, 64, True),
        (100, 7, 64, False),  # few numbers in a step
        (127, 64, 64, True),  # four gates of almost 4 MiB, in float64
        (128, 64, 64, False),  # too much memory
        (1000, 64, loop.SAVED - 1, False),
        (1000, 64, loop.SAVED, True),  # computing so many units again takes longer
        (1, 1, loop.SAVED, True),
    ],
)
def test_when_gates_are_saved(steps, batch, hidden, saved):
    def pullback(xs):
        return jax.vjp(lambda xs: jax.vmap(jaxgru.scan, (None, 0))(params, xs)[1], xs)[1]

    params = jax.eval_shape(lambda: draw("gru_after", 3, hidden))
    params = jax.tree.map(lambda a: jnp.zeros(a.shape), params)
    kept = jax.eval_shape(pullback, jax.ShapeDtypeStruct((batch, steps, 3), "float64"))
    shapes = [leaf.shape for leaf in jax.tree.leaves(kept)]
    assert shapes.count((steps, batch, hidden)) == (5 if saved else 1)


@pytest.mark.parametrize(("hidden", "kind"), [slow(5, "gru"), (66, "lstm"), slow(770, "gru_after")])
def test_time_in_one_stretch(kind, hidden):
    check(kind, False, (9, 4, 3, hidden))


def check(kind, reverse, sizes):
    steps, batch, inputs, hidden = sizes
    params = jax.tree.map(lambda w: np.asarray(w) / hidden**0.5, draw(kind, inputs, hidden))
    rng = np.random.default_rng(4)
    xs = rng.standard_normal((batch, steps, inputs))
    lengths = rng.integers(0, steps + 1, batch)
    lengths[0] = steps
    resets = rng.random((batch, steps)) < 0.2
    starts = draw_carry(params)

    def run(scan, params, xs, carry):
        def one(xs, length, reset):
            return scan(params, xs, carry, length=length, reset=reset, reverse=reverse)

        return jax.vmap(one)(xs, lengths, resets)

    def both(scan):
        def loss(*args):
            out = run(scan, *args)
            return weigh(out), out

        differentiated = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, out), grads = jax.jit(differentiated)(params, xs, starts)
        return out, grads

    (actual, grads), (expected, expected_grads) = both(jaxgru.scan), both(plain.scan)
    assert_close(actual, expected, VALUE_TOL["float64"])
    for grad, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        scale = max(1, np.max(np.abs(other)))  # sums over a batch of any size
        assert_close(grad, other, scale * GRAD_TOL["float64"])
