"""Calls with any argument give the right answer, or an error that names the argument.

They never raise another exception, and never broadcast silently. Valid calls use few shapes, since
each new one compiles. Wrong calls raise before anything is traced.
"""

import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

import jaxgru
import oracle
from cases import (
    BUILT_IN,
    CELLS,
    HIDDEN,
    INPUT,
    KINDS,
    STEPS,
    VALUE_TOL,
    assert_close,
    draw,
    draw_xs,
)

KEY = jax.random.key(0)
NUMPY = ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16", "S3",
         "U3", "O", "M8[s]", "m8[s]", "V4", "f4,f4")  # fmt: skip
INTEGERS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")


class Odd:
    """An object that only looks like an array."""

    shape, dtype = 3, "float32"


class Foreign:
    """A tensor of another library, whose dtype is not one of NumPy."""

    shape, dtype = (STEPS, INPUT), object()


def zeros(dtype, shape):
    return np.zeros(shape, jax.dtypes.float0 if dtype == "float0" else np.dtype(dtype))


# These include right shapes in a wrong dtype.
right_shapes = st.sampled_from([(), (INPUT,), (HIDDEN,), (STEPS,), (STEPS, INPUT)])
shapes = right_shapes | st.lists(st.integers(0, 7), max_size=4).map(tuple)
arrays = st.builds(zeros, st.sampled_from((*NUMPY, "float0")), shapes)
numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e39, 1e300]),
    st.floats(),
    st.complex_numbers(),
    st.booleans(),
)
others = st.sampled_from(
    [None, "", "scan", b"x", (), [], {}, {1: 2, "a": 3}, object(), len, np.float32, np.ndarray,
     Odd(), Odd, Ellipsis, NotImplemented, slice(1), range(3), jnp.float32, KEY,
     jax.ShapeDtypeStruct((STEPS, INPUT), np.dtype("f4")),
     jax.ShapeDtypeStruct((HIDDEN,), np.dtype("f4")),
     jnp.zeros(5, "uint32"), jax.random.key(3, impl="rbg"), jax.random.split(KEY, 2)]
)  # fmt: skip
anything = st.one_of(arrays, numbers, others, st.lists(arrays | numbers, max_size=3).map(tuple))


def names_the_argument(caller, names, call, *, right):
    """Check a call: `right` judges its result, and an error must be ours and name an argument."""
    try:
        result = call()
    except (TypeError, ValueError) as error:
        text = str(error)
        known = "|".join(re.escape(name) for name in names)
        assert re.match(rf"{caller}: [^:]*\b(?:{known})\b.* must be .*, got ", text), text
        assert "\n" not in text
    else:
        right(result)


def params_of(kind="gru"):
    return draw(kind, dtype="float32")


XS = {"float32": np.asarray(draw_xs(dtype="float32"))}


SCAN = {
    "carry": lambda v: v is None,
    "length": lambda v: v is None or _whole(v, range(STEPS + 1)),
    "mask": lambda v: v is None,
    "reset": lambda v: v is None,
    "reset_carry": lambda v: v is None,
    "reverse": lambda v: isinstance(v, bool),
    "dropout": lambda v: _float(v) and v == 0,
    "key": lambda v: v is None or _key(v),
    "checkpoint": lambda v: v is None or _whole(v, range(1, 10**401)),
}


def _whole(value, allowed):
    if isinstance(value, np.ndarray):
        return value.shape == () and value.dtype.kind in "iu" and int(value) in allowed
    plain = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return plain and int(value) in allowed


def _float(value):
    if isinstance(value, np.ndarray):
        return value.shape == () and value.dtype.kind == "f"
    return not isinstance(value, bool) and isinstance(value, float | int)


def _key(value):
    if isinstance(value, jax.Array):
        return jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.shape == ()
    return False


@pytest.mark.parametrize("name", SCAN)
@given(value=anything)
@example(value=10**400)
@example(value=-(2**64))
@example(value=np.zeros((), object))
@settings(max_examples=30)
def test_an_argument_of_scan(name, value):
    def right(result):
        assert SCAN[name](value), f"{value!r} was taken for {name}"
        expected = oracle.scan(
            params_of(),
            XS["float32"],
            length=None if name != "length" or value is None else int(value),
            reverse=name == "reverse" and value,
        )
        assert_close(result, expected, VALUE_TOL["float32"])

    # reset_carry needs reset
    names = [name, "reset"] if name == "reset_carry" else [name]
    names_the_argument(
        "scan", names, lambda: jaxgru.scan(params_of(), XS["float32"], **{name: value}), right=right
    )


