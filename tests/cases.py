"""Shared parts of the tests: params of every kind with non-zero biases, and the tolerances."""

import contextlib
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from jaxgru import backends, recurrence
from own_gru import NamedParams, OwnParams

#: The sizes of most tests. They differ, so that a test notices swapped axes.
INPUT, HIDDEN, STEPS = 3, 4, 6

#: The largest absolute difference between two evaluations of the same equations in different
#: orders, for numbers of order one. For float64 it is about 5000 ulp, after some dozen products and
#: T steps. A wrong term causes differences of 1e-2. For float32 it is about 30 ulp, which errors do
#: not exceed.
VALUE_TOL = {"float64": 1e-12, "float32": 4e-6}

#: The same for derivatives. They are sums over all steps, with a hundred times more rounding.
GRAD_TOL = {"float64": 1e-10, "float32": 2e-4}

BUILT_IN = ("gru", "gru_after", "lstm", "elman", "min_gru")
#: These include the GRU as a user registers it, in two ways, for all promises of `scan` and `step`.
CELLS = (*BUILT_IN, "own_gru", "named_gru")
#: (init, step) of the cells of this library that `register` defines. tests/test_own_cells.py tests
#: them.
OWN: dict[str, Any] = {
    "mgu": (jaxgru.mgu_init, jaxgru.mgu_step),
    "layer_norm_gru": (jaxgru.layer_norm_gru_init, jaxgru.layer_norm_gru_step),
    "layer_norm_gru_separate": (
        functools.partial(jaxgru.layer_norm_gru_init, separate=True),
        jaxgru.layer_norm_gru_step,
    ),
    "leaky_rate_softplus": (
        functools.partial(jaxgru.leaky_init, nonlinearity="softplus"),
        jaxgru.leaky_step,
    ),
}
LAYERS = ("bidirectional", "stack", "mixed")
KINDS = (*CELLS, *LAYERS, "own_mixed")
#: `step` takes everything except a Bidirectional, alone or inside a Stack.
STREAMABLE = (*CELLS, "stack")


def slow(*values):
    """A case for the slow tests only. A similar case in the short run shows the same."""
    return pytest.param(*values, marks=pytest.mark.slow)


#: Every cell runs in one direction, since cells do not know the direction. A Bidirectional runs in
#: both, as "mixed" is a Stack with one. These are for values.
SHORT = {("gru", False), ("gru_after", True), ("lstm", False), ("elman", True),
         ("min_gru", False), ("own_gru", True), ("named_gru", False), ("bidirectional", True),
         ("mixed", False)}  # fmt: skip
#: One cell of every kind: with a named derivative and a carry of one leaf or two, without weights
#: for the state, with the step alone. The other cells are layers of "mixed".
FEW = {("gru", False), ("lstm", True), ("min_gru", False), ("own_gru", True), ("mixed", False)}


def each_way(kinds, short=frozenset(FEW)):
    """Return all pairs (kind, reverse). The short run takes only those in `short`."""
    pairs = itertools.product(kinds, (False, True))
    return [pair if pair in short else slow(*pair) for pair in pairs]


def only(short, kinds):
    """Return all kinds. The short run takes only those in `short`."""
    assert set(short) <= set(kinds)
    return [kind if kind in short else slow(kind) for kind in kinds]


def array(values, dtype) -> jax.Array:
    """Rounded by NumPy, as JAX would compile a program for every shape."""
    return jnp.asarray(np.asarray(values, dtype), dtype)


def draw_cell(rng, kind, inputs, hidden, dtype, bias=True) -> Any:
    def normal(*shape):
        return array(0.6 * rng.standard_normal(shape), dtype)

    if kind in OWN:
        init = functools.partial(OWN[kind][0], bias=bias, dtype=dtype)
        like = jax.eval_shape(lambda key: init(key, inputs, hidden), jax.random.key(0))
        # The scalars are rates between 0 and 1.
        return jax.tree.map(
            lambda leaf: normal(*leaf.shape) if leaf.shape else jnp.asarray(0.6, dtype), like
        )
    if kind in ("gru", "gru_after"):
        after = kind == "gru_after"
        return jaxgru.GRUParams(
            w_ih=normal(inputs, 3, hidden),
            w_hh=normal(hidden, 3, hidden),
            b=normal(3, hidden) if bias else None,
            b_hn=normal(hidden) if bias and after else None,
            reset_after=after,
        )
    if kind == "lstm":
        return jaxgru.LSTMParams(
            w_ih=normal(inputs, 4, hidden),
            w_hh=normal(hidden, 4, hidden),
            b=normal(4, hidden) if bias else None,
        )
    if kind in ("own_gru", "named_gru"):
        b = normal(3, hidden) if bias else None
        made = OwnParams if kind == "own_gru" else NamedParams
        return made(normal(inputs, 3, hidden), normal(hidden, 3, hidden), b)
    if kind == "min_gru":
        return jaxgru.MinGRUParams(
            w_ih=normal(inputs, 2, hidden), b=normal(2, hidden) if bias else None
        )
    assert kind == "elman"
    return jaxgru.ElmanParams(
        w_ih=normal(inputs, hidden),
        w_hh=normal(hidden, hidden),
        b=normal(hidden) if bias else None,
    )


