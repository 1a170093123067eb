"""Compiling, and what a compiled program may contain: loops, checkpoints."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from cases import (
    CELLS,
    GRAD_TOL,
    KINDS,
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


@pytest.mark.parametrize("kind", only(("lstm", "mixed"), KINDS))
def test_one_trace_for_all_lengths_and_resets(kind):
    params, xs = draw(kind), draw_xs()
    traces = []

    @jax.jit
    def run(params, xs, length, reset):
        traces.append(length)
        return jaxgru.scan(params, xs, length=length, reset=reset)

    for length in range(STEPS + 1):
        jax.block_until_ready(run(params, xs, length, np.arange(STEPS) == length))
    assert len(traces) == 1
    run(params, draw_xs(STEPS + 1), 1, np.zeros(STEPS + 1, bool))
    assert len(traces) == 2


def test_one_compilation_for_all_values(compilations):
    params, others = draw("mixed"), draw("mixed", seed=9)
    reset, again = (jnp.asarray(np.arange(STEPS) == t) for t in (1, 4))
    xs, new = draw_xs(), draw_xs(seed=9)
    short, long = jnp.asarray(2), jnp.asarray(5)

    @jax.jit
    def run(params, xs, length, mask, reset):
        return jaxgru.scan(params, xs, length=length, mask=mask, reset=reset)

    before = compilations()
    jax.block_until_ready(run(params, xs, short, again, reset))
    assert compilations() == before + 1
    jax.block_until_ready(run(others, new, long, reset, again))
    assert compilations() == before + 1


@pytest.mark.parametrize("kind", ["gru", "mixed", slow("own_mixed")])
def test_new_lengths_compile_nothing_without_jit(kind, compilations):
    """Plain calls share one program too, since a length is data even as a Python number."""
    params, xs = draw(kind), draw_xs(9)
    before = compilations()
    jaxgru.scan(params, xs, length=2)
    first = compilations()
    assert first > before
    for length in (0, 5, 9):
        jaxgru.scan(params, xs, length=length)
    assert compilations() == first


def test_params_may_be_rebuilt_between_calls():
    """Equal static metadata compare equal, so new params of an optimizer reuse the program."""
    traces = []

    @jax.jit
    def run(params, xs):
        traces.append(1)
        return jaxgru.scan(params, xs)

    params, xs = draw("gru_after"), draw_xs()
    for _ in range(3):
        run(params, xs)
        params = jax.tree.map(lambda leaf: leaf * 0.5, params)
    assert len(traces) == 1
    run(draw("gru"), xs)
    assert len(traces) == 2


@pytest.mark.parametrize("kind", only(("lstm", "own_mixed"), KINDS))
def test_jit_changes_no_value(kind):
    params, xs = draw(kind), draw_xs()
    assert_close(jax.jit(jaxgru.scan)(params, xs), jaxgru.scan(params, xs), TOL)


def test_every_option_may_be_static_or_closed_over():
    params, xs = draw("stack"), draw_xs()
    run = functools.partial(jaxgru.scan, reverse=True, checkpoint=2, dropout=0.5)
    key = jax.random.key(0)
    assert_close(jax.jit(run)(params, xs, key=key), run(params, xs, key=key), TOL)


def training(scan, params, xs):
    """Run three steps of gradient descent in one `lax.scan`. Return the losses and the params."""

    def update(params, _):
        loss, grads = jax.value_and_grad(lambda p: weigh(scan(p, xs)))(params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), loss

    return jax.lax.scan(update, params, None, length=3)


@pytest.mark.parametrize("kind", ["gru", *map(slow, ("mixed", "own_gru"))])
def test_lax_scan_around(kind):
    """Training as one compiled loop gives what single steps give."""
    params, xs = draw(kind), draw_xs()
    trained, losses = jax.jit(functools.partial(training, jaxgru.scan))(params, xs)
    step = jax.jit(jax.value_and_grad(lambda p: weigh(jaxgru.scan(p, xs))))
    for loss in losses:
        expected, grads = step(params)
        assert_close(loss, expected, GRAD_TOL["float64"])
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
    assert_close(trained, params, GRAD_TOL["float64"])


def test_lax_scan_over_pieces():
    """In truncated backpropagation, an outer loop carries the carry."""
    params, xs = draw("lstm"), draw_xs(12)
    carry = draw_carry(params)

    def piece(carry, xs):
        return jaxgru.scan(params, xs, carry)

    last, ys = jax.lax.scan(piece, carry, xs.reshape(4, 3, -1))
    assert_close((last, ys.reshape(12, -1)), jaxgru.scan(params, xs, carry), TOL)


@pytest.mark.parametrize("kind", only(["lstm"], (*CELLS, "mixed")))
def test_jax_checkpoint_around(kind):
    params, xs = draw(kind), draw_xs()

    def loss(params, xs):
        return weigh(jaxgru.scan(params, xs, length=4))

    actual = jax.jit(jax.grad(jax.checkpoint(loss), argnums=(0, 1)))(params, xs)
    expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, xs)
    assert_close(actual, expected, GRAD_TOL["float64"])


def test_cond_and_while_around():
    params, xs = draw("gru"), draw_xs()
    expected, _ = jaxgru.scan(params, xs)

    @jax.jit
    def maybe(on, xs):
        zeros = jaxgru.initial_carry(params)
        return jax.lax.cond(on, lambda x: jaxgru.scan(params, x)[0], lambda x: zeros, xs)

    assert_close(maybe(True, xs), expected, TOL)
    assert_same(maybe(False, xs), jnp.zeros_like(expected))

    @jax.jit
    def twice(xs):
        return jax.lax.fori_loop(0, 2, lambda _, h: jaxgru.scan(params, xs, h)[0], expected * 0)

    assert_close(twice(xs), jaxgru.scan(params, xs, expected)[0], TOL)


@pytest.mark.parametrize("kind", KINDS)
def test_params_are_pytrees(kind):
    params = draw(kind)
    leaves, tree = jax.tree.flatten(params)
    assert_same(tree.unflatten(leaves), params)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    assert jax.tree.structure(doubled) == tree
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    # Tree transformations replace leaves by other objects, so the class must not validate them.
    strange = tree.unflatten([object()] * len(leaves))
    assert jax.tree.structure(jax.tree.map(lambda _: 0, strange)) == tree
    assert jax.tree.structure(jax.eval_shape(lambda p: p, params)) == tree
    assert_same(pickle.loads(pickle.dumps(params)), params)


@pytest.mark.parametrize("kind", KINDS)
def test_params_are_frozen(kind):
    params = draw(kind)
    field = dataclasses.fields(params)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(params, field, None)


@pytest.mark.parametrize("kind", ["gru", "lstm", "elman", "min_gru"])
def test_cell_params_are_keyword_only_and_complete(kind):
    params = draw(kind)
    fields = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
    assert_same(type(params)(**fields), params)
    with pytest.raises(TypeError):
        type(params)(*fields.values())
    for name in fields:
        with pytest.raises(TypeError):
            type(params)(**{k: v for k, v in fields.items() if k != name})


def test_the_form_is_part_of_the_structure():
    """Weights of one form never fit the other, since their tree structures differ."""
    before, after = draw("gru", bias=False), draw("gru_after", bias=False)
    assert jax.tree.structure(before) != jax.tree.structure(after)
    with pytest.raises(ValueError, match=r"\(True,\)"):  # the static field
        jax.tree.map(jnp.add, before, after)


def test_leaves_have_names():
    """The paths are used by optimizers, checkpoints and logs."""
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(draw("mixed"))
    ]
    assert paths[0] == ".layers[0].lstm.w_ih"
    assert ".layers[1].forward.gru_after.b_hn" in paths
    assert ".layers[1].backward.gru.w_hh" in paths


@pytest.mark.parametrize("differentiate", [None, jax.grad, jax.jacfwd])
def test_the_precision_of_products_is_that_where_scan_is_called(differentiate):
    """A program may be lowered after the context in which it was traced has ended."""
    params, xs = draw("gru_after"), draw_xs()

    def outputs(params):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(jaxgru.scan(params, xs)[1])

    run = differentiate(outputs) if differentiate else outputs
    text = jax.jit(run).lower(params).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)
