"""`newton_scan` has the values, options and derivatives of `scan`, or it reports a failure."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import jaxgru
import oracle
import own_gru
import own_memory
from cases import (
    BUILT_IN,
    GRAD_TOL,
    KINDS,
    OWN,
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
from jaxgru import dynamics, trajectory
from jaxgru.cell import cell_of

pytestmark = pytest.mark.usefixtures("x64")

TOL = VALUE_TOL["float64"]
RESET = np.array([False, True, False, False, True, False])
MODES = ("dense", "diagonal")
#: Both modes see reversed time only, so not every mode needs tests in both directions.
WAYS = [("dense", True), ("diagonal", False)]
DENSE, DIAGONAL = (functools.partial(jaxgru.newton_scan, jacobian=mode) for mode in MODES)


@functools.cache
def compiled(jacobian, reverse=False, fallback="scan"):
    options = {"jacobian": jacobian, "reverse": reverse, "fallback": fallback}
    return jax.jit(functools.partial(jaxgru.newton_scan, **options))


def draw_scaled(kind, scale, seed, hidden=8, dtype="float64"):
    """A random network whose recurrent weights have a spectral radius of about `scale`."""
    params = draw(kind, 2, hidden, dtype, seed)
    grown = params.w_hh * (scale / 0.6 / hidden**0.5)
    return dataclasses.replace(params, w_hh=grown.astype(dtype))


# --- values


def in_turns(kinds):
    """All (kind, jacobian, reverse).

    The short run has one way of some kinds. Another test checks both Jacobians of every cell, and
    "mixed" has a Stack.
    """
    cases = []
    for place, kind in enumerate(kinds):
        for number, way in enumerate(WAYS):
            needed = (place + number) % 2 == 0 and kind in ("gru", "lstm", "own_gru", "mixed")
            cases.append((kind, *way) if needed else slow(kind, *way))
    return cases


@pytest.mark.parametrize(("kind", "jacobian", "reverse"), in_turns(KINDS))
def test_every_option_at_once(kind, jacobian, reverse):
    params, xs = draw(kind), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    run = compiled(jacobian, reverse)
    for length in (0, 1, 4, STEPS):
        options = {"length": length, "reset": RESET, "reset_carry": restart}
        last, ys, info = run(params, xs, carry, **options)
        assert info.converged
        assert_close((last, ys), oracle.scan(params, xs, carry, reverse=reverse, **options), TOL)
        assert_same(ys[length:], jnp.zeros_like(ys[length:]))


@pytest.mark.parametrize("kind", only(["min_gru"], KINDS))
def test_no_options(kind):
    params, xs = draw(kind), draw_xs()
    last, ys, info = compiled("dense")(params, xs)
    assert info.converged
    assert_close((last, ys), oracle.scan(params, xs), TOL)


@pytest.mark.slow
@settings(max_examples=3)
@given(
    kind=st.sampled_from(KINDS),
    jacobian=st.sampled_from(MODES),
    steps=st.integers(0, 5),
    hidden=st.integers(1, 4),
    data=st.data(),
)
def test_any_shape(kind, jacobian, steps, hidden, data):
    params, xs = draw(kind, 2, hidden), draw_xs(steps, 2)
    flags = st.lists(st.booleans(), min_size=steps, max_size=steps)
    options = {
        "length": data.draw(st.integers(0, steps), "length"),
        "reset": np.array(data.draw(flags, "reset"), bool),
    }
    carry = draw_carry(params)
    last, ys, info = jaxgru.newton_scan(params, xs, carry, jacobian=jacobian, **options)
    assert info.converged
    assert_close((last, ys), oracle.scan(params, xs, carry, **options), TOL)


@pytest.mark.parametrize(
    ("kind", "jacobian"), [("gru", "dense"), slow("stack", "dense"), slow("stack", "diagonal")]
)
def test_nan_in_the_padding_changes_nothing(kind, jacobian):
    params, xs = draw(kind), draw_xs()

    @jax.jit
    def run(xs):
        def loss(params, xs):
            last, ys, info = jaxgru.newton_scan(params, xs, length=4, jacobian=jacobian)
            return weigh((last, ys)), (ys, info)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, xs)

    assert_same(run(xs.at[4:].set(jnp.nan)), run(xs.at[4:].set(0.0)))


def test_nan_in_a_real_step_is_not_hidden():
    params, xs = draw("gru"), draw_xs()
    _, ys, info = compiled("dense")(params, xs.at[2].set(jnp.nan))
    assert not info.converged
    assert jnp.all(jnp.isfinite(ys[:2]))
    assert jnp.all(jnp.isnan(ys[2:]))


@pytest.mark.parametrize(("dtype", "jacobian"), [("float64", "diagonal"), slow("float64", "dense"),
                         slow("float32", "diagonal"), slow("float32", "dense")])  # fmt: skip
@pytest.mark.parametrize("kind", ["gru_after", *map(slow, ("gru", "lstm"))])
def test_ten_thousand_steps_of_a_fresh_network(kind, dtype, jacobian):
    init = {"lstm": jaxgru.lstm_init}.get(kind, jaxgru.gru_init)
    form = {"reset_after": kind == "gru_after"} if kind != "lstm" else {}
    params = init(jax.random.key(0), 3, 4, init="torch", chrono=100, dtype=dtype, **form)
    xs = draw_xs(10_000, dtype=dtype)
    expected = jaxgru.scan(params, xs)
    # For float64 this is the promise, far above rounding. For float32 it is relative to states of
    # order one, or to the larger cells of an LSTM.
    tol = {"float64": 1e-9, "float32": 1e-4}[dtype]
    last, ys, info = compiled(jacobian)(params, xs)
    assert info.converged
    size = max(1, *(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)))
    assert_close((last, ys), expected, tol * size)


@functools.cache
def trained():
    """A GRU that is trained to hold a sum for some steps, by the signs of the gradient."""
    params = jaxgru.gru_init(jax.random.key(0), 2, 8, chrono=20, dtype="float64")
    xs = jax.random.uniform(jax.random.key(1), (64, 20, 2), "float64")

    def loss(params):
        _, hs = jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)
        return jnp.mean((hs[:, -1, 0] - xs[:, :, 0].mean(1)) ** 2)

    def update(_, params):
        return jax.tree.map(lambda w, g: w - 3e-3 * jnp.sign(g), params, jax.grad(loss)(params))

    after = jax.jit(lambda params: jax.lax.fori_loop(0, 300, update, params))(params)
    assert loss(after) < 0.1 * loss(params)
    return after


@pytest.mark.slow
@pytest.mark.parametrize("jacobian", MODES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ten_thousand_steps_of_a_trained_network(dtype, jacobian):
    """Values and gradients agree to the promised 1e-9 and 1e-4, relative to the largest entry."""
    tol = {"float64": 1e-9, "float32": 1e-4}[dtype]
    params = jax.tree.map(lambda w: w.astype(dtype), trained())
    xs = draw_xs(10_000, 2, dtype)

    def both(run):
        def loss(params, xs):
            out = run(params, xs)[:2]
            return weigh(out), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, xs)

    run = DENSE if jacobian == "dense" else DIAGONAL
    assert run(params, xs)[2].converged
    ((_, actual), grads), ((_, expected), expected_grads) = both(run), both(jaxgru.scan)
    assert_close(actual, expected, tol)
    for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        size = jnp.abs(e).max()
        assert_close(g / size, e / size, tol)


# --- the Jacobian


@pytest.mark.parametrize("kind", [*BUILT_IN, *map(slow, ("own_gru", *OWN))])
def test_jacobians_are_those_of_autodiff(kind):
    params, xs = draw(kind), draw_xs()
    of = dynamics.dynamics_of(params)
    before = jnp.outer(jnp.linspace(0.1, 1, STEPS), dynamics.pack(draw_carry(params)))

    def step(h, x):
        carry = dynamics.unpack(of.cell, params, h)
        return dynamics.pack(jaxgru.step(params, carry, x)[0])

    @jax.jit
    def found(xs):
        if isinstance(of, dynamics.ByStep):
            xs = of.cell.project(params, xs)
        inputs, flags = dynamics.Inputs(params, xs, before[0], None), dynamics.Flags(None, None)
        after, kept = of.advance(inputs, flags, before)
        of_kind = [trajectory.jacobian_of(of, d, inputs, flags, before, kept) for d in (0, 1)]
        return after, *of_kind

    after, diagonal, dense = found(xs)
    expected = np.asarray(jax.jit(jax.vmap(jax.jacfwd(step)))(before, xs))
    assert_close(after, jax.jit(jax.vmap(step))(before, xs), TOL)
    assert_close(diagonal, np.diagonal(expected, axis1=1, axis2=2), TOL)
    if kind == "min_gru":  # the Jacobian is diagonal
        dense = np.asarray(dense)[..., None] * np.eye(dense.shape[-1])
    assert_close(dense, expected, TOL)


@pytest.mark.parametrize("kind", only(["lstm"], BUILT_IN))
def test_no_state_exceeds_its_bound(kind):
    """No iterate leaves the bounds, even with a large carry and expanding Jacobians."""
    params = jax.tree.map(lambda w: 5 * w, draw(kind))
    carry = jax.tree.map(lambda a: 3 * a, draw_carry(params))
    xs = draw_xs(100)
    run = functools.partial(jaxgru.newton_scan, max_iterations=3, fallback=None)
    states = jax.jit(run)(params, xs, carry)[2].states
    bound = cell_of(params).bound(jax.tree.map(jnp.abs, carry), 100)
    for leaf, most in zip(jax.tree.leaves(states), jax.tree.leaves(bound), strict=True):
        assert jnp.all(jnp.abs(leaf) <= most[None] * (1 + 1e-12))
    # The bound is useful, since scan comes close to it. The minimal GRU needs none.
    reached = jax.tree.map(lambda a: jnp.abs(a).max(), jaxgru.scan(params, xs, carry)[1])
    assert kind == "min_gru" or reached > 0.4 * jax.tree.leaves(bound)[0].min()


# --- derivatives


@functools.cache
def gradient(run, reverse=False, length=4):
    def loss(params, xs, carry, restart):
        options = {"length": length, "reset": jnp.asarray(RESET), "reset_carry": restart}
        return weigh(run(params, xs, carry, reverse=reverse, **options)[:2])

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))


@pytest.mark.parametrize(
    ("kind", "jacobian", "reverse"),
    [
        ("gru_after", *WAYS[0]),
        ("lstm", *WAYS[1]),
        *(slow(kind, *WAYS[0]) for kind in KINDS if kind != "gru_after"),
        *(slow(kind, *WAYS[1]) for kind in KINDS if kind != "lstm"),
    ],
)
def test_gradients_are_those_of_scan(kind, jacobian, reverse):
    params, xs = draw(kind), draw_xs()
    arguments = (params, xs, draw_carry(params, 7), draw_carry(params, 8))
    actual = gradient(DENSE if jacobian == "dense" else DIAGONAL, reverse)(*arguments)
    assert_close(actual, gradient(jaxgru.scan, reverse)(*arguments), GRAD_TOL["float64"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "run"), [("gru", DENSE), ("min_gru", DENSE), ("gru", DIAGONAL), ("lstm", DENSE)]
)
def test_check_grads_order_2(kind, run):
    params, xs = draw(kind, 2, 2), draw_xs(3, 2)
    flags = jnp.asarray([False, False, True])

    def outputs(params, xs, carry):
        return run(params, xs, carry, length=jnp.asarray(3), reset=flags)[:2]

    arguments = (params, xs, draw_carry(params))
    check_grads(jax.jit(outputs), arguments, order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize(
    ("run", "transform"),
    [
        (DENSE, jax.hessian),
        slow(DIAGONAL, jax.hessian),
        slow(DENSE, lambda f: jax.jacrev(jax.jacrev(f))),
        slow(DIAGONAL, lambda f: jax.jacrev(jax.jacrev(f))),
        slow(DENSE, jax.jacfwd),
        slow(DIAGONAL, jax.jacfwd),
    ],
)
def test_hessian_and_both_jacobians(run, transform):
    params, xs = draw("gru", 2, 2), draw_xs(4, 2)

    def loss(scan, xs):
        return weigh(scan(params, xs)[:2])

    actual, expected = (
        jax.jit(transform(functools.partial(loss, scan)))(xs) for scan in (run, jaxgru.scan)
    )
    assert_close(actual, expected, GRAD_TOL["float64"])


def test_no_gradient_flows_into_the_guess_or_out_of_the_info():
    params, xs = draw("lstm"), draw_xs()
    guess = compiled("dense")(params, xs)[2].states

    def loss(guess, params):
        last, ys, info = jaxgru.newton_scan(params, xs, guess=guess)
        return weigh((last, ys)), weigh((info.states, info.residual))

    through_guess = jax.grad(lambda guess: loss(guess, params)[0])(guess)
    out_of_info = jax.grad(lambda params: loss(guess, params)[1])(params)
    for tree in (through_guess, out_of_info):
        assert_same(tree, jax.tree.map(jnp.zeros_like, tree))


# --- a cell of any carry


@functools.cache
def of_a_memory(run, reverse):
    """Values, and their gradients with respect to all arguments of a call."""

    def loss(params, xs, carry, restart, mask, reset):
        options = {"mask": mask, "reset": reset, "reset_carry": restart, "reverse": reverse}
        out = run(params, xs, carry, **options)[:2]
        return weigh(out), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


@pytest.mark.parametrize(("jacobian", "reverse"), [WAYS[0], slow(*WAYS[1])])
def test_a_cell_of_any_carry(jacobian, reverse):
    """The contents of holes have no effect, although the step is not defined there."""
    params, xs = own_memory.draw(3, 4), draw_xs()
    carry, restart = draw_carry(params, 7), draw_carry(params, 8)
    run = DENSE if jacobian == "dense" else DIAGONAL
    for mask in (np.ones(STEPS, bool), np.array([0, 1, 0, 1, 1, 0], bool), np.zeros(STEPS, bool)):
        expected = own_memory.numpy_scan(params, xs, carry, mask, RESET, restart, reverse)
        arguments = (params, jnp.where(mask[:, None], xs, jnp.nan), carry, restart, mask, RESET)
        (_, found), grads = of_a_memory(run, reverse)(*arguments)
        assert_close(found, expected, TOL)
        _, expected_grads = of_a_memory(jaxgru.scan, reverse)(*arguments)
        assert_close(grads, expected_grads, GRAD_TOL["float64"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quotient:
    """The step is not defined where the carry, which is the previous input, equals the input."""

    w: jax.Array


jaxgru.register(
    Quotient,
    step=lambda params, carry, x: (x, params.w / (x - carry)),
    initial_carry=lambda params: jnp.zeros_like(params.w),
    sizes=lambda params: (1, 1),
)


@pytest.mark.parametrize("run", [DENSE, slow(DIAGONAL)], ids=MODES)
def test_carry_and_input_of_the_padding_belong_together(run):
    """The padding gets the first input and its carry, as in `loop`. The last carry equals this
    input.
    """
    xs = jnp.asarray([[1.0], [2.0], [1.0], [0.0]])

    def loss(scan, params):
        return weigh(scan(params, xs, length=3)[:2])

    params = Quotient(jnp.asarray([0.7]))
    actual, expected = (
        jax.grad(functools.partial(loss, scan))(params) for scan in (run, jaxgru.scan)
    )
    assert jnp.isfinite(expected.w).all()
    assert_close(actual, expected, GRAD_TOL["float64"])


@pytest.mark.slow
@pytest.mark.parametrize("run", [DENSE, DIAGONAL], ids=MODES)
def test_second_derivatives_of_a_cell_of_any_carry(run):
    arguments = (own_memory.draw(2, 2), draw_xs(3, 2))
    outputs = lambda params, xs: run(params, xs, length=2)[:2]  # noqa: E731
    check_grads(jax.jit(outputs), arguments, order=2, modes=("fwd", "rev"))


@pytest.mark.slow
def test_a_cell_of_any_carry_starts_from_its_own_and_falls_back():
    params, xs = own_memory.draw(3, 4), draw_xs(20)
    reset = np.arange(20) % 7 == 3
    expected = jaxgru.scan(params, xs, reset=reset, length=17)
    last, ys, info = jaxgru.newton_scan(params, xs, reset=reset, length=17)
    assert info.converged
    assert_close((last, ys), expected, TOL)
    assert jax.tree.map(jnp.shape, info.states) == {"matrix": (20, 4, 3), "total": (20,)}
    again = jaxgru.newton_scan(params, xs, reset=reset, length=17, guess=info.states)[2]
    assert again.iterations == 0
    run = functools.partial(jaxgru.newton_scan, max_iterations=1, reset=reset, length=17)
    last, ys, info = run(params, xs)
    assert not info.converged
    assert_close((last, ys), expected, TOL)
    assert jnp.max(jnp.abs(run(params, xs, fallback=None)[1] - ys)) > 1e-9


@pytest.mark.slow
def test_the_gru_as_a_cell_of_the_users_own_takes_one_iteration_more_at_most():
    """The states of one cell are known to be in [-1, 1]. Those of the other are not."""
    params, xs = draw("gru"), draw_xs(200)
    known = compiled("dense")(params, xs)[2]
    found = compiled("dense")(own_gru.OwnParams(params.w_ih, params.w_hh, params.b), xs)[2]
    assert found.iterations <= known.iterations + 1
    assert_close(found.states, known.states, TOL)


# --- vmap


@pytest.mark.parametrize("run", [DENSE, slow(DIAGONAL)], ids=MODES)
def test_a_batch_is_the_batch_looped_over(run):
    """One of three examples does not converge. Only this one is replaced, and the others are
    unchanged.
    """
    scales = (0.5, 8.0, 1.0)
    params = [draw_scaled("elman", scale, seed) for seed, scale in enumerate(scales)]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    xs = jnp.stack([draw_xs(150, 2, seed=20 + i) for i in range(3)])

    def loss(run, params, xs, length):
        out = run(params, xs, length=length)
        return weigh(out[:2]), out

    def both(run):
        return jax.value_and_grad(functools.partial(loss, run), has_aux=True)

    lengths = jnp.asarray([150, 40, 7])
    (_, out), grads = jax.jit(jax.vmap(both(run)))(many, xs, lengths)
    assert out[2].converged.tolist() == [True, False, True]
    for i, each in enumerate(params):
        (_, expected), expected_grads = jax.jit(both(jaxgru.scan))(each, xs[i], lengths[i])
        pick = functools.partial(jax.tree.map, lambda leaf, i=i: leaf[i])
        # Chaos amplifies the rounding of any computation, by 1e5 in these 40 steps.
        grown = 1e5 if i == 1 else 1
        assert_close(pick(out[:2]), expected[:2], grown * TOL)
        assert_close(pick(grads), expected_grads, grown * GRAD_TOL["float64"])


# --- honesty


@pytest.mark.parametrize("jacobian", [slow("dense"), "diagonal"])
@pytest.mark.parametrize("kind", ["gru", *map(slow, ("gru_after", "lstm", "elman"))])
def test_a_hundred_networks_of_growing_scale_none_silently_wrong(kind, jacobian):
    """The larger networks are chaotic, so rounding determines their states."""
    scales = np.geomspace(0.3, 12, 100)
    drawn = [draw_scaled(kind, scale, seed, hidden=6) for seed, scale in enumerate(scales)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    xs = jnp.stack([draw_xs(120, 2, seed=seed) for seed in range(100)])
    expected = jax.jit(jax.vmap(jaxgru.scan))(params, xs)[1]
    _, iterates, info = jax.jit(jax.vmap(functools.partial(
        jaxgru.newton_scan, jacobian=jacobian, fallback=None, max_iterations=60
    )))(params, xs)  # fmt: skip
    wrong = np.asarray(jnp.max(jnp.abs(iterates - expected), axis=(1, 2)))
    converged = np.asarray(info.converged)
    assert np.all(wrong[converged] < 1e-9)
    assert converged[:15].all()  # contracting networks converge
    assert not converged.all()
    if kind == "elman":
        assert wrong.max() > 0.1  # the results could have been wrong


def test_a_small_residual_is_not_enough():
    """In 40 chaotic steps the residual is rounding, but each evaluation has its own trajectory."""
    params, xs = draw_scaled("elman", 8.0, 1, hidden=16), draw_xs(60, 2)
    last, ys, info = compiled("dense")(params, xs)
    assert info.residual < 1e-14
    assert not info.converged
    assert_same((last, ys), jaxgru.scan(params, xs))


def test_the_fallback_is_scan_and_none_is_the_iterate():
    params, xs = draw("stack"), draw_xs(30)
    carry = draw_carry(params)
    short = functools.partial(jaxgru.newton_scan, max_iterations=2, jacobian="diagonal")
    last, ys, info = short(params, xs, carry)
    assert not info.converged
    assert info.iterations == 4  # two layers
    assert info.residual > 1e-12
    assert_close((last, ys), jaxgru.scan(params, xs, carry), TOL)
    iterate = short(params, xs, carry, fallback=None)
    assert not iterate[2].converged
    assert jnp.max(jnp.abs(iterate[1] - ys)) > 1e-9
    # After two steps for each of two layers the first two states are right.
    assert_close(iterate[1][:2], ys[:2], TOL)


def test_one_layer_that_fails_is_told():
    chaotic = draw_scaled("elman", 8.0, 1, hidden=16)
    params = jaxgru.Stack((draw("min_gru", 2, 2), chaotic))
    xs = 3 * draw_xs(60, 2)
    assert compiled("dense")(params.layers[0], xs)[2].converged
    _, ys, info = compiled("dense")(params, xs)
    assert not info.converged
    assert_same(ys, jaxgru.scan(chaotic, compiled("dense")(params.layers[0], xs)[1])[1])


@pytest.mark.parametrize("run", [DENSE, slow(DIAGONAL)], ids=MODES)
def test_gradients_of_the_fallback_do_not_overflow(run):
    """The network rests at an unstable point.

    The product of 3000 Jacobians, 3**3000, overflows. The part that a loss of the first steps needs
    does not. An associative scan alone would return NaN.
    """
    params = jaxgru.ElmanParams(w_ih=jnp.ones((1, 1)), w_hh=3 * jnp.ones((1, 1)), b=None)
    xs = jnp.zeros((3000, 1))
    assert not run(params, xs)[2].converged

    def loss(scan, params, xs):
        return weigh(scan(params, xs)[1][:3])

    actual, expected = (
        jax.jit(jax.grad(functools.partial(loss, scan), argnums=(0, 1)))(params, xs)
        for scan in (run, jaxgru.scan)
    )
    assert jnp.abs(expected[1][0, 0]) > 0.5
    assert_close(actual, expected, GRAD_TOL["float64"])


@pytest.mark.parametrize("jacobian", ["dense", slow("diagonal")])
def test_damping_changes_the_way_and_nothing_else(jacobian):
    """With damping 1 the state becomes F of the one before, so each iteration corrects one more
    step.
    """
    params, xs = draw("lstm"), draw_xs(12)
    run = functools.partial(jaxgru.newton_scan, jacobian=jacobian)
    undamped, expected = run(params, xs)[2].iterations, jaxgru.scan(params, xs)
    for damping in (0.3, 1.0):
        last, ys, info = run(params, xs, damping=damping)
        assert info.converged
        assert info.iterations <= 12
        assert jacobian == "diagonal" or info.iterations > undamped
        assert_close((last, ys), expected, TOL)

    def loss(scan, params):
        return weigh(scan(params, xs)[1])

    damped, expected = (
        jax.jit(jax.grad(functools.partial(loss, scan)))(params)
        for scan in (functools.partial(run, damping=0.3), jaxgru.scan)
    )
    assert_close(damped, expected, GRAD_TOL["float64"])


@pytest.mark.slow
def test_damping_saves_iterations_at_the_edge_of_chaos():
    """This network forgets slowly. Without damping, Newton steps pass on errors while they are
    large.
    """
    params, xs = draw_scaled("gru_after", 4.5, 0), draw_xs(500, 2)
    plain, damped = (
        jax.jit(functools.partial(jaxgru.newton_scan, damping=damping, max_iterations=400))
        for damping in (0.0, 0.1)
    )
    info = damped(params, xs)[2]
    assert info.converged
    assert int(info.iterations) < 0.6 * int(plain(params, xs)[2].iterations)


# --- the cost, counted


def test_the_minimal_gru_takes_one_step():
    params, xs = draw("min_gru"), draw_xs(1000)
    for jacobian in MODES:
        last, ys, info = compiled(jacobian)(params, xs)
        assert info.iterations == 1
        assert_close((last, ys), oracle.scan(params, xs), TOL)


@pytest.mark.slow
@pytest.mark.parametrize(("jacobian", "reverse"), [slow(*WAYS[0]), WAYS[1]])
@pytest.mark.parametrize("kind", ["gru_after", *map(slow, ("lstm", "bidirectional"))])
def test_a_guess_saves_iterations(kind, jacobian, reverse):
    """As in training, the guess is the trajectory before a small change of the params."""
    params, xs = draw(kind), draw_xs(300)
    run = compiled(jacobian, reverse)
    cold = run(params, xs)[2]
    assert run(params, xs, guess=cold.states)[2].iterations == 0
    changed = jax.tree.map(lambda w: w + 1e-6 * jnp.sign(w), params)
    last, ys, warm = run(changed, xs, guess=cold.states)
    assert warm.converged
    assert 0 < int(warm.iterations) < 0.7 * int(run(changed, xs)[2].iterations)
    assert_close((last, ys), jaxgru.scan(changed, xs, reverse=reverse), TOL)


def test_a_guess_that_is_not_finite_does_no_harm():
    params, xs = draw("gru"), draw_xs(30)
    guess = jnp.full((30, 4), jnp.nan).at[3].set(1e300)
    last, ys, info = compiled("dense")(params, xs, guess=guess)
    assert info.converged
    assert info.iterations <= compiled("dense")(params, xs)[2].iterations + 1
    assert_close((last, ys), jaxgru.scan(params, xs), TOL)


def test_states_are_the_carries_of_every_step():
    params, xs = draw("lstm"), draw_xs()
    last, ys, info = compiled("dense")(params, xs)
    assert_same(info.states.h, ys)
    assert_same(jax.tree.map(lambda a: a[-1], info.states), last)
    carries = [oracle.scan(params, xs[: t + 1])[0] for t in range(STEPS)]
    assert_close(info.states.c, np.stack([c for _, c in carries]), TOL)


@pytest.mark.slow
def test_memory_grows_with_the_square_of_the_width_only_where_jacobians_are_dense():
    """The temporary memory per step, in states, according to the compiler."""

    def temporary(jacobian, hidden, steps=64):
        params, xs = draw("gru", 3, hidden), draw_xs(steps)
        run = functools.partial(jaxgru.newton_scan, jacobian=jacobian, fallback=None)
        analysis = jax.jit(run).lower(params, xs).compile().memory_analysis()
        return analysis.temp_size_in_bytes / (8 * steps * hidden)

    # With eight times the width, matrices take eight times the memory per state. Without matrices
    # the memory per state stays the same.
    assert temporary("dense", 64) > 4 * temporary("dense", 8)
    assert temporary("diagonal", 64) < 1.5 * temporary("diagonal", 8)


# --- wrong calls


WRONG = {
    "a jacobian of no known kind": ({"jacobian": "full"}, ValueError, "'dense' or 'diagonal'"),
    "a fallback of no known kind": ({"fallback": "sequential"}, ValueError, "'scan' or None"),
    "tol as a string": ({"tol": "1e-6"}, TypeError, "a Python number"),
    "tol of zero": ({"tol": 0.0}, ValueError, r"in \(0, 1\), got 0.0"),
    "damping as a string": ({"damping": "0.1"}, TypeError, "a Python number"),
    "damping above 1": ({"damping": 1.5}, ValueError, r"in \[0, 1\], got 1.5"),
    "no iterations": ({"max_iterations": 0}, ValueError, "a positive integer, got 0"),
    "a guess of one state": ({"guess": np.zeros(4)}, ValueError, r"\[6, 4\], got float64\[4\]"),
    "a guess of another structure": (
        {"guess": (np.zeros((6, 4)),)},
        TypeError,
        "a trajectory of carries.*NewtonInfo.states of an earlier call",
    ),
    "reset_carry without reset": ({"reset_carry": np.zeros(4)}, ValueError, "with reset_carry"),
    "reverse as a number": ({"reverse": 1}, TypeError, "True or False"),
    "length beyond T": ({"length": 9}, ValueError, r"\[0, 6\]"),
}


@pytest.mark.parametrize(("options", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_named(options, kind, message):
    with pytest.raises(kind, match=f"^newton_scan: .*must be .*{message}"):
        jaxgru.newton_scan(draw("gru"), draw_xs(), **options)


def test_sixteen_bits_are_refused():
    with pytest.raises(TypeError, match=r"newton_scan: params must be float32 or float64, got bfl"):
        jaxgru.newton_scan(draw("gru", dtype="bfloat16"), draw_xs(dtype="bfloat16"))


def test_no_steps():
    params = draw("stack")
    carry = draw_carry(params)
    last, ys, info = jaxgru.newton_scan(params, draw_xs(0), carry)
    assert_same(last, carry)
    assert ys.shape == (0, 5)
    assert info.converged
    assert info.iterations == 0