def draw(kind, inputs=INPUT, hidden=HIDDEN, dtype="float64", seed=0, bias=True) -> Any:
    """Draw params of a kind. Every leaf is random and non-zero."""
    rng = np.random.default_rng(seed)

    def cell(kind, inputs, hidden):
        return draw_cell(rng, kind, inputs, hidden, dtype, bias)

    if kind == "bidirectional":
        return jaxgru.Bidirectional(cell("gru", inputs, hidden), cell("lstm", inputs, hidden + 1))
    if kind == "stack":
        return jaxgru.Stack((cell("gru", inputs, hidden), cell("gru_after", hidden, hidden + 1)))
    if kind == "own_stack":
        return jaxgru.Stack((cell("own_gru", inputs, hidden), cell("own_gru", hidden, hidden + 1)))
    if kind == "mixed":
        both = jaxgru.Bidirectional(cell("gru_after", hidden, hidden), cell("gru", hidden, hidden))
        return jaxgru.Stack((cell("lstm", inputs, hidden), both, cell("elman", 2 * hidden, hidden)))
    if kind == "own_mixed":
        both = jaxgru.Bidirectional(cell("own_gru", hidden, hidden), cell("lstm", hidden, hidden))
        return jaxgru.Stack(
            (cell("named_gru", inputs, hidden), both, cell("gru", 2 * hidden, hidden))
        )
    return cell(kind, inputs, hidden)


def draw_xs(steps=STEPS, inputs=INPUT, dtype="float64", seed=1) -> jax.Array:
    rng = np.random.default_rng(seed)
    return array(rng.standard_normal((steps, inputs)), dtype)


#: Resets and a mask.
FLAGS = np.random.default_rng(7).random((2, STEPS)) < 0.4
#: Options of `scan` that say which steps are real, and where segments start.
MARKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "length": {"length": 4},
    "no step": {"length": 0},
    "reset": {"reset": FLAGS[0]},
    "mask": {"mask": ~FLAGS[1]},
    "all": {"length": 5, "reset": FLAGS[0], "mask": ~FLAGS[1]},
}


def draw_like(tree, seed=2) -> Any:
    """Draw a tree of the same structure, shapes and dtypes, such as a carry or a tangent."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: array(0.5 * rng.standard_normal(leaf.shape), leaf.dtype), tree)


def draw_carry(params, seed=2) -> Any:
    return draw_like(jax.eval_shape(jaxgru.initial_carry, params), seed)


def weigh(tree, seed=3):
    """A scalar in which every entry of a tree has another weight.

    Tests differentiate it, since a plain sum would not notice permuted entries.
    """
    leaves = jax.tree.leaves(draw_like(tree, seed))
    products = [jnp.sum(w * leaf) for w, leaf in zip(leaves, jax.tree.leaves(tree), strict=True)]
    return sum(products[1:], products[0])


def assert_close(actual, expected, tol):
    """Check that two trees are equal, up to `tol` in every entry. NaN equals nothing."""
    actual_leaves, expected_leaves = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual_leaves) == len(expected_leaves)
    for a, e in zip(actual_leaves, expected_leaves, strict=True):
        assert np.shape(a) == np.shape(e)
        np.testing.assert_allclose(
            np.asarray(a, np.float64),
            np.asarray(e, np.float64),
            rtol=0,
            atol=tol,
            equal_nan=False,
        )


def assert_same(actual, expected):
    """Check that two trees have the same structure, dtypes and bits, except that +0 equals -0."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        a, e = np.asarray(a), np.asarray(e)
        assert np.all(a == e), f"{a} is not {e}"


@contextlib.contextmanager
def planned(platform="cpu", saved=None, **changes):
    """Inside this context, programs for a CPU follow the plan of a platform, with other sizes.

    saved says whether the gradient reads saved gates, if the cell has gates to save. None leaves
    the choice to the library.
    """
    before = backends.PLANS["cpu"], recurrence.saves_gates
    backends.PLANS["cpu"] = backends.PLANS[platform]._replace(**changes)
    if saved is not None:
        recurrence.saves_gates = lambda cell, *_: saved and cell.carried is None
    jax.clear_caches()
    try:
        yield
    finally:
        backends.PLANS["cpu"], recurrence.saves_gates = before
        jax.clear_caches()
