"""`loop` against a NumPy loop over the same step, and against `scan` for the step of a cell."""

import functools
import gc
import sys
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jaxgru
from cases import (
    GRAD_TOL,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    only,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
LENGTHS = (0, 1, 3, STEPS)
RESET = np.array([False, True, False, False, True, False])


# --- A step whose arguments are all trees, for NumPy and for JAX.


def nested(m, w):
    """Trees with every kind of leaf: floats, integers, booleans, matrices, scalars, dicts, tuples,
    None.
    """

    def step(carry, x):
        h, (count, seen) = carry["h"], carry["rest"]
        h = m.tanh(x["a"] @ w[:3] + h @ w[3:] + x["b"][0] * carry["scale"])
        count, seen = count + x["b"][1], seen ^ (x["b"][0] > 0)
        carry = {"h": h, "rest": (count, seen), "scale": carry["scale"] * 0.9 + h[0, 0]}
        return carry, (h[0], {"count": count, "seen": ~seen, "none": None})

    return step


def nested_inputs(steps=STEPS, seed=1):
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, 9, steps).astype("int32")
    return {"a": rng.standard_normal((steps, 2, 3)), "b": (rng.standard_normal(steps), numbers)}


def nested_carry(seed):
    rng = np.random.default_rng(seed)
    rest = np.int32(rng.integers(1, 9)), np.True_
    return {
        "h": rng.standard_normal((2, 4)),
        "rest": rest,
        "scale": np.float64(rng.standard_normal()),
    }


WEIGHTS = 0.6 * np.random.default_rng(0).standard_normal((7, 4))


def numpy_loop(step, carry, xs, *, length=None, reset=None, reset_carry=None, reverse=False):
    """Run only the real steps, and start again where a segment is entered."""
    steps = jax.tree.leaves(xs)[0].shape[0]
    length = steps if length is None else int(length)
    starts = np.zeros(steps, bool) if reset is None else np.asarray(reset)
    if reset_carry is None:
        reset_carry = jax.tree.map(np.zeros_like, carry)
    found = {}
    for t in reversed(range(length)) if reverse else range(length):
        entered = (t + 1 < length and starts[t + 1]) if reverse else starts[t]
        carry, found[t] = step(reset_carry if entered else carry, at(xs, t))
    blank = jax.tree.map(np.zeros_like, step(carry, at(xs, 0))[1])
    ys = [found.get(t, blank) for t in range(steps)]
    return carry, jax.tree.map(lambda *leaves: np.stack(leaves), *ys)


def at(tree, t):
    return jax.tree.map(lambda a: a[t], tree)


def part(tree, *bounds):
    return jax.tree.map(lambda a: a[slice(*bounds)], tree)


def join(*trees):
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def dirty(xs, length, filling=np.nan):
    """Replace the floats in the padding."""

    def fill(a):
        real = (jnp.arange(a.shape[0]) < length).reshape(-1, *(1,) * (a.ndim - 1))
        return jnp.where(real, a, filling) if a.dtype == jnp.float64 else a

    return jax.tree.map(fill, xs)