@given(value=anything, kind=st.sampled_from(KINDS))
@example(value=np.zeros((STEPS, INPUT), object), kind="gru")
@example(value=Foreign(), kind="gru")
@settings(max_examples=50)
def test_inputs_of_scan(value, kind):
    def right(result):
        assert value.dtype in (np.float32, np.float64)
        assert value.shape == (*value.shape[:1], INPUT)
        assert_close(result, oracle.scan(params_of(kind), value), VALUE_TOL["float32"])

    names_the_argument("scan", ["xs"], lambda: jaxgru.scan(params_of(kind), value), right=right)


@given(value=anything, kind=st.sampled_from(KINDS))
@settings(max_examples=30)
def test_params_of_scan(value, kind):
    """Draw anything for params, and for each leaf of params."""

    def never(result):
        pytest.fail(f"{value!r} was taken for params")

    names_the_argument("scan", ["params"], lambda: jaxgru.scan(value, XS["float32"]), right=never)
    leaves, structure = jax.tree.flatten(params_of(kind))
    for k, leaf in enumerate(leaves):
        fits = getattr(value, "shape", None) == leaf.shape and value.dtype in ("f4", "f8")
        if value is None or fits:
            continue
        changed = jax.tree.unflatten(structure, [*leaves[:k], value, *leaves[k + 1 :]])
        fields = ["w_ih", "w_hh", "b", "b_hn", "layers", "forward", "backward", "params"]
        names_the_argument(
            "scan", fields, lambda changed=changed: jaxgru.scan(changed, XS["float32"]), right=never
        )


NEWTON = {
    "jacobian": lambda v: v in ("dense", "diagonal"),
    "guess": lambda v: v is None,
    "tol": lambda v: v is None or 0 < v < 1,
    "max_iterations": lambda v: _whole(v, range(1, 2**31)),
    "damping": lambda v: 0 <= v <= 1,
    "fallback": lambda v: v in ("scan", None),
    "length": SCAN["length"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEWTON)
@given(value=anything)
@example(value=2**31)
@example(value=np.zeros(3))
@settings(max_examples=25)
def test_an_argument_of_newton_scan(name, value):
    params, xs = params_of(), XS["float32"]
    if (
        isinstance(value, float | int)
        and not isinstance(value, bool)
        and name in ("tol", "damping")
    ):
        value = value if not 0 < value < 1 else 0.5  # each value compiles its own program

    def right(result):
        assert NEWTON[name](value), f"{value!r} was taken for {name}"
        if name != "tol" and (name != "max_iterations" or value > 50):
            length = None if name != "length" or value is None else int(value)
            assert_close(result[:2], oracle.scan(params, xs, length=length), 1e-5)

    call = lambda: jaxgru.newton_scan(params, xs, **{name: value})  # noqa: E731
    if name == "max_iterations" and _whole(value, range(3, 2**31 - 1)):
        return  # it is valid, but compiles its own program
    names_the_argument("newton_scan", [name], call, right=right)


@given(carry=anything, x=anything, kind=st.sampled_from((*CELLS, "stack")))
@settings(max_examples=30)
def test_arguments_of_step(carry, x, kind):
    params = params_of(kind)

    def right(result):
        expected = oracle.step(params, carry, x)
        assert_close(result, expected, VALUE_TOL["float32"])

    call = lambda: jaxgru.step(params, carry, x)  # noqa: E731
    names_the_argument("step", ["carry"], call, right=right)
    good = jaxgru.initial_carry(params)
    call = lambda: jaxgru.step(params, good, x)  # noqa: E731
    carry = good
    names_the_argument("step", ["x"], call, right=right)
    if kind in BUILT_IN:
        own = {"gru": "gru_step", "gru_after": "gru_step"}.get(kind, f"{kind}_step")
        call = lambda: getattr(jaxgru, own)(params, good, x)  # noqa: E731
        carry_right = lambda result: right((result, oracle.step(params, carry, x)[1]))  # noqa: E731
        names_the_argument(own, ["x"], call, right=carry_right)
        call = lambda: getattr(jaxgru, own)(x, good, x)  # noqa: E731
        names_the_argument(own, ["params"], call, right=carry_right)


INIT = ("key", "input_size", "hidden_size", "bias", "init", "chrono", "dtype")
WITHOUT = tuple(name for name in INIT if name != "chrono")
INITS = {"gru_init": (*INIT, "reset_after"), "lstm_init": INIT, "min_gru_init": INIT,
         "mgu_init": INIT, "elman_init": WITHOUT,
         "layer_norm_gru_init": (*WITHOUT, "separate"),
         "leaky_init": (*WITHOUT, "alpha", "nonlinearity")}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "name"), [(f, n) for f, names in INITS.items() for n in names]
)
@given(value=anything)
@settings(max_examples=25)
def test_an_argument_of_init(function, name, value):
    size = name in ("input_size", "hidden_size")
    if size and _whole(value, range(8, 2**31)):
        return  # they are valid, but each compiles its own program, and large ones exceed memory
    arguments = {"key": KEY, "input_size": INPUT, "hidden_size": HIDDEN} | {name: value}

    def right(params):
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
        if size:
            assert _whole(value, range(1, 8)), f"{value!r} was taken for {name}"
        if name in ("bias", "reset_after", "separate"):
            assert isinstance(value, bool)
        jaxgru.initial_carry(params)

    names_the_argument(
        function, [name], lambda: getattr(jaxgru, function)(**arguments), right=right
    )


