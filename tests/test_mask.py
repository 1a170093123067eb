"""`mask`: a hole acts as if the sequence lacked its step, in both directions, whatever it holds."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jaxgru
import oracle
import plain
from cases import (
    CELLS,
    FEW,
    GRAD_TOL,
    KINDS,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    each_way,
    only,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
MASKS = {
    "no hole": [1, 1, 1, 1, 1, 1],
    "one hole": [1, 1, 0, 1, 1, 1],
    "several": [1, 0, 0, 1, 0, 1],
    "left padding": [0, 0, 1, 1, 1, 1],
    "both ends": [0, 1, 1, 0, 1, 0],
    "one step": [0, 0, 0, 1, 0, 0],
}
MASKS = {name: np.array(mask, bool) for name, mask in MASKS.items()}
HOLES = MASKS["several"]
#: tests/test_register.py compares masks for "own_gru" in the short run.
MOST = FEW - {("own_gru", True)}
flags = st.lists(st.booleans(), min_size=STEPS, max_size=STEPS).map(lambda f: np.array(f, bool))


@functools.cache
def few(kinds):
    """Return all pairs (kind, reverse). The short run has one with all compositions."""
    return each_way(kinds, {("mixed", True)})


@functools.cache
def compiled(kind, reverse):
    return jax.jit(lambda p, xs, c, mask: jaxgru.scan(p, xs, c, mask=mask, reverse=reverse))


@functools.cache
def compiled_grad(kind, reverse, checkpoint=None):
    def loss(p, xs, c, mask):
        return weigh(jaxgru.scan(p, xs, c, mask=mask, reverse=reverse, checkpoint=checkpoint))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


@functools.cache
def marked(run, kind, reverse, checkpoint=None):
    """Draw (params, xs, carry, restart, mask, reset, length), with everything that marks steps."""
    options = {"reverse": reverse} | ({"checkpoint": checkpoint} if checkpoint else {})
    return jax.jit(
        lambda p, xs, c, rc, mask, reset, length: run(
            p, xs, c, mask=mask, reset=reset, reset_carry=rc, length=length, **options
        )[:2]
    )


def fill(xs, mask, filling):
    return np.where(mask[:, None], xs, filling)


def at(*steps):
    return np.isin(np.arange(STEPS), steps)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS, MOST))
def test_equals_the_sequence_without_the_holes(kind, reverse):
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    for mask in MASKS.values():
        last, ys = jax.device_get(compiled(kind, reverse)(params, xs, carry, mask))
        real = np.asarray(xs)[mask]
        expected_last, expected = oracle.scan(params, real, carry, reverse=reverse)
        assert_close(last, expected_last, TOL)
        assert_close(ys[mask], expected, TOL)
        assert_same(ys[~mask], np.zeros_like(ys[~mask]))


@pytest.mark.parametrize(("kind", "reverse"), few(KINDS))
def test_no_real_step_returns_the_initial_carry(kind, reverse):
    params, xs = draw(kind), draw_xs()
    carry, nowhere = draw_carry(params), np.zeros(STEPS, bool)
    last, ys = compiled(kind, reverse)(params, xs, carry, nowhere)
    assert_same(last, carry)
    assert_same(ys, jnp.zeros_like(ys))
    assert_same(jaxgru.scan(params, xs, mask=nowhere)[0], jaxgru.initial_carry(params))


@pytest.mark.parametrize(("kind", "reverse"), few(KINDS))
def test_nan_and_inf_in_a_hole_change_nothing(kind, reverse):
    """Values and gradients are bit-equal, and the gradient of a hole is exactly zero."""
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    value, slope = compiled(kind, reverse), compiled_grad(kind, reverse)
    for mask in (HOLES, MASKS["left padding"], MASKS["one step"]):
        expected = value(params, fill(xs, mask, 0.0), carry, mask)
        expected_grads = slope(params, fill(xs, mask, 0.0), carry, mask)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(expected_grads))
        for filling in (jnp.nan, -jnp.inf, 1e300):
            dirty = fill(xs, mask, filling)
            assert_same(value(params, dirty, carry, mask), expected)
            grads = slope(params, dirty, carry, mask)
            assert_same(grads, expected_grads)
            dxs = np.asarray(grads[1][1])
            assert_same(dxs[~mask], np.zeros_like(dxs[~mask]))
            assert np.all(np.any(dxs[mask] != 0, axis=1))


@pytest.mark.parametrize("kind", only(["lstm"], CELLS))
def test_nan_in_a_hole_in_forward_mode(kind):
    params, xs = draw(kind), draw_xs()

    @jax.jit
    def run(xs, tangent):
        return jax.jvp(lambda xs: jaxgru.scan(params, xs, mask=HOLES), (xs,), (tangent,))

    def push(filling):
        return run(fill(xs, HOLES, filling), fill(draw_xs(seed=9), HOLES, filling))

    assert_same(push(jnp.nan), push(0.0))


def test_nan_in_a_real_step_is_not_hidden():
    params, xs = draw("gru"), draw_xs()
    last, ys = jaxgru.scan(params, xs.at[3].set(jnp.nan), mask=HOLES)
    assert jnp.all(jnp.isnan(last))
    assert jnp.all(jnp.isnan(ys[jnp.array([3, 5])]))
    assert_same(ys[~HOLES], jnp.zeros_like(ys[~HOLES]))


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS, MOST))
@settings(max_examples=10)
@given(mask=flags, length=st.integers(0, STEPS))
def test_with_length_a_step_is_real_where_both_say_so(kind, reverse, mask, length):
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    none = np.zeros(STEPS, bool)
    run = marked(jaxgru.scan, kind, reverse)
    real = mask & (np.arange(STEPS) < length)
    actual = run(params, xs, carry, restart, mask, none, length)
    assert_same(actual, run(params, xs, carry, restart, real, none, STEPS))


def segments(params, xs, carry, restart, mask, reset, reverse):
    """Run the real steps of every segment on their own, with the `scan` of the library.

    A segment without real steps has no outputs, and its last carry is its initial one.
    """
    borders = [t for t in range(1, STEPS) if reset[t]]
    pieces = list(itertools.pairwise([0, *borders, STEPS]))
    ys = np.zeros((STEPS, oracle.output_size(params)))
    starts = [restart if reset[0] and not reverse else carry, *[restart] * (len(pieces) - 1)]
    last = carry
    for (a, b), start in zip(pieces[::-1] if reverse else pieces, starts, strict=True):
        real = a + np.flatnonzero(mask[a:b])
        last, ys[real] = jaxgru.scan(params, xs[real], start, reverse=reverse)
    return last, ys


@pytest.mark.parametrize(("kind", "reverse"), each_way(CELLS, MOST))
@pytest.mark.parametrize(
    "reset",
    [
        at(2),  # at a hole: the next real step starts a segment, or in reverse the one before
        at(1, 2),  # twice within one gap
        at(4, 5),  # at a hole and at the real step after it
        at(0, 3),
        at(2, 4),
    ],
    ids=lambda reset: str(np.flatnonzero(reset)),
)
def test_a_reset_at_a_hole_starts_a_segment_all_the_same(kind, reverse, reset):
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    for mask in (HOLES, MASKS["both ends"], np.zeros(STEPS, bool)):
        actual = marked(jaxgru.scan, kind, reverse)(params, xs, carry, restart, mask, reset, STEPS)
        expected = segments(params, xs, carry, restart, mask, reset, reverse)
        assert_close(actual, expected, TOL)


@pytest.mark.parametrize(("kind", "reverse"), each_way(KINDS, MOST))
@settings(max_examples=25)
@given(mask=flags, reset=flags, length=st.integers(0, STEPS))
def test_any_mask_resets_and_length(kind, reverse, mask, reset, length):
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    arguments = (params, fill(xs, mask, np.nan), carry, restart, mask, reset, length)
    actual = marked(jaxgru.scan, kind, reverse)(*arguments)
    expected = oracle.scan(
        params,
        xs,
        carry,
        reset_carry=restart,
        mask=mask,
        reset=reset,
        length=length,
        reverse=reverse,
    )
    assert_close(actual, expected, TOL)


@pytest.mark.parametrize("kind", only(["stack"], (*CELLS, "stack")))
def test_pieces_that_end_and_begin_with_holes(kind):
    """If a piece ends at a missing first step of an episode, the reset still counts."""
    params, xs = draw(kind), draw_xs()
    carry = draw_carry(params)
    mask, reset = ~at(1, 3), at(3)
    expected = jaxgru.scan(params, xs, carry, mask=mask, reset=reset)
    for cut in range(STEPS + 1):
        a, b = slice(cut), slice(cut, None)
        middle, first = jaxgru.scan(params, xs[a], carry, mask=mask[a], reset=reset[a])
        last, second = jaxgru.scan(params, xs[b], middle, mask=mask[b], reset=reset[b])
        assert_close((last, jnp.concatenate([first, second])), expected, TOL)


@pytest.mark.parametrize(("kind", "reverse"), each_way((*CELLS, "bidirectional"), MOST))
def test_segments_that_meet_at_a_hole_share_no_gradient(kind, reverse):
    params, xs = draw(kind), draw_xs()
    mask, reset = ~at(2), at(2)

    def output(xs, t):
        ys = jaxgru.scan(params, xs, mask=mask, reset=reset, reverse=reverse)[1]
        return weigh(ys[t])

    slope = jax.jit(jax.grad(output))
    for t, other in ((0, slice(2, None)), (1, slice(2, None)), (3, slice(3)), (5, slice(3))):
        grad = np.asarray(slope(xs, t))
        assert_same(grad[other], np.zeros_like(grad[other]))
        assert np.any(grad[t] != 0)


CHECKPOINTS = {("gru", False): 4, ("gru_after", True): 4, ("lstm", False): 1}


@pytest.mark.parametrize(("kind", "reverse"), few(KINDS))
def test_gradients(kind, reverse):
    """Compare with plain `lax.scan` for params, inputs and both carries, with resets at holes."""
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    slopes = [
        jax.jit(
            jax.grad(
                lambda *a, run=run, size=size: weigh(marked(run, kind, reverse, size)(*a)),
                argnums=(0, 1, 2, 3),
            )
        )
        for run, size in ((jaxgru.scan, CHECKPOINTS.get((kind, reverse))), (plain.scan, None))
    ]
    for mask, reset, length in ((HOLES, at(2, 3), 6), (HOLES, at(0, 4), 5), (~at(5), at(5), 6)):
        actual, expected = (
            slope(params, xs, carry, restart, mask, reset, length) for slope in slopes
        )
        assert_close(actual, expected, GRAD_TOL["float64"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gru_after", *map(slow, ("gru", "own_gru", "bidirectional"))])
@pytest.mark.parametrize("transform", [jax.hessian, slow(jax.jacfwd), slow(jax.jacrev)])
def test_other_derivatives(kind, transform):
    params = draw(kind, 2, 2)
    vector, unravel = ravel_pytree((params, draw_xs(4, 2), draw_carry(params)))
    mask, reset = jnp.array([True, False, True, True]), jnp.array([False, True, False, True])

    def derivative(run):
        def value(vector):
            out = ravel_pytree(run(*unravel(vector), mask=mask, reset=reset))[0]
            return weigh(out) if transform is jax.hessian else out

        return jax.jit(transform(value))(vector)

    assert_close(derivative(jaxgru.scan), derivative(plain.scan), GRAD_TOL["float64"])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "reverse"), few(KINDS))
def test_a_batch_each_with_its_mask(kind, reverse):
    params = draw(kind)
    masks = np.stack([HOLES, np.zeros(STEPS, bool), MASKS["left padding"]])
    resets = np.stack([at(2), at(1), at()])
    xs = jnp.stack([draw_xs(seed=20 + i) for i in range(3)])

    def run(params, xs, mask, reset):
        return jaxgru.scan(params, xs, mask=mask, reset=reset, reverse=reverse)

    def both(*arguments):
        return jax.value_and_grad(lambda *a: weigh(run(*a)), argnums=(0, 1))(*arguments)

    for function in (run, both):
        actual = jax.jit(jax.vmap(function, in_axes=(None, 0, 0, 0)))(params, xs, masks, resets)
        single = jax.jit(function)
        each = [single(params, xs[i], masks[i], resets[i]) for i in range(3)]
        expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        assert_close(actual, expected, GRAD_TOL["float64"])


@pytest.mark.parametrize("jacobian", ["dense", slow("diagonal")])
@pytest.mark.parametrize(
    ("kind", "reverse"),
    [slow("gru", False), slow("own_gru", False), ("lstm", True), slow("mixed", True)],
)
def test_newton_scan(kind, jacobian, reverse):
    """The values and gradients equal those of `scan`, with resets at holes and without fallback."""
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)

    def loss(run, options, p, xs, c, rc, mask, reset):
        out = run(p, xs, c, mask=mask, reset=reset, reset_carry=rc, reverse=reverse, **options)
        return weigh(out[:2]), out

    def slope(run, **options):
        part = functools.partial(loss, run, options)
        return jax.jit(jax.value_and_grad(part, argnums=(0, 1, 2, 3), has_aux=True))

    newton = slope(jaxgru.newton_scan, jacobian=jacobian, fallback=None)
    reference = slope(jaxgru.scan)
    for mask, reset in ((HOLES, at(2, 3)), (~at(2, 3), at(3)), (~at(5), at(5)), (at(), at(2))):
        arguments = (carry, restart, mask, reset)
        (_, out), grads = newton(params, fill(xs, mask, np.nan), *arguments)
        (_, expected), expected_grads = reference(params, fill(xs, mask, 0.0), *arguments)
        assert out[2].converged
        assert_close(out[:2], expected, TOL)  # its residual is at most 8 units of rounding
        assert_close(grads, expected_grads, GRAD_TOL["float64"])