def assert_matches(actual, expected):
    """Compare numbers up to rounding, and the dtypes of all leaves."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
    assert_close(actual, expected, TOL)


@functools.cache
def compiled(reverse, checkpoint=None):
    step = nested(jnp, jnp.asarray(WEIGHTS))

    def run(carry, xs, length, reset, reset_carry):
        options = {"reset": reset, "reset_carry": reset_carry, "reverse": reverse}
        return jaxgru.loop(step, carry, xs, length=length, **options, checkpoint=checkpoint)

    return jax.jit(run)


@pytest.mark.parametrize("reverse", [False, True])
def test_values(reverse):
    carry, xs = nested_carry(2), nested_inputs()
    actual = jaxgru.loop(nested(jnp, jnp.asarray(WEIGHTS)), carry, xs, reverse=reverse)
    assert_matches(actual, numpy_loop(nested(np, WEIGHTS), carry, xs, reverse=reverse))


@pytest.mark.parametrize("checkpoint", [None, slow(1), 4, slow(STEPS + 1)])
@pytest.mark.parametrize("reverse", [False, slow(True)])
def test_values_with_every_option_at_once(reverse, checkpoint):
    carry, xs, restart = nested_carry(2), nested_inputs(), nested_carry(3)
    for length in LENGTHS:
        actual = compiled(reverse, checkpoint)(carry, dirty(xs, length), length, RESET, restart)
        options = {"length": length, "reset": RESET, "reset_carry": restart, "reverse": reverse}
        assert_matches(actual, numpy_loop(nested(np, WEIGHTS), carry, xs, **options))


@pytest.mark.parametrize("reverse", [False, True])
@settings(max_examples=15)
@given(reset=st.lists(st.booleans(), min_size=STEPS, max_size=STEPS), length=st.integers(0, STEPS))
def test_any_resets_and_length(reverse, reset, length):
    carry, xs, restart = nested_carry(2), nested_inputs(), nested_carry(3)
    actual = compiled(reverse)(carry, dirty(xs, length), length, np.array(reset), restart)
    options = {"length": length, "reset": reset, "reset_carry": restart, "reverse": reverse}
    assert_matches(actual, numpy_loop(nested(np, WEIGHTS), carry, xs, **options))


def test_segments_start_from_zeros_if_nothing_else_is_said():
    carry, xs = nested_carry(2), nested_inputs()
    actual = jaxgru.loop(nested(jnp, jnp.asarray(WEIGHTS)), carry, xs, reset=RESET)
    assert_matches(actual, numpy_loop(nested(np, WEIGHTS), carry, xs, reset=RESET))


@pytest.mark.parametrize(("given", "acts_as"), [(-3, 0), (STEPS + 9, STEPS)])
def test_a_traced_length_out_of_range_is_clipped(given, acts_as):
    rest = RESET, nested_carry(3)
    run = functools.partial(compiled(True), nested_carry(2), nested_inputs())
    assert_same(run(given, *rest), run(acts_as, *rest))


@pytest.mark.parametrize("reverse", [slow(False), True])
@pytest.mark.parametrize("checkpoint", [slow(None), 4])
def test_no_steps(reverse, checkpoint):
    """With T = 0 the carry is returned, and ys have the right types."""
    carry, xs = jax.tree.map(jnp.asarray, (nested_carry(2), nested_inputs(0)))
    step = nested(jnp, jnp.asarray(WEIGHTS))
    options = {"length": 0, "reset": np.zeros(0, bool), "checkpoint": checkpoint}
    last, ys = jaxgru.loop(step, carry, xs, reverse=reverse, **options)
    assert_same(last, carry)
    shapes = jax.tree.map(lambda leaf: (leaf.dtype.name, leaf.shape), ys)
    count, seen = ("int32", (0,)), ("bool", (0,))
    assert shapes == (("float64", (0, 4)), {"count": count, "seen": seen, "none": None})
    _, draws = jaxgru.loop(draws_one, 0.0 * carry["scale"], xs, key=jax.random.key(0))
    assert draws.shape == (0,)


@pytest.mark.parametrize("checkpoint", [slow(None), 2])
@pytest.mark.parametrize("length", [None, 3])
def test_weak_types(length, checkpoint):
    """An array made of a Python number keeps its dtype, in the carry and in reset_carry."""
    xs = jnp.ones(5, "float64")
    start = jnp.asarray(0.0), jnp.asarray(1)
    assert start[0].weak_type

    def step(carry, x):
        return (carry[0] + x, carry[1] * 2), (carry[0], 1.0)

    (total, count), (before, ones) = jaxgru.loop(
        step, start, xs, length=length, checkpoint=checkpoint
    )
    real = 5 if length is None else length
    assert (total, count) == (real, 2**real)
    assert before.tolist() == [float(t) if t < real else 0.0 for t in range(5)]
    assert ones.tolist() == [1.0 if t < real else 0.0 for t in range(5)]


# --- The same as `scan`.


def cell_step(kind, params):
    one = {"gru": jaxgru.gru_step, "lstm": jaxgru.lstm_step}[kind]

    def step(carry, x):
        carry = one(params, carry, x)
        return carry, jax.tree.leaves(carry)[0]

    return step


def by_loop(kind, params, xs, carry, **options):
    return jaxgru.loop(cell_step(kind, params), carry, xs, **options)


def by_scan(kind, params, xs, carry, **options):
    return jaxgru.scan(params, xs, carry, **options)


OPTIONS = {
    "nothing": (),
    "length": ("length",),
    "reset": ("reset",),
    "a learned start": ("reset", "reset_carry"),
    "a checkpoint": ("checkpoint",),
    "all of it": ("length", "reset", "reset_carry", "checkpoint"),
}
SHORT = (("gru", "nothing", True), ("gru", "reset", False), ("lstm", "all of it", True))


@pytest.mark.parametrize(
    ("kind", "names", "reverse"),
    [
        (kind, names, reverse) if (kind, names, reverse) in SHORT else slow(kind, names, reverse)
        for kind, possible in (("gru", OPTIONS), ("lstm", ["all of it"]))
        for names in possible
        for reverse in (False, True)
    ],
)
def test_a_cell_equals_scan(kind, names, reverse):
    """Values and gradients for params, inputs, carry and reset_carry."""
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    fixed = {"length": jnp.asarray(4), "reset": jnp.asarray(RESET), "checkpoint": 4}
    fixed = {name: value for name, value in fixed.items() if name in OPTIONS[names]}

    def run(how, params, xs, carry, restart):
        options = {"reset_carry": restart} if "reset_carry" in OPTIONS[names] else {}
        out = how(kind, params, xs, carry, **fixed, **options, reverse=reverse)
        return weigh(out), out

    def both(how):
        run_of = jax.value_and_grad(functools.partial(run, how), argnums=range(4), has_aux=True)
        return jax.jit(run_of)(params, xs, carry, restart)

    ((_, values), grads), ((_, expected), expected_grads) = both(by_loop), both(by_scan)
    assert_close(values, expected, TOL)
    assert_close(grads, expected_grads, GRAD_TOL["float64"])


@pytest.mark.parametrize("reverse", [slow(False), True])
def test_check_grads(reverse):
    params, xs = draw("gru"), draw_xs()
    carry = draw_carry(params)

    def run(params, xs, carry, restart):
        options = {"length": 5, "reset": jnp.asarray(RESET), "reset_carry": restart}
        return by_loop("gru", params, xs, carry, **options, reverse=reverse)

    # Central differences of step 1e-5 have an error of h^2 = 1e-10 and a rounding error of
    # 1e-16 / h = 1e-11. Hundreds of them are summed.
    args = (params, xs, carry, draw_carry(params, 8))
    check_grads(run, args, order=1, modes=("fwd", "rev"), atol=1e-7, rtol=1e-7, eps=1e-5)


@pytest.mark.slow
def test_hessian_equals_that_of_scan():
    params, xs = draw("gru", 2, 2), draw_xs(4, 2)
    vector, unravel = ravel_pytree((params, xs, draw_carry(params)))

    def hessian(how):
        def run(vector):
            params, xs, carry = unravel(vector)
            options = {"length": jnp.asarray(3), "reset": jnp.asarray(RESET[:4])}
            return weigh(how("gru", params, xs, carry, **options))

        return jax.jit(jax.hessian(run))(vector)

    assert_close(hessian(by_loop), hessian(by_scan), GRAD_TOL["float64"])


def test_batches_of_everything():
    """`vmap` maps over inputs, lengths, resets and keys. Each example equals its own run."""
    step = nested(jnp, jnp.asarray(WEIGHTS))
    carry = nested_carry(2)
    xs = jax.tree.map(lambda *a: jnp.stack(a), *(nested_inputs(seed=s) for s in range(4)))
    lengths, resets = jnp.asarray(LENGTHS), jnp.stack([jnp.roll(RESET, k) for k in range(4)])

    def run(xs, length, reset):
        return jaxgru.loop(step, carry, xs, length=length, reset=reset)

    many = jax.vmap(run)(xs, lengths, resets)
    for k in range(4):
        assert_close(at(many, k), run(*at((xs, lengths, resets), k)), TOL)
    keys = jax.random.split(jax.random.key(3), 4)

    def draws(key, length):
        return jaxgru.loop(draws_one, jnp.zeros(()), jnp.ones(STEPS), key=key, length=length)

    many = jax.vmap(draws)(keys, lengths)
    for k in range(4):
        assert_close(at(many, k), draws(keys[k], lengths[k]), TOL)


def test_inside_shard_map_carries_and_resets_need_no_pcast():
    """One device is enough, since types say over which axes of a mesh an array varies."""
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    params, xs, reset = draw("gru"), draw_xs()[None], jnp.asarray(RESET)
    carry = jaxgru.initial_carry(params)

    def total(params, xs, length):
        def one(xs, length):
            key = jax.random.key(0)

            def step(carry, x, key):
                x = x + jax.random.normal(key, x.shape)
                return cell_step("gru", params)(carry, x)

            return jaxgru.loop(step, carry, xs, length=length, reset=reset, key=key)

        return jax.vmap(one)(xs, length)

    def split(params, xs, length):
        specs = (P(), P("x"), P("x"))
        run = jax.shard_map(total, mesh=mesh, in_specs=specs, out_specs=P("x"))
        return run(params, xs, length)

    length = jnp.asarray([4])
    assert_close(jax.jit(split)(params, xs, length), total(params, xs, length), TOL)

    def slope(run):
        grads = jax.grad(lambda params: weigh(run(params, xs, length)))
        return jax.jit(grads)(params)

    assert_close(slope(split), slope(total), GRAD_TOL["float64"])


# --- Padding, for steps that are not defined everywhere.


def normalize(w, carry, x):
    """This step is not differentiable at zero, and neither are the next two."""
    x = x / jnp.sqrt(jnp.sum(x * x))
    return carry + w * jnp.sum(x), w * x


def logarithm(w, carry, x):
    return carry + w * jnp.log(x[0] * x[0]), jnp.sqrt(jnp.abs(x)) * w


def countdown(w, carry, x):
    """This step is not defined for the carry that the last of three real steps returns."""
    y = w * jnp.sum(x) / (carry - 3)
    return carry + 1, y


PARTIAL = {f.__name__: f for f in (normalize, logarithm, countdown)}


@pytest.mark.parametrize("batched", [slow(False), True])
@pytest.mark.parametrize("reverse", [False, slow(True)])
@pytest.mark.parametrize("name", only(("normalize", "countdown"), PARTIAL))
def test_a_step_that_is_not_defined_in_the_padding(name, reverse, batched):
    """Values and all gradients are bit-equal to those of the real steps alone, for any padding.

    The gradients include that of what the step closes over.
    """
    xs = jnp.abs(draw_xs()) + 0.1
    ends = [k for k in LENGTHS if not (name == "countdown" and k == STEPS)]

    def run(w, xs, carry, length):
        step = functools.partial(PARTIAL[name], w)
        out = jaxgru.loop(step, carry, xs, length=length, reverse=reverse)
        return weigh(out), out

    go = jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True)
    go = jax.jit(jax.vmap(go, (None, 0, None, 0)) if batched else go)
    w, carry = jnp.asarray(0.7), jnp.asarray(0.0)

    def found(filling):
        filled = [dirty(xs, length, filling) for length in ends]
        if batched:
            return go(w, jnp.stack(filled), carry, jnp.asarray(ends))
        each = [go(w, x, carry, length) for x, length in zip(filled, ends, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    clean = found(0.0)
    for filling in (jnp.nan, jnp.inf, 1e300):
        assert_same(found(filling), clean)
    for k, length in enumerate(ends):
        ((value, (last, ys)), (dw, dxs, dcarry)) = at(clean, k)
        # `weigh` draws the weights row after row, so those of the real steps are the same.
        slope = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))
        real = slope(w, xs[:length], carry, length)
        alone = (value, (last, ys[:length])), (dw, dxs[:length], dcarry)
        assert_close(alone, real, GRAD_TOL["float64"])
        assert_same(
            (ys[length:], dxs[length:]), jax.tree.map(jnp.zeros_like, (ys[length:], dxs[length:]))
        )


def assert_finite_slope(step, carry, xs, **options):
    """The gradient of w, which the step closes over, with padding after three real steps."""

    def loss(w):
        return weigh(jaxgru.loop(functools.partial(step, w), carry, xs, length=3, **options))

    assert jnp.isfinite(jax.grad(loss)(jnp.asarray(0.7)))


@pytest.mark.parametrize("reverse", [False, True])
def test_carry_and_input_of_the_padding_belong_together(reverse):
    """A step that is not defined for equal arguments, such as the start and the last real input."""

    def step(w, carry, x):
        return x, w / (x - carry)

    xs = jnp.asarray([1.0, 2.0, 3.0, 0.0, 0.0, 0.0])
    assert_finite_slope(step, xs[0 if reverse else 2], xs, reverse=reverse)


def test_the_carry_of_the_padding_is_the_one_that_was_reset():
    reset = jnp.arange(STEPS) == 0
    options = {"reset": reset, "reset_carry": jnp.asarray(0.0)}
    assert_finite_slope(countdown, jnp.asarray(3.0), draw_xs(), **options)


def test_the_key_of_the_padding_is_that_of_a_real_step():
    key = jax.random.key(0)
    spoilt = jax.random.uniform(jax.random.fold_in(key, 4), dtype="float64")

    def step(w, carry, x, key):
        return carry, w / (jax.random.uniform(key, dtype="float64") - spoilt)

    assert_finite_slope(step, jnp.zeros(()), draw_xs(), key=key)


@pytest.mark.parametrize("name", PARTIAL)
def test_the_padding_in_forward_mode(name):
    """The tangent of the padding may be NaN, since it belongs to no real step."""
    xs = jnp.abs(draw_xs()) + 0.1

    def push(filling):
        def run(w, xs):
            step = functools.partial(PARTIAL[name], w)
            return jaxgru.loop(step, jnp.zeros(()), xs, length=jnp.asarray(3))

        tangents = jnp.ones(()), dirty(draw_xs(seed=9), 3, filling)
        return jax.jvp(run, (jnp.asarray(0.7), dirty(xs, 3, filling)), tangents)

    assert bool(jnp.isfinite(ravel_pytree(push(0.0))[0]).all())
    assert_same(push(jnp.nan), push(0.0))


def test_nan_in_a_real_step_is_not_hidden():
    step = nested(jnp, jnp.asarray(WEIGHTS))
    xs = nested_inputs()
    xs["a"][1] = np.nan
    last, (hs, _) = jaxgru.loop(step, nested_carry(2), xs, length=3)
    assert jnp.all(jnp.isnan(last["h"]))
    assert jnp.all(jnp.isfinite(hs[0]))
    assert jnp.all(jnp.isnan(hs[1:3]))
    assert_same(hs[3:], jnp.zeros_like(hs[3:]))


@pytest.mark.parametrize("reverse", [False, True])
def test_nan_does_not_cross_a_reset(reverse):
    xs = draw_xs()
    reset = jnp.arange(STEPS) == 3
    spoilt, healthy = (slice(3, 6), slice(0, 3)) if reverse else (slice(0, 3), slice(3, 6))

    def loss(xs):
        params = draw("gru")
        ys = by_loop("gru", params, xs, draw_carry(params), reset=reset, reverse=reverse)[1]
        return weigh(ys[healthy])

    run = jax.jit(jax.value_and_grad(loss))
    value, slope = run(xs)
    spoilt_value, spoilt_slope = run(xs.at[spoilt].set(jnp.nan))
    assert_same((spoilt_value, spoilt_slope[healthy]), (value, slope[healthy]))


# --- Pieces and keys.


def draws_one(carry, x, key):
    draw = jax.random.normal(key, dtype="float64")
    return carry + 0 * jnp.sum(jax.tree.leaves(x)[0]) + draw, draw


def keys_of(key, steps):
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(steps))


@pytest.mark.parametrize(
    ("reverse", "cut"),
    # In reverse a reset on a border would start the piece before it again.
    [
        *((False, cut) for cut in (0, 4, STEPS)),
        (True, 2),
        *(slow(*case) for case in ((False, 1), (True, 0), (True, STEPS))),
    ],
)
def test_pieces_equal_the_whole(reverse, cut):
    step, xs = nested(jnp, jnp.asarray(WEIGHTS)), nested_inputs()
    carry, options = nested_carry(2), {"reset_carry": nested_carry(3), "reverse": reverse}
    expected = jaxgru.loop(step, carry, xs, reset=RESET, **options)
    pieces, ys = [(0, cut), (cut, STEPS)], {}
    for bounds in reversed(pieces) if reverse else pieces:
        inputs, reset = part((xs, RESET), *bounds)
        carry, ys[bounds] = jaxgru.loop(step, carry, inputs, reset=reset, **options)
    assert_close((carry, join(*(ys[bounds] for bounds in pieces))), expected, TOL)


@pytest.mark.parametrize(
    ("seed", "reverse"),
    [
        (jax.random.key, True),
        (jax.random.PRNGKey, False),
        slow(jax.random.key, False),
        slow(jax.random.PRNGKey, True),
    ],
)
def test_the_key_of_a_step_is_that_of_its_number(seed, reverse):
    """The draws do not depend on direction and length, so padding changes none of them."""
    key = seed(7)
    expected = [
        jax.random.normal(jax.random.fold_in(key, t), dtype="float64") for t in range(STEPS)
    ]
    run = functools.partial(jaxgru.loop, draws_one, jnp.zeros(()), key=key, reverse=reverse)
    _, ys = run(jnp.zeros(STEPS))
    assert_same(ys, jnp.stack(expected))
    last, ys = run(jnp.zeros(STEPS + 3), length=STEPS, checkpoint=2)
    assert_same(ys[:STEPS], jnp.stack(expected))
    assert_close(last, sum(expected), TOL)


def test_keys_among_the_inputs_are_the_way_for_pieces():
    def step(carry, now):
        return draws_one(carry, *now)

    xs, key = jnp.zeros(STEPS), jax.random.key(7)
    inputs = xs, keys_of(key, STEPS)
    middle, first = jaxgru.loop(step, jnp.zeros(()), part(inputs, 4))
    last, second = jaxgru.loop(step, middle, part(inputs, 4, None), length=2)
    expected = jaxgru.loop(draws_one, jnp.zeros(()), xs, key=key)
    assert_close((last, join(first, second)), expected, TOL)


@pytest.mark.parametrize("reverse", [slow(False), True])
def test_keys_in_the_carry_and_in_the_outputs(reverse):
    """In the padding a key is zeros, like other integers."""

    def step(carry, x):
        carry, now = jax.random.split(carry)
        return carry, (now, jax.random.normal(now, dtype="float64") + x)

    start, restart = jax.random.key(1), jax.random.key(2)
    options = {"reset": jnp.asarray(RESET), "reset_carry": restart, "reverse": reverse}
    last, (keys, draws) = jaxgru.loop(step, start, jnp.zeros(STEPS), length=3, **options)
    words = jax.random.key_data(keys)
    assert_same(words[3:], jnp.zeros_like(words[3:]))
    # The segments are [0] and [1, 2]. In reverse the first one is entered last.
    carry, expected = start, {}
    for t in (2, 1, 0) if reverse else (0, 1, 2):
        carry, expected[t] = step(restart if t == (0 if reverse else 1) else carry, 0.0)
    assert jnp.array_equal(last, carry)
    assert_same(draws[:3], jnp.stack([expected[t][1] for t in range(3)]))
    assert jnp.array_equal(keys[:3], jnp.stack([expected[t][0] for t in range(3)]))


# --- The program.


def primitives(jaxpr, found=None):
    found = [] if found is None else found
    for eqn in jaxpr.eqns:
        found.append(eqn.primitive.name)
        for inner in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                primitives(inner, found)
    return found


def double(carry, x):
    return carry * 2 + x, carry


def test_one_scan_and_no_selects_that_nothing_asks_for():
    def count(**options):
        jaxpr = jax.make_jaxpr(lambda xs: jaxgru.loop(double, jnp.zeros(()), xs, **options))
        found = primitives(jaxpr(jnp.ones(STEPS)).jaxpr)
        return found.count("scan"), found.count("select_n")

    assert count() == count(reverse=True) == (1, 0)
    assert count(reset=RESET) == (1, 1)
    scans, selects = count(length=3)
    assert scans == 1
    assert selects > 0


def test_export_with_symbolic_time():
    def run(xs, length, reset):
        return jaxgru.loop(double, jnp.zeros(()), xs, length=length, reset=reset)

    (steps,) = export.symbolic_shape("t", constraints=["t >= 1"])
    shapes = ((steps,), "float64"), ((), "int32"), ((steps,), "bool")
    exported = export.export(jax.jit(run))(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    for count in (1, STEPS):
        data = jnp.ones(count), jnp.int32(count - 1), jnp.asarray(RESET[:count])
        assert_close(exported.call(*data), run(*data), TOL)


@pytest.fixture
def compilations():
    """Return a function that counts the programs that XLA has compiled since the test began."""
    events = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: len(events)
    jax.monitoring.unregister_event_duration_listener(listen)


def test_new_values_compile_nothing_without_jit(compilations):
    xs, key = np.ones(STEPS), jax.random.key(0)

    def step(carry, x, key):
        return carry + x * jax.random.normal(key, dtype="float64"), carry

    def run(length):
        reset = np.arange(STEPS) == length
        out = jaxgru.loop(step, np.zeros(()), xs, length=length, reset=reset, key=key)
        jax.block_until_ready(out)

    run(0)
    first = compilations()
    for length in range(1, STEPS + 1):
        run(length)
    assert compilations() == first


def test_an_object_that_changes_is_looked_at_again():
    class Model:
        weight = 1.0

        def __call__(self, carry, x):
            return carry + self.weight * x, None

        def method(self, carry, x):
            return self(carry, x)

    model, xs = Model(), jnp.ones(STEPS)
    for weight in (1.0, 2.0):
        model.weight = weight
        for step in (model, model.method, functools.partial(Model.__call__, model)):
            assert jaxgru.loop(step, jnp.zeros(()), xs)[0] == weight * STEPS


def test_a_step_is_not_kept_alive():
    weight = jnp.ones(())

    def step(carry, x):
        return carry + weight * x, None

    jaxgru.loop(step, jnp.zeros(()), jnp.ones(STEPS), length=3)
    alive = weakref.ref(step)
    assert isinstance(step, types.FunctionType)
    assert step in sys.modules["jaxgru.loop"]._programs
    del step
    gc.collect()
    assert alive() is None


def test_no_tracer_leaks():
    @jax.jit
    def run(w, xs):
        def step(carry, x):
            return jnp.tanh(carry * w + x), carry

        out = jaxgru.loop(step, jnp.zeros(()), xs, length=3, reset=RESET, checkpoint=4)
        return weigh(out)

    with jax.checking_leaks():
        assert jnp.isfinite(jax.grad(run)(jnp.ones(()), jnp.ones(STEPS)))


def test_one_step_for_two_transformations():
    """The function was traced before, inside other tracers."""
    xs = jnp.ones(STEPS)

    def loss(w):
        def step(carry, x):
            return jnp.tanh(carry * w + x), carry

        one = jaxgru.loop(step, jnp.zeros(()), xs)[0]
        many = jax.vmap(lambda xs: jaxgru.loop(step, jnp.zeros(()), xs)[0])(jnp.stack([xs, 2 * xs]))
        slope = jax.grad(lambda c: jaxgru.loop(step, c, xs)[0])(jnp.zeros(()))
        return one + jnp.sum(many) + slope

    check_grads(jax.jit(loss), (jnp.asarray(0.3),), order=2, atol=1e-6, rtol=1e-6)


def test_checkpoint_keeps_the_carry_every_so_many_steps():
    """The stacked residuals between the forward and backward pass: T states, or T / k."""
    steps, size = 64, 32

    def memory(checkpoint):
        def loss(w, xs):
            def step(h, x):
                h = jnp.tanh(h * w + x)
                return h, None

            start = jnp.zeros(size, "float32")
            return jnp.sum(jaxgru.loop(step, start, xs, checkpoint=checkpoint)[0])

        shapes = (jax.ShapeDtypeStruct(s, "float32") for s in ((size,), (steps, 1)))
        compiled = jax.jit(jax.grad(loss)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(None) > steps * size * 4
    assert memory(8) < steps * size * 4 * 0.9