def test_keys_and_memories_that_nearly_fit():
    with pytest.raises(ValueError, match=r"^gru_init: key must be one key, .*, got uint32\[5\]\.$"):
        jaxgru.gru_init(jnp.zeros(5, "uint32"), INPUT, HIDDEN)
    with pytest.raises(
        ValueError, match=r"^gru_init: chrono must be a finite number .*got 1e\+300"
    ):
        jaxgru.gru_init(KEY, INPUT, HIDDEN, chrono=1e300)


@pytest.mark.parametrize("name", ["key", "num_layers", "bidirectional", "cell"])
@given(value=anything)
@settings(max_examples=25)
def test_an_argument_of_stack_init(name, value):
    if name == "num_layers" and _whole(value, range(4, 10**401)):
        return
    if name == "cell" and callable(value):
        return
    arguments = {"key": KEY, "num_layers": 2} | {name: value}
    call = lambda: jaxgru.stack_init(input_size=INPUT, hidden_size=HIDDEN, **arguments)  # noqa: E731
    names_the_argument("stack_init", [name], call, right=jaxgru.initial_carry)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_length_of_each_kind_of_integer(dtype):
    for length in range(STEPS + 1):
        for value in (np.dtype(dtype).type(length), np.full((), length, dtype)):
            found = jaxgru.scan(params_of(), XS["float32"], length=value)
            expected = oracle.scan(params_of(), XS["float32"], length=length)
            assert_close(found, expected, VALUE_TOL["float32"])
    for wrong in {np.iinfo(dtype).min, np.iinfo(dtype).max} - {0}:
        with pytest.raises(ValueError, match=rf"^scan: length must be .*, got {wrong}\.$"):
            jaxgru.scan(params_of(), XS["float32"], length=np.dtype(dtype).type(wrong))


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("where", ["inputs", "a weight"])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_what_is_not_finite_is_not_called_converged(kind, where, bad):
    """newton_scan falls back, and then returns what scan returns, including NaN."""
    params, xs = params_of(kind), jnp.asarray(XS["float32"])
    if where == "inputs":
        xs = xs.at[2, 1].set(bad)
    else:
        leaves, structure = jax.tree.flatten(params)
        leaves[1] = leaves[1].at[(0,) * leaves[1].ndim].set(bad)
        params = jax.tree.unflatten(structure, leaves)
    carry, hs, info = jaxgru.newton_scan(params, xs)
    expected = jaxgru.scan(params, xs)
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(expected))
    assert finite or not bool(info.converged)
    for a, b in zip(jax.tree.leaves((carry, hs)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, equal_nan=True)
